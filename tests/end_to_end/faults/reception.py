"""Faults while studies arrive: F1, F8 and F9 of the figures."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from random import Random
from typing import Final

from sqlalchemy import func, select

from appliance import studies
from appliance.collection import InstanceFile
from appliance.lifecycle import State
from appliance.reception import CONFLICT_TAG
from appliance.store import Store
from appliance.tables import Analysis, AuditEntry
from tests.end_to_end.faults.box import QUIET_S, SLICES, Box, Row, Sending, digest_of, until
from tests.support.instances import dataset_bytes

KILLS_PER_STUDY: Final = 20
AT_ONCE: Final = 4
TIMES: Final = 10


def kill_the_listener(box: Box, row: Row) -> None:
    """F1: at a random byte of a transfer, often just after the last one of an instance."""
    while row.left:
        sending = box.new_study()
        row.sendings.append(sending)
        for _ in range(min(row.left, KILLS_PER_STUDY)):
            if sending.complete:
                break
            kill_within_a_transfer(box, row, sending)
        box.send(sending)


def kill_within_a_transfer(box: Box, row: Row, sending: Sending) -> None:
    """Kill once, in one of the next instances or in the request, and wait for the new listener."""
    whole = row.chance.random() < 0.4
    delay_s = row.chance.uniform(0, 0.03) if whole else 0.0

    def cut() -> None:
        time.sleep(delay_s)
        if box.kill("listener"):
            row.did("after the last byte" if whole else "within")

    box.await_listener()
    number = row.chance.randint(0, min(3, len(sending.left)))
    box.cut_off(sending, number=number, part=1 if whole else row.chance.random(), cut=cut)


Step = Callable[[Sequence[InstanceFile]], None]


class Arrival:
    """F8: one study that arrives in pieces, by a schedule of chance."""

    def __init__(self, box: Box, seed: float) -> None:
        self._box = box
        self._chance = Random(seed)
        second = self._chance.choice(((), (SLICES // 2,)))
        self.sending = box.new_study(series=(SLICES, *second))
        self._instances = self._chance.sample(
            self.sending.instances, len(self.sending.instances)
        )  # series are interleaved, slices in any order

    def run(self) -> set[str]:
        """Send it all; returns what happened on the way."""
        ways: tuple[Step, ...] = (
            self._send,
            self._send_by_two,
            self._abort_and_resend,
            self._send_twice,
            self._restart_within,
        )
        pieces = self._pieces()
        happened = set()
        for number, piece in enumerate(pieces):
            if number:
                happened.add(self._pause())
            way = self._chance.choice(ways)
            happened.add(way.__name__.strip("_").replace("_", " "))
            way(piece)
        return happened

    def _pieces(self) -> list[Sequence[InstanceFile]]:
        cuts = self._chance.sample(range(1, len(self._instances)), self._chance.randint(0, 3))
        edges = [0, *sorted(cuts), len(self._instances)]
        return [self._instances[a:b] for a, b in pairwise(edges)]

    def _pause(self) -> str:
        """A pause that the box does not notice, one that ends the study too early, or one until
        the result of what is there."""
        kind = self._chance.choice(("pause", "late", "after the end"))
        if kind == "after the end":
            until("a part of a study ends", lambda: self._box.has_ended(self.sending))
        else:
            longest = 0.7 if kind == "pause" else 3
            time.sleep(QUIET_S * self._chance.uniform(longest / 3, longest))
        return kind

    def _send(self, piece: Sequence[InstanceFile]) -> None:
        self._box.send(self.sending, piece)

    def _send_by_two(self, piece: Sequence[InstanceFile]) -> None:
        self._box.send(self.sending, piece, associations=2)

    def _abort_and_resend(self, piece: Sequence[InstanceFile]) -> None:
        self._box.send(self.sending, piece[: self._chance.randint(0, len(piece))])
        left = len(self.sending.left)
        self._box.await_listener()
        self._box.cut_off(
            self.sending, number=min(1, left), part=self._chance.random(), cut=lambda: None
        )
        self._box.send(self.sending, piece)

    def _send_twice(self, piece: Sequence[InstanceFile]) -> None:
        self._box.send(self.sending, piece)
        self._box.send(self.sending, piece)

    def _restart_within(self, piece: Sequence[InstanceFile]) -> None:
        half = len(piece) // 2
        self._box.send(self.sending, piece[:half])
        self._box.kill(self._chance.choice(("listener", "beat", "worker-dicom", "worker-gpu")))
        self._box.send(self.sending, piece[half:])


def arrive_at_random(box: Box, row: Row) -> None:
    """F8: some studies at once, each by a schedule of its own."""
    arrivals = [Arrival(box, row.chance.random()) for _ in range(row.wanted)]
    row.sendings += [arrival.sending for arrival in arrivals]
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        for happened in pool.map(Arrival.run, arrivals):
            row.did(*happened)


def send_ten_times(box: Box, row: Row) -> None:
    """F9: a study ten times, before, during and after its analysis; then one slice with other
    pixels."""
    while row.left:
        sending = box.new_study()
        row.sendings.append(sending)
        box.send(sending)
        for _ in range(TIMES // 2 - 1):  # it is being received
            box.send(sending)
        until("a study is analysed", partial(_has_left_reception, box, sending))
        for _ in range(TIMES // 2):
            box.send(sending)
        box.settle([sending])
        row.faults += _sent_again(box, sending)
        row.faults += _sent_with_other_pixels(box, sending)
        row.did(f"sent {TIMES} times")


def _has_left_reception(box: Box, sending: Sending) -> bool:
    study = box.study(sending)
    return study is not None and study.state != State.RECEIVING


def _sent_again(box: Box, sending: Sending) -> list[str]:
    study = box.study(sending)
    assert study is not None
    with box.database.snapshot() as db:
        of_study = select(func.count()).where(Analysis.study_id == study.id)
        analyses = db.scalar(of_study)
        claims = [e for e in studies.events_of(db, study.id) if e.target == State.ANALYSING]
    if (analyses, len(claims)) == (1, 1):
        return []
    return [f"sent {TIMES} times it was analysed {len(claims)} times, with {analyses} results"]


def _sent_with_other_pixels(box: Box, sending: Sending) -> list[str]:
    """Send one slice with another byte in its pixels; returns what is wrong after that."""
    box.send(sending, [_altered(sending.instances[0])])
    study = box.study(sending)
    assert study is not None
    store = Store(box.settings.store_dir)
    with box.database.snapshot() as db:
        conflicts = studies.conflicts_of(db, study.id)
        reported = db.scalar(
            select(func.count()).where(
                AuditEntry.tag == CONFLICT_TAG, AuditEntry.subject == f"study {study.id}"
            )
        )
        line = studies.worklist_row(db, study.id)
    found = []
    if len(conflicts) != 1 or reported != 1 or line is None or line.conflict_count != 1:
        found.append("another version of a slice is not reported once")
    digests = {digest for each in conflicts for digest in (each.kept_digest, each.other_digest)}
    if not all(map(store.holds, digests)):
        found.append("of two versions of a slice one was not kept")
    if study.state != State.READY:
        found.append(f"another version of a slice made the study {study.state}")
    return found


def _altered(instance: InstanceFile) -> InstanceFile:
    """The same slice, its last pixel another."""
    content = bytearray(instance.path.read_bytes())
    before = digest_of(dataset_bytes(instance.path))
    content[-1] ^= 1
    path = instance.path.with_suffix(".altered")
    path.write_bytes(content)
    assert digest_of(dataset_bytes(path)) != before
    return InstanceFile(
        path,
        path,
        instance.sop_class_uid,
        instance.sop_instance_uid,
        instance.transfer_syntax_uid,
    )
