"""`python -m flare.plan`."""
