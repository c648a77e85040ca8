"""Memory that a process frees stays its own: glibc would give it back, and fetch it again page by page.

Large arrays go back at once. A convolution on the CPU then spends up to half of its time in page faults, see
docs/benchmarks.md. Other C libraries are left as they are.
"""

import ctypes
import os

# glibc's variable -> number of the same setting in mallopt, its value there, and that of the variable
SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, -1, 2**63 - 1),  # never given back
    "MALLOC_TOP_PAD_": (-2, 2**28, 2**28),  # taken 256 MiB at a time (ours)
    "MALLOC_MMAP_MAX_": (-4, 0, 0),  # arrays of any size lie in the heap
}
OWN = (*SETTINGS, "MALLOC_MMAP_THRESHOLD_")


def keep_heap() -> None:
    """Keep what this process frees, and let the processes that it starts do so; a user's settings count.

    glibc reads its variables as a process starts, so this one is told by a call.
    """
    tuned = os.environ.get("GLIBC_TUNABLES", "")
    for name in OWN:
        newer = f"glibc.malloc.{name.removeprefix('MALLOC_').strip('_').lower()}="
        if name in os.environ or newer in tuned:
            return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for name, (number, value, variable) in SETTINGS.items():
        mallopt(number, value)
        os.environ[name] = str(variable)
