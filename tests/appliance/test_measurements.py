import math
from dataclasses import replace

import pytest
from sqlalchemy import select

from appliance import lifecycle, measurements, retention, studies
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.errors import MeasurementError
from appliance.measurements import MOST, POINTS, TEXT_LIMIT, Kind, Measured
from appliance.tables import MEASUREMENTS, Account, Analysis, AuditEntry
from tests.appliance import world

KEY = "0123456789abcdef" * 2
DISTANCE = Measured(
    kind=Kind.DISTANCE,
    plane="axial",
    points=((1.5, 2, 30), (11.5, 2, 30)),
    text="",
    values={"length_mm": 7.0},
)


@pytest.fixture
def people(database: Database) -> dict[str, Account]:
    made = {
        # No password: its slow hash is of no use here.
        name: Account(name=name, password_hash="", role="viewer", active=True, created_at=utc_now())
        for name in ("ann", "bob")
    }
    with database.transaction() as db:
        db.add_all(made.values())
    return made


@pytest.fixture
def analysis(database: Database) -> Analysis:
    claim = world.claimed(database)
    lifecycle.finish(database, claim, world.result())
    with database.snapshot() as db:
        found = studies.current_analysis(db, claim.study_id)
    assert found is not None
    return found


def kept(database: Database, analysis: Analysis, account: Account) -> list[tuple[str, str]]:
    with database.snapshot() as db:
        return [(row.kind, row.text) for row in measurements.of(db, analysis.id, account.id)]


def noted(database: Database) -> list[str]:
    with database.snapshot() as db:
        tags = db.scalars(select(AuditEntry.tag).order_by(AuditEntry.id)).all()
    return [tag for tag in tags if "measurement" in tag]


def save(
    database: Database, analysis: Analysis, account: Account, measured: Measured, key: str = KEY
) -> None:
    with database.transaction() as db:
        measurements.save(db, analysis, account, key, measured)


def test_the_tables_of_kinds_are_closed():
    assert set(Kind) == set(POINTS) == set(MEASUREMENTS)


def test_a_measurement_is_kept_for_its_person_and_noted(
    database: Database, analysis: Analysis, people: dict[str, Account]
):
    save(database, analysis, people["ann"], replace(DISTANCE, text=" here "))

    with database.snapshot() as db:
        (row,) = measurements.of(db, analysis.id, people["ann"].id)
    assert (row.key, row.kind, row.plane, row.text) == (KEY, "distance", "axial", "here")
    assert row.points == [[1.5, 2, 30], [11.5, 2, 30]]
    assert row.values == {"length_mm": 7.0}
    assert kept(database, analysis, people["bob"]) == []
    assert noted(database) == ["web:measurement:saved"]


def test_sent_twice_it_is_one_and_sent_otherwise_it_is_changed(
    database: Database, analysis: Analysis, people: dict[str, Account]
):
    save(database, analysis, people["ann"], DISTANCE)
    save(database, analysis, people["ann"], DISTANCE)
    save(database, analysis, people["ann"], replace(DISTANCE, text="hilum"))

    assert kept(database, analysis, people["ann"]) == [("distance", "hilum")]
    assert noted(database) == ["web:measurement:saved"] * 2


def test_only_its_person_deletes_it_and_that_is_noted_once(
    database: Database, analysis: Analysis, people: dict[str, Account]
):
    save(database, analysis, people["ann"], DISTANCE)

    for name in ("bob", "ann", "ann"):
        with database.transaction() as db:
            measurements.remove(db, analysis, people[name], KEY)

    assert kept(database, analysis, people["ann"]) == []
    assert noted(database) == ["web:measurement:saved", "web:measurement:deleted"]


def test_there_is_a_most(database: Database, analysis: Analysis, people: dict[str, Account]):
    with database.transaction() as db:
        for number in range(MOST):
            measurements.save(db, analysis, people["ann"], f"{number:032x}", DISTANCE)

    with pytest.raises(MeasurementError, match="delete some"):
        save(database, analysis, people["ann"], DISTANCE, "f" * 32)
    save(database, analysis, people["ann"], replace(DISTANCE, text="changed"), f"{0:032x}")


@pytest.mark.parametrize("key", ["", "1" * 31, "../" + "1" * 29, "G" * 32])
def test_a_name_that_is_none_is_refused(
    database: Database, analysis: Analysis, people: dict[str, Account], key: str
):
    with pytest.raises(MeasurementError):
        save(database, analysis, people["ann"], DISTANCE, key)


@pytest.mark.parametrize(
    "wrong",
    [
        {"plane": "oblique"},
        {"points": DISTANCE.points[:1]},
        {"points": ((math.nan, 0, 0), (1, 1, 1))},
        {"values": {"length_mm": math.inf}},
        {"values": {"patient": 1.0}},
        {"text": "x" * (TEXT_LIMIT + 1)},
    ],
)
def test_what_is_no_measurement_is_refused(wrong: dict[str, object]):
    with pytest.raises(MeasurementError):
        replace(DISTANCE, **wrong)


def test_a_removed_study_takes_its_measurements_along(
    database: Database, settings: Settings, analysis: Analysis, people: dict[str, Account]
):
    save(database, analysis, people["ann"], DISTANCE)

    assert retention.remove(database, settings, analysis.study_id, actor="test")

    assert kept(database, analysis, people["ann"]) == []
