"""`python -m flare.sweeps sweep=... [rerun=true] [<overrides>]`, see `rerun`."""

from flare.cli import run

run("sweeps")
