from datetime import timedelta
from typing import Any

from sqlalchemy import event

from appliance import lifecycle, pulse, retention
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.worklist import Stage
from tests.appliance import world


def test_stages_are_counted_only_when_something_moved(database: Database):
    study_id = world.in_state(database, State.RECEIVING)
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    with database.snapshot() as db:
        first = pulse.read(db)
        counting = len(seen)
        again = pulse.read(db, before=first)
    quiet = len(seen) - counting
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)
    seen.clear()
    with database.snapshot() as db:
        moved = pulse.read(db, before=again)

    assert quiet < counting
    assert not any("GROUP BY" in statement for statement in seen[counting:])
    assert again.counts == first.counts
    assert moved.marker != again.marker
    assert (moved.counts[Stage.WAITING], len(again.moving), len(moved.moving)) == (1, 1, 0)


def test_a_removed_study_is_missed_at_the_next_count(database: Database, settings: Settings):
    study_id = world.in_state(database, State.FAILED)
    other = world.queued(database, study_uid="2.25.2")
    with database.snapshot() as db:
        first = pulse.read(db)
    assert retention.remove(database, settings, study_id, actor="a")

    with database.snapshot() as db:
        later = pulse.read(db, before=first, now=utc_now() + timedelta(seconds=31))
        asked = pulse.marker(db)

    assert other
    assert later.counts[Stage.FAILED] == 0
    assert later.marker == asked != first.marker
