"""What is followed of each result over months: `QualityRecord`, kept when its study is gone.

A periodic task records what is not recorded yet, from the rows and the result's folder: results of
this minute, those of earlier releases, and what a crash left out, all in the same way. A study that
is removed by hand within the minute of its end leaves no record. A newer result takes the place of
the one before, so that a study counts once.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import structlog
from celery import shared_task
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian
from sqlalchemy import delete, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from appliance import queue
from appliance.config import Settings
from appliance.database import Database, storable
from appliance.store import Store
from appliance.tables import Analysis, Instance, QualityRecord, Review, Series, Study

log = structlog.get_logger()

AT_ONCE: Final = 50
TURN_S: Final = 5.0
LONGEST_TEXT: Final = 64  # an LO, PS3.5 section 6.2
RESULT_FILE: Final = "analysis.json"
WEB: Final = "web"
"""Before the account's name in the source of what came by upload or DICOMweb."""


def record(database: Database, settings: Settings) -> int:
    """Record what is not recorded yet, and what was confirmed since; returns how many results.

    Not for longer than `TURN_S`: the worker has more urgent things to do than old results.
    """
    _forget_superseded(database)
    recorded, deadline = 0, time.monotonic() + TURN_S
    while time.monotonic() < deadline:
        with database.snapshot() as db:
            found = [
                _values(db, settings, analysis, study_id, source_ae)
                for analysis, study_id, source_ae in _missing(db)
            ]
        _insert(database, found)
        recorded += len(found)
        if len(found) < AT_ONCE:
            break
    _note_reviews(database)
    if recorded:
        log.info("quality.recorded", results=recorded)
    return recorded


def _forget_superseded(database: Database) -> None:
    of_superseded = QualityRecord.analysis_id.in_(select(Analysis.id).where(~Analysis.current))
    with database.snapshot() as db:
        if not db.scalar(select(exists().where(of_superseded))):
            return
    with database.transaction() as db:
        db.execute(delete(QualityRecord).where(of_superseded))


def _missing(db: Session) -> list[tuple[Analysis, int, str]]:
    known = exists().where(QualityRecord.analysis_id == Analysis.id)
    rows = (
        select(Analysis, Study.id, Study.source_ae)
        .join(Study, Analysis.study_id == Study.id)
        .where(Analysis.current, ~known)
        .order_by(Analysis.id)
        .limit(AT_ONCE)
    )
    return [(row[0], row[1], row[2]) for row in db.execute(rows)]


def _values(
    db: Session, settings: Settings, analysis: Analysis, study_id: int, source_ae: str
) -> dict[str, Any]:
    said = _Result.read(settings.data_dir / analysis.folder / RESULT_FILE, analysis.id)
    series = db.scalar(
        select(Series).where(Series.study_id == study_id, Series.series_uid == said.series_uid)
    )
    return {
        "analysis_id": analysis.id,
        "at": analysis.created_at,
        "source_ae": _site(source_ae),
        "manufacturer": "" if series is None else _text(series.manufacturer),
        "model": "" if series is None else _text(series.model),
        "kernel": "" if series is None else _kernel(db, settings, series.id),
        "slice_spacing_mm": said.slice_spacing_mm,
        "lung_hu": analysis.lung_hu,
        "noise_hu": said.noise_hu,
        "burden": said.burden,
        "probability": analysis.probability,
        "positive": analysis.positive,
        "lesion_count": analysis.lesion_count,
        "review": 0,
    }


@dataclass(frozen=True)
class _Result:
    """What is followed of a result's file."""

    series_uid: str = ""
    slice_spacing_mm: float | None = None
    noise_hu: float | None = None
    burden: float | None = None

    @classmethod
    def read(cls, path: Path, analysis_id: int) -> Self:
        """What a file says; nothing, which is logged, where it cannot be read."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            burden, quality = said.get("burden"), said.get("quality")
            return cls(
                series_uid=str(said.get("series_uid", "")),
                slice_spacing_mm=float(said["spacing"][0]) if "spacing" in said else None,
                noise_hu=None if quality is None else float(quality["noise_hu"]),
                burden=None if burden is None else float(burden["both"]["share"]),
            )
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            log.warning(
                "quality.result_unreadable", analysis_id=analysis_id, reason=type(error).__name__
            )
            return cls()


def _kernel(db: Session, settings: Settings, series_id: int) -> str:
    """The convolution kernel (0018,1210) that an image of the series names, or ""."""
    image = db.execute(
        select(Instance.digest, Instance.transfer_syntax_uid)
        .where(Instance.series_id == series_id)
        .limit(1)
    ).one_or_none()
    # pydicom inflates without a bound.
    if image is None or image.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        return ""
    path = Store(settings.store_dir).path_of(image.digest)
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["ConvolutionKernel"])
        value = header.get("ConvolutionKernel")
        kernel = "" if value is None else str(value)
    except Exception as error:  # noqa: BLE001 - pydicom raises a dozen kinds; one header stops no other
        log.warning("quality.header_unreadable", series_id=series_id, reason=type(error).__name__)
        return ""
    return _text(kernel)


def _site(source_ae: str) -> str:
    """The AE title that sent; what a person uploaded came by the web, whoever they were."""
    return WEB if source_ae.startswith(f"{WEB} ") else _text(source_ae)


def _text(value: str) -> str:
    return storable(value).strip()[:LONGEST_TEXT]


def _insert(database: Database, found: list[dict[str, Any]]) -> None:
    if not found:
        return
    with database.transaction() as db:
        dialect: Any = postgresql if db.get_bind().dialect.name == "postgresql" else sqlite
        inserted = dialect.insert(QualityRecord).values(found)
        db.execute(inserted.on_conflict_do_nothing())  # another worker was at it as well


def _note_reviews(database: Database) -> None:
    """Note what people said of results since the last look."""
    newer = (
        select(Review, QualityRecord.lesion_count)
        .join(QualityRecord, QualityRecord.analysis_id == Review.analysis_id)
        .where(Review.version > QualityRecord.review)
        .order_by(Review.id)
    )
    with database.snapshot() as db:
        found = db.execute(newer).all()
    if not found:
        return
    with database.transaction() as db:
        for review, lesion_count in found:
            added = review.added_count(lesion_count)
            noted = update(QualityRecord).where(
                QualityRecord.analysis_id == review.analysis_id,
                QualityRecord.review < review.version,
            )
            db.execute(
                noted.values(
                    review=review.version,
                    overridden=review.overridden,
                    reason=review.reason,
                    rejected_count=len(review.rejected),
                    added_count=added,
                    corrected_count=len(review.marks) - added,
                )
            )


@shared_task(name="appliance.record_quality")
def record_quality_task() -> None:
    """Run `record` in a worker."""
    app = queue.current()
    record(app.database, app.settings)
