"""What people say of results: confirm, override, amend.

A confirmed review is locked. Whoever confirms names the version that they saw, and only the next
one is written, so that nobody overwrites a judgement that they did not see. An amendment is a new
version beside the old ones. Radiologists confirm; administrators run the appliance and viewers
look, so neither does: a radiologist who does both has two accounts.

There is no unconfirmed review: `current_review` is all that may leave as somebody's judgement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from appliance import audit, deliveries, marks
from appliance.accounts import Role
from appliance.database import storable, utc_now
from appliance.deliveries import Subject
from appliance.errors import ReviewConflictError, ReviewError, ReviewForbiddenError
from appliance.lifecycle import State
from appliance.tables import Account, Analysis, Review, Study

MAY_CONFIRM: Final = frozenset({Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST})
TEXT_LIMIT: Final = 2000
"""Characters of a comment, and of what is said beside a reason."""
MOST_MARKS: Final = 200
"""Lesions that a person adds or corrects in one review."""
HIGHEST_NUMBER: Final = 65_535
"""Of a lesion: what a voxel of 16 bits says."""


class Reason(StrEnum):
    """Why a person decides a case otherwise than the analysis.

    The first, third, fourth and fifth are the failures that Jin et al. name (2020, discussion).
    """

    SMALL_LESION_MISSED = "small lesion missed"
    """Ground glass of less than 1 cm."""
    LESION_MISSED = "lesion missed"
    OTHER_PNEUMONIA = "other pneumonia"
    """Another viral pneumonia, or a lobar one."""
    SEVERAL_KINDS = "several kinds of lesion"
    ARTEFACT = "artefact"
    """Metal or motion."""
    NORMAL_ANATOMY = "normal anatomy"
    """Vessels, the diaphragm or the like, taken for lesions."""
    OTHER = "other"
    """Said in words."""


class Sign(StrEnum):
    """What is seen in a lesion: the vocabulary of Jin et al. (2020)."""

    GROUND_GLASS = "ground-glass opacity"
    SEPTAL_THICKENING = "intralobular septal thickening"
    AIR_BRONCHOGRAM = "air bronchogram"
    VESSEL_THICKENING = "vessel thickening"
    CRAZY_PAVING = "crazy paving"
    FIBRE_STRIPES = "fibre stripes"
    HONEYCOMB = "honeycomb lung"


@dataclass(frozen=True)
class Mark:
    """A lesion as a person marked it.

    Attributes:
        digest: Of its `MarkedRegion`.
        grown: Whether a computer spread it from a seed that the person set; else it was painted.
    """

    digest: str
    grown: bool = False


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a person says of one analysis.

    `positive` is the case as the person sees it, with a `reason` where the analysis sees it
    otherwise. `lesions` says of each, by its number, whether it was accepted. `marks` are the
    lesions that the person outlined: by a number that the analysis has, another outline of that
    lesion; by a higher one, a lesion that it missed. `signs` are those seen in a lesion.
    """

    positive: bool
    lesions: Mapping[int, bool]
    marks: Mapping[int, Mark] = field(default_factory=dict)
    signs: Mapping[int, Sequence[Sign]] = field(default_factory=dict)
    reason: Reason | None = None
    reason_text: str = ""
    comment: str = ""


def confirm(
    db: Session,
    analysis_id: int,
    judgement: Judgement,
    *,
    seen: int,
    account: Account,
    organisation: str,
) -> Review:
    """Keep a judgement as the next version of an analysis's review, with its audit entry.

    Args:
        db: the caller's transaction.
        analysis_id: the analysis that was looked at.
        judgement: what is said of it.
        seen: the version of the review that the person saw; 0 for none.
        account: who says it.
        organisation: for whom.

    Raises:
        ReviewForbiddenError: the account's role does not confirm results.
        ReviewConflictError: there is a newer version, or the analysis is not the study's result.
        ReviewError: the judgement is incomplete or contradicts itself.
    """
    _hold(db, analysis_id)
    analysis = check(db, analysis_id, judgement, seen=seen, account=account)
    version = seen + 1
    audit.record(
        db,
        actor=account.name,
        tag="reviews:analysis:amended" if seen else "reviews:analysis:confirmed",
        subject=f"study {analysis.study_id}",
        detail={
            "analysis": analysis_id,
            "version": version,
            "positive": judgement.positive,
            "overridden": judgement.reason is not None,
            "added": sum(number > analysis.lesion_count for number in judgement.marks),
            "corrected": sum(number <= analysis.lesion_count for number in judgement.marks),
        },
    )
    review = Review(
        analysis_id=analysis_id,
        version=version,
        account_id=account.id,
        reviewer=account.name,
        organisation=organisation,
        positive=judgement.positive,
        reason=judgement.reason,
        reason_text=storable(judgement.reason_text).strip(),
        rejected=sorted(lesion for lesion, accepted in judgement.lesions.items() if not accepted),
        comment=storable(judgement.comment).strip(),
        marks=[
            {"number": number, "digest": mark.digest, "grown": mark.grown}
            for number, mark in sorted(judgement.marks.items())
        ],
        signs={
            str(number): [sign.value for sign in Sign if sign in signs]
            for number, signs in sorted(judgement.signs.items())
            if signs
        },
        at=utc_now(),
    )
    db.add(review)
    db.flush()
    subject = Subject(
        study_id=analysis.study_id,
        revision=analysis.revision,
        analysis_id=analysis_id,
        review=version,
    )
    deliveries.note_confirmed(db, subject)
    return review


def check(
    db: Session, analysis_id: int, judgement: Judgement, *, seen: int, account: Account
) -> Analysis:
    """Refuse what `confirm` would refuse as things are now; changes nothing.

    Returns the analysis; the arguments and the errors are those of `confirm`.
    """
    require_reviewer(account)
    analysis = db.get(Analysis, analysis_id, populate_existing=True)
    if analysis is None:
        raise ReviewError("There is no such result.")
    if problem := not_reviewable(db, analysis):
        raise ReviewConflictError(problem)
    newest = current_review(db, analysis_id)
    if seen != (newest.version if newest else 0):
        raise ReviewConflictError(_changed(newest))
    _check(judgement, analysis)
    _check_marks(db, judgement, analysis)
    return analysis


def require_reviewer(account: Account) -> None:
    """Refuse whoever may look at results but not judge them.

    Raises:
        ReviewForbiddenError: the account's role does not confirm results.
    """
    if not account.active or account.role not in MAY_CONFIRM:
        raise ReviewForbiddenError("Only a radiologist confirms results.")


def current_review(db: Session, analysis_id: int) -> Review | None:
    """What was confirmed of an analysis, as last amended; nothing while nobody confirmed."""
    of_analysis = select(Review).where(Review.analysis_id == analysis_id)
    return db.scalar(of_analysis.order_by(Review.version.desc()).limit(1))


def history(db: Session, analysis_id: int) -> Sequence[Review]:
    """Every version of an analysis's review, oldest first; the last is the current one."""
    of_analysis = select(Review).where(Review.analysis_id == analysis_id)
    return db.scalars(of_analysis.order_by(Review.version)).all()


def not_reviewable(db: Session, analysis: Analysis) -> str | None:
    """Why an analysis cannot be confirmed now, in a sentence; nothing when it can."""
    state = db.scalar(select(Study.state).where(Study.id == analysis.study_id))
    return _replaced(analysis, str(state))


def moment(at: datetime) -> str:
    """A time as messages name it: 2026-03-05 14:05 UTC."""
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _hold(db: Session, analysis_id: int) -> None:
    """Keep what `check` reads as it is until the transaction ends."""
    # A late instance, and the end of an analysis, write this row: they wait for us, or we for them.
    of_analysis = select(Analysis.study_id).where(Analysis.id == analysis_id)
    held = select(Study.id).where(Study.id == of_analysis.scalar_subquery())
    db.execute(held.with_for_update(of=Study, key_share=True))
    marks.hold(db, analysis_id)


def _replaced(analysis: Analysis, state: str) -> str | None:
    if not analysis.current:
        return "A newer result replaced this one: look at that and confirm it."
    if state == State.READY:
        return None
    if state in (State.FAILED, State.REJECTED):
        return "More images came, and their analysis failed: ask an administrator to start it anew."
    return "More images came, and a new analysis is on its way: confirm its result."


def _changed(newest: Review | None) -> str:
    if newest is None:
        return "Nobody has confirmed this result yet: reload the page."
    return (
        f"{newest.reviewer} confirmed this result on {moment(newest.at)}"
        f" (version {newest.version}): look at that, and amend it if you disagree."
    )


def _check(judgement: Judgement, analysis: Analysis) -> None:
    lesions = set(range(1, analysis.lesion_count + 1))
    if unknown := judgement.lesions.keys() - lesions:
        raise ReviewError(f"The result has no lesion {min(unknown)}.")
    if left := lesions - judgement.lesions.keys():
        named = ", ".join(map(str, sorted(left)[:5])) + (" …" if len(left) > 5 else "")
        raise ReviewError(f"Accept or reject every lesion; left are {named}.")
    if judgement.positive == analysis.positive and judgement.reason is not None:
        raise ReviewError("A reason is only given where the case is decided otherwise.")
    if judgement.positive != analysis.positive and judgement.reason is None:
        raise ReviewError("Say why the case is decided otherwise: choose a reason.")
    if judgement.reason is None and judgement.reason_text.strip():
        raise ReviewError("Words beside a reason need the reason: choose one.")
    if judgement.reason is Reason.OTHER and not judgement.reason_text.strip():
        raise ReviewError("Say in words why the case is decided otherwise.")
    if max(len(judgement.comment), len(judgement.reason_text)) > TEXT_LIMIT:
        raise ReviewError(f"A text has at most {TEXT_LIMIT} characters: shorten it.")


def _check_marks(db: Session, judgement: Judgement, analysis: Analysis) -> None:
    if len(judgement.marks) > MOST_MARKS:
        raise ReviewError(f"A review has at most {MOST_MARKS} marked lesions.")
    rejected = {lesion for lesion, accepted in judgement.lesions.items() if not accepted}
    if contradicted := rejected & judgement.marks.keys():
        lesion = min(contradicted)
        raise ReviewError(f"Lesion {lesion} is rejected and outlined: decide for one of the two.")
    standing = (judgement.lesions.keys() - rejected) | judgement.marks.keys()
    if unknown := judgement.signs.keys() - standing:
        raise ReviewError(f"There is no lesion {min(unknown)} for the signs that were chosen.")
    if min(judgement.marks, default=1) < 1:
        raise ReviewError("Lesions are numbered from 1.")
    if max(judgement.marks, default=1) > HIGHEST_NUMBER:
        raise ReviewError(f"Lesions are numbered up to {HIGHEST_NUMBER}.")
    digests = {mark.digest for mark in judgement.marks.values()}
    if digests - marks.regions(db, analysis.id, digests).keys():
        raise ReviewError("A marked lesion is not here: draw it again.")
