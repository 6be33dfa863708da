"""Delivering to peers that behave and peers that do not: nothing lost, nothing twice."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import StorageCommitmentPushModel

from appliance import commitment_transactions, deliveries, lifecycle, retrievals
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.deliveries import DeliveryState
from appliance.lifecycle import FinishedAnalysis, State
from appliance.reception import Command, Reception
from appliance.tables import Delivery
from dicom_node import delivery, dispatch
from dicom_node.scp import Listener
from dicom_node.scu import LOSSES, Answer
from tests.appliance import world
from tests.dicom_node.messages.test_hl7 import acknowledging, receiving
from tests.support.instances import Names, ct_instance, encoded
from tests.support.pacs import HOST, SUCCESS, association, free_port, pacs

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

COUNT = 4


def routed(settings: Settings, *ports: int, commitment: bool = False, **changes: Any) -> Settings:
    """The settings with destinations at these ports, all of which get the images."""
    nodes = [
        {
            "name": f"pacs{number}" if number else "pacs",
            "ae_title": f"PACS{number}" if number else "PACS",
            "host": HOST,
            "port": port,
            "commitment": commitment,
        }
        for number, port in enumerate(ports)
    ]
    rule = {"name": "all", "destinations": [each["name"] for each in nodes], "objects": ["images"]}
    parsed = Settings.parse(
        {"dicom": {"destinations": nodes}, "routing": {"rules": [rule]}, "delivery": changes}
    )
    return replace(
        settings,
        dicom=replace(settings.dicom, destinations=parsed.dicom.destinations),
        routing=parsed.routing,
        delivery=parsed.delivery,
    )


@pytest.fixture
def images(reception: Reception, database: Database) -> list[Dataset]:
    """The images of a study that was just analysed."""
    names = Names.fresh()
    made = [ct_instance(names) for _ in range(COUNT)]
    for ds in made:
        take(reception, ds)
    analysed(database)
    return made


def take(reception: Reception, ds: Dataset) -> None:
    command = Command(
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        source_ae="CT1",
    )
    reception.take(encoded(ds), command)


def analysed(database: Database, study_id: int = 1) -> None:
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)
    claim = lifecycle.claim(database, study_id, owner="test", lease_s=60)
    assert claim is not None
    result = FinishedAnalysis(
        folder=f"analyses/{claim.revision}",
        probability=0.9,
        positive=True,
        lesion_count=1,
        lesion_volume_ml=3.0,
    )
    lifecycle.finish(database, claim, result)


def turn(settings: Settings, database: Database) -> None:
    """What the worker does at each ring, as if everything that waits were due."""
    dispatch.consider(settings, database)
    with database.transaction() as db:
        for row in db.query(Delivery).filter(Delivery.next_try_at.is_not(None)):
            row.next_try_at, row.lease_until = utc_now() - timedelta(seconds=1), None
    delivery.deliver_waiting(settings, database)


def states(database: Database) -> list[str]:
    with database.snapshot() as db:
        return [row.state for row in db.query(Delivery).order_by(Delivery.id)]


def problem(database: Database) -> str:
    with database.snapshot() as db:
        return db.get_one(Delivery, 1).last_problem or ""


def objects(database: Database) -> list[str]:
    with database.snapshot() as db:
        return [each.state for each in deliveries.objects_of(db, 1)]


@dataclass
class Clock:
    """What the delivery takes for the monotonic clock."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


def slow(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that goes on when the test says so."""
    clock = Clock()
    monkeypatch.setattr(delivery, "time", clock)
    return clock


class Counted:
    """What a PACS says to each instance, and how often it was sent each."""

    def __init__(self, say: Callable[[int, str], int] = lambda _number, _uid: SUCCESS) -> None:
        self.asked: list[str] = []
        self._say = say

    def __call__(self, uid: str) -> int:
        self.asked.append(uid)
        return self._say(len(self.asked), uid)


def test_everything_goes_out_once_as_it_came(
    settings: Settings, database: Database, images: list[Dataset]
):
    answer = Counted()
    with pacs(answer=answer) as running:
        chosen = routed(settings, running.port)
        turn(chosen, database)
        turn(chosen, database)

    assert running.received == {ds.SOPInstanceUID: encoded(ds) for ds in images}
    assert len(answer.asked) == COUNT
    assert states(database) == ["SENT"]


def test_without_a_rule_nothing_is_sent_and_a_later_rule_sends_nothing_old(
    settings: Settings, database: Database, images: list[Dataset]
):
    turn(settings, database)
    with pacs() as running:
        turn(routed(settings, running.port), database)

    assert running.received == {}
    assert states(database) == []


@pytest.mark.parametrize(
    ("asked_first", "days_old", "sent"),
    [(True, 30, []), (True, 0, ["SENT"]), (False, 30, ["SENT"])],
)
def test_a_prior_that_was_fetched_is_not_sent_as_a_new_result(
    settings: Settings,
    database: Database,
    reception: Reception,
    asked_first: bool,  # noqa: FBT001
    days_old: int,
    sent: list[str],
):
    names = Names.fresh()
    day = utc_now() - timedelta(days=days_old)

    def ask() -> None:
        with database.transaction() as db:
            assert retrievals.ask(
                db,
                destination="pacs",
                aim=retrievals.Aim.STUDY,
                study_uid=names.study_uid,
                why=retrievals.Why.PRIOR,
                expected=9,
            )

    if asked_first:
        ask()
    take(reception, ct_instance(names, StudyDate=f"{day:%Y%m%d}"))
    analysed(database)
    if not asked_first:
        ask()
    with pacs() as running:
        turn(routed(settings, running.port), database)

    assert states(database) == sent


@pytest.mark.parametrize(
    ("status", "state"),
    [(0xA900, "FAILED"), (0xC123, "FAILED"), (0x0122, "FAILED"), (0xA700, "WAITING")],
)
def test_one_that_is_refused_keeps_none_of_the_others(
    settings: Settings, database: Database, images: list[Dataset], status: int, state: str
):
    answer = Counted(lambda number, _uid: status if number == 2 else SUCCESS)
    with pacs(answer=answer) as running:
        chosen = routed(settings, running.port)
        turn(chosen, database)
        assert states(database) == [state]
        assert f"1 of 4 objects not taken: 0x{status:04X}" in problem(database)
        assert len(running.received) == COUNT - 1

        if state == "FAILED":
            turn(chosen, database)
            assert len(answer.asked) == COUNT
            with database.transaction() as db:
                deliveries.retry(db, 1, actor="ann")
        turn(chosen, database)

    assert states(database) == ["SENT"]
    assert len(running.received) == COUNT
    assert len(answer.asked) == COUNT + 1


def test_an_association_that_is_lost_is_gone_on_with(
    settings: Settings, database: Database, images: list[Dataset]
):
    def abort_the_third(number: int, _uid: str) -> int:
        if number == 3:
            running.abort_all()
        return SUCCESS

    answer = Counted(abort_the_third)
    with pacs(answer=answer) as running:
        chosen = routed(settings, running.port)
        turn(chosen, database)
        assert states(database) == ["WAITING"]
        assert "the association was lost" in problem(database)
        assert objects(database) == ["SENT", "SENT", "WAITING", "SENT"]
        with database.snapshot() as db:
            answered = [each.answered_at is not None for each in deliveries.objects_of(db, 1)]
        assert answered == [True, True, False, True]

        turn(chosen, database)

    assert states(database) == ["SENT"]
    # The third was taken, and its answer lost.
    assert answer.asked[2] == answer.asked[4]
    assert len(answer.asked) == len(set(answer.asked)) + 1 == COUNT + 1


@pytest.mark.parametrize(
    ("status", "said"),
    [(None, "4 of 4 objects not taken: no answer"), (0xA700, "4 of 4 objects not taken: 0xA700")],
)
def test_a_turn_in_which_nothing_was_taken_is_followed_by_a_pause(
    settings: Settings,
    database: Database,
    images: list[Dataset],
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    said: str,
):
    clock = slow(monkeypatch)

    def say(_number: int, _uid: str) -> int:
        clock.now += delivery.TURN_S / 2
        if status is None:
            running.abort_all()
        return status or SUCCESS

    answer = Counted(say)
    with pacs(answer=answer) as running:
        turn(routed(settings, running.port), database)

    assert len(answer.asked) == 2
    assert states(database) == ["WAITING"]
    assert problem(database).startswith(said)
    with database.snapshot() as db:
        delivered = db.get_one(Delivery, 1)
        assert delivered.failures == 1
        assert delivered.next_try_at is not None
        assert delivered.next_try_at > utc_now()


def test_a_turn_in_which_something_was_taken_is_gone_on_with_at_once(
    settings: Settings, database: Database, images: list[Dataset], monkeypatch: pytest.MonkeyPatch
):
    clock = slow(monkeypatch)

    def say(_number: int, _uid: str) -> int:
        clock.now += delivery.TURN_S
        return SUCCESS

    answer = Counted(say)
    with pacs(answer=answer) as running:
        turn(routed(settings, running.port), database)

    assert states(database) == ["SENT"]
    assert len(answer.asked) == COUNT


def test_what_associations_break_for_holds_up_nothing_that_comes_after_it(
    settings: Settings, database: Database, images: list[Dataset]
):
    def break_off(_number: int, uid: str) -> int:
        if uid in answer.asked[:LOSSES]:
            running.abort_all()
        return SUCCESS

    answer = Counted(break_off)
    with pacs(answer=answer) as running:
        chosen = routed(settings, running.port)
        turn(chosen, database)
        assert objects(database) == ["WAITING"] * COUNT
        assert "again and again" in problem(database)

        turn(chosen, database)

    assert objects(database) == ["WAITING"] * LOSSES + ["SENT"]


def test_what_the_peer_takes_no_class_of_is_told(
    settings: Settings,
    database: Database,
    reception: Reception,
    monkeypatch: pytest.MonkeyPatch,
):
    # Our own listener sets it for the whole process, which in this test is the peer's, too.
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    names = Names.fresh()
    take(reception, ct_instance(names))
    take(reception, ct_instance(names, SOPClassUID=SecondaryCaptureImageStorage))
    analysed(database)
    with peer(classes=[CTImageStorage]) as (port, stored, _):
        turn(routed(settings, port), database)

    assert states(database) == ["FAILED"]
    assert "takes no such SOP class" in problem(database)
    assert sorted(objects(database)) == ["REFUSED", "SENT"]  # in the order of their UIDs
    assert len(stored) == 1


def test_a_peer_that_was_down_gets_everything_when_it_is_up(
    settings: Settings, database: Database, images: list[Dataset]
):
    port = free_port()
    turn(routed(settings, port), database)
    assert states(database) == ["WAITING"]
    assert "nothing listens there" in problem(database)

    with peer(port=port) as (_, stored, _):
        turn(routed(settings, port), database)

    assert sorted(stored) == sorted(ds.SOPInstanceUID for ds in images)


def test_a_slow_peer_holds_up_no_other(
    settings: Settings, database: Database, images: list[Dataset]
):
    released = threading.Event()

    def wait(_number: int, _uid: str) -> int:
        released.wait(60)
        return SUCCESS

    with pacs(answer=Counted(wait)) as slow, pacs("PACS1") as quick, ThreadPoolExecutor() as pool:
        working = pool.submit(turn, routed(settings, slow.port, quick.port), database)
        deadline = time.monotonic() + 60
        while len(quick.received) < COUNT:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not working.done()
        # Another worker's ring finds somebody at work.
        assert delivery.deliver_waiting(settings, database) == 0
        released.set()
        working.result(60)

    assert states(database) == ["SENT", "SENT"]


def test_two_workers_at_once_send_everything_once(
    settings: Settings, database: Database, images: list[Dataset]
):
    answer = Counted()
    with pacs(answer=answer) as running, ThreadPoolExecutor() as pool:
        chosen = routed(settings, running.port)
        dispatch.consider(chosen, database)
        work = delivery.Work(chosen, database, time.monotonic() + 60)
        served = list(pool.map(lambda _: delivery.serve(work, "pacs"), range(4)))

    assert sorted(served) == [0, 0, 0, 1]
    assert len(answer.asked) == COUNT


STEPS = (
    (delivery, "prepare"),
    (deliveries, "note_objects"),
    (delivery, "store"),
    (deliveries, "note_answer"),
    (deliveries, "sent"),
    (delivery, "remove_unneeded"),
)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_kill_at_any_step_loses_nothing_and_changes_no_byte(
    settings: Settings,
    database: Database,
    images: list[Dataset],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    after: bool,  # noqa: FBT001
):
    step = getattr(module, name)

    def killed(*arguments: Any, **options: Any) -> Any:
        if after:
            step(*arguments, **options)
        raise Killed

    answer = Counted()
    with pacs(answer=answer) as running:
        chosen = routed(settings, running.port)
        monkeypatch.setattr(module, name, killed)
        with pytest.raises(Killed):
            turn(chosen, database)
        monkeypatch.setattr(module, name, step)

        turn(chosen, database)

    assert states(database) == ["SENT"]
    assert running.received == {ds.SOPInstanceUID: encoded(ds) for ds in images}
    assert len(answer.asked) <= COUNT + 1


def test_what_a_killed_worker_was_sending_is_gone_on_with_at_once(
    settings: Settings, database: Database, images: list[Dataset]
):
    answer = Counted()
    with pacs(answer=answer) as running:
        chosen = routed(settings, running.port)
        dispatch.consider(chosen, database)
        assert deliveries.claim_next(database, "pacs", lease_s=delivery.LEASE_S) is not None

        delivery.deliver_waiting(chosen, database)

    assert states(database) == ["SENT"]
    assert len(answer.asked) == COUNT


def test_a_delivery_dropped_from_a_killed_worker_stays_dropped(
    settings: Settings, database: Database, images: list[Dataset]
):
    with pacs() as running:
        chosen = routed(settings, running.port)
        dispatch.consider(chosen, database)
        assert deliveries.claim_next(database, "pacs", lease_s=delivery.LEASE_S) is not None
        with database.transaction() as db:
            deliveries.drop(db, 1, actor="ann")

        delivery.deliver_waiting(chosen, database)

    assert states(database) == ["DROPPED"]
    assert running.received == {}


def test_a_newer_result_stops_the_older_and_images_go_once(
    settings: Settings, database: Database, images: list[Dataset], reception: Reception
):
    down = routed(settings, free_port())
    turn(down, database)
    late = ct_instance(Names(images[0].StudyInstanceUID, images[0].SeriesInstanceUID))
    take(reception, late)
    analysed(database)
    answer = Counted()
    with pacs(answer=answer) as running:
        chosen = routed(settings, running.port)
        turn(chosen, database)
        assert states(database) == ["DROPPED", "SENT"]

        take(reception, ct_instance(Names(late.StudyInstanceUID, late.SeriesInstanceUID)))
        analysed(database)
        turn(chosen, database)

    assert states(database) == ["DROPPED", "SENT", "SENT"]
    assert len(answer.asked) == len(set(answer.asked)) == COUNT + 2


def test_a_destination_that_left_the_settings_is_given_up(
    settings: Settings, database: Database, images: list[Dataset]
):
    dispatch.consider(routed(settings, free_port()), database)
    turn(settings, database)

    assert states(database) == ["FAILED"]
    assert "no destination is called 'pacs'" in problem(database)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Answer(0x0000, ""), "SENT"),
        (Answer(0xB000, ""), "SENT"),
        (Answer(0x0111, "duplicate"), "SENT"),
        (Answer(0xA702, "full"), "WAITING"),
        (Answer(0x0110, "broke"), "WAITING"),
        (Answer(None, "gone"), "WAITING"),
        (Answer(0xA901, "mismatch"), "REFUSED"),
        (Answer(0xCFFF, "cannot"), "REFUSED"),
        (Answer(0x0122, "no class"), "REFUSED"),
    ],
)
def test_what_an_answer_makes_of_an_object(answer: Answer, state: str):
    assert delivery.judge(answer) == state


# Commitment.

Report = Callable[[evt.Event], None]


@contextmanager
def peer(
    *,
    port: int = 0,
    classes: list[str] | None = None,
    report: Report | None = None,
    action_status: int = SUCCESS,
) -> Iterator[tuple[int, list[str], list[Dataset]]]:
    """A PACS: its port, what it took, and the commitments it was asked for.

    `report` runs in a thread of its own, for each request.
    """
    stored: list[str] = []
    asked: list[Dataset] = []

    def store(event: evt.Event) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return SUCCESS

    def act(event: evt.Event) -> tuple[int, None]:
        asked.append(event.action_information)
        if report is not None:
            threading.Thread(target=report, args=(event,)).start()
        return action_status, None

    ae = AE("PACS")
    for sop_class in classes or [CTImageStorage, StorageCommitmentPushModel]:
        ae.add_supported_context(sop_class)
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_N_ACTION, act)]
    server = ae.start_server((HOST, port), block=False, evt_handlers=handlers)
    try:
        yield int(server.server_address[1]), stored, asked
    finally:
        server.shutdown()


def report_of(asked: Dataset, *, lost: int = 0) -> tuple[Dataset, int]:
    """The report on a request, which leaves the first `lost` out, and its event type."""
    ds = Dataset()
    ds.TransactionUID = asked.TransactionUID
    references = list(asked.ReferencedSOPSequence)
    ds.ReferencedSOPSequence = references[lost:]
    for item in references[:lost]:
        item.FailureReason = 0x0112
    if lost:
        ds.FailedSOPSequence = references[:lost]
    return ds, 2 if lost else 1


def on_the_same_association(lost: list[int]) -> Report:
    """Report half a second after the answer; of each request as many are lost as `lost` says."""

    def report(event: evt.Event) -> None:
        ds, kind = report_of(event.action_information, lost=lost.pop(0))
        time.sleep(0.5)
        event.assoc.send_n_event_report(
            ds, kind, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
        )

    return report


def test_a_report_on_the_same_association_commits(
    settings: Settings, database: Database, images: list[Dataset]
):
    with peer(report=on_the_same_association([0])) as (port, stored, asked):
        turn(routed(settings, port, commitment=True), database)

    assert states(database) == ["COMMITTED"]
    assert set(objects(database)) == {"COMMITTED"}
    (request,) = asked
    referenced = [item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence]
    assert referenced == stored


def test_what_is_not_kept_is_sent_again_alone(
    settings: Settings, database: Database, images: list[Dataset]
):
    with peer(report=on_the_same_association([1, 0])) as (port, stored, asked):
        chosen = routed(settings, port, commitment=True)
        turn(chosen, database)
        assert states(database) == ["WAITING"]
        turn(chosen, database)

    assert states(database) == ["COMMITTED"]
    assert len(stored) == COUNT + 1
    assert [len(request.ReferencedSOPSequence) for request in asked] == [COUNT, 1]


def tell(listener: Listener, ds: Dataset, kind: int) -> int:
    """Report to our listener as a PACS that keeps the role of the SCP does."""
    ae = AE("PACS")
    role = build_role(StorageCommitmentPushModel, scp_role=True)
    assoc = ae.associate(
        HOST,
        listener.port,
        [build_context(StorageCommitmentPushModel)],
        ae_title="CHESTCT",
        ext_neg=[role],
    )
    assert assoc.is_established
    status, _ = assoc.send_n_event_report(
        ds, kind, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
    )
    assoc.release()
    return int(status.Status)


def test_a_late_report_comes_by_an_association_of_the_pacs_own(
    settings: Settings,
    database: Database,
    images: list[Dataset],
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(delivery.commitment_scu, "REPORT_AT_ONCE_S", 0.0)
    with peer() as (port, _, asked):
        turn(routed(settings, port, commitment=True), database)
    assert states(database) == ["SENT"]

    report, kind = report_of(asked[0])
    unknown, _ = report_of(asked[0])
    unknown.TransactionUID = "1.2.3"

    assert tell(listener, unknown, 1) == 0x0115
    assert tell(listener, report, 3) == 0x0113
    assert states(database) == ["SENT"]
    assert tell(listener, report, kind) == 0x0000
    assert states(database) == ["COMMITTED"]


def test_a_pacs_that_never_reports_is_asked_again_and_then_told_of(
    settings: Settings, database: Database, images: list[Dataset]
):
    with peer() as (port, stored, asked):
        chosen = routed(settings, port, commitment=True, commitment_asks=2)
        for _ in range(4):
            turn(chosen, database)

    assert states(database) == ["FAILED"]
    assert problem(database) == "sent, but not committed: asked 2 times, no full report"
    assert len({str(request.TransactionUID) for request in asked}) == 2
    assert len(stored) == COUNT


def test_a_pacs_that_is_away_was_not_asked(
    settings: Settings, database: Database, images: list[Dataset], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(delivery.commitment_scu, "REPORT_AT_ONCE_S", 0.0)
    with peer() as (port, _, _):
        chosen = routed(settings, port, commitment=True, commitment_asks=1)
        dispatch.consider(chosen, database)
        work = delivery.Work(chosen, database, time.monotonic() + 60)
        order = deliveries.claim_next(database, "pacs", lease_s=60)
        assert order is not None
        delivery.carry_out(work, order)
    assert states(database) == ["SENT"]

    for _ in range(3):
        turn(chosen, database)
    assert states(database) == ["SENT"]
    assert "nothing listens there" in problem(database)

    with peer(port=port, report=on_the_same_association([0])) as (_, _, asked):
        monkeypatch.undo()
        turn(chosen, database)

    assert states(database) == ["COMMITTED"]
    assert len(asked) == 1


def test_where_nothing_is_left_to_commit_nothing_is_asked(
    settings: Settings, database: Database, images: list[Dataset]
):
    with peer() as (port, _, asked):
        chosen = routed(settings, port, commitment=True, commitment_asks=1)
        turn(chosen, database)
        turn(chosen, database)
        assert states(database) == ["FAILED"]
        with database.transaction() as db:
            deliveries.retry(db, 1, actor="ann")
        ds, _ = report_of(asked[0])
        commitment_transactions.report(
            database,
            str(ds.TransactionUID),
            committed={item.ReferencedSOPInstanceUID for item in ds.ReferencedSOPSequence},
            failed={},
            retry_s=60,
        )
        turn(chosen, database)

    assert states(database) == ["COMMITTED"]
    assert len(asked) == 1


@pytest.mark.parametrize("classes", [[CTImageStorage], None])
def test_a_pacs_that_does_not_commit_itself_is_told_of(
    settings: Settings, database: Database, images: list[Dataset], classes: list[str] | None
):
    with peer(classes=classes, action_status=0x0122) as (port, stored, _):
        turn(routed(settings, port, commitment=True), database)

    assert states(database) == [DeliveryState.FAILED]
    assert len(stored) == COUNT
    assert set(objects(database)) == {"SENT"}


def test_the_listener_is_still_asked_for_an_echo(listener: Listener):
    with association(listener.port) as assoc:
        assert assoc.send_c_echo().Status == SUCCESS


def telling(settings: Settings, port: int) -> Settings:
    """The settings with an HL7 system that is told of rejected studies."""
    system = {"name": "ris", "host": HOST, "port": port}
    rule = {"name": "all", "destinations": ["ris"], "objects": ["message"], "outcome": "REJECTED"}
    parsed = Settings.parse({"messages": {"hl7": [system]}, "routing": {"rules": [rule]}})
    return replace(settings, messages=parsed.messages, routing=parsed.routing)


def test_a_system_is_told_once_by_a_rule(settings: Settings, database: Database):
    world.in_state(database, State.REJECTED)
    with receiving(acknowledging("AA")) as receiver:
        settings = telling(settings, receiver.port)
        turn(settings, database)
        turn(settings, database)

    (message,) = receiver.received
    assert b"not a chest" in message
    assert states(database) == ["SENT"]


def test_a_system_that_is_away_is_told_later(settings: Settings, database: Database):
    world.in_state(database, State.REJECTED)

    turn(telling(settings, free_port()), database)

    assert states(database) == ["WAITING"]
    with database.snapshot() as db:
        assert "ris" in (db.get_one(Delivery, 1).last_problem or "")
