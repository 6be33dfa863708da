import os
from datetime import timedelta

import pytest

from appliance import lifecycle, maintenance
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.store import Store
from tests.appliance import world
from tests.appliance.world import Bell

LATER = timedelta(minutes=5)
TASK = "pipelines.analyse_study"


def close(
    database: Database,
    settings: Settings,
    bell: Bell | None = None,
    *,
    after: timedelta = timedelta(0),
):
    return maintenance.close_quiet_studies(
        database, bell or Bell(), settings, now=utc_now() + after
    )


def sweep(
    database: Database,
    settings: Settings,
    bell: Bell | None = None,
    *,
    after: timedelta = timedelta(0),
):
    return maintenance.sweep(database, bell or Bell(), settings, now=utc_now() + after)


def test_a_quiet_study_is_queued_and_rung(database: Database, settings: Settings):
    bell = Bell()
    world.in_state(database, State.RECEIVING)

    assert close(database, settings, bell, after=timedelta(seconds=11)) == [1]

    assert world.state_of(database) is State.QUEUED
    assert bell.rung == [(TASK, 1)]


def test_a_study_that_still_grows_is_not_closed(database: Database, settings: Settings):
    world.in_state(database, State.RECEIVING)

    assert close(database, settings, after=timedelta(seconds=9)) == []


def test_two_closers_close_a_study_once(database: Database, settings: Settings):
    world.in_state(database, State.RECEIVING)

    assert close(database, settings, after=LATER) == [1]
    assert close(database, settings, after=LATER) == []


@pytest.mark.parametrize("state", sorted(set(State) - {State.RECEIVING}))
def test_no_other_study_is_closed(database: Database, settings: Settings, state: State):
    world.in_state(database, state)

    assert close(database, settings, after=LATER) == []
    assert world.state_of(database) is state


def test_a_dead_workers_study_is_given_back_and_rung(database: Database, settings: Settings):
    bell = Bell()
    world.claimed(database)

    swept = sweep(database, settings, bell, after=LATER)

    assert swept.given_back == (1,)
    assert world.state_of(database) is State.QUEUED
    assert bell.rung == [(TASK, 1)]


def test_a_study_that_always_kills_its_worker_ends_as_failed(
    database: Database, settings: Settings
):
    bell = Bell()
    world.queued(database)
    for _ in range(3):
        world.reclaimed(database)
        swept = sweep(database, settings, bell, after=LATER)

    assert swept.failed == (1,)
    assert world.state_of(database) is State.FAILED
    assert len(bell.rung) == 2


def test_a_lost_message_is_sent_again(database: Database, settings: Settings):
    bell = Bell()
    world.queued(database)

    assert sweep(database, settings, bell).rung == ()
    assert sweep(database, settings, bell, after=LATER).rung == (1,)
    assert bell.rung == [(TASK, 1)]


def test_a_message_just_sent_is_not_sent_again(database: Database, settings: Settings):
    study_id = world.in_state(database, State.RECEIVING)
    lifecycle.move(database, Bell(), study_id, State.RECEIVING, State.QUEUED)

    assert sweep(database, settings, after=timedelta(seconds=29)).rung == ()


def test_what_an_absent_broker_did_not_take_is_sent_at_the_next_sweep(
    database: Database, settings: Settings
):
    world.queued(database)

    assert sweep(database, settings, Bell(deaf=True), after=LATER).rung == ()
    assert sweep(database, settings, Bell(), after=LATER).rung == (1,)


def test_a_long_queue_does_not_flood_the_broker(database: Database, settings: Settings):
    for number in range(maintenance.RING_AT_MOST + 3):
        world.queued(database, study_uid=f"2.25.{number}")

    rung = sweep(database, settings, after=LATER).rung

    assert rung == tuple(range(1, maintenance.RING_AT_MOST + 1))


def test_files_of_dead_writers_are_removed(database: Database, settings: Settings):
    store = Store(settings.store_dir)
    (store.incoming_dir / "dead").write_bytes(b"half")
    os.utime(store.incoming_dir / "dead", (1, 1))

    assert sweep(database, settings).removed_files == 1


@pytest.mark.parametrize("name", ["whole", ".half.x7"])
def test_results_of_killed_workers_are_removed_once_nobody_can_be_writing_them(
    database: Database, settings: Settings, name: str
):
    lifecycle.finish(database, world.claimed(database), world.result("analyses/1/kept"))
    kept, orphan = (settings.analyses_dir / "1" / folder for folder in ("kept", name))
    for folder in (kept, orphan):
        (folder / "viewer").mkdir(parents=True)
    limit = timedelta(seconds=settings.lifecycle.task_time_limit_s)

    def removed(*, after: timedelta) -> int:
        return maintenance.remove_orphans(database, settings, now=utc_now() + after)

    assert removed(after=limit) == 0
    assert removed(after=limit + LATER * 3) == 1
    assert kept.is_dir()
    assert not orphan.exists()
