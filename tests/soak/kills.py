"""Runs that are killed at random moments and in the middle of writes, and go on to the same end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress

import psutil
from fault import POINTS
from works import ONE_PROCESS, WORKS, Stage, Work, differences, named

import warm

Found = tuple[Counter[str], list[str]]  # counts, and what is not as it must be
OFTEN = {"iterate": 4, "train": 2, "infer": 1, "prepare": 1, "sweep": 1}  # shares of the kills (ours)


def kill(process: warm.Command) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):  # it was quicker
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def ended(stage: Stage, work: Work) -> list[str]:
    """Go on to the end, and say what differs from the undisturbed run."""
    done = stage.finish(work)
    if done.returncode:
        return [f"exit code {done.returncode}: {done.stderr[-600:]}"]
    return differences(stage.run, stage.whole(work))


def judge(found: Found, told: list[str], what: str) -> None:
    """Count a run that ended as the undisturbed one, or say of which disturbance it ended otherwise."""
    counts, wrong = found
    counts["identical"] += not told
    wrong += [f"{what}: {line}" for line in told]


def at_random(stage: Stage, kills: int, dice: random.Random) -> Found:
    """Kill runs at random moments, each one to three times."""
    counts, wrong = Counter[str](), []
    works, shares = list(named(tuple(OFTEN))), [OFTEN[w.name] for w in WORKS if w.name in OFTEN]
    while counts["kills"] < kills:
        (work,) = dice.choices(works, shares)
        stage.whole(work)
        stage.clear()
        moments = []
        for _ in range(min(dice.choice((1, 1, 2, 3)), kills - counts["kills"])):
            moments.append(dice.uniform(0.2, 1) * stage.seconds[work.name])
            process = stage.start(work)
            time.sleep(moments[-1])
            kill(process)
            counts["kills"] += 1
        counts["runs"] += 1
        judge(
            (counts, wrong),
            ended(stage, work),
            f"{work.name}, killed after {[f'{m:.1f}' for m in moments]} s",
        )
    return counts, wrong


def in_writes(stage: Stage, times: int, dice: random.Random) -> Found:
    """Kill runs before and after a rename, and in the middle of a checkpoint, a line, a report, a file."""
    counts, wrong = Counter[str](), []
    for point in POINTS:
        for _ in range(times):
            work = dice.choice([w for w in named(ONE_PROCESS) if _met(stage, w, point)])
            number = dice.randint(1, _met(stage, work, point))
            stage.clear()
            process = stage.start(work, f"fault.arm({point!r}, {number}, '')")
            process.communicate(900)
            if process.wait() != -signal.SIGKILL:
                wrong.append(f"{work.name}, {point} {number}: it was not killed but ended {process.wait()}")
                continue
            counts["kills"] += 1
            counts[f"in a {point}"] += 1
            counts["runs"] += 1
            judge((counts, wrong), ended(stage, work), f"{work.name}, {point} {number}")
    return counts, wrong


def of_workers(stage: Stage, times: int, dice: random.Random) -> Found:
    """Kill one process that a run has started, and not the run, which goes on by itself or with a new start.

    `--override` chooses the executor (`executor=dask`), whose worker, nanny or scheduler it may then be.
    """
    counts, wrong = Counter[str](), []
    for _ in range(times):
        (work,) = named(("prepare",)) if dice.random() < 0.5 else named(("iterate",))
        stage.whole(work)
        stage.clear()
        process = stage.start(work)
        moment = dice.uniform(0.3, 0.8) * stage.seconds[work.name]
        time.sleep(moment)
        if children := psutil.Process(process.pid).children(recursive=True):
            counts["kills"] += 1
            with suppress(psutil.NoSuchProcess):
                dice.choice(children).kill()
        text = "".join(process.communicate(900))
        if process.wait():
            counts["started again"] += 1
            wrong += [f"{work.name}, a process killed: {text[-600:]}"] * ("Traceback" in text)
        counts["runs"] += 1
        judge((counts, wrong), ended(stage, work), f"{work.name}, a process killed after {moment:.1f} s")
    return counts, wrong


def _met(stage: Stage, work: Work, point: str) -> int:
    """How often an undisturbed run does what a point stands for."""
    stage.whole(work)
    return json.loads(stage.counts[work.name]).get(point, 0)
