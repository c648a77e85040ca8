"""`python -m flare.convert source=... output=...`, see `command`."""

from __future__ import annotations

import sys

from flare.convert.command import main

sys.exit(main(sys.argv[1:]))
