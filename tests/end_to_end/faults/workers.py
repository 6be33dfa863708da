"""Faults of the workers: F2, F4 and F5 of the figures."""

import os
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import func, select

from appliance import studies
from appliance.deliveries import DeliveryState
from appliance.lifecycle import State
from appliance.tables import Delivery, Study, StudyEvent
from pipelines.tasks import STEPS
from tests.end_to_end.faults import impatient
from tests.end_to_end.faults.box import PATIENCE_S, Box, Row, Sending, until
from tests.support import programs
from tests.support.served import FINAL

RECOVERED_S: Final = 90.0
TRIES: Final = 3
PAGE_BYTES: Final = resource.getpagesize()
DELIVERING: Final = "delivering"
VICTIMS: Final = ("parent", "pool process", "both")
OUT_OF_MEMORY: Final = "out of memory"
OTHERS: Final = 2


def kill_workers(box: Box, row: Row) -> None:
    """F2: in the step that was struck least so far, twice in a study's life at most."""
    row.limit_s = RECOVERED_S
    struck: Counter[str] = Counter(dict.fromkeys((*STEPS, DELIVERING), 0))
    while row.left:
        sending = box.new_study()
        row.sendings.append(sending)
        box.send(sending)
        if min(struck, key=struck.__getitem__) == DELIVERING:
            struck[DELIVERING] += _strike_delivery(box, row, sending)
            continue
        last = time.monotonic()
        for _ in range(min(row.left, TRIES - 1)):
            step = _strike_analysis(box, row, sending, min(struck, key=struck.__getitem__))
            if step is None:
                break
            struck[step] += 1
            last = time.monotonic()
        until("a struck study ends", partial(box.has_ended, sending))
        row.waited(time.monotonic() - last)


def _strike_analysis(box: Box, row: Row, sending: Sending, wanted: str) -> str | None:
    """The step of its analysis in which the study was struck, the wanted one if there was time."""
    if not _comes_to(box, sending, wanted):
        return None
    # Where threads are started, Python 3.11 waits for ever for one that has no memory to begin.
    victims = VICTIMS if wanted == STEPS[0] else (*VICTIMS, OUT_OF_MEMORY)
    victim = row.chance.choice(victims)
    if victim == OUT_OF_MEMORY:
        step: str | None = wanted
        struck = _starve(box, sending)
    else:
        struck = box.kill_worker("worker-gpu", victim)
        study = box.study(sending)
        step = study.step if study is not None and study.state == State.ANALYSING else None
    if not struck or step is None:
        return None
    row.did(step, victim)
    return step


def _comes_to(box: Box, sending: Sending, step: str) -> bool:
    """Whether the study is in this step of its analysis; it may end before it is seen there."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        study = box.study(sending)
        if study is not None and study.state == State.ANALYSING and study.step == step:
            return True
        if study is not None and study.state in FINAL:
            return False
        time.sleep(0.001)
    raise TimeoutError(f"an analysis did not come to {step!r}")


def _starve(box: Box, sending: Sending) -> bool:
    """Let the pool process have no more memory as long as this try lasts; whether it failed."""
    study = box.study(sending)
    assert study is not None
    tries = _claims(box, study.id)
    pool = box.pool_of("worker-gpu")
    for pid in pool:
        _limit_memory(pid, int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * PAGE_BYTES)
    try:
        until(
            "a try without memory ends",
            lambda: _claims(box, study.id) > tries or _state(box, sending) != State.ANALYSING,
        )
    finally:
        for pid in pool:
            _limit_memory(pid, resource.RLIM_INFINITY)
    return not box.has_ended(sending)


def _limit_memory(pid: int, size_bytes: int) -> None:
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (size_bytes, hard))


def _strike_delivery(box: Box, row: Row, sending: Sending) -> bool:
    """Strike while objects go out, and wait until all have gone out; whether it struck."""
    box.pacs.delay_s = 0.05
    until("a delivery is under way", lambda: _is_sending(box, sending))
    victim = row.chance.choice(VICTIMS)
    struck = box.kill_worker("worker-dicom", victim)
    began = time.monotonic()
    box.pacs.delay_s = 0.0
    if struck:
        row.did(DELIVERING, victim)
    until("a struck delivery ends", lambda: box.is_delivered(sending), timeout_s=2 * PATIENCE_S)
    row.waited(time.monotonic() - began)
    return struck


def _is_sending(box: Box, sending: Sending) -> bool:
    with box.database.snapshot() as db:
        state = db.scalar(
            select(Delivery.state)
            .join(Study, Study.id == Delivery.study_id)
            .where(Study.study_uid == sending.study_uid)
        )
    return state == DeliveryState.SENDING and bool(box.pacs.of(sending.study_uid))


def kill_whoever_takes_one(box: Box, row: Row) -> None:
    """F4: a study that always kills its worker, with others right behind it."""
    while row.left:
        deadly, *others = (box.new_study() for _ in range(1 + OTHERS))
        row.sendings += others
        for sending in (deadly, *others):
            box.send(sending)
        struck_each_try = _kill_until_it_ends(box, deadly)
        box.settle(others)
        if not struck_each_try:
            continue
        row.faults += _not_quarantined(box, deadly)
        row.faults += [fault for other in others for fault in _delayed(box, other, deadly)]
        row.did("quarantined")


def _kill_until_it_ends(box: Box, deadly: Sending) -> bool:
    """Kill the pool process once in each try; false if one was over before it was struck."""
    last = 0
    while (study := box.study(deadly)) is None or study.state not in FINAL:
        new_try = study is not None and study.state == State.ANALYSING and study.attempts > last
        if new_try and box.kill_worker("worker-gpu", "pool process"):  # there may be none just then
            last = study.attempts
        time.sleep(0.005)
    # Nothing but a try that was over makes a study READY, be it while its process was struck.
    return study.attempts == last and study.state != State.READY


def _not_quarantined(box: Box, deadly: Sending) -> list[str]:
    study = box.study(deadly)
    assert study is not None
    claims = _claims(box, study.id)
    said = study.state_reason or ""
    if study.state == State.FAILED and claims <= TRIES and said.startswith("quarantined"):
        return []
    return [f"a study that kills its worker is {study.state} after {claims} tries: {said}"]


def _delayed(box: Box, other: Sending, deadly: Sending) -> list[str]:
    """What is wrong if a study had to wait for more than one try of the deadly one."""
    waiting, killing = box.study(other), box.study(deadly)
    assert waiting is not None
    assert killing is not None
    with box.database.snapshot() as db:
        moves = studies.events_of(db, waiting.id)
        tries = [e.at for e in studies.events_of(db, killing.id) if e.target == State.ANALYSING]
    queued = next(e.at for e in moves if e.target == State.QUEUED)
    claimed = next(e.at for e in moves if e.target == State.ANALYSING)
    before = sum(queued < at < claimed for at in tries)
    # The one that was under way when it was queued has ended by then or is the one it waits for.
    if before <= 1:
        return []
    return [f"a study waited {(claimed - queued) / timedelta(seconds=1):.0f} s for {before} tries"]


def _claims(box: Box, study_id: int) -> int:
    with box.database.snapshot() as db:
        moves = select(func.count()).where(
            StudyEvent.study_id == study_id, StudyEvent.target == State.ANALYSING
        )
        return db.scalar(moves) or 0


def _state(box: Box, sending: Sending) -> State | None:
    study = box.study(sending)
    return None if study is None else State(study.state)


def deliver_messages_again(box: Box, row: Row) -> None:
    """F5: a second worker is given what the first has not acknowledged within a second, while
    the first is frozen in an analysis for longer than its lease, or a PACS is slow."""
    app = "tests.end_to_end.faults.impatient:app"
    options = ("--queues", "gpu,dicom", "--concurrency", "2", "--hostname", "impatient@%h")
    came_before = len(impatient.redelivered(box.settings))
    with (
        (box.logs / "impatient.log").open("ab") as log,
        programs.running(box.settings_file, "worker", *options, app=app, log=log),
    ):
        while row.left:
            came = len(impatient.redelivered(box.settings))
            sending = box.new_study()
            row.sendings.append(sending)
            box.send(sending)
            _freeze_its_worker(box, sending)
            box.pacs.delay_s = 0.1
            try:
                box.settle([sending])
            finally:
                box.pacs.delay_s = 0.0
            if len(impatient.redelivered(box.settings)) > came:
                row.did("frozen")
        row.kinds.update(impatient.redelivered(box.settings)[came_before:])
    row.faults += [fault for sending in row.sendings for fault in _left_over(box, sending)]


def _freeze_its_worker(box: Box, sending: Sending) -> None:
    """Stop the process that analyses the study until somebody else has brought it to its end."""
    until("a study is analysed", lambda: _state(box, sending) == State.ANALYSING)
    study = box.study(sending)
    assert study is not None
    owner = (study.lease_owner or "").split("/")
    frozen = _processes(box, owner[1]) if len(owner) > 1 else []
    until("a worker is frozen outside a transaction", lambda: _freeze(box, frozen))
    try:
        until("another worker takes a study over", lambda: box.has_ended(sending))
    finally:
        _signal(frozen, signal.SIGCONT)
    until("the frozen worker goes on", lambda: not _left_over(box, sending))


def _freeze(box: Box, pids: Sequence[int]) -> bool:
    """Stop these processes unless one is just writing to SQLite, which has one writer."""
    _signal(pids, signal.SIGSTOP)
    try:
        with closing(sqlite3.connect(box.settings.data_dir / "appliance.db", timeout=0.5)) as db:
            db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        _signal(pids, signal.SIGCONT)
        return False
    return True


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _processes(box: Box, owner: str) -> list[int]:
    """The processes that an owner of claims may be."""
    if owner.startswith("process-"):
        return [int(owner.removeprefix("process-"))]
    return box.pool_of(owner)


def _left_over(box: Box, sending: Sending) -> list[str]:
    """What is wrong if there are result folders that no result names."""
    study = box.study(sending)
    assert study is not None
    with box.database.snapshot() as db:
        named = {Path(each.folder).name for each in studies.analyses_of(db, study.id)}
    there = {path.name for path in (box.settings.analyses_dir / str(study.id)).iterdir()}
    return [f"study {study.id}: a result folder is nobody's"] if there - named else []
