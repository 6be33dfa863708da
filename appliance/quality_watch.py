"""What is followed of each analysis over months: `QualityRecord`, kept when its study is gone.

A periodic task records what is not recorded yet, from the rows and the result's folder: results of
this minute, those of earlier releases, and what a crash left out, all in the same way. A study that
is removed by hand within the minute of its end leaves no record.
"""

import json
import time
from pathlib import Path
from typing import Any, Final

import structlog
from celery import shared_task
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian
from sqlalchemy import exists, select, update
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


def _missing(db: Session) -> list[tuple[Analysis, int, str]]:
    known = exists().where(QualityRecord.analysis_id == Analysis.id)
    rows = (
        select(Analysis, Study.id, Study.source_ae)
        .join(Study, Analysis.study_id == Study.id)
        .where(~known)
        .order_by(Analysis.id)
        .limit(AT_ONCE)
    )
    return [(row[0], row[1], row[2]) for row in db.execute(rows)]


def _values(
    db: Session, settings: Settings, analysis: Analysis, study_id: int, source_ae: str
) -> dict[str, Any]:
    said = _result(settings.data_dir / analysis.folder / RESULT_FILE, analysis.id)
    series = db.scalar(
        select(Series).where(
            Series.study_id == study_id, Series.series_uid == str(said.get("series_uid", ""))
        )
    )
    burden, quality = said.get("burden"), said.get("quality")
    return {
        "analysis_id": analysis.id,
        "at": analysis.created_at,
        "source_ae": _site(source_ae),
        "manufacturer": "" if series is None else _text(series.manufacturer),
        "model": "" if series is None else _text(series.model),
        "kernel": "" if series is None else _kernel(db, settings, series.id),
        "slice_spacing_mm": said["spacing"][0] if "spacing" in said else None,
        "lung_hu": analysis.lung_hu,
        "noise_hu": None if quality is None else quality["noise_hu"],
        "burden": None if burden is None else burden["both"]["share"],
        "probability": analysis.probability,
        "positive": analysis.positive,
        "lesion_count": analysis.lesion_count,
        "review": 0,
    }


def _result(path: Path, analysis_id: int) -> dict[str, Any]:
    """What a result's file says; nothing, which is logged, where it cannot be read."""
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning(
            "quality.result_unreadable", analysis_id=analysis_id, reason=type(error).__name__
        )
        return {}
    return said


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
    except (OSError, InvalidDicomError, ValueError, KeyError, AttributeError, TypeError) as error:
        log.warning("quality.header_unreadable", series_id=series_id, reason=type(error).__name__)
        return ""
    return _text("" if value is None else str(value))


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
        select(Review)
        .join(QualityRecord, QualityRecord.analysis_id == Review.analysis_id)
        .where(Review.version > QualityRecord.review)
        .order_by(Review.id)
    )
    with database.snapshot() as db:
        found = db.scalars(newer).all()
    if not found:
        return
    with database.transaction() as db:
        for review in found:
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
                )
            )


@shared_task(name="appliance.record_quality")
def record_quality_task() -> None:
    """Run `record` in a worker."""
    app = queue.current()
    record(app.database, app.settings)
