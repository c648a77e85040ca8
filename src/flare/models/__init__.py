"""Networks and losses: pure torch, no Lightning."""
