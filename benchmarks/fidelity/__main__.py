"""Compare with independent implementations, item by item, and print one table.

    make fidelity
    .venv-peers/bin/python benchmarks/fidelity networks scores    # some of the items

Exits with 1 if a difference is larger than it may be, or an item cannot be run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys
import time
import traceback
import warnings

from rows import ABDOMEN, Row

from flare.core.heap import keep_heap

ITEMS = (
    "networks",
    "predictor",
    "preprocess",
    "training_step",
    "augmentation",
    "spatial",
    "rules",
    "authors",
    "scores",
    "planner",
)
COLUMNS = ("item", "compared", "with", "difference", "allowed", "")


def run(item: str) -> list[Row]:
    """The rows of one item; what cannot be run is a row that fails."""
    rows: list[Row] = []
    noise = io.StringIO()  # the peers print
    try:
        with contextlib.redirect_stdout(noise):
            for row in importlib.import_module(item).check():
                rows.append(row)
                print(f"  {row.what}: {row.measured}", file=sys.stderr)
    except Exception as error:
        traceback.print_exc()
        rows.append(Row(f"{type(error).__name__}: {error}", "-", "not run", "", False))
    return rows


def main() -> int:
    keep_heap()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", nargs="*", default=ITEMS, help=", ".join(ITEMS))
    chosen = parser.parse_args().items
    os.environ.setdefault("nnUNet_def_n_proc", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if not ABDOMEN.is_file():
        sys.stderr.write(f"{ABDOMEN}: not there; set FLARE_DATA to the folder of the real CT scans\n")
        return 1
    table, failed = [COLUMNS], 0
    for item in chosen:
        started = time.monotonic()
        print(item, file=sys.stderr)
        for row in run(item):
            verdict = {True: "pass", False: "FAIL", None: "stated"}[row.passed]
            failed += row.passed is False
            table.append((item, row.what, row.with_version, row.measured, row.allowed, verdict))
        print(f"  {time.monotonic() - started:.0f} s", file=sys.stderr)
    for cells in [table[0], ("---",) * len(COLUMNS), *table[1:]]:
        print("| " + " | ".join(cells) + " |")
    print(f"\n{failed} of {len(table) - 1} rows fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
