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

Prints a table, and ends with 1 if anything of this does not hold. A figure that was done as often
as `figures` wants is kept in --results (a JSON file, and the table of all beside it), so that the
campaign may be done in parts. The networks are tiny and random unless --weights names others: what
is proven here is that nothing is lost. The moments of a figure depend on the seed and its name
alone.
"""

import argparse
import datetime as dt
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import pytest
from redis.exceptions import RedisError

from tests.end_to_end.faults.box import Box, Row, running
from tests.end_to_end.faults.figures import FIGURES, Figure
from tests.end_to_end.faults.holds import faults_in

RESULTS: Final = Path(__file__).parents[3] / "bench/results/faults.json"


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


def told(row: Row, seed: int) -> dict[str, Any]:
    """A row as it is kept."""
    return {
        "what": row.what,
        "times": row.times,
        "studies": len(row.sendings),
        "acknowledged": sum(len(sending.taken) for sending in row.sendings),
        "slowest recovery (s)": max(row.waits_s, default=None),
        "at most (s)": row.limit_s,
        "seconds": round(row.seconds),
        "kinds": dict(row.kinds),
        "faults": row.faults,
        "date": str(dt.datetime.now(tz=dt.UTC).date()),
        "seed": seed,
        "processors": f"{os.cpu_count()}, {_processor()}",
    }


def table(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """What was kept, by figure, in Markdown."""
    lines = [
        "| figure | what | times | studies | acknowledged | slowest recovery | seconds | faults |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in kept.items():
        slowest, limit = row["slowest recovery (s)"], row["at most (s)"]
        recovery = "" if slowest is None else f"{slowest:.1f} s"
        recovery += "" if limit is None else f" (at most {limit:.0f} s)"
        lines.append(
            f"| {name} | {row['what']} | {row['times']} | {row['studies'] or ''}"
            f" | {row['acknowledged'] or ''} | {recovery} | {row['seconds']}"
            f" | {len(row['faults'])} |"
        )
    return "\n".join(lines)


def report(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, where and when each figure was done, its kinds, and every fault."""
    notes = [
        f"- {name}: {row['date']}, seed {row['seed']}, {row['processors']}"
        + "".join(f"; {kind} {times}" for kind, times in row["kinds"].items())
        for name, row in kept.items()
    ]
    faults = [f"- {name}: {fault}" for name, row in kept.items() for fault in row["faults"]]
    return "\n\n".join(
        (
            "# Fault campaign",
            f"`make faults`, {sum(row['seconds'] for row in kept.values()) / 60:.0f} minutes.",
            table(kept),
            "\n".join(notes),
            "Faults:",
            "\n".join(faults) or "none",
        )
    )


def keep(results: Path, name: str, row: Mapping[str, Any]) -> None:
    """Put a figure into the results and into the table beside them."""
    before = json.loads(results.read_text()) if results.is_file() else {}
    found = before | {name: row}
    kept = {figure: found[figure] for figure in FIGURES if figure in found}
    results.write_text(json.dumps(kept, indent=1) + "\n")
    results.with_suffix(".md").write_text(report(kept) + "\n")


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
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to keep what was done")
    asked = parser.parse_args()
    done: dict[str, dict[str, Any]] = {}
    complete = True
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
                complete = complete and row.left <= 0
                done[name] = told(row, asked.seed)
                if count >= figure.count:
                    keep(asked.results, name, done[name])
                click.echo(table({name: done[name]}).splitlines()[-1])
    click.echo(f"\n{report(done)}")
    return 0 if complete and not any(row["faults"] for row in done.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
