"""`python -m flare.plan checkpoint=... data=...`, see `rounds.fit_plan`."""

from flare.runs.door import entry

if __name__ == "__main__":
    entry("plan", "flare.rounds.fit_plan", "main")
