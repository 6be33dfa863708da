"""What a person confirmed of an analysis, as the objects say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy.orm import Session

from appliance import marks, reviews
from appliance.reviews import Sign
from appliance.tables import MarkedRegion, Review
from dicom_node.errors import ObjectError
from pipelines.errors import RegionError
from pipelines.findings import Analysis
from pipelines.marks import Mark
from pipelines.severity import as_judged

_IN_NAMES: Final = "\\="  # PS3.5 6.2.1: they separate values and groups of a person's name


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A person took responsibility for the report (PS3.3 C.17.2).

    Attributes:
        person_name: As DICOM writes names, family name first: `Family^Given` or `Family^`.
        organisation: For which the person acts.
        verified_at: When, with its time zone.
        positive: Of the case, as the person sees it.
        reason: Why the person sees it otherwise than the analysis; empty where they agree.
        comment: What else the person says.
        rejected: The numbers of the lesions that are none to the person, ascending.
        marks: The lesions that the person outlined, by ascending number.
        signs: What the person saw in lesions, by their numbers.
        amends: The version before this one; None for the first.
    """

    person_name: str
    organisation: str
    verified_at: datetime
    positive: bool
    reason: str = ""
    comment: str = ""
    rejected: tuple[int, ...] = ()
    marks: tuple[Mark, ...] = ()
    signs: Mapping[int, tuple[Sign, ...]] = field(default_factory=dict)
    amends: Verification | None = None

    @property
    def version(self) -> int:
        """Counted from 1."""
        return 1 if self.amends is None else self.amends.version + 1

    @property
    def drawn(self) -> tuple[tuple[int, str, bool], ...]:
        """What was outlined, as it goes into the names of the objects that say so."""
        return tuple((mark.lesion.id, mark.digest, mark.grown) for mark in self.marks)

    @property
    def readable_name(self) -> str:
        """The name as people write it, given name first."""
        family, _, others = self.person_name.partition("^")
        return f"{others.replace('^', ' ')} {family}".strip()


def load_verification(db: Session, analysis_id: int, *, version: int) -> Verification | None:
    """Return a version of the review of an analysis with those that it amends; None for 0.

    Args:
        db: the caller's transaction.
        analysis_id: its row.
        version: of its review; 0 as long as only the machine speaks.
    """
    versions = reviews.history(db, analysis_id)[:version]
    named = {mark["digest"] for review in versions for mark in review.marks}
    rows = marks.regions(db, analysis_id, named) if named else {}
    newest = None
    for review in versions:
        newest = _verification(review, rows, newest)
    return newest


def as_confirmed(analysis: Analysis, verification: Verification | None) -> Analysis:
    """Return an analysis as a person left it; the machine's own where nobody changed anything.

    Raises:
        ObjectError: It has no such lesion, or another size, so another one was reviewed.
    """
    if verification is None:
        return analysis
    if unknown := set(verification.rejected) - {lesion.id for lesion in analysis.lesions}:
        raise ObjectError(f"The analysis has no lesion {min(unknown)}: its review is of another.")
    try:
        return as_judged(analysis, rejected=verification.rejected, marks=verification.marks)
    except RegionError as error:
        raise ObjectError(f"{error} The review is of another analysis.") from error


def _person_name(account: str) -> str:
    """Return an account's name as a PN, whose delimiter says that it is one (PS3.5 6.2.1)."""
    name = account.translate(dict.fromkeys(map(ord, _IN_NAMES), " "))
    return name if "^" in name else f"{name}^"


def _verification(
    review: Review, rows: Mapping[str, MarkedRegion], amended: Verification | None
) -> Verification:
    return Verification(
        person_name=_person_name(review.reviewer),
        organisation=review.organisation,
        # In the zone that the machine's objects are in, or it would seem to come before them.
        verified_at=review.at.astimezone(),
        positive=review.positive,
        reason=": ".join(filter(None, (review.reason, review.reason_text))),
        comment=review.comment,
        rejected=tuple(review.rejected),
        marks=tuple(
            _mark(mark["number"], rows.get(mark["digest"]), grown=mark["grown"])
            for mark in review.marks
        ),
        signs={
            int(number): tuple(map(Sign, signs)) for number, signs in sorted(review.signs.items())
        },
        amends=amended,
    )


def _mark(number: int, row: MarkedRegion | None, *, grown: bool) -> Mark:
    """Return a lesion as it was marked.

    Raises:
        ObjectError: Its voxels are not there, or not what was kept.
    """
    if row is None:
        raise ObjectError(f"The voxels of marked lesion {number} are gone.")
    try:
        return Mark.kept(
            number,
            box=row.box,
            bits=marks.bits_of(row),
            measures=row.measures,
            digest=row.digest,
            grown=grown,
        )
    except RegionError as error:
        raise ObjectError(f"Marked lesion {number} cannot be read: {error}") from error
