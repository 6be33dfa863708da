"""The appliance under test, everything that was sent to it, and the PACS that it sends to."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import select

from appliance import collection, studies, supervisor
from appliance.collection import InstanceFile
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import Database, open_database
from appliance.deliveries import DeliveryState
from appliance.lifecycle import State
from appliance.tables import Analysis, Delivery, Study
from dicom_node import scu
from dicom_node.errors import SendError
from dicom_node.pdu import PduType
from tests.end_to_end.faults.pacs import Pacs
from tests.support import ct_series, upper_layer
from tests.support.instances import as_file, dataset_bytes
from tests.support.pacs import HOST, SUCCESS, await_port, free_port
from tests.support.served import FINAL
from tests.support.tiny_models import write_models

SLICES: Final = 24
QUIET_S: Final = 2.0
PATIENCE_S: Final = 180.0


@dataclass
class Sending:
    """A study on its way: its instances, and those of them that were answered with Success."""

    study_uid: str
    instances: tuple[InstanceFile, ...]
    digests: dict[str, str]
    longest: frozenset[str]
    """The SOP Instance UIDs of its longest series, which is the one to be analysed."""
    taken: set[str] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        return len(self.taken) == len(self.instances)

    @property
    def left(self) -> tuple[InstanceFile, ...]:
        """What was not answered yet."""
        return tuple(i for i in self.instances if i.sop_instance_uid not in self.taken)

    def note(self, sent: scu.Sent) -> None:
        if not sent.problem:
            self.taken.add(sent.instance.sop_instance_uid)


@dataclass
class Row:
    """One line of the table: what was done, and what came of it."""

    figure: str
    what: str
    wanted: int
    chance: random.Random
    times: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sendings: list[Sending] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    """How long recoveries took, where a limit is set to them."""
    limit_s: float | None = None
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """How many are still to be done."""
        return self.wanted - self.times

    def did(self, *kinds: str) -> None:
        """Count one, of this kind or these kinds."""
        self.times += 1
        self.kinds.update(kinds)

    def waited(self, seconds: float) -> None:
        """Note how long a recovery took; one over the limit is a fault."""
        self.waits_s.append(seconds)
        if self.limit_s is not None and seconds > self.limit_s:
            self.faults.append(f"a recovery took {seconds:.0f} s")


class Box:
    """The appliance under test."""

    def __init__(self, folder: Path, weights: Path | None = None) -> None:
        self.pacs = Pacs()
        self.settings_file = folder / "settings.toml"
        weights = weights or write_models(folder / "weights")
        self.settings_file.write_text(_settings(folder, weights, self.pacs))
        self.settings = Settings.load(self.settings_file)
        self.database: Database
        self.logs = folder / "logs"
        self._folder = folder
        self._numbers = count()

    def start(self) -> None:
        """Start it and wait until it is ready for studies."""
        self.pacs.up()
        with (self._folder / "supervisor.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.end_to_end.faults.serve", str(self.settings_file)],
                env={**os.environ, SETTINGS_VARIABLE: str(self.settings_file)},
                stderr=log,
            )
        until("the appliance is ready", self._is_ready, timeout_s=120)
        self.database = open_database(self.settings)

    def stop(self) -> None:
        self.database.dispose()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self.pacs.down()

    # Processes

    def pid_of(self, name: str) -> int | None:
        """The process id of one of the appliance's processes, while it runs."""
        report = supervisor.read_report(self.settings)
        return next((c.pid for c in report.children if c.name == name), None) if report else None

    def pool_of(self, worker: str) -> list[int]:
        """The process ids of a worker's pool."""
        parent = self.pid_of(worker)
        return children_of(parent) if parent else []

    def kill(self, name: str) -> bool:
        """Kill a process with SIGKILL; false if it does not run at this moment."""
        return kill(self.pid_of(name))

    def kill_worker(self, worker: str, victim: str) -> bool:
        """Kill a worker's "parent", its "pool process" or "both"; whether any was there."""
        parent, pool = self.pid_of(worker), self.pool_of(worker)
        killed = [kill(pid) for pid in pool] if victim != "parent" else []
        if victim != "pool process":
            killed.append(kill(parent))
        return any(killed)

    def await_listener(self) -> None:
        """Return once the listener listens, again, and its process is known."""
        until("the listener is back", lambda: _runs(self.pid_of("listener")))
        await_port(self.settings.dicom.port, timeout_s=60)

    # Studies on their way to it

    def new_study(self, *, series: Sequence[int] = (SLICES,)) -> Sending:
        """A chest under UIDs that were never sent, in series of the first so many slices."""
        folder = self._folder / f"study{next(self._numbers):04d}"
        folder.mkdir()
        study_uid = generate_uid()
        digests: dict[str, str] = {}
        uids: list[list[str]] = []
        for slices in series:
            series_uid = generate_uid()
            uids.append([str(generate_uid()) for _ in range(slices)])
            for ds, uid in zip(_chest(), uids[-1], strict=False):
                ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
                ds.SOPInstanceUID = uid
                path = as_file(ds, folder / f"{len(digests):03d}.dcm")
                digests[uid] = digest_of(dataset_bytes(path))
        found = collection.collect(folder, scratch=folder)
        return Sending(study_uid, found.instances, digests, frozenset(max(uids, key=len)))

    def send(
        self,
        sending: Sending,
        wanted: Sequence[InstanceFile] | None = None,
        *,
        associations: int = 1,
    ) -> None:
        """Send what is wanted, or all, until it was answered, as a PACS does."""
        wanted = sending.instances if wanted is None else wanted
        destination = scu.Destination(
            host=HOST,
            port=self.settings.dicom.port,
            called_ae=self.settings.dicom.ae_title,
            calling_ae="SENDER",
        )
        deadline = time.monotonic() + PATIENCE_S
        while wanted:
            try:
                sent = scu.send(wanted, destination, associations=associations, report=sending.note)
                wanted = [each.instance for each in sent if each.problem]
            except SendError:
                time.sleep(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError("the listener did not take a study in time")

    def cut_off(
        self, sending: Sending, *, number: int, part: float, cut: Callable[[], object]
    ) -> None:
        """Send what is left by one association, and run `cut` within a message of it.

        The message has this number, 0 is the request; `part` of it is sent, 1 for all: then an
        answer may come all the same. What is answered with Success is noted.
        """
        context = (sending.instances[0].sop_class_uid, upper_layer.EXPLICIT)
        whole = [upper_layer.request(context).encode(), *map(_message, sending.left)]
        uids = ["", *(each.sop_instance_uid for each in sending.left)]
        with connect(self.settings.dicom.port) as connection, suppress(ConnectionError):
            for uid, message in zip(uids[:number], whole[:number], strict=True):
                connection.sendall(message)
                _note(sending, uid, upper_layer.read_pdu(connection))
            connection.sendall(whole[number][: int(part * len(whole[number]))])
            cut()
            if part == 1:
                _note(sending, uids[number], upper_layer.read_pdu(connection))

    # What became of them

    def study(self, sending: Sending) -> Study | None:
        with self.database.snapshot() as db:
            return next(iter(studies.named(db, sending.study_uid)), None)

    def has_ended(self, sending: Sending) -> bool:
        """Whether the study is in a final state."""
        study = self.study(sending)
        return study is not None and study.state in FINAL

    def is_delivered(self, sending: Sending) -> bool:
        """Whether the newest result of a study that is READY is at the PACS, as the box says."""
        with self.database.snapshot() as db:
            sent = (
                select(Delivery.id)
                .join(Analysis, Analysis.id == Delivery.analysis_id)
                .join(Study, Study.id == Delivery.study_id)
                .where(Study.study_uid == sending.study_uid, Study.state == State.READY)
                .where(Analysis.current, Analysis.revision == Study.revision)
                .where(Delivery.state == DeliveryState.SENT)
            )
            return db.scalar(sent) is not None

    def settle(self, sendings: Sequence[Sending]) -> None:
        """Wait until every study has ended, and until the PACS has what came of it."""

        def settled(sending: Sending) -> bool:
            study = self.study(sending)
            if study is None or study.state not in FINAL:
                return False
            return study.state != State.READY or self.is_delivered(sending)

        waiting = list(sendings)
        # A PACS that failed eight times in a row is asked again after 256 s.
        deadline = time.monotonic() + 2 * PATIENCE_S + 10 * len(sendings)
        while waiting := [each for each in waiting if not settled(each)]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(waiting)} studies have not ended or were not delivered")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, "the appliance did not start"
        report = supervisor.read_report(self.settings)
        return report is not None and report.ready


@contextmanager
def running(folder: Path, weights: Path | None = None) -> Iterator[Box]:
    """An appliance in a folder for as long as the block runs."""
    box = Box(folder, weights)
    box.start()
    try:
        yield box
    finally:
        box.stop()


def until(what: str, holds: Callable[[], object], *, timeout_s: float = PATIENCE_S) -> None:
    """Return once it holds; raises TimeoutError with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in vain: {what}")
        time.sleep(0.02)


def kill(pid: int | None) -> bool:
    """Kill with SIGKILL, and wait for the end; whether there was such a process."""
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    until("a killed process ends", lambda: not _runs(pid), timeout_s=30)
    return True


def children_of(pid: int) -> list[int]:
    """The processes that a process started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def connect(port: int) -> socket.socket:
    """A connection to a port of this machine."""
    connection = socket.create_connection((HOST, port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _runs(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _note(sending: Sending, uid: str, answer: bytes) -> None:
    is_data = answer[:1] == bytes((PduType.DATA_TF,))
    if is_data and upper_layer.status_in(answer) == SUCCESS:
        sending.taken.add(uid)


def _message(instance: InstanceFile) -> bytes:
    uid = instance.sop_instance_uid.encode()
    data = dataset_bytes(instance.path)
    return upper_layer.store(data, size=16_000, uid=uid + b"\0" * (len(uid) % 2))


@cache
def _chest() -> list[Dataset]:
    return ct_series.slices(SLICES)


def _settings(folder: Path, weights: Path, pacs: Pacs) -> str:
    node = {"name": "pacs", "ae_title": pacs.ae_title, "host": HOST, "port": pacs.port}
    everything = ["images", "seg", "sr", "sc", "pdf"]
    return to_toml(
        {
            "data_dir": str(folder / "data"),
            "dicom": {"port": free_port(), "min_free_bytes": 0, "destinations": [node]},
            "web": {"port": free_port()},
            "receive": {"quiet_s": QUIET_S},
            "lifecycle": {
                "lease_s": 3.0,
                "sweep_s": 1.0,
                "ring_again_s": 3.0,
                "task_time_limit_s": 120,
            },
            "routing": {
                "rules": [{"name": "all", "destinations": ["pacs"], "objects": everything}]
            },
            "delivery": {"retry_s": 1.0},
            "analysis": {"engine": "torch", "weights_dir": str(weights)},
        }
    )
