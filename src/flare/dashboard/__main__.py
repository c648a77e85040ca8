"""`python -m flare.dashboard run=... [online=true]`, see `command`."""

from __future__ import annotations

import sys

from flare.dashboard.command import main

sys.exit(main(sys.argv[1:]))
