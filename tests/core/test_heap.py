"""Freed memory stays with the process, of a command and of what it starts; a user's own settings count."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from flare.core.heap import OWN
from tiny_run import ROOT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
SOURCES = {"PYTHONPATH": str(ROOT / "src")}
# page faults of filling 64 MB a second time; 32 at least, where pages are huge
FAULTS = """
import resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (1 << 26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
COMMAND = f"""
import subprocess, sys
from flare.runs.door import command
FAULTS = {FAULTS!r}
@command
def main():
    exec(FAULTS, globals())
    subprocess.run([sys.executable, "-c", FAULTS], check=True)
    raise SystemExit(7)
main()
"""


def run(code: str, **environment: str) -> tuple[int, list[int]]:
    """Exit code, and the faults that were counted."""
    plain = {key: value for key, value in os.environ.items() if key not in (*OWN, "GLIBC_TUNABLES")}
    line = [sys.executable, "-c", code]
    done = subprocess.run(
        line, env=plain | SOURCES | environment, stdout=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, [int(text) for text in done.stdout.split()]


def test_a_command_and_what_it_starts_keep_what_they_free() -> None:
    assert run(FAULTS)[1] > [30]
    code, counted = run(COMMAND)
    assert code == 7
    assert len(counted) == 2
    assert max(counted) < 10


@pytest.mark.parametrize(
    "own",
    [
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"MALLOC_TRIM_THRESHOLD_": "0"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
)
def test_what_a_user_chose_counts(own: dict[str, str]) -> None:
    assert min(run(COMMAND, **own)[1]) > 30
