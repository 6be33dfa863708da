"""Totals that only grow: counted from the rows, and kept when a study goes."""

from alembic import command
from sqlalchemy import select

from appliance import lifecycle, retention, studies, tallies
from appliance.config import Settings
from appliance.database import Database, migration_config, upgrade
from appliance.tables import Series, Tally
from tests.appliance import world

TIMINGS = {"reading": 1.0, "lesions": 61.5}


def grown(database: Database) -> dict[tallies.Key, float]:
    with database.snapshot() as db:
        return {key: value for key, value in tallies.grown(db).items() if value}


def analysed(database: Database, **changes: object) -> int:
    world.receive(database, world.instance(), world.instance(2, content="b"))
    with database.snapshot() as db:
        study_id = studies.named(db, world.STUDY_UID)[0].id
    lifecycle.move(database, None, study_id, lifecycle.State.RECEIVING, lifecycle.State.QUEUED)
    lifecycle.finish(
        database, world.reclaimed(database, study_id), world.result(timings=TIMINGS, **changes)
    )
    return study_id


def test_what_was_received_and_analysed_is_counted(database: Database):
    analysed(database)

    totals = grown(database)

    assert totals[tallies.STUDIES, ()] == 1
    assert totals[tallies.INSTANCES, ()] == 2
    assert totals[tallies.BYTES, ()] == 6
    assert totals[tallies.ANALYSES, ("positive",)] == 1
    assert totals[tallies.STEP_COUNT, ("lesions",)] == 1
    assert totals[tallies.STEP_SECONDS, ("lesions",)] == 61.5
    within = {
        limit: totals.get((tallies.STEP_WITHIN, ("lesions", str(limit))), 0)
        for limit in tallies.STEP_LIMITS_S
    }
    assert [limit for limit, count in within.items() if count] == [120.0, 300.0, 900.0]


def test_failures_are_counted_by_kind(database: Database):
    claim = world.claimed(database)
    lifecycle.fail(database, claim, reason="broken", transient=True)
    lifecycle.fail(database, world.reclaimed(database), reason="broken", transient=False)
    refused = world.claimed(database, study_uid="2.25.2")
    lifecycle.reject(database, refused, reason="not a chest")

    totals = grown(database)

    kinds = {labels[0]: count for (name, labels), count in totals.items() if name == "failures"}
    assert kinds == {"try failed": 1, "study failed": 1, "study refused": 1}


def test_no_total_shrinks_when_studies_are_removed(settings: Settings, database: Database):
    first = analysed(database)
    before = grown(database)

    assert retention.remove(database, settings, first, actor="test")

    assert grown(database) == before
    again = analysed(database)
    assert retention.remove(database, settings, again, actor="test")
    assert grown(database) == {key: 2 * value for key, value in before.items()}
    with database.snapshot() as db:
        assert world.STUDY_UID not in str([vars(row) for row in db.scalars(select(Tally))])


def test_the_sizes_of_what_came_before_are_added_up(settings: Settings, database: Database):
    world.receive(database, world.instance(), world.instance(2, content="b"))
    with database.engine.connect() as connection:
        command.downgrade(migration_config(connection), "0008")
        connection.commit()

    upgrade(settings)

    with database.snapshot() as db:
        assert db.scalars(select(Series.size_bytes)).all() == [6]
