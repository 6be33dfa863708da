"""How much room there is, and for how many days at the present rate."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from appliance.config import Settings
from appliance.tables import Analysis, Series, Study

RATE_DAYS: Final = 14
SAMPLED: Final = 20
"""So many of the newest results are measured on the disk; the others are taken to be like them."""


@dataclass(frozen=True)
class Space:
    """The disk of the data folder, in bytes.

    Attributes:
        reserve: What must be free for reception to go on.
        images: Of all images that are held, as their senders count them.
        daily: What came and was made each day of late, on average.
        rate_days: Over how many days that average is.
        days_left: Until reception stops, if nothing is removed; None where nothing comes.
    """

    total: int
    free: int
    reserve: int
    images: int
    daily: float
    rate_days: float
    days_left: float | None


def measure(db: Session, settings: Settings, *, now: datetime) -> Space:
    """The space there is."""
    usage = shutil.disk_usage(settings.data_dir)
    reserve = max(settings.dicom.min_free_bytes, settings.retention.free_bytes)
    first = db.scalar(select(func.min(Study.first_received_at)))
    age_days = (now - first).total_seconds() / 86400 if first else 0.0
    rate_days = min(float(RATE_DAYS), max(1.0, age_days))
    since = now - timedelta(days=rate_days)
    came = db.scalar(
        select(func.sum(Series.size_bytes))
        .join(Study, Series.study_id == Study.id)
        .where(Study.first_received_at >= since)
    )
    made = db.scalar(select(func.count(Analysis.id)).where(Analysis.created_at >= since))
    newest = select(Analysis.folder).order_by(Analysis.id.desc()).limit(SAMPLED)
    result_bytes = _average([settings.data_dir / folder for folder in db.scalars(newest)])
    daily = (int(came or 0) + int(made or 0) * result_bytes) / rate_days
    left = max(0, usage.free - reserve)
    return Space(
        total=usage.total,
        free=usage.free,
        reserve=reserve,
        images=int(db.scalar(select(func.sum(Series.size_bytes))) or 0),
        daily=daily,
        rate_days=rate_days,
        days_left=left / daily if daily else None,
    )


def _average(folders: Sequence[Path]) -> float:
    """The size of a folder on average, as far as it is there: some may just be removed."""
    if not folders:
        return 0.0
    return sum(_size(folder) for folder in folders) / len(folders)


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.lstat().st_size
        except FileNotFoundError:
            continue
    return size
