"""`python -m flare.convert source=... output=...`, see `foreign`."""

from flare.cli import run

run("convert")
