import os
import threading
import time
from datetime import timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select

from appliance import (
    accounts,
    audit,
    deliveries,
    lifecycle,
    retention,
    retrievals,
    reviews,
    studies,
)
from appliance.accounts import Role
from appliance.cli import main
from appliance.config import RetentionSettings, Settings
from appliance.database import Base, Database, utc_now
from appliance.deliveries import Content, Kind
from appliance.lifecycle import State
from appliance.retention import HOLDS, NAMED, remove
from appliance.retrievals import Aim, Why
from appliance.reviews import Judgement
from appliance.store import SETTLED_S, Store
from appliance.tables import Analysis, AuditEntry, Instance, Patient, Study
from tests.appliance import world

OLD = timedelta(days=31)
TERMS = {"keep_days": 30, "free_bytes": 0, "at_least_days": 7, "unconfirmed": True}
OTHER_UID = "2.25.2"
PASSWORD = "correct horse battery"
FULL = 10**18  # bytes that no disk has free


def chosen(settings: Settings, **terms: int) -> Settings:
    return Settings(
        data_dir=settings.data_dir,
        database_url=settings.database_url,
        retention=RetentionSettings(**{**TERMS, **terms}),
    )


def put(store: Store, content: bytes) -> str:
    """The digest of bytes that have lain in the store for long."""
    with store.incoming() as incoming:
        incoming.write(content)
        stored = incoming.commit()
    long_ago = time.time() - 2 * SETTLED_S
    os.utime(stored.path, (long_ago, long_ago))
    return stored.digest


def ready(database: Database, settings: Settings, *, study_uid: str = world.STUDY_UID) -> int:
    """The id of a study with one stored image and a result folder."""
    digest = put(Store(settings.store_dir), study_uid.encode())
    world.receive(database, world.instance(study_uid=study_uid, digest=digest))
    with database.snapshot() as db:
        study_id = studies.named(db, study_uid)[0].id
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)
    folder = settings.analyses_dir / str(study_id) / "a"
    folder.mkdir(parents=True)
    (folder / "analysis.json").write_text("{}")
    lifecycle.finish(
        database,
        world.reclaimed(database, study_id),
        world.result(folder=str(folder.relative_to(settings.data_dir))),
    )
    considered(database)
    return study_id


def considered(database: Database) -> None:
    """The rules were asked about all that ended."""
    with database.transaction() as db:
        for occasion in deliveries.open_occasions(db):
            deliveries.take(db, occasion)


def enforce(database: Database, settings: Settings, *, after: timedelta = OLD) -> list[int]:
    return retention.enforce(database, settings, now=utc_now() + after)


def rows(database: Database) -> dict[str, int]:
    """How many rows each table has, without those that no study has."""
    others = {"audit_entry", "account", "retrieval", "tally"}
    tables = [table for table in Base.metadata.sorted_tables if table.name not in others]
    with database.snapshot() as db:
        return {t.name: db.scalar(select(func.count()).select_from(t)) or 0 for t in tables}


def test_by_default_nothing_is_ever_removed(database: Database, settings: Settings):
    ready(database, settings)

    assert retention.enforce(database, settings, now=utc_now() + timedelta(days=9999)) == []


def test_an_old_study_goes_with_everything_but_the_audit(database: Database, settings: Settings):
    study_id = ready(database, settings)
    store = Store(settings.store_dir)
    with database.transaction() as db:
        audit.record(db, actor="a", tag=studies.VIEWED, subject=f"study {study_id}")

    assert enforce(database, chosen(settings), after=timedelta(days=29)) == []
    assert enforce(database, chosen(settings)) == [study_id]

    assert set(rows(database).values()) == {0}
    assert not list(settings.analyses_dir.iterdir())
    assert not list(store.objects_dir.glob("*/*"))
    with database.snapshot() as db:
        last = db.scalars(select(AuditEntry).order_by(AuditEntry.id.desc())).first()
        assert audit.verify(db) is None
    assert last is not None
    assert (last.tag, last.subject) == ("retention:study:removed", f"study {study_id}")
    assert last.detail == {"why": "age", "images": 1}


def test_a_removed_studys_number_is_given_to_no_other(database: Database, settings: Settings):
    first = ready(database, settings)
    enforce(database, chosen(settings))

    again = ready(database, settings)

    assert again > first
    with database.snapshot() as db:
        assert db.scalars(select(Analysis.id)).one() > 1


def test_what_another_study_has_too_stays(database: Database, settings: Settings):
    store = Store(settings.store_dir)
    study_id = ready(database, settings)
    with database.snapshot() as db:
        digest = db.scalars(select(Instance.digest)).one()
    same = world.instance(study_uid=OTHER_UID, digest=digest)
    world.receive(database, same)

    assert remove(database, settings, study_id, actor="a")

    assert store.path_of(digest).exists()
    assert rows(database)["patient"] == 1


@pytest.mark.parametrize("state", sorted(set(State) - {State.READY, State.REJECTED}))
def test_what_is_under_way_or_failed_stays(database: Database, settings: Settings, state: State):
    world.in_state(database, state)

    assert enforce(database, chosen(settings, free_bytes=FULL)) == []
    assert rows(database)["study"] == 1


def test_a_refused_study_goes_as_well(database: Database, settings: Settings):
    world.in_state(database, State.REJECTED)
    considered(database)

    assert enforce(database, chosen(settings)) == [1]


def test_a_study_somebody_has_just_looked_at_stays(database: Database, settings: Settings):
    study_id = ready(database, settings)
    with database.transaction() as db:
        audit.record(db, actor="a", tag=studies.VIEWED, subject=f"study {study_id}")
    now = chosen(settings, free_bytes=FULL, at_least_days=0)

    assert enforce(database, now, after=timedelta(hours=23)) == []
    assert enforce(database, now, after=timedelta(hours=25)) == [study_id]


def test_a_study_whose_result_nobody_confirmed_stays(database: Database, settings: Settings):
    study_id = ready(database, settings)
    careful = chosen(settings, unconfirmed=False)

    assert enforce(database, careful) == []

    with database.transaction() as db:
        number = accounts.add(db, "ann", password=PASSWORD, role=Role.RADIOLOGIST, actor="a")
        analysis, account = studies.current_analysis(db, study_id), accounts.find(db, number)
        assert analysis is not None
        assert account is not None
        judgement = Judgement(positive=True, lesions={1: True, 2: True})
        reviews.confirm(db, analysis.id, judgement, seen=0, account=account, organisation="Clinic")
    considered(database)
    assert enforce(database, careful) == [study_id]


def test_a_study_with_something_unsent_stays(database: Database, settings: Settings):
    study_id = ready(database, settings)
    with database.transaction() as db:
        subject = deliveries.latest(db, study_id)
        assert subject is not None
        delivery_id = deliveries.queue(
            db, subject, destination="pacs", kind=Kind.DICOM, contents=[Content.SR]
        )
    assert delivery_id is not None

    assert enforce(database, chosen(settings)) == []

    with database.transaction() as db:
        deliveries.drop(db, delivery_id, actor="a")
    assert enforce(database, chosen(settings)) == [study_id]


def test_a_study_about_which_no_rule_was_asked_yet_stays(database: Database, settings: Settings):
    lifecycle.finish(database, world.claimed(database), world.result())

    assert enforce(database, chosen(settings)) == []

    considered(database)
    assert enforce(database, chosen(settings)) == [1]


def test_a_study_of_which_more_is_wanted_stays(database: Database, settings: Settings):
    study_id = ready(database, settings)
    with database.transaction() as db:
        retrievals.ask(
            db,
            destination="pacs",
            aim=Aim.STUDY,
            study_uid=world.STUDY_UID,
            why=Why.STANDING_QUERY,
            expected=5,
        )

    assert enforce(database, chosen(settings)) == []

    order = retrievals.claim_next(database, lease_s=60)
    assert order is not None
    retrievals.finish(database, order)
    assert enforce(database, chosen(settings)) == [study_id]


def test_a_full_disk_takes_the_oldest_and_no_more_than_needed(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    first, second, third = (
        ready(database, settings, study_uid=uid) for uid in ("2.25.1", "2.25.2", "2.25.3")
    )
    free = iter([50, 80, 120])  # before, after one, after two; 100 are wanted
    monkeypatch.setattr(Store, "free_bytes", lambda _store: next(free))

    removed = enforce(database, chosen(settings, keep_days=0, free_bytes=100))

    assert removed == [first, second]
    with database.snapshot() as db:
        assert db.scalars(select(Study.id)).all() == [third]


def test_however_full_the_disk_the_young_stay(database: Database, settings: Settings):
    study_id = ready(database, settings)
    full = chosen(settings, free_bytes=FULL)

    assert enforce(database, full, after=timedelta(days=6)) == []
    assert enforce(database, full, after=timedelta(days=8)) == [study_id]


def test_every_study_is_counted_under_what_keeps_it(database: Database, settings: Settings):
    ready(database, settings)
    world.receive(database, world.instance(study_uid=OTHER_UID))

    counts = retention.held(database, chosen(settings), now=utc_now() + OLD)

    assert counts == {**{hold.reason: 0 for hold in HOLDS}, "": 1, HOLDS[0].reason: 1}


def test_a_study_removed_while_more_of_it_comes_is_received_anew(
    database: Database, settings: Settings
):
    ready(database, settings)
    routes = studies.Routes()
    with database.transaction() as db:
        studies.record_instance(db, world.instance(7, content="b"), routes)
    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    lifecycle.reject(database, world.reclaimed(database), reason="not a chest")
    considered(database)

    assert enforce(database, chosen(settings)) == [1]
    with database.transaction() as db:
        studies.record_instance(db, world.instance(8, content="c"), routes)

    with database.snapshot() as db:
        assert [study.revision for study in studies.named(db, world.STUDY_UID)] == [1]


def test_images_and_removal_at_once_leave_no_half_study(database: Database, settings: Settings):
    """Whoever comes first, each image is in a study that is there."""
    total, faults = 40, []

    def send() -> None:
        for number in range(total):
            try:
                world.receive(database, world.instance(number + 1, content="b"))
            except Exception as error:  # noqa: BLE001 - counted
                faults.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    removed = 0
    while sender.is_alive():
        with database.transaction() as db:
            for study in db.scalars(select(Study)):
                study.state = State.REJECTED
        removed += len(enforce(database, chosen(settings)))
    sender.join()

    assert not faults
    with database.snapshot() as db:
        orphans = select(func.count(Instance.id)).where(Instance.study_id.not_in(select(Study.id)))
        assert db.scalar(orphans) == 0
        assert db.scalar(select(func.count(Patient.id))) == db.scalar(select(func.count(Study.id)))


def test_bytes_that_no_row_names_go_and_others_stay(database: Database, settings: Settings):
    store = Store(settings.store_dir)
    ready(database, settings)
    unnamed = put(store, b"left by a crash")

    assert retention.discard_unnamed(database, settings) == 1

    assert not store.path_of(unnamed).exists()
    assert len(list(store.objects_dir.glob("*/*"))) == 1
    assert retention.discard_unnamed(database, settings) == 0


def test_bytes_that_just_arrived_stay(database: Database, settings: Settings):
    store = Store(settings.store_dir)
    digest = put(store, b"twice")
    with store.incoming() as incoming:
        incoming.write(b"twice")
        incoming.commit()

    assert retention.discard_unnamed(database, settings) == 0
    assert store.discard(digest, is_named=lambda _digest: False) is False
    assert store.path_of(digest).read_bytes() == b"twice"
    assert not list(store.discarded_dir.iterdir())


def test_bytes_that_arrive_while_they_are_removed_are_there_in_the_end(store: Store):
    digest = put(store, b"again")

    def arriving(_digest: str) -> bool:
        with store.incoming() as incoming:  # they are out of their place now
            incoming.write(b"again")
            incoming.commit()
        return False

    store.discard(digest, is_named=arriving)

    assert store.path_of(digest).read_bytes() == b"again"


@pytest.mark.parametrize("named", [True, False])
def test_what_a_crash_left_on_its_way_out_is_decided_about(store: Store, *, named: bool):
    digest = put(store, b"half way")
    store.path_of(digest).rename(store.discarded_dir / digest)

    gone = store.finish_discarding(is_named=lambda _digest: named)

    assert gone == (not named)
    assert store.path_of(digest).exists() == named
    assert not list(store.discarded_dir.iterdir())


def test_every_column_that_names_stored_bytes_is_known():
    digests = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if "digest" in column.name
    }

    elsewhere = {"web_session.token_digest", "marked_region.digest"}
    named = {f"{column.class_.__tablename__}.{column.key}" for column in NAMED}
    assert named | elsewhere == digests


def test_by_hand_a_failed_study_goes_and_one_under_way_stays(
    database: Database, settings: Settings
):
    world.in_state(database, State.RECEIVING)
    assert not remove(database, settings, 1, actor="a")
    assert not remove(database, settings, 2, actor="a")

    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    lifecycle.fail(database, world.reclaimed(database), reason="broken", transient=False)

    assert remove(database, settings, 1, actor="a")
    assert set(rows(database).values()) == {0}


def test_the_commands_say_what_stays_and_remove_by_hand(
    database: Database, settings: Settings, tmp_path
):
    world.in_state(database, State.FAILED)
    file = tmp_path / "appliance.toml"
    file.write_text(
        f'data_dir = "{settings.data_dir}"\n[database]\nurl = "{settings.database_url}"\n'
        "[retention]\nkeep_days = 30\n"
    )
    told = CliRunner().invoke(main, ["--settings", str(file), "retention"])
    assert told.exit_code == 0, told.output
    assert "after 30 days" in told.output
    assert "1 stay: their analysis failed" in told.output

    done = CliRunner().invoke(main, ["--settings", str(file), "study", "remove", "1", "--yes"])
    again = CliRunner().invoke(main, ["--settings", str(file), "study", "remove", "1", "--yes"])

    assert "Study 1 is removed" in done.output
    assert again.exit_code == 1
    assert "not there" in again.output
