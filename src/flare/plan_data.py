"""`python -m flare.plan_data data=nnunet data.root=...`, see `prepare.proposal`."""

from flare.runs.door import entry

if __name__ == "__main__":
    entry("plan_data", "flare.prepare.proposal", "main")
