"""What is around a command's work: how it is composed, and how it ends when it is told to stop.

SIGTERM and Ctrl-C end a command with exit code 143 or 130 and a line: where it stopped, how to go on.
"""

import atexit
import importlib
import logging
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig

from flare.core.errors import CONF, without_secrets
from flare.core.heap import keep_heap
from flare.core.paths import expand_home, tell_quoting

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # the last by submitit, before a job's time is over
INSISTS_S = 2  # `timeout` signals a process and then its group: a later second signal waits for nothing
PATIENCE_S = 60  # for processes that write a checkpoint of the moment


class Stopped(SystemExit):
    """A signal told this process to stop; nothing but the end of its command may catch this."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


@dataclass
class _Watch:
    """What is known of signals in this process."""

    number: int | None = None  # the signal that came
    since: float = 0  # when it came, monotonic seconds
    is_waiting: bool = False  # whether the work stops by itself, at the end of a step
    places: list[Callable[[], str]] = field(default_factory=list)  # tell what is being done, outermost first
    stopped_in: str = ""  # what they told when the signal came
    again: str = ""  # the command that goes on; empty for the same one


_watch = _Watch()


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate what `hydra.main` made of a script's work, so that it ends as a command should."""

    @wraps(main)
    def run(cfg: DictConfig | None = None) -> Any:
        if cfg is not None:
            return main(cfg)
        listen()
        keep_heap()
        own_streams()
        logging.raiseExceptions = False  # a full disk costs lines of a log, and shows no tracebacks for them
        sys.argv[1:] = map(expand_home, sys.argv[1:])
        try:
            main()
        except Stopped:
            pass
        except SystemExit as ended:
            if ended.code == 1:
                sys.stderr.writelines(f"{line}\n" for line in tell_quoting(sys.argv[1:]))
            if _watch.number is None:
                raise
        if _watch.number is not None:
            _end(Stopped(_watch.number))

    return run


def entry(script: str, module: str, function: str, chosen: str | None = None) -> Any:
    """Compose `conf/<script>.yaml` with the command line and call a function of a module with it.

    The module is imported as the work begins: `--help` comes at once. A sweep optimises its `chosen`.
    """

    def work(cfg: DictConfig) -> Any:
        result = getattr(importlib.import_module(module), function)(cfg)
        return result if chosen is None else result[chosen]

    work.__module__ = "flare.cli"  # Hydra names the job by it, and a console command's folder: hydra/cli
    return command(hydra.main(version_base="1.3", config_path=str(CONF), config_name=script)(work))()


def own_streams() -> None:
    """Give Python's streams descriptors of their own: readers silence those of libraries in C."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with suppress(OSError):  # one that is no file has none
            stream.flush()
            own = os.fdopen(os.dup(stream.fileno()), "w", 1, stream.encoding, stream.errors)
            setattr(sys, name, own)


def listen() -> None:
    """Take the signals of this process, in its main thread; one that is ignored (nohup) stays so."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            former = signal.getsignal(number)
            if former is not signal.SIG_IGN:
                signal.signal(number, _on_signal)
            if number == signal.SIGUSR2 and callable(former) and former is not _on_signal:
                atexit.register(_requeue, former)


def _requeue(handler: Callable[..., Any]) -> None:
    """Let submitit, whose handler of SIGUSR2 it is, queue its job again after all else, trackers included."""
    if _watch.number == signal.SIGUSR2:
        handler(_watch.number, None)
        time.sleep(PATIENCE_S)  # of several processes the first asks Slurm, which ends them all


def ignore_signals(*_: Any) -> None:
    """Let a worker's parent decide when the worker ends: a terminal and Slurm signal whole groups."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _on_signal(number: int, _: Any) -> None:
    """Note the first signal and stop, or let the work do so; a second one insists."""
    now = time.monotonic()
    if _watch.number is None:
        _watch.number, _watch.since = number, now
        _watch.stopped_in = where()
        if not _watch.is_waiting:
            stop()
    elif now - _watch.since > INSISTS_S:
        stop()


def is_asked() -> bool:
    """Whether a signal has told this process to stop."""
    return _watch.number is not None


def stop() -> NoReturn:
    """Stop here, where a signal asked for it; worker processes are told as well."""
    for child in multiprocessing.active_children():
        child.terminate()
    raise Stopped(_watch.number or signal.SIGTERM)


def wait_for_step(waits: bool) -> None:
    """Say whether a signal waits until the work looks at `is_asked`."""
    _watch.is_waiting = waits


@contextmanager
def place(tell: Callable[[], str]) -> Iterator[None]:
    """Say what is being done while the block runs, in words that follow "stopped in"."""
    _watch.places.append(tell)
    try:
        yield
    finally:
        _watch.places.remove(tell)


def where() -> str:
    """What is being done, outermost first; empty if nobody says."""
    return ", ".join(tell() for tell in _watch.places)


def go_on_with(line: str) -> None:
    """Name the command that goes on after a stop, where that is not the same one."""
    _watch.again = line


def _end(stopped: Stopped) -> None:
    """End the workers, say where the command stopped and how to go on, and exit with the signal's code."""
    deadline = time.monotonic() + PATIENCE_S
    for child in multiprocessing.active_children():
        child.join(max(deadline - time.monotonic(), 0))
        child.kill()
    # the threads of their pools end with them; Python's end must not meet one half way
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        if not thread.daemon:
            thread.join(1)
    told = f" in {_watch.stopped_in}" if _watch.stopped_in else ""
    again = without_secrets(_watch.again or _same(sys.argv))
    sys.stderr.write(f"stopped by {stopped.signal}{told}; go on with: {again}\n")
    raise SystemExit(stopped.code)


def _same(arguments: Sequence[str]) -> str:
    """The command line as it was typed, but for what would begin afresh."""
    program, *overrides = arguments
    module = getattr(sys.modules["__main__"], "__spec__", None)
    started = [Path(program).name]
    if module is not None and program.endswith(".py"):
        started = ["python", "-m", module.name.removesuffix(".__main__")]
    elif program.endswith(".py"):
        started = ["python", program]
    return shlex.join([*started, *(o for o in overrides if o not in ("ckpt_path=null", "ckpt_path=None"))])
