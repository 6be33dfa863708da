"""What people measure on images: distances, angles, HU; kept for each person and analysis.

A measurement is a person's note. It is theirs to change and to delete, and it confirms nothing; the
audit says that it was made. Points are voxels of the analysed volume in fractions, (x, y, z), a
voxel's centre at whole numbers; the values are those that the person saw.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from appliance import audit
from appliance.database import storable, utc_now
from appliance.errors import MeasurementError
from appliance.tables import Account, Analysis, Measurement

TEXT_LIMIT: Final = 200
"""Characters of the note on a measurement."""
MOST: Final = 500
"""Measurements of one person on one analysis."""
KEY: Final = re.compile(r"[0-9a-f]{32}")
VALUES: Final = frozenset(
    {"length_mm", "angle_deg", "hu", "area_mm2", "mean_hu", "sd_hu", "min_hu", "max_hu"}
)
PLANES: Final = frozenset({"axial", "coronal", "sagittal"})

Point = tuple[float, float, float]


class Kind(StrEnum):
    """What is measured."""

    DISTANCE = "distance"
    ANGLE = "angle"
    """At the second of three points."""
    ELLIPSE = "ellipse"
    """HU of the voxels in the ellipse between two corners of its box."""
    PROBE = "probe"
    ARROW = "arrow"
    """From the second point to the first, with a note."""


POINTS: Final[Mapping[Kind, int]] = {
    Kind.DISTANCE: 2,
    Kind.ANGLE: 3,
    Kind.ELLIPSE: 2,
    Kind.PROBE: 1,
    Kind.ARROW: 2,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement as a person made it. Raises MeasurementError when it cannot be one."""

    kind: Kind
    plane: str
    points: tuple[Point, ...]
    text: str
    values: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.plane not in PLANES or len(self.points) != POINTS[self.kind]:
            raise MeasurementError("The measurement lacks its plane or a point: draw it again.")
        numbers = [*self.values.values(), *(axis for point in self.points for axis in point)]
        if not self.values.keys() <= VALUES or not all(map(math.isfinite, numbers)):
            raise MeasurementError("A value of the measurement is no number: draw it again.")
        if len(self.text) > TEXT_LIMIT:
            raise MeasurementError(f"A note has at most {TEXT_LIMIT} characters: shorten it.")


def save(db: Session, analysis: Analysis, account: Account, key: str, measured: Measured) -> None:
    """Keep a measurement under a key of the person's choice, instead of what was there.

    Raises:
        MeasurementError: there are too many, or the key is none.
    """
    if not KEY.fullmatch(key):
        raise MeasurementError("A measurement is named by 32 hexadecimal digits.")
    # Two browsers of one person: the second waits here, and finds what the first wrote.
    db.execute(select(Account.id).where(Account.id == account.id).with_for_update())
    content = {
        "kind": measured.kind.value,
        "plane": measured.plane,
        "points": [list(point) for point in measured.points],
        "text": storable(measured.text).strip(),
        "values": dict(measured.values),
    }
    row = db.scalar(_own(analysis.id, account.id).where(Measurement.key == key))
    if row is None:
        of_person = _own(analysis.id, account.id).subquery()
        if (db.scalar(select(func.count()).select_from(of_person)) or 0) >= MOST:
            raise MeasurementError(f"There are {MOST} measurements already: delete some.")
        row = Measurement(analysis_id=analysis.id, account_id=account.id, key=key)
        db.add(row)
    elif all(getattr(row, name) == value for name, value in content.items()):
        return  # sent twice
    for name, value in content.items():
        setattr(row, name, value)
    row.at = utc_now()
    _note(db, analysis, account, "web:measurement:saved", key, measured.kind)


def remove(db: Session, analysis: Analysis, account: Account, key: str) -> None:
    """Delete a measurement of this person, if it is there."""
    mine = (Measurement.analysis_id == analysis.id) & (Measurement.account_id == account.id)
    removed = delete(Measurement).where(mine, Measurement.key == key).returning(Measurement.kind)
    if (kind := db.scalar(removed)) is not None:
        _note(db, analysis, account, "web:measurement:deleted", key, Kind(kind))


def of(db: Session, analysis_id: int, account_id: int) -> Sequence[Measurement]:
    """A person's measurements on an analysis, in the order they were made."""
    return db.scalars(_own(analysis_id, account_id).order_by(Measurement.id)).all()


def _own(analysis_id: int, account_id: int) -> Select[Measurement]:
    mine = (Measurement.analysis_id == analysis_id) & (Measurement.account_id == account_id)
    return select(Measurement).where(mine)


def _note(
    db: Session, analysis: Analysis, account: Account, tag: str, key: str, kind: Kind
) -> None:
    audit.record(
        db,
        actor=account.name,
        tag=tag,
        subject=f"study {analysis.study_id}",
        detail={"analysis": analysis.id, "measurement": key, "kind": kind.value},
    )
