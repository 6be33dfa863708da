"""Quality over time: do people agree with the box, and is what it gets and says still the same?

The last `RECENT_WEEKS` are held against the weeks before, and each site and scanner against all
others, by the limits of `control_limits`. What is beyond them is a sentence for an administrator,
before anyone complains. What the models were measured on is in `reference.json` beside them.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from appliance.control_limits import (
    LEAST_CASES,
    Mean,
    Rate,
    means_differ,
    rates_differ,
)
from appliance.tables import QualityRecord

WEEKS: Final = 26
RECENT_WEEKS: Final = 4
OUTSIDE_AT_MOST: Final = 0.05
"""The share of cases outside of a reference's range that is expected: it holds 95 of 100."""
REFERENCE_FILE: Final = "reference.json"

Records = Sequence[QualityRecord]
"""Or rows of the same columns."""


@dataclass(frozen=True)
class Range:
    """What a measure was in the data that the models were measured on, and which data those are."""

    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Group:
    """Some cases: of a week, a site or a scanner."""

    name: str
    cases: int
    agreed: Rate
    """Of the confirmed results those that were not overridden."""
    positive: Rate
    """Of the results that have an answer."""
    lesions_rejected: Rate
    """Of the lesions of confirmed results, like the corrected ones."""
    lesions_corrected: Rate
    lesions_missed: Rate
    """Those that people added, of the lesions of confirmed results that were not rejected."""
    lung_hu: Mean | None
    slice_spacing_mm: Mean | None
    noise_hu: Mean | None
    burden: Mean | None


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    weeks: tuple[Group, ...]
    """By their Mondays, oldest first."""
    recent: Group
    earlier: Group
    sites: tuple[Group, ...]
    scanners: tuple[Group, ...]
    kernels: tuple[tuple[str, int], ...]
    """Of the last weeks, the most frequent first."""
    reasons: tuple[tuple[str, int], ...]
    """Why people decided otherwise in the last weeks."""
    reference: dict[str, Range]
    warnings: tuple[str, ...]


def make(db: Session, weights_dir: Path, *, now: datetime) -> Report:
    """The report of the last `WEEKS` weeks."""
    monday = now.date() - timedelta(days=now.weekday())
    first = monday - timedelta(weeks=WEEKS - 1)
    since = now - timedelta(days=(now.date() - first).days + 1)
    # Plain rows: thousands of objects take five times as long.
    rows = db.execute(select(*QualityRecord.__table__.columns).where(QualityRecord.at >= since))
    records: list[Any] = [row for row in rows if row.at.date() >= first]
    border = monday - timedelta(weeks=RECENT_WEEKS - 1)
    recent = [row for row in records if row.at.date() >= border]
    earlier = [row for row in records if row.at.date() < border]
    reference = read_reference(weights_dir)
    return Report(
        weeks=tuple(_weeks(records, first)),
        recent=_group("", recent),
        earlier=_group("", earlier),
        sites=tuple(_grouped(recent, _site)),
        scanners=tuple(_grouped(recent, _scanner)),
        kernels=tuple(Counter(row.kernel for row in recent).most_common()),
        reasons=tuple(Counter(row.reason for row in recent if row.reason).most_common()),
        reference=reference,
        warnings=tuple(_warnings(recent, earlier, reference)),
    )


def read_reference(weights_dir: Path) -> dict[str, Range]:
    """The ranges of the models' data by measure; none where the models come without."""
    try:
        document = json.loads((weights_dir / REFERENCE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: Range(**said) for name, said in document.items()}


def _weeks(records: Records, first: date) -> Iterator[Group]:
    by_week: dict[date, list[QualityRecord]] = defaultdict(list)
    for row in records:
        day = row.at.date()
        by_week[day - timedelta(days=day.weekday())].append(row)
    for number in range(WEEKS):
        monday = first + timedelta(weeks=number)
        yield _group(monday.isoformat(), by_week[monday])


def _grouped(records: Records, key: Callable[[QualityRecord], str]) -> Iterator[Group]:
    """Yield a group for each value of a key, the largest first."""
    found: dict[str, list[QualityRecord]] = defaultdict(list)
    for row in records:
        found[key(row)].append(row)
    for name, rows in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        yield _group(name, rows)


def _site(row: QualityRecord) -> str:
    return row.source_ae or "not named"


def _scanner(row: QualityRecord) -> str:
    return f"{row.manufacturer} {row.model}".strip() or "not named"


def _group(name: str, rows: Records) -> Group:
    reviewed = [row for row in rows if row.review]
    answered = [row for row in rows if row.positive is not None]
    found = sum(row.lesion_count for row in reviewed)
    rejected = sum(row.rejected_count or 0 for row in reviewed)
    added = sum(row.added_count or 0 for row in reviewed)
    return Group(
        name=name,
        cases=len(rows),
        agreed=Rate(sum(not row.overridden for row in reviewed), len(reviewed)),
        positive=Rate(sum(bool(row.positive) for row in answered), len(answered)),
        lesions_rejected=Rate(rejected, found),
        lesions_corrected=Rate(sum(row.corrected_count or 0 for row in reviewed), found),
        lesions_missed=Rate(added, found - rejected + added),
        lung_hu=_mean(row.lung_hu for row in rows),
        slice_spacing_mm=_mean(row.slice_spacing_mm for row in rows),
        noise_hu=_mean(row.noise_hu for row in rows),
        burden=_mean(row.burden for row in rows),
    )


def _mean(values: Iterable[float | None]) -> Mean | None:
    return Mean.of_values([value for value in values if value is not None])


def _warnings(recent: Records, earlier: Records, reference: dict[str, Range]) -> Iterator[str]:
    now, before = _group("", recent), _group("", earlier)
    if rates_differ(now.agreed, before.agreed) < 0:
        yield (
            f"People agree with the box less than before: in {_percent(now.agreed)} of the results"
            f" confirmed in the last {RECENT_WEEKS} weeks, {_percent(before.agreed)} before."
            " Look at the reasons they gave."
        )
    if direction := rates_differ(now.positive, before.positive):
        yield (
            f"{'More' if direction > 0 else 'Fewer'} results are positive than before:"
            f" {_percent(now.positive)}, {_percent(before.positive)} before. The patients may have"
            " changed, or a scanner or model: look at the tables below."
        )
    yield from _drifts(now, before)
    yield from _groups_that_differ(recent, "sent by", _site)
    yield from _groups_that_differ(recent, "from the scanner", _scanner)
    yield from _new_scanners(recent, earlier)
    yield from _outside(recent, reference)


def _drifts(now: Group, before: Group) -> Iterator[str]:
    for recent, earlier, what, unit, scale in (
        (now.lung_hu, before.lung_hu, "mean density of the lungs", "HU", 1.0),
        (now.slice_spacing_mm, before.slice_spacing_mm, "distance of the slices", "mm", 1.0),
        (now.noise_hu, before.noise_hu, "noise of the images", "HU", 1.0),
        (now.burden, before.burden, "lesions' share of the lungs", "%", 100.0),
    ):
        if recent and earlier and (direction := means_differ(recent, earlier)):
            yield (
                f"The {what} is {'higher' if direction > 0 else 'lower'} than before:"
                f" {recent.value * scale:.1f} {unit} on average in the last {RECENT_WEEKS} weeks,"
                f" {earlier.value * scale:.1f} {unit} before. See whether a scanner or a protocol"
                " changed."
            )


def _groups_that_differ(
    recent: Records, which: str, key: Callable[[QualityRecord], str]
) -> Iterator[str]:
    everybody = _group("", recent).agreed
    for group in _grouped(recent, key):
        others = Rate(everybody.count - group.agreed.count, everybody.of - group.agreed.of)
        if rates_differ(group.agreed, others) < 0:
            yield (
                f"People agree with {_percent(group.agreed)} of the results of studies {which}"
                f" {group.name}, with {_percent(others)} of all others. Look at its protocol."
            )


def _new_scanners(recent: Records, earlier: Records) -> Iterator[str]:
    known = {_scanner(row) for row in earlier}
    if len(earlier) < LEAST_CASES:
        return
    for group in _grouped(recent, _scanner):
        if group.cases >= LEAST_CASES and group.name not in known:
            yield (
                f"{group.name} is a new scanner, with {group.cases} studies: look at some of its"
                " results."
            )


def _outside(recent: Records, reference: dict[str, Range]) -> Iterator[str]:
    """What differs from the data that the models were measured on."""
    for name, what, unit in (
        ("slice_spacing_mm", "a distance of slices", "mm"),
        ("lung_hu", "a mean density of the lungs", "HU"),
    ):
        values = [value for row in recent if (value := getattr(row, name)) is not None]
        if (wanted := reference.get(name)) is None or len(values) < LEAST_CASES:
            continue
        outside = Rate(
            sum(not wanted.low <= round(value, 2) <= wanted.high for value in values), len(values)
        )
        if outside.interval()[0] > OUTSIDE_AT_MOST:
            yield (
                f"{_percent(outside)} of the studies have {what} outside of {wanted.low:g} to"
                f" {wanted.high:g} {unit}, which is what the models were measured on"
                f" ({wanted.source}): believe their figures less there."
            )


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.0f} % ({rate.count} of {rate.of})"
