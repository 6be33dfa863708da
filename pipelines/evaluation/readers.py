"""A reader study beside the model: each reader, their mean, and their majority vote (U28, U30).

A CSV file with the columns `reader`, `case`, `label`: what each called each case.
"""

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.errors import ManifestError

COLUMNS: Final = {"reader", "case", "label"}

Calls = Mapping[str, Mapping[str, str]]
"""Label by case by reader."""


@dataclass(frozen=True)
class Point:
    """One reader against the truth, one class against the rest."""

    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class ReaderPoints:
    """The readers who saw both classes, and the two ways to take them together."""

    each: Mapping[str, Point]
    mean: Point
    majority: Point | None


def load_readers(path: Path) -> Calls:
    """Return what each reader called each case.

    Raises:
        ManifestError: the file lacks a column, or a reader called a case twice.
    """
    calls: dict[str, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not set(rows.fieldnames or ()) >= COLUMNS:
                raise ManifestError(f"{path} needs the columns reader, case and label.")
            for row in rows:
                of = calls.setdefault(row["reader"], {})
                if row["case"] in of:
                    raise ManifestError(
                        f"{path}: {row['reader']} calls case '{row['case']}' twice."
                    )
                of[row["case"]] = row["label"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    return calls


def reader_points(calls: Calls, truth: Mapping[str, str], label: str) -> ReaderPoints | None:
    """Return the readers' points for `label` against the rest; None without any reader.

    `truth` is the label by case; cases without one are left out. A reader counts who saw at least
    one case of either class. Where most of the readers disagree, the case is no `label`: a majority
    is more than half.
    """
    each = {
        reader: point
        for reader, of in calls.items()
        if (point := _point({case: called == label for case, called in of.items()}, truth, label))
    }
    if not each:
        return None
    mean = Point(
        sum(p.sensitivity for p in each.values()) / len(each),
        sum(p.specificity for p in each.values()) / len(each),
    )
    return ReaderPoints(each, mean, _point(_majority(calls, label), truth, label))


def _majority(calls: Calls, label: str) -> dict[str, bool]:
    votes: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for of in calls.values():
        for case, called in of.items():
            seen[case] += 1
            votes[case] += called == label
    return {case: 2 * votes[case] > count for case, count in seen.items()}


def _point(called: Mapping[str, bool], truth: Mapping[str, str], label: str) -> Point | None:
    hits = [said for case, said in called.items() if truth.get(case) == label]
    rest = [said for case, said in called.items() if case in truth and truth[case] != label]
    if not hits or not rest:
        return None
    return Point(sum(hits) / len(hits), 1 - sum(rest) / len(rest))
