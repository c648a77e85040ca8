"""`python -m flare.convert source=... output=...`, see `command`."""

from flare.cli import run

run("convert")
