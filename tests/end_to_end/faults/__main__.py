"""The fault campaign: `make faults`, or `python -m tests.end_to_end.faults --only F8 --count 20`.

An appliance of its own, as `appliance serve` runs it, receives synthetic chests under fresh UIDs
and sends everything that comes of them to a PACS, while whatever can fail is made to: one figure
after the other, as `figures` says. Senders send again what was not answered; nobody else lends a
hand. In the end:

- every instance that was answered with Success is in the database and, byte for byte, in the store,
  and no part of a file is;
- every study is READY with exactly one current result, of all its images; older ones are marked;
- the PACS has every object of it once, and none of a delivery that nobody knows of;
- all results are the same, because all chests are; the audit's chain is whole.

Prints a table, and ends with 1 if anything of this does not hold. A whole campaign writes it to
--results. The networks are tiny and random unless --weights names others: what is proven here is
that nothing is lost. The moments of a figure depend on the seed and its name alone.
"""

import argparse
import datetime as dt
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import pytest
from redis.exceptions import RedisError

from tests.end_to_end.faults.box import Box, Row, running
from tests.end_to_end.faults.figures import FIGURES, Figure
from tests.end_to_end.faults.holds import faults_in

RESULTS: Final = Path(__file__).parents[3] / "bench/results/faults.md"


def carry_out(box: Box, figure: Figure, count: int, seed: int) -> Row:
    """Do what a figure counts so many times; returns what came of it."""
    row = Row(figure.name, figure.what, count, random.Random(f"{seed} {figure.name}"))
    began = time.monotonic()
    try:
        figure.do(box, row)
        box.settle(row.sendings)
    except (OSError, AssertionError, RedisError) as error:
        row.faults.append(str(error) or type(error).__name__)
    row.faults += faults_in(box, row.sendings)
    row.seconds = time.monotonic() - began
    return row


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| figure | what | times | studies | acknowledged | slowest recovery | seconds | faults |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        acknowledged = sum(len(sending.taken) for sending in row.sendings)
        slowest = f"{max(row.waits_s):.1f} s" if row.waits_s else ""
        limit = f" (at most {row.limit_s:.0f} s)" if row.limit_s else ""
        lines.append(
            f"| {row.figure} | {row.what} | {row.times} | {len(row.sendings) or ''}"
            f" | {acknowledged or ''} | {slowest}{limit} | {row.seconds:.0f} | {len(row.faults)} |"
        )
    return "\n".join(lines)


def report(rows: Sequence[Row], seed: int) -> str:
    """The table, the kinds of each figure, and every fault."""
    kinds = "\n".join(
        f"- {row.figure}: " + ", ".join(f"{kind} {times}" for kind, times in row.kinds.items())
        for row in rows
        if row.kinds
    )
    faults = "\n".join(f"- {row.figure}: {fault}" for row in rows for fault in row.faults)
    seconds = sum(row.seconds for row in rows)
    return (
        f"# Fault campaign, {dt.datetime.now(tz=dt.UTC).date()}\n\n"
        f"`make faults`, seed {seed}, {os.cpu_count()} processors ({_processor()}),"
        f" {seconds / 60:.0f} minutes.\n\n{table(rows)}\n\n{kinds}\n\n"
        f"Faults:\n\n{faults or 'none'}\n"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), help="these figures alone")
    parser.add_argument("--count", type=int, help="how often, instead of the figures' own counts")
    parser.add_argument("--seed", type=int, default=2026, help="of the moments that are chosen")
    parser.add_argument("--weights", type=Path, help="folder of models instead of tiny ones")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    parser.add_argument("--results", type=Path, help="where to write the table")
    asked = parser.parse_args()
    whole = asked.only is None and asked.count is None
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with running(folder, asked.weights) as box:
            for name in asked.only or FIGURES:
                figure = FIGURES[name]
                count = asked.count or figure.count
                try:
                    row = carry_out(box, figure, count, asked.seed)
                except pytest.skip.Exception as skipped:
                    row = Row(name, figure.what, count, random.Random())
                    row.faults.append(f"not done: {skipped}")
                rows.append(row)
                click.echo(table(rows[-1:]).splitlines()[-1])
    told = report(rows, asked.seed)
    click.echo(f"\n{told}")
    if (results := asked.results or (RESULTS if whole else None)) is not None:
        results.write_text(told)
    return 1 if any(row.faults or row.left > 0 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
