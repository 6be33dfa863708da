"""A reader study beside the model: each reader, their mean, and their majority vote (U28, U30).

A CSV file with the columns `reader`, `case`, `label`: what each called each case. A column `set`,
the name of a manifest, tells cases of one id apart.
"""

import csv
import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.errors import ManifestError
from pipelines.evaluation.reading import CaseKey
from pipelines.manifest import Manifest

COLUMNS: Final = {"reader", "case", "label"}

Calls = Mapping[str, Mapping[CaseKey, str]]
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


def load_readers(path: Path, sets: Sequence[Manifest], further_labels: Iterable[str] = ()) -> Calls:
    """Return what each reader called each case of `sets`.

    A label is one that a case of the sets has, or one of `further_labels`.

    Raises:
        ManifestError: the file lacks a column, names a case or a label that is none or a case that
            several sets have, or a reader called a case twice.
    """
    labels = {case.label for manifest in sets for case in manifest.cases if case.label}
    try:
        return _calls(_rows(path), sets, labels.union(further_labels))
    except (OSError, UnicodeDecodeError, csv.Error, ManifestError) as error:
        raise ManifestError(f"{path}: {error}") from error


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, restval="")
        if not set(rows.fieldnames or ()) >= COLUMNS:
            raise ManifestError("the columns reader, case and label are needed.")
        return list(rows)


def _calls(rows: Iterable[Mapping[str, str]], sets: Sequence[Manifest], labels: set[str]) -> Calls:
    ids = {manifest.name: {case.id for case in manifest.cases} for manifest in sets}
    calls: dict[str, dict[CaseKey, str]] = {}
    for row in rows:
        case = _case(row["case"], row.get("set", ""), ids)
        of = calls.setdefault(row["reader"], {})
        if case in of:
            raise ManifestError(f"{row['reader']} calls case '{row['case']}' twice.")
        of[case] = _known("label", row["label"], labels)
    return calls


def _case(name: str, data_set: str, ids: Mapping[str, set[str]]) -> CaseKey:
    if data_set:
        return _known("set", data_set, ids), _known(f"case of '{data_set}'", name, ids[data_set])
    _known("case", name, set().union(*ids.values()))
    found = [called for called, of in ids.items() if name in of]
    if len(found) > 1:
        raise ManifestError(
            f"case '{name}' is in the sets {', '.join(found)}: a column 'set' must say which."
        )
    return found[0], name


def _known(what: str, name: str, names: Iterable[str]) -> str:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0)
        hint = f"; the nearest is '{near[0]}'." if near else "."
        raise ManifestError(f"no {what} is called '{name}'{hint}")
    return name


def reader_points(calls: Calls, truth: Mapping[CaseKey, str], label: str) -> ReaderPoints | None:
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


def _majority(calls: Calls, label: str) -> dict[CaseKey, bool]:
    votes: Counter[CaseKey] = Counter()
    seen: Counter[CaseKey] = Counter()
    for of in calls.values():
        for case, called in of.items():
            seen[case] += 1
            votes[case] += called == label
    return {case: 2 * votes[case] > count for case, count in seen.items()}


def _point(
    called: Mapping[CaseKey, bool], truth: Mapping[CaseKey, str], label: str
) -> Point | None:
    hits = [said for case, said in called.items() if truth.get(case) == label]
    rest = [said for case, said in called.items() if case in truth and truth[case] != label]
    if not hits or not rest:
        return None
    return Point(sum(hits) / len(hits), 1 - sum(rest) / len(rest))
