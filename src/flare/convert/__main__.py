"""`python -m flare.convert source=... output=...`, see `foreign`."""

from flare.core.errors import entry

entry("convert", "flare.convert.foreign", "main")
