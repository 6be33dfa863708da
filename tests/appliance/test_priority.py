from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from appliance import audit, lifecycle, maintenance, priority, pulse, studies
from appliance.config import PriorityRuleSettings, Settings
from appliance.database import Database, utc_now
from appliance.errors import ApplianceError, ConfigError
from appliance.lifecycle import Claim, State
from appliance.priority import Priority, SeriesFacts
from appliance.studies import SeriesAttributes, StudyAttributes
from appliance.tables import AuditEntry, Study
from tests.appliance import world
from tests.appliance.world import Bell
from tests.support.databases import settings_in

EMERGENCY = {"priority": {"rules": [{"name": "emergency room", "station_name": "ER*"}]}}
HEADER = {"requested_priority": "STAT"}


def backlog(database: Database, count: int, *, urgent: int = 0, first: int = 1) -> list[int]:
    """Ids of studies that wait and were rung for, oldest first; the last ones are urgent."""
    ids = []
    for number in range(first, first + count):
        study_id = world.queued(database, study_uid=f"2.25.{number}")
        lifecycle.ring(database, Bell(), study_id, State.QUEUED)
        ids.append(study_id)
    with database.transaction() as db:
        for study_id in ids[count - urgent :]:
            priority.mark(db, study_id, Priority.URGENT, actor="test", who="test")
    return ids


def take(database: Database, rung_id: int, *, in_a_row: int = 4) -> Claim | None:
    return priority.claim_next(database, rung_id, owner="test", lease_s=30.0, in_a_row=in_a_row)


def taken(database: Database, rung_ids: list[int], **options: Any) -> list[int]:
    """Which studies are analysed, in which order, when messages come for these."""
    claims = [take(database, rung_id, **options) for rung_id in rung_ids]
    return [claim.study_id for claim in claims if claim is not None]


def row(database: Database, study_id: int = 1) -> studies.WorklistRow:
    with database.snapshot() as db:
        found = studies.worklist_row(db, study_id)
    assert found is not None
    return found


def test_an_urgent_study_that_comes_last_is_analysed_next(database: Database):
    waiting = backlog(database, 21, urgent=1)

    # The messages come in the order they were sent, and the urgent one's comes last.
    assert taken(database, waiting) == [waiting[-1], *waiting[:-1]]


def test_two_workers_at_once_take_the_urgent_study_and_the_oldest(database: Database):
    waiting = backlog(database, 21, urgent=1)

    with ThreadPoolExecutor(2) as workers:
        claims = list(workers.map(lambda rung_id: take(database, rung_id), waiting[:2]))

    assert {claim.study_id for claim in claims if claim} == {waiting[-1], waiting[0]}


def test_every_message_finds_a_study_of_its_own(database: Database):
    waiting = backlog(database, 8, urgent=3)

    with ThreadPoolExecutor(4) as workers:
        claims = list(workers.map(lambda rung_id: take(database, rung_id), waiting))

    assert sorted(claim.study_id for claim in claims if claim) == waiting
    assert take(database, waiting[0]) is None


def test_no_study_waits_for_ever_behind_urgent_ones(database: Database):
    """As one urgent study is taken, another comes: the oldest still has its turn."""
    routine = backlog(database, 1)[0]
    order = []
    for number in range(8):
        (newest,) = backlog(database, 1, urgent=1, first=10 + number)
        order += taken(database, [newest], in_a_row=3)

    assert order.index(routine) == 3


def test_a_lost_message_is_made_up_for_by_the_next(database: Database):
    lost, heard = backlog(database, 2)

    assert taken(database, [heard, heard]) == [lost, heard]


def test_a_study_that_failed_for_now_waits_for_the_sweep_though_it_is_urgent(database: Database):
    routine, urgent = backlog(database, 2, urgent=1)
    claim = take(database, urgent)
    assert claim is not None
    assert claim.study_id == urgent
    lifecycle.fail(database, claim, reason="trouble", transient=True)

    assert taken(database, [routine, routine]) == [routine]
    lifecycle.ring(database, Bell(), urgent, State.QUEUED)
    assert taken(database, [routine]) == [urgent]


def test_the_sweep_rings_for_urgent_studies_first(database: Database, settings: Settings):
    waiting = [world.queued(database, study_uid=f"2.25.{number}") for number in range(10)]
    with database.transaction() as db:
        priority.mark(db, waiting[-1], Priority.URGENT, actor="test", who="test")
    bell = Bell()

    maintenance.sweep(database, bell, settings, now=utc_now() + timedelta(minutes=5))

    assert [study_id for _, study_id in bell.rung] == [waiting[-1], *waiting[:7]]


def facts(**given: str) -> SeriesFacts:
    blank = dict.fromkeys(SeriesFacts.__dataclass_fields__, "")
    return SeriesFacts(**{**blank, **given})


@pytest.mark.parametrize(
    ("rule", "series", "urgent"),
    [
        ({"source_ae": "ER_CT"}, {"source_ae": "ER_CT"}, True),
        ({"source_ae": "ER_CT"}, {"source_ae": "ER_CT2"}, False),
        ({"description": "*stroke*"}, {"study_description": "CT Stroke protocol"}, True),
        ({"description": "*stroke*"}, {"series_description": "STROKE"}, True),
        ({"description": "*stroke*"}, {}, False),
        ({"protocol_name": "Trauma?"}, {"protocol_name": "Trauma1"}, True),
        ({"protocol_name": "[T]*"}, {"protocol_name": "Trauma1"}, False),
        ({"station_name": "ER*", "modality": "CT"}, {"station_name": "E", "modality": "CT"}, False),
        ({"station_name": "E*", "modality": "CT"}, {"station_name": "E1", "modality": "CT"}, True),
        ({"station_name": "E*", "modality": "CT"}, {"station_name": "E1", "modality": "SR"}, False),
        ({"requested_priority": "STAT"}, {"requested_priority": "STAT "}, True),
    ],
)  # fmt: skip
def test_a_rule_names_a_series_by_all_that_it_gives(
    rule: dict[str, str], series: dict[str, str], *, urgent: bool
):
    named = PriorityRuleSettings(name="test", **rule)

    found = priority.matching([named], [facts(), facts(**series)])

    assert found == (named if urgent else None)


def test_a_rule_for_everything_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="every study urgent"):
        settings_in(tmp_path, priority={"rules": [{"name": "all"}]})


def test_a_later_series_makes_a_study_urgent_and_its_silence_shorter(
    database: Database, settings: Settings
):
    settings = Settings.parse(
        {
            "data_dir": str(settings.data_dir),
            "database": {"url": settings.database_url},
            "receive": {"quiet_s": 600},
            "priority": {**EMERGENCY["priority"], "quiet_s": 60},
        }
    )
    world.receive(database, world.instance())
    later = utc_now() + timedelta(seconds=120)
    assert maintenance.close_quiet_studies(database, Bell(), settings, now=later) == []
    assert row(database).priority is Priority.ROUTINE

    series = SeriesAttributes(station_name="er 2")
    world.receive(database, world.instance(2, series_uid="2.25.1.2", content="b", series=series))

    assert maintenance.close_quiet_studies(database, Bell(), settings, now=later) == [1]
    assert (row(database).priority, row(database).priority_reason) == (
        Priority.URGENT,
        "rule emergency room",
    )


def test_what_a_sender_calls_stat_is_urgent_by_default(database: Database, settings: Settings):
    study = StudyAttributes(description="Thorax")
    series = SeriesAttributes(requested_priority="STAT")
    world.receive(database, world.instance(study=study, series=series))

    maintenance.close_quiet_studies(database, Bell(), settings)

    assert row(database).priority_reason == "rule STAT request"


def test_what_a_person_says_no_rule_changes(database: Database, settings: Settings):
    world.receive(database, world.instance(series=SeriesAttributes(**HEADER)))
    with database.transaction() as db:
        priority.mark(db, 1, Priority.ROUTINE, actor="Ann", who="Ann")

    maintenance.close_quiet_studies(database, Bell(), settings)

    assert (row(database).priority, row(database).priority_reason) == (Priority.ROUTINE, "by Ann")


def test_a_mark_is_audited_and_seen_by_pages(database: Database):
    study_id = world.queued(database)
    with database.snapshot() as db:
        before = pulse.marker(db)

    with database.transaction() as db:
        priority.mark(db, study_id, Priority.URGENT, actor="command line: ann", who="ann")

    with database.snapshot() as db:
        assert pulse.marker(db) != before
        assert studies.events_of(db, study_id)[-1].reason == "urgent by ann"
        entry = db.query(AuditEntry).order_by(AuditEntry.id.desc()).first()
        assert audit.verify(db) is None
    assert entry is not None
    assert (entry.actor, entry.tag, entry.subject, entry.detail) == (
        "command line: ann", "priority:study:marked", f"study {study_id}", {"priority": "URGENT"},
    )  # fmt: skip
    assert world.state_of(database, study_id) is State.QUEUED


def test_a_study_that_is_not_there_cannot_be_urgent(database: Database):
    with pytest.raises(ApplianceError, match="no study 7"), database.transaction() as db:
        priority.mark(db, 7, Priority.URGENT, actor="ann", who="ann")


def test_the_database_knows_no_other_priority(database: Database):
    study_id = world.queued(database)

    with pytest.raises(Exception, match="priority"), database.transaction() as db:
        db.execute(update(Study).where(Study.id == study_id).values(priority="SOON"))
