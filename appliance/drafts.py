"""What a person has judged of a result and not confirmed: kept with every stroke, never sent.

Each person has one draft of an analysis, and sees that others have one. Whoever saves names the
revision that they started from, so that of two windows of one person none overwrites the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from appliance import marks, reviews
from appliance.database import utc_now
from appliance.errors import ReviewConflictError, ReviewError
from appliance.tables import Account, ReviewDraft

IN_ANOTHER_WINDOW: Final = (
    "You changed this review in another window since: choose which of the two you keep."
)


@dataclass(frozen=True)
class OthersDraft:
    """That another person has judged something, and when last; not what."""

    name: str
    at: datetime


def find(db: Session, analysis_id: int, account_id: int) -> ReviewDraft | None:
    """A person's draft of an analysis's review."""
    return db.scalar(
        select(ReviewDraft).where(
            ReviewDraft.analysis_id == analysis_id, ReviewDraft.account_id == account_id
        )
    )


def others(db: Session, analysis_id: int, account_id: int) -> Sequence[OthersDraft]:
    """Who else has a draft, by name."""
    rows = db.execute(
        select(Account.name, ReviewDraft.at)
        .join(ReviewDraft, ReviewDraft.account_id == Account.id)
        .where(ReviewDraft.analysis_id == analysis_id, ReviewDraft.account_id != account_id)
        .order_by(Account.name)
    )
    return [OthersDraft(name, at) for name, at in rows]


def save(
    db: Session,
    analysis_id: int,
    judged: Mapping[str, Any],
    *,
    digests: Sequence[str],
    revision: int,
    account: Account,
) -> int:
    """Keep what a person judged so far in place of what they judged before; returns its revision.

    Args:
        db: the caller's transaction.
        analysis_id: the analysis that is judged.
        judged: what the viewer needs to go on.
        digests: of the regions that it names.
        revision: of the draft that the person saw; 0 for none.
        account: who judges.

    Raises:
        ReviewForbiddenError: the account's role does not confirm results.
        ReviewConflictError: the draft is another by now.
        ReviewError: a region is not there.
    """
    reviews.require_reviewer(account)
    if not marks.hold(db, analysis_id):
        raise ReviewError("There is no such result.")
    draft = find(db, analysis_id, account.id)
    if revision != (draft.revision if draft else 0):
        raise ReviewConflictError(IN_ANOTHER_WINDOW)
    if set(digests) - marks.regions(db, analysis_id, digests).keys():
        raise ReviewError("A region of the draft is not here: draw it again.")
    if draft is None:
        draft = ReviewDraft(analysis_id=analysis_id, account_id=account.id)
        db.add(draft)
    draft.revision, draft.judged, draft.at = revision + 1, dict(judged), utc_now()
    db.flush()
    marks.forget_unnamed(db, analysis_id=analysis_id, account_id=account.id, named=digests)
    return draft.revision


def discard(db: Session, analysis_id: int, account_id: int) -> None:
    """Forget a person's draft, because they confirmed it or do not want it."""
    marks.hold(db, analysis_id)
    draft = find(db, analysis_id, account_id)
    if draft is not None:
        db.delete(draft)
        db.flush()
    marks.forget_unnamed(db, analysis_id=analysis_id, account_id=account_id, named=())
