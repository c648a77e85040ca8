"""`python -m flare.sweeps sweep=... [rerun=true] [<overrides>]`, see `rerun`."""

from __future__ import annotations

import sys

from flare.sweeps.rerun import main

sys.exit(main(sys.argv[1:]))
