"""A folder that one process at a time writes to."""

import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from flare.core.errors import FlareError

log = logging.getLogger(__name__)
HOLDER = re.compile(r"process (\d+)(?: on (\S+))?")
PATIENCE_S = 20  # processes that prepare patches notice within 5 s that their parent was killed


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, made if it is not there, while the block runs; the lock goes with the process.

    One that another process holds is waited for or refused, one that this process holds already is refused.
    Where the file system has no locks, as on some shares, a file that names host and process stands in. It
    goes with the block; that of a killed process of this host is removed by the next start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as stream:
        held = _Lock(stream, folder / ".lock.held")
        if not _take(held, wait=wait):
            hint = f", or delete {held.mark} if it has ended" if held.is_marked else ""
            holder = held.holder or "another process"
            raise FlareError(f"{folder} is in use by {holder}; wait for it{hint}, or choose another name=")
        try:
            yield
        finally:
            if held.is_marked:
                held.mark.unlink(missing_ok=True)


@dataclass
class _Lock:
    """A lock of the system on `stream`, or where `is_marked` a file `mark` that must not be there."""

    stream: IO[str]
    mark: Path
    is_marked: bool = False

    def take(self) -> bool:
        """Take it if nobody holds it, and say who holds it now."""
        own = f"process {os.getpid()} on {socket.gethostname()}"
        if not self.is_marked:
            try:
                fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                text = "the file system cannot lock (%s): a file .lock.held keeps other starts away"
                log.warning(text, error.strerror)
                self.is_marked = True
            else:
                self.stream.seek(0)
                self.stream.truncate()
                self.stream.write(own)
                self.stream.flush()
                return True
        try:
            with self.mark.open("x") as stream:
                stream.write(own)
        except FileExistsError:
            return False
        return True

    @property
    def holder(self) -> str:
        """Who holds it, as it says itself."""
        self.stream.seek(0)
        with suppress(FileNotFoundError):  # let go since
            return (self.mark.read_text(errors="replace") if self.is_marked else self.stream.read()).strip()
        return ""


def _take(held: _Lock, *, wait: bool) -> bool:
    """Take a lock; if its holder is dead, wait for what the holder had started and left."""
    deadline = time.monotonic() + PATIENCE_S
    told = False
    while not held.take():
        found = HOLDER.fullmatch(held.holder)
        number, host = found.groups() if found else (None, None)
        is_here = host in (None, socket.gethostname())
        if number is None or not is_here or psutil.pid_exists(int(number)):
            if not wait or (is_here and number == str(os.getpid())):
                return False
            if not told:
                log.info("process %s is at work in the same folder: waiting for it", number or "unknown")
                told = True
            deadline = time.monotonic() + PATIENCE_S
        elif held.is_marked:
            held.mark.unlink(missing_ok=True)
            continue
        elif time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
