"""The regions that people mark: kept whole before the answer, and named by their content.

A region belongs to an analysis and to whoever marked it. It is never changed: each stroke makes
another one, a draft or a review names the one it means, and what nothing names any more goes.
"""

from collections.abc import Collection, Mapping
from typing import Any

import zstandard
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from appliance.database import utc_now
from appliance.tables import Analysis, MarkedRegion, Review


def hold(db: Session, analysis_id: int) -> bool:
    """Take turns with all who name or forget regions of an analysis, until the transaction ends.

    Returns whether there is such an analysis.
    """
    held = select(Analysis.id).where(Analysis.id == analysis_id).with_for_update()
    return db.scalar(held) is not None


def keep(
    db: Session,
    *,
    analysis_id: int,
    account_id: int,
    digest: str,
    box: tuple[int, ...],
    bits: bytes,
    measures: Mapping[str, Any],
) -> MarkedRegion:
    """Keep a region that a person marked, and return its row; the same voxels are kept once."""
    known = (
        MarkedRegion.analysis_id == analysis_id,
        MarkedRegion.account_id == account_id,
        MarkedRegion.digest == digest,
    )
    row = db.scalar(select(MarkedRegion).where(*known))
    if row is None:
        row = MarkedRegion(
            analysis_id=analysis_id,
            account_id=account_id,
            digest=digest,
            box=list(box),
            bits=zstandard.ZstdCompressor().compress(bits),
            measures=dict(measures),
            at=utc_now(),
        )
        db.add(row)
    return row


def regions(
    db: Session, analysis_id: int, digests: Collection[str] | None = None
) -> dict[str, MarkedRegion]:
    """The regions of an analysis by their digests; those that are not there are left out.

    Where several people marked the same voxels, it is the first one's.
    """
    of_analysis = (
        select(MarkedRegion)
        .where(MarkedRegion.analysis_id == analysis_id)
        .order_by(MarkedRegion.id.desc())
    )
    if digests is not None:
        of_analysis = of_analysis.where(MarkedRegion.digest.in_(digests))
    return {row.digest: row for row in db.scalars(of_analysis)}


def bits_of(row: MarkedRegion) -> bytes:
    """A region's bits as they travel, not compressed."""
    bits: bytes = zstandard.ZstdDecompressor().decompress(row.bits)
    return bits


def forget_unnamed(
    db: Session, *, analysis_id: int, account_id: int, named: Collection[str]
) -> None:
    """Remove a person's regions that neither `named` nor any review of the analysis names.

    The caller has taken `hold`: a review that is not committed yet may name one of them.
    """
    reviewed = db.scalars(select(Review.marks).where(Review.analysis_id == analysis_id))
    kept = {*named, *(mark["digest"] for marks in reviewed for mark in marks)}
    db.execute(
        delete(MarkedRegion).where(
            MarkedRegion.analysis_id == analysis_id,
            MarkedRegion.account_id == account_id,
            MarkedRegion.digest.not_in(kept),
        )
    )
