"""What a report says, in the order in which it says it: for the page, the PDF and plain text alike.

There is one report of a result. The document in the PACS and what a browser shows are made of the
same `Report`, and each form only lays out what `sections` returns. Text in it is data, as it was
received: whoever makes markup of it escapes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from pipelines.findings import Analysis, Involvement, Lesion
from pipelines.severity import Third, third_of

PRODUCT: Final = "Chest CT AI"
TITLE: Final = "Chest CT: result of the automatic analysis"
NOTICE: Final = "Research use only, not for primary diagnosis."
UNCONFIRMED: Final = "UNCONFIRMED"
SUPERSEDED: Final = "SUPERSEDED"
NOT_CONFIRMED: Final = "Not confirmed by a person."

_DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # with dots: ACR-NEMA, PS3.5 6.2
_TIME: Final = re.compile(r"(\d{2}):?(\d{2}).*")
_ABSENT: Final = "-"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whose study it is, each value as DICOM has it, "" where it is unknown."""

    patient_name: str = ""
    patient_id: str = ""
    birth_date: str = ""
    sex: str = ""
    accession_number: str = ""
    description: str = ""
    study_date: str = ""
    study_time: str = ""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Who confirmed a result, and what this person said of it.

    Attributes:
        name: As people write it.
        organisation: For which the person acts.
        at: When, with its time zone.
        version: Counted from 1; a higher one replaces the one before.
        reason: Why the case is decided otherwise than by the analysis; empty where they agree.
        comment: What else the person says.
        rejected: The numbers of the lesions that are none to the person.
        outlined: The numbers of the lesions that the person outlined, ascending.
        signs: What the person saw in lesions, by their numbers.
    """

    name: str
    organisation: str
    at: datetime
    version: int
    positive: bool
    reason: str = ""
    comment: str = ""
    rejected: tuple[int, ...] = ()
    outlined: tuple[int, ...] = ()
    signs: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """A result as it stands.

    Attributes:
        analysis: With the lesions that stand, its masks perhaps left out.
        machine_positive: What the analysis said of the case.
        machine_lesions: The numbers of the lesions that the analysis found.
        analysed_at: With its time zone.
        confirmation: None as long as nobody confirmed it.
    """

    analysis: Analysis
    machine_positive: bool
    machine_lesions: Collection[int]
    analysed_at: datetime
    confirmation: Confirmation | None

    @property
    def positive(self) -> bool:
        """The case, as the person sees it, else as the analysis does."""
        return self.machine_positive if self.confirmation is None else self.confirmation.positive

    @property
    def outlined(self) -> tuple[int, ...]:
        """The numbers of the lesions that the person outlined."""
        return () if self.confirmation is None else self.confirmation.outlined

    @property
    def is_edited(self) -> bool:
        """Whether a person rejected or outlined lesions, so that they are not the analysis's."""
        return self.confirmation is not None and bool(self.confirmation.rejected or self.outlined)

    @property
    def corrected(self) -> tuple[int, ...]:
        """Those of them that the analysis found, with another outline."""
        return tuple(number for number in self.outlined if number in self.machine_lesions)

    @property
    def added(self) -> tuple[int, ...]:
        """Those of them that the analysis missed."""
        return tuple(number for number in self.outlined if number not in self.machine_lesions)


@dataclass(frozen=True, eq=False, kw_only=True)
class Prior:
    """The result of an earlier study of the same patient; None where it cannot be read."""

    study_date: str
    outcome: Outcome | None

    @property
    def name(self) -> str:
        """What tells it from other results, for the name of a document that compares with it."""
        outcome = self.outcome
        if outcome is None:
            return json.dumps([self.study_date])
        person = outcome.confirmation
        return json.dumps(
            [
                self.study_date,
                outcome.analysis.series_uid,
                outcome.analysed_at.astimezone(UTC).isoformat(),
                [model.digest for model in outcome.analysis.models],
                person and [person.version, person.at.astimezone(UTC).isoformat()],
            ]
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """Everything that a report is made of.

    Attributes:
        thirds: The third of its lung that each lesion lies in, by the lesion's number.
        pictures: The key images, PNG.
        box: Which box of which release says so.
        superseded: Why it is no longer the current report, a sentence; "" where it is.
    """

    subject: Subject
    outcome: Outcome
    thirds: Mapping[int, Third | None]
    pictures: tuple[bytes, ...]
    box: str
    prior: Prior | None = None
    superseded: str = ""

    @property
    def stamps(self) -> tuple[str, ...]:
        """The words that stand large on every page."""
        unconfirmed = self.outcome.confirmation is None
        return (UNCONFIRMED,) * unconfirmed + (SUPERSEDED,) * bool(self.superseded)


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as the header has; the first cell of a row names it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        lines: Sentences.
        table: What stands before them.
        is_small: Whether it is set small: what few people read.
        shows_pictures: Whether the key images stand here.
    """

    heading: str
    lines: tuple[str, ...] = ()
    table: Table | None = None
    is_small: bool = False
    shows_pictures: bool = False


def thirds_of(analysis: Analysis) -> dict[int, Third | None]:
    """Return the third of its lung that each lesion lies in, by the lesion's number."""
    return {lesion.id: third_of(analysis, lesion) for lesion in analysis.lesions}


def identification(report: Report) -> tuple[tuple[str, str], ...]:
    """Return who was scanned and when, as pairs of a label and a value."""
    subject, outcome = report.subject, report.outcome
    analysis = outcome.analysis
    when = f"{_readable_date(subject.study_date)} {_readable_time(subject.study_time)}".strip()
    told = (
        ("Patient", person_name(subject.patient_name)),
        ("Patient ID", subject.patient_id),
        ("Born", _readable_date(subject.birth_date)),
        ("Sex", subject.sex),
        ("Accession number", subject.accession_number),
        ("Study", subject.description),
        ("Study date", when),
        ("Analysed", moment(outcome.analysed_at)),
        ("Of", f"{analysis.shape[0]} images, series {analysis.series_uid}"),
    )
    return tuple((label, value.strip() or _ABSENT) for label, value in told)


def sections(report: Report, *, most_lesions: int | None = None) -> Iterator[Section]:
    """Yield the parts of a report.

    Args:
        report: What it is made of.
        most_lesions: Rows of the table of lesions; None for all.
    """
    outcome = report.outcome
    analysis = outcome.analysis
    if report.superseded:
        yield Section("Superseded", (report.superseded,))
    yield Section("Result", tuple(_result(outcome)))
    yield Section("Review", tuple(_review(outcome)))
    if analysis.warnings:
        yield Section("To be read with the result", analysis.warnings)
    yield Section("Scan quality", (_quality(analysis),))
    if analysis.lesions:
        yield _lesions(report, most_lesions)
    if analysis.burden is not None:
        yield _burden(analysis)
    yield _comparison(report)
    yield Section("Key images", shows_pictures=True)
    yield Section("Made by", tuple(_made_by(report)), is_small=True)


def person_name(value: str) -> str:
    """Return a PN value (PS3.5 6.2.1) as people write it: "Wang, Xiaodong (王小东)"."""
    groups = [[part.strip() for part in group.split("^")] for group in value.split("=")]
    written = []
    for number, (family, *others) in enumerate(groups):
        given = [part for part in others if part]
        if number == 0:
            written.append(", ".join(filter(None, (family, " ".join(given)))))
        else:  # ideographic and phonetic names are written without a mark between
            written.append("".join([family, *given]))
    named = [name for name in written if name]
    return named[0] + "".join(f" ({name})" for name in named[1:2]) if named else ""


def box_name(version: str, serial_number: str) -> str:
    """Return which box of which release says so."""
    return f"{PRODUCT} {version}, device {serial_number}"


def moment(at: datetime) -> str:
    """Return a time that means the same everywhere: 2026-11-23 08:05 +0000."""
    return f"{at:%Y-%m-%d %H:%M %z}"


def _readable_date(value: str) -> str:
    match = _DATE.fullmatch(value.strip())
    return "-".join(match.groups()) if match else value.strip()


def _readable_time(value: str) -> str:
    match = _TIME.fullmatch(value.strip())
    return ":".join(match.groups()) if match else value.strip()


def _verdict(*, positive: bool) -> str:
    return "positive" if positive else "negative"


def _volume_ml(analysis: Analysis) -> float:
    return sum(lesion.volume_ml for lesion in analysis.lesions)


def _result(outcome: Outcome) -> Iterator[str]:
    analysis, person = outcome.analysis, outcome.confirmation
    said = f"probability {analysis.probability:.2f}, positive from {analysis.threshold:.2f}."
    verdict = f"COVID-19-like appearance: {_verdict(positive=outcome.positive)}"
    if person is None:
        yield f"{verdict}. {said.capitalize()}"
    else:
        machine = _verdict(positive=outcome.machine_positive)
        yield f"{verdict}, decided by {person.name}. The automatic analysis: {machine}, {said}"
    yield (
        f"{len(analysis.lesions)} lesions, {_volume_ml(analysis):.1f} ml in all."
        f" Right lung {analysis.lungs.right_ml:.0f} ml, left {analysis.lungs.left_ml:.0f} ml."
    )


def _review(outcome: Outcome) -> Iterator[str]:
    person = outcome.confirmation
    if person is None:
        yield NOT_CONFIRMED
        return
    yield f"Confirmed by {person.name}, {person.organisation}, at {moment(person.at)}."
    if person.version > 1:
        yield f"Version {person.version}; it replaces the one before."
    if person.reason:
        machine = _verdict(positive=outcome.machine_positive)
        yield f"The automatic analysis said {machine}; decided otherwise: {person.reason}"
    if person.rejected:
        numbers = ", ".join(map(str, person.rejected))
        yield f"Rejected and left out of this document: lesions {numbers}."
    if outcome.corrected:
        numbers = ", ".join(map(str, outcome.corrected))
        yield f"Lesions outlined anew by the reader: {numbers}."
    if outcome.added:
        numbers = ", ".join(map(str, outcome.added))
        yield f"Lesions added by the reader: {numbers}."
    for number, signs in sorted(person.signs.items()):
        yield f"Seen in lesion {number} by the reader: {', '.join(signs)}."
    if person.comment:
        yield f"Comment: {person.comment}"


def _quality(analysis: Analysis) -> str:
    if analysis.quality is None:
        return "The quality of the scan was not measured."
    if not analysis.quality.flaws:
        return "No metal, motion, noise or cut edge that would matter was found."
    return f"Found: {', '.join(flaw.value for flaw in analysis.quality.flaws)}."


def _lesions(report: Report, most_lesions: int | None) -> Section:
    analysis = report.outcome.analysis
    header = (
        "Lesion", "Side", "Third", "Slice", "Volume", "Diameter", "Mean", "Of the lungs",
        "COVID-like",
    )  # fmt: skip
    outcome = report.outcome
    # What the reader outlined is told first of all, then the largest.
    ranked = sorted(
        analysis.lesions, key=lambda one: (one.id not in outcome.outlined, -one.volume_ml)
    )
    shown = {lesion.id for lesion in ranked[:most_lesions]}
    rows = tuple(
        (_number(lesion, outcome), *_lesion(lesion, report.thirds.get(lesion.id), analysis))
        for lesion in analysis.lesions
        if lesion.id in shown
    )
    rest = ranked[len(shown) :]
    volume_ml = sum(lesion.volume_ml for lesion in rest)
    told = f"{len(rest)} more, {volume_ml:.1f} ml in all, are in the structured report."
    return Section("Lesions", (told,) if rest else (), Table(header, rows))


def _number(lesion: Lesion, outcome: Outcome) -> str:
    if lesion.id in outcome.added:
        return f"{lesion.id}, added"
    return f"{lesion.id}, outlined anew" if lesion.id in outcome.corrected else str(lesion.id)


def _lesion(lesion: Lesion, third: Third | None, analysis: Analysis) -> tuple[str, ...]:
    return (
        lesion.side.value,
        _ABSENT if third is None else third.value,
        str(analysis.shape[0] - lesion.key_slice),  # from the head, as the viewer counts
        f"{lesion.volume_ml:.1f} ml",
        f"{lesion.diameter_mm:.0f} mm",
        f"{lesion.mean_hu:.0f} HU",
        f"{100 * lesion.lung_share:.2f} %",
        _ABSENT if lesion.probability is None else f"{lesion.probability:.2f}",
    )


def _burden(analysis: Analysis) -> Section:
    """Return how much of each lung is lesion, in thirds of its height."""
    burden = analysis.burden
    assert burden is not None
    rows = [
        (name, *map(_involvement, (lung.whole, lung.upper, lung.middle, lung.lower)))
        for name, lung in (("right lung", burden.right), ("left lung", burden.left))
    ]
    rows.append(("both lungs", _involvement(burden.both), "", "", ""))
    header = ("Lesion in", "whole", "upper third", "middle third", "lower third")
    grade = f"{burden.grade} by the masks alone; not validated as a clinical grade."
    return Section("Burden", (grade,), Table(header, tuple(rows)))


def _involvement(part: Involvement) -> str:
    return f"{part.lesion_ml:.1f} ml, {100 * part.share:.1f} %"


def _comparison(report: Report) -> Section:
    """Return what changed since the study before."""
    heading = "Comparison with the study before"
    prior, new = report.prior, report.outcome
    if prior is None:
        return Section(heading, ("No earlier study of this patient with a result is here.",))
    old = prior.outcome
    if old is None:
        when = _readable_date(prior.study_date)
        return Section(
            heading, (f"The result of the study of {when} cannot be read: nothing is compared.",)
        )
    told = [
        f"Compared with the study of {_readable_date(prior.study_date)}.",
        f"Before: {_told(old)}",
        f"Now: {_told(new)}",
    ]
    if old.analysis.models != new.analysis.models:
        told.append(
            "The models differ, so a change may come from them and not from the patient."
            f" Before: {_versions(old.analysis)}. Now: {_versions(new.analysis)}."
        )
    else:
        told.append(f"Both results are by the same models: {_versions(new.analysis)}.")
    if by_hand := [when for when, each in (("before", old), ("now", new)) if each.is_edited]:
        told.append(
            f"A person rejected or outlined lesions of the result {' and '.join(by_hand)}: a change"
            " may come from that and not from the patient."
        )
    header = ("Lesion in", "before", "now", "change", "change")
    return Section(heading, tuple(told), Table(header, tuple(_changes(old.analysis, new.analysis))))


def _told(outcome: Outcome) -> str:
    analysis, person = outcome.analysis, outcome.confirmation
    machine = _verdict(positive=outcome.machine_positive)
    said = f"by the analysis {machine}, probability {analysis.probability:.2f}"
    if person is None:
        judged = f"{said}, unconfirmed"
    else:
        judged = f"{_verdict(positive=outcome.positive)}, confirmed by {person.name} ({said})"
    lesions = f"{len(analysis.lesions)} lesions"
    return f"{judged}; {lesions}; analysed {moment(outcome.analysed_at)}."


def _versions(analysis: Analysis) -> str:
    return ", ".join(f"{model.name} {model.version}" for model in analysis.models)


def _changes(old: Analysis, new: Analysis) -> Iterator[tuple[str, ...]]:
    pairs = [("all lesions", _volume_ml(old), _volume_ml(new))]
    if old.burden is not None and new.burden is not None:
        pairs = [
            ("right lung", old.burden.right.whole.lesion_ml, new.burden.right.whole.lesion_ml),
            ("left lung", old.burden.left.whole.lesion_ml, new.burden.left.whole.lesion_ml),
            ("both lungs", old.burden.both.lesion_ml, new.burden.both.lesion_ml),
        ]
    for name, before, now in pairs:
        percent = f"{100 * (now - before) / before:+.0f} %" if before > 0 else _ABSENT
        yield name, f"{before:.1f} ml", f"{now:.1f} ml", f"{now - before:+.1f} ml", percent


def _made_by(report: Report) -> Iterator[str]:
    analysis = report.outcome.analysis
    for model in analysis.models:
        yield f"{model.purpose}: {model.name} {model.version}, sha256 {model.digest}"
    yield f"computed by {analysis.engine}; {report.box}"
