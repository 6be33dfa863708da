"""What a person confirmed of an analysis, as the objects say it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.orm import Session

from appliance import reviews
from appliance.tables import Review
from dicom_node.errors import ObjectError
from pipelines.findings import Analysis
from pipelines.severity import without_lesions

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
        amends: The version before this one; None for the first.
    """

    person_name: str
    organisation: str
    verified_at: datetime
    positive: bool
    reason: str = ""
    comment: str = ""
    rejected: tuple[int, ...] = ()
    amends: Verification | None = None

    @property
    def version(self) -> int:
        """Counted from 1."""
        return 1 if self.amends is None else self.amends.version + 1

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
    newest = None
    for review in reviews.history(db, analysis_id)[:version]:
        newest = _verification(review, newest)
    return newest


def as_confirmed(analysis: Analysis, rejected: tuple[int, ...]) -> Analysis:
    """Return an analysis without the lesions that were rejected, its burden measured again.

    Raises:
        ObjectError: It has no such lesion, so another one was reviewed.
    """
    if unknown := set(rejected) - {lesion.id for lesion in analysis.lesions}:
        raise ObjectError(f"The analysis has no lesion {min(unknown)}: its review is of another.")
    return without_lesions(analysis, rejected)


def _person_name(account: str) -> str:
    """Return an account's name as a PN, whose delimiter says that it is one (PS3.5 6.2.1)."""
    name = account.translate(dict.fromkeys(map(ord, _IN_NAMES), " "))
    return name if "^" in name else f"{name}^"


def _verification(review: Review, amended: Verification | None) -> Verification:
    return Verification(
        person_name=_person_name(review.reviewer),
        organisation=review.organisation,
        # In the zone that the machine's objects are in, or it would seem to come before them.
        verified_at=review.at.astimezone(),
        positive=review.positive,
        reason=": ".join(filter(None, (review.reason, review.reason_text))),
        comment=review.comment,
        rejected=tuple(review.rejected),
        amends=amended,
    )
