"""Commands in processes of their own that need not import torch, Lightning and MONAI anew.

A server imports them once for a worker of pytest and forks for each command: a start takes 50 ms of the
processor's time instead of 8 s. What is about the start of a command itself is tested with `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NoReturn

HEAVY = (
    *("torch", "pytorch_lightning", "monai.networks.nets", "monai.losses", "torchio", "SimpleITK", "hydra"),
    *("scipy.ndimage", "matplotlib.pyplot", "flare.cli", "flare.rounds.train", "flare.inference.predict"),
    *("flare.evaluation.scores", "flare.merging.merge", "flare.report.page", "flare.phantom.anatomy"),
)


class Command:
    """A command that runs: what `subprocess.Popen` offers of it, its output read as text."""

    def __init__(self, line: Sequence[str | Path], cwd: str | Path | None, env: dict[str, str]) -> None:
        self.args = [str(part) for part in line]
        self.returncode: int | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(_serve())
        request = {"line": self.args[1:], "cwd": str(cwd or Path.cwd()), "env": env}
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        socket.send_fds(self._server, [json.dumps(request).encode() + b"\n"], [out_end, err_end])
        os.close(out_end)
        os.close(err_end)
        self.stdout: IO[str] = os.fdopen(out, encoding="utf-8", errors="replace")
        self.stderr: IO[str] = os.fdopen(err, encoding="utf-8", errors="replace")
        self._answers = self._server.makefile()
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Give the exit code, negative for a signal; None while the command runs."""
        if self.returncode is None and _is_readable(self._server, 0):
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code."""
        if self.returncode is None and not _is_readable(self._server, timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and give both outputs."""
        told = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            told[number] = stream.read()

        readers = [
            threading.Thread(target=read, args=(number, stream), daemon=True)
            for number, stream in enumerate((self.stdout, self.stderr))
        ]
        until = time.monotonic() + (timeout or 1e6)
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(until - time.monotonic())
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(max(0, until - time.monotonic()))
        return told[0], told[1]

    def send_signal(self, number: int) -> None:
        """Signal the command, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command at once."""
        self.send_signal(signal.SIGKILL)


def start(line: Sequence[str | Path], cwd: str | Path | None = None, **environment: str) -> Command:
    """Start `python script.py`, `python -m module` or `python -c code` in a session of its own."""
    return Command(line, cwd, os.environ | environment)


def run(
    line: Sequence[str | Path],
    cwd: str | Path | None = None,
    timeout: float | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = start(line, cwd, **environment)
    stdout, stderr = command.communicate(timeout)
    return subprocess.CompletedProcess(command.args, command.wait(), stdout, stderr)


def _is_readable(connection: socket.socket, timeout: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(timeout))


@cache
def _serve() -> str:
    """Start the server of this process; give its address."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    address = str(Path(folder.name) / "socket")
    # a single thread: what is learned must not depend on how busy the machine is
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment, start_new_session=True, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    atexit.register(folder.cleanup)
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    assert server.stdout.readline() == "ready\n"
    return address


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read a request and the two ends of its output."""
    message, ends = b"", []
    while not message.endswith(b"\n"):
        part, came, _, _ = socket.recv_fds(connection, 65536, 2)
        message += part
        ends += came
    return json.loads(message), ends


def _listen(address: str) -> dict[str, Any]:
    """Fork for each request until the starter ends; only the forked processes return, with their request."""
    # what comes from a terminal is meant for pytest
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake, wakes = os.pipe()
    for end in (wake, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    running: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for source in (listener, wake, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        found = [key.fileobj for key, _ in selector.select()]
        if sys.stdin in found:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        if wake in found:
            os.read(wake, 4096)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    _tell(running.pop(pid), os.waitstatus_to_exitcode(status), is_last=True)
        if listener in found:
            connection = listener.accept()[0]
            request, ends = _receive(connection)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                selector.close()
                for other in (listener, connection, *running.values()):
                    other.close()
                for end in (wake, wakes):
                    os.close(end)
                _become(request, ends)
                return request
            for end in ends:
                os.close(end)
            running[pid] = connection
            _tell(connection, pid)


def _tell(connection: socket.socket, number: int, *, is_last: bool = False) -> None:
    """Answer with a number; a starter that is gone needs none."""
    try:
        connection.sendall(f"{number}\n".encode())
    except OSError:
        is_last = True
    if is_last:
        connection.close()


def _become(request: dict[str, Any], ends: list[int]) -> None:
    """Make this process what the started one would be: session, signals, files, folder and environment."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, end in enumerate((nothing, *ends)):
        os.dup2(end, number)
        os.close(end)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # what spawned processes find a script by
    sys.path[1:1] = [p for p in request["env"].get("PYTHONPATH", "").split(os.pathsep) if p]


def _do(line: list[str]) -> int:
    """Do what `python` does with a command line; returns the exit code."""
    try:
        _run(line)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as Python does, but leave the memory to the system: to free what was imported takes a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(line: list[str]) -> None:
    if line[0] == "-c":
        sys.argv = ["-c", *line[2:]]
        sys.path[0] = ""
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(line[1], main.__dict__)
    elif line[0] == "-m":
        sys.argv = line[1:]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(line[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = line
        sys.path[0] = str(Path(line[0]).parent)
        runpy.run_path(line[0], run_name="__main__")


if __name__ == "__main__":
    for name in HEAVY:
        importlib.import_module(name)
    for path in (files("flare.phantom") / "maps").iterdir():
        sys.modules["flare.phantom.anatomy"].load_anatomy(str(path), "amos")  # seconds in each phantom
    gc.freeze()
    _end(_do(_listen(sys.argv[1])["line"]))
