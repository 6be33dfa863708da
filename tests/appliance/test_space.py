"""How long the room lasts, and what went on in the last hours."""

import shutil
from datetime import timedelta

import pytest
from sqlalchemy import update

from appliance import activity, lifecycle, space
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.tables import Series, Study, StudyEvent
from tests.appliance import world

MIB = 2**20


def test_nothing_came_and_nothing_ends(settings: Settings, database: Database):
    with database.snapshot() as db:
        room = space.measure(db, settings, now=utc_now())

    assert (room.images, room.daily, room.days_left) == (0, 0.0, None)


def test_the_days_that_are_left_follow_from_what_came_of_late(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
):
    folder = settings.analyses_dir / "1" / "a"
    folder.mkdir(parents=True)
    (folder / "analysis.json").write_bytes(bytes(MIB))
    lifecycle.finish(database, world.claimed(database), world.result())
    now = utc_now()
    with database.transaction() as db:
        db.execute(update(Series).values(size_bytes=9 * MIB))
        ten_days_ago = now - timedelta(days=10)
        db.execute(update(Study).values(first_received_at=ten_days_ago))
    reserve = settings.dicom.min_free_bytes
    usage = shutil.disk_usage(settings.data_dir)._replace(free=reserve + 30 * MIB)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)

    with database.snapshot() as db:
        room = space.measure(db, settings, now=now)

    assert room.images == 9 * MIB
    assert room.daily == pytest.approx(MIB, rel=0.01)
    assert room.days_left == pytest.approx(30, rel=0.01)


def test_each_hour_has_what_arrived_and_what_became_of_it(database: Database):
    lifecycle.finish(database, world.claimed(database), world.result())
    lifecycle.reject(database, world.claimed(database, study_uid="2.25.2"), reason="no chest")
    now = utc_now()
    with database.transaction() as db:
        db.execute(update(Study).values(last_received_at=now - timedelta(minutes=4)))
        db.execute(update(StudyEvent).values(at=now))

    with database.snapshot() as db:
        hours = activity.hours(db, now=now)
        later = activity.hours(db, now=now + timedelta(hours=activity.HOURS))

    assert len(hours) == activity.HOURS
    assert (hours[-1].arrived, hours[-1].ready, hours[-1].failed) == (2, 1, 1)
    assert hours[-1].minutes == pytest.approx(4, abs=0.1)
    assert sum(hour.arrived + hour.ready + hour.failed for hour in hours[:-1]) == 0
    assert all(hour.minutes is None for hour in later)
