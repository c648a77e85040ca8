"""`python -m flare.convert source=... output=...`, see `foreign`."""

from flare.runs.door import entry

entry("convert", "flare.convert.foreign", "main")
