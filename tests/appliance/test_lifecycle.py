from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib import metadata

import pytest

from appliance import lifecycle, studies
from appliance.database import Database, utc_now
from appliance.errors import InvalidMoveError, LostRaceError
from appliance.lifecycle import NEXT, ON_ENTER, State
from appliance.tables import STATES, Study
from tests.appliance import world
from tests.appliance.world import Bell

LATER = timedelta(minutes=5)


def test_the_table_of_moves_knows_every_state_and_no_other():
    assert set(NEXT) == set(State)
    assert {target for targets in NEXT.values() for target in targets} == set(State)
    assert tuple(State) == STATES


def test_every_state_but_the_final_ones_leads_to_a_result():
    def reachable(source: State) -> set[State]:
        seen: set[State] = set()
        todo = [source]
        while todo:
            for target in NEXT[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        return seen

    assert all(State.READY in reachable(state) for state in State)


def test_what_is_rung_is_a_task_of_a_package_that_names_its_tasks():
    homes = {entry.value for entry in metadata.entry_points(group="appliance.tasks")}

    assert {f"{name.partition('.')[0]}.tasks" for name in ON_ENTER.values()} <= homes


@pytest.mark.parametrize("state", list(State))
def test_every_state_can_be_reached(database: Database, state: State):
    study_id = world.in_state(database, state)

    assert world.state_of(database, study_id) is state


@pytest.mark.parametrize("source", list(State))
@pytest.mark.parametrize("target", list(State))
def test_no_move_outside_the_table_is_made(database: Database, source: State, target: State):
    study_id = world.in_state(database, source)

    if target in NEXT[source]:
        with database.transaction() as db:
            lifecycle.advance(db, study_id, source, target)
        assert world.state_of(database, study_id) is target
    else:
        with pytest.raises(InvalidMoveError), database.transaction() as db:
            lifecycle.advance(db, study_id, source, target)
        assert world.state_of(database, study_id) is source


def test_a_move_from_a_state_the_study_left_is_a_lost_race(database: Database):
    study_id = world.queued(database)

    with pytest.raises(LostRaceError):
        lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)


def test_each_move_leaves_one_event(database: Database):
    study_id = world.in_state(database, State.READY)

    with database.snapshot() as db:
        moves = [(event.source, event.target) for event in studies.events_of(db, study_id)]
    assert moves == [
        (None, State.RECEIVING),
        (State.RECEIVING, State.QUEUED),
        (State.QUEUED, State.ANALYSING),
        (State.ANALYSING, State.READY),
    ]


def test_a_move_rings_after_its_commit(database: Database):
    bell = Bell()
    study_id = world.in_state(database, State.RECEIVING)

    lifecycle.move(database, bell, study_id, State.RECEIVING, State.QUEUED)

    assert bell.rung == [("pipelines.analyse_study", study_id)]


def test_a_broker_that_is_away_does_not_undo_a_move(database: Database):
    study_id = world.in_state(database, State.RECEIVING)

    lifecycle.move(database, Bell(deaf=True), study_id, State.RECEIVING, State.QUEUED)

    assert world.state_of(database, study_id) is State.QUEUED


def test_of_many_claims_at_once_one_is_given(database: Database):
    study_id = world.queued(database)

    with ThreadPoolExecutor(8) as threads:
        claims = list(
            threads.map(
                lambda _: lifecycle.claim(database, study_id, owner="test", lease_s=30), range(8)
            )
        )

    assert sum(claim is not None for claim in claims) == 1


def test_a_claim_is_renewed_only_by_its_owner(database: Database):
    claim = world.claimed(database)
    stranger = lifecycle.Claim(claim.study_id, claim.revision, claim.attempt, "stranger")

    assert lifecycle.renew(database, claim, lease_s=30)
    assert not lifecycle.renew(database, stranger, lease_s=30)


def test_a_kept_lease_outlives_its_first_term(database: Database):
    claim = world.claimed(database, lease_s=0.3)

    with lifecycle.keep(database, claim, lease_s=0.3) as lease:
        at = utc_now() + timedelta(seconds=0.31)
        while utc_now() < at:
            pass
        assert lifecycle.expire(database) == []

    assert not lease.lost


def test_a_lost_lease_says_so(database: Database):
    claim = world.claimed(database)
    lifecycle.expire(database, now=utc_now() + LATER)

    with lifecycle.keep(database, claim, lease_s=0.03) as lease:
        at = utc_now() + timedelta(seconds=5)
        while not lease.lost and utc_now() < at:
            pass

    assert lease.lost


def test_an_expired_lease_gives_the_study_back(database: Database):
    claim = world.claimed(database)

    moved = lifecycle.expire(database, now=utc_now() + LATER)

    assert moved == [(claim.study_id, State.QUEUED)]


def test_a_lease_that_still_runs_is_left_alone(database: Database):
    world.claimed(database)

    assert lifecycle.expire(database) == []


def test_after_three_tries_a_study_is_quarantined(database: Database):
    claim = world.claimed(database)
    for _ in range(2):
        lifecycle.expire(database, now=utc_now() + LATER)
        claim = world.reclaimed(database)

    moved = lifecycle.expire(database, now=utc_now() + LATER)

    assert claim.attempt == 3
    assert moved == [(claim.study_id, State.FAILED)]
    with database.snapshot() as db:
        study = db.get(Study, claim.study_id)
    assert study.state_reason.startswith("quarantined after 3 tries")


def test_a_worker_taken_for_dead_cannot_finish(database: Database):
    claim = world.claimed(database)
    lifecycle.expire(database, now=utc_now() + LATER)

    with pytest.raises(LostRaceError):
        lifecycle.finish(database, claim, world.result())

    with database.snapshot() as db:
        assert studies.analyses_of(db, claim.study_id) == []


def test_a_second_finish_of_one_claim_keeps_one_result(database: Database):
    claim = world.claimed(database)
    lifecycle.finish(database, claim, world.result())

    with pytest.raises(LostRaceError):
        lifecycle.finish(database, claim, world.result())

    with database.snapshot() as db:
        assert len(studies.analyses_of(db, claim.study_id)) == 1


def test_a_late_instance_makes_the_running_result_one_that_is_not_current(database: Database):
    claim = world.claimed(database)
    world.receive(database, world.instance(2, content="b"))

    state = lifecycle.finish(database, claim, world.result())

    assert state is State.RECEIVING
    with database.snapshot() as db:
        assert studies.current_analysis(db, claim.study_id) is None
        assert len(studies.analyses_of(db, claim.study_id)) == 1


@pytest.mark.parametrize("end", ["reject", "fail"])
def test_a_late_instance_saves_a_study_from_being_given_up(database: Database, end: str):
    claim = world.claimed(database)
    world.receive(database, world.instance(2, content="b"))

    if end == "reject":
        state = lifecycle.reject(database, claim, reason="too few slices")
    else:
        state = lifecycle.fail(database, claim, reason="broken", transient=False)

    assert state is State.RECEIVING


def test_a_newer_result_supersedes_the_older_and_both_are_kept(database: Database):
    study_id = world.in_state(database, State.READY)
    world.receive(database, world.instance(2, content="b"))
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)

    lifecycle.finish(database, world.reclaimed(database), world.result("analyses/1/b"))

    with database.snapshot() as db:
        old, new = studies.analyses_of(db, study_id)
        current = studies.current_analysis(db, study_id)
    assert (old.current, old.superseded_by) == (False, new.id)
    assert current.id == new.id
    assert current.folder == "analyses/1/b"


def test_a_permanent_failure_ends_at_once_with_its_reason(database: Database):
    claim = world.claimed(database)

    state = lifecycle.fail(database, claim, reason="the files are damaged", transient=False)

    assert state is State.FAILED


def test_an_orderly_stop_costs_no_try(database: Database):
    claim = world.claimed(database)

    released = lifecycle.release(database, owner="test")

    assert released == [claim.study_id]
    assert world.reclaimed(database).attempt == 1


def test_an_orderly_stop_leaves_the_claims_of_others(database: Database):
    world.claimed(database)

    assert lifecycle.release(database, owner="tes") == []


@pytest.mark.parametrize("state", [State.FAILED, State.REJECTED])
def test_a_person_can_send_a_study_again(database: Database, state: State):
    bell = Bell()
    study_id = world.in_state(database, state)

    lifecycle.requeue(database, study_id, actor="ann", doorbell=bell)

    assert world.state_of(database, study_id) is State.QUEUED
    assert bell.rung == [("pipelines.analyse_study", study_id)]
    assert world.reclaimed(database).attempt == 1


@pytest.mark.parametrize("state", sorted(set(State) - {State.FAILED, State.REJECTED}))
def test_no_other_study_is_sent_again(database: Database, state: State):
    study_id = world.in_state(database, state)

    with pytest.raises(InvalidMoveError):
        lifecycle.requeue(database, study_id, actor="ann")
