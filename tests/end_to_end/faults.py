"""The fault campaign: `make faults`, or `python -m tests.end_to_end.faults --listener 50`.

An appliance of its own, as `appliance serve` runs it, receives synthetic chests under fresh UIDs
while its processes are killed with SIGKILL: the listener in the middle of transfers, the worker in
each step of an analysis, the broker at any moment. A sender sends again what was not answered, as a
PACS does; nobody else lends a hand. In the end:

- every instance that was answered with Success is in the database and, byte for byte, in the store;
- every study is READY with exactly one current result, made from all of its instances;
- all results are the same, because all chests are;
- the audit's chain is whole.

Prints the counts, and ends with 1 if anything of this does not hold. Unless --weights names others,
the lung net is the shipped one made coarse, and the other two are tiny and random: what is proven
here is that nothing is lost.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Final

import click
from pydicom.uid import generate_uid
from sqlalchemy import select

from appliance import audit, collection, logs, studies, supervisor
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import Database, open_database
from appliance.lifecycle import State
from appliance.store import Store
from appliance.tables import Analysis, Study
from dicom_node import scu
from dicom_node.errors import SendError
from pipelines.findings import Analysis as SavedAnalysis
from pipelines.phantom import Phantom, datasets
from pipelines.tasks import STEPS
from pipelines.weights import open_bundle, shipped_weights, write_bundle
from tests.support.instances import as_file, dataset_bytes
from tests.support.pacs import HOST, free_port
from tests.support.phantom import small_chest
from tests.support.tiny_models import write_models

SLICES: Final = 64
QUIET_S: Final = 2.0
READY_TIMEOUT_S: Final = 180.0
SEND_PATIENCE_S: Final = 120.0
KILLS_PER_STUDY: Final = 5
FINAL: Final = (State.READY, State.REJECTED, State.FAILED)


@dataclass
class Sending:
    """A study on its way: its instances, and the digests of those that were answered."""

    study_uid: str
    instances: tuple[collection.InstanceFile, ...]
    digests: dict[str, str]
    taken: set[str] = field(default_factory=set)
    attempts: int = 0

    @property
    def complete(self) -> bool:
        return len(self.taken) == len(self.instances)

    def note(self, sent: scu.Sent) -> None:
        if not sent.problem:
            self.taken.add(sent.instance.sop_instance_uid)


@dataclass
class Row:
    """One line of the table."""

    fault: str
    kills: Counter[str] = field(default_factory=Counter)
    sendings: list[Sending] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


class Running:
    """The appliance under test and everything known about what was sent to it."""

    def __init__(self, folder: Path, weights: Path, chance: random.Random) -> None:
        self.chance = chance
        self.settings_file = folder / "settings.toml"
        self.settings_file.write_text(_settings(folder, weights))
        self.settings = Settings.load(self.settings_file)
        self._folder = folder
        self._numbers = count()
        self._chest = small_chest()

    @property
    def database(self) -> Database:
        return self._database

    def start(self) -> None:
        """Start it and wait until it is ready for studies."""
        with (self._folder / "supervisor.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, "--serve", str(self.settings_file)],
                env={**os.environ, SETTINGS_VARIABLE: str(self.settings_file)},
                stderr=log,
            )
        _wait("the appliance is ready", self._report_is_ready, timeout_s=120)
        self._database = open_database(self.settings)

    def stop(self) -> None:
        self._database.dispose()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def pid_of(self, name: str) -> int | None:
        """The process id of one of the appliance's processes, while it runs."""
        report = supervisor.read_report(self.settings)
        return next((c.pid for c in report.children if c.name == name), None) if report else None

    def kill(self, name: str) -> bool:
        """Kill a process with SIGKILL; false if it does not run at this moment."""
        return _kill(self.pid_of(name))

    def kill_worker(self) -> str:
        """Kill the worker, its pool process, or both; returns which, "" if there was none."""
        parent = self.pid_of("worker-gpu")
        pool = _children(parent) if parent else []
        victim = self.chance.choice(["parent", "pool process", "both"])
        killed = False
        if victim != "parent":
            killed = sum(_kill(pid) for pid in pool) > 0  # every one of them
        if victim != "pool process":
            killed = _kill(parent) or killed
        return victim if killed else ""

    def new_study(self) -> Sending:
        """A chest under UIDs that were never sent."""
        folder = self._folder / f"study{next(self._numbers):03d}"
        folder.mkdir()
        study_uid, digests = _write_chest(self._chest, folder)
        collected = collection.collect(folder, scratch=folder)
        return Sending(study_uid, collected.instances, digests)

    def send(self, sending: Sending) -> None:
        """Send until everything was answered, sometimes what was answered already, too."""
        destination = scu.Destination(
            host=HOST,
            port=self.settings.dicom.port,
            called_ae=self.settings.dicom.ae_title,
            calling_ae="PACS",
        )
        deadline = time.monotonic() + SEND_PATIENCE_S
        while not sending.complete:
            if time.monotonic() > deadline:
                raise TimeoutError("the listener did not take a study in time")
            wanted = sending.instances
            if self.chance.random() < 0.5:
                wanted = tuple(i for i in wanted if i.sop_instance_uid not in sending.taken)
            sending.attempts += 1
            try:
                scu.send(wanted, destination, report=sending.note)
            except SendError:
                time.sleep(0.2)

    def study(self, sending: Sending) -> Study | None:
        with self._database.snapshot() as db:
            return next(iter(studies.named(db, sending.study_uid)), None)

    def _report_is_ready(self) -> bool:
        assert self._process.poll() is None, "the appliance did not start"
        report = supervisor.read_report(self.settings)
        return report is not None and report.ready


def kill_listener(running: Running, times: int) -> Row:
    """Kill the listener while it receives, several times for each study."""
    row = Row("listener, in a transfer")
    while row.kills.total() < times:
        sending = running.new_study()
        row.sendings.append(sending)
        sender = threading.Thread(target=running.send, args=(sending,))
        sender.start()
        for _ in range(KILLS_PER_STUDY):
            if row.kills.total() == times or not _under_way(sending, sender):
                break
            time.sleep(running.chance.uniform(0, 0.4))
            if not sending.complete and running.kill("listener"):
                row.kills["listener"] += 1
                _tell(row, times)
        sender.join()
    return row


def kill_worker(running: Running, times: int) -> Row:
    """Kill the worker in each step in turn; counted by the step it died in."""
    row = Row("worker, in each step")
    for number in count():
        if row.kills.total() == times:
            break
        wanted = STEPS[number % len(STEPS)]
        sending = running.new_study()
        row.sendings.append(sending)
        running.send(sending)
        if _wait_for_step(running, sending, wanted) and running.kill_worker():
            study = running.study(sending)
            if study is not None and study.state == State.ANALYSING:
                row.kills[str(study.step)] += 1
                _tell(row, times)
        _wait_until_final(running, [sending])
    return row


def kill_broker(running: Running, times: int) -> Row:
    """Kill the broker at any moment between a study's first instance and its result."""
    row = Row("broker, at any moment")
    while row.kills.total() < times:
        sending = running.new_study()
        row.sendings.append(sending)
        sender = threading.Thread(target=running.send, args=(sending,))
        sender.start()
        time.sleep(running.chance.uniform(0, QUIET_S + 6))
        if running.kill("broker"):
            row.kills["broker"] += 1
            _tell(row, times)
        sender.join()
    return row


CAMPAIGN: Final[dict[str, Callable[[Running, int], Row]]] = {
    "listener": kill_listener,
    "worker": kill_worker,
    "broker": kill_broker,
}


# What must hold in the end


def faults_in(running: Running, rows: list[Row]) -> list[str]:
    """Everything that is not as it must be, in words."""
    sendings = [sending for row in rows for sending in row.sendings]
    found = [problem for sending in sendings for problem in _faults_of(running, sending)]
    with running.database.snapshot() as db:
        if (broken := audit.verify(db)) is not None:
            found.append(f"the audit's chain is broken at entry {broken}")
        results = {
            (analysis.probability, analysis.lesion_count, analysis.lesion_volume_ml)
            for analysis in db.scalars(select(Analysis).where(Analysis.current))
        }
    if len(results) > 1:
        found.append(f"the same chest gave different results: {results}")
    return found


def _faults_of(running: Running, sending: Sending) -> Iterator[str]:
    store = Store(running.settings.store_dir)
    with running.database.snapshot() as db:
        study = next(iter(studies.named(db, sending.study_uid)), None)
        if study is None:
            yield "a study is not in the database"
            return
        kept = {i.sop_instance_uid: i.digest for i in studies.instances_of(db, study.id)}
        analyses = list(studies.analyses_of(db, study.id))
        conflicts = len(studies.conflicts_of(db, study.id))
    name = f"study {study.id}"
    for uid in sending.taken:
        path = store.path_of(kept[uid]) if uid in kept else None
        if path is None or _digest(dataset_bytes(path)) != sending.digests[uid]:
            yield f"{name}: an acknowledged instance is lost"
    if study.state != State.READY:
        yield f"{name} is {study.state}: {study.state_reason}"
    if conflicts:
        yield f"{name} has {conflicts} conflicts"
    current = [analysis for analysis in analyses if analysis.current]
    if len(current) != 1:
        yield f"{name} has {len(current)} current results"
    elif current[0].revision != len(sending.instances):
        yield f"{name}: its result is made from {current[0].revision} instances"
    for analysis in analyses:
        SavedAnalysis.load(running.settings.data_dir / analysis.folder)


def report(running: Running, rows: list[Row], faults: list[str]) -> None:
    """Print the table."""
    click.echo(
        f"\n{'killed':<26}{'times':>6}{'studies':>9}{'acknowledged':>14}{'results':>9}{'s':>7}"
    )
    for row in rows:
        with running.database.snapshot() as db:
            uids = [sending.study_uid for sending in row.sendings]
            made = db.scalars(
                select(Analysis.id)
                .join(Study, Study.id == Analysis.study_id)
                .where(Study.study_uid.in_(uids), Analysis.current)
            ).all()
        taken = sum(len(sending.taken) for sending in row.sendings)
        click.echo(
            f"{row.fault:<26}{row.kills.total():>6}{len(row.sendings):>9}{taken:>14}"
            f"{len(made):>9}{row.seconds:>7.0f}"
        )
        if len(row.kills) > 1:
            click.echo("  " + ", ".join(f"{name} {times}" for name, times in row.kills.items()))
    attempts = sum(sending.attempts for row in rows for sending in row.sendings)
    with running.database.snapshot() as db:
        analyses = len(db.scalars(select(Analysis.id)).all())
    click.echo(f"transmissions {attempts}, analyses {analyses}, faults {len(faults)}")
    for fault in faults:
        click.echo(f"  {fault}")


# Small parts


def _settings(folder: Path, weights: Path) -> str:
    return to_toml(
        {
            "data_dir": str(folder / "data"),
            "dicom": {"port": free_port(), "min_free_bytes": 0},
            "web": {"port": free_port()},
            "receive": {"quiet_s": QUIET_S},
            "lifecycle": {
                "lease_s": 3.0,
                "sweep_s": 1.0,
                "ring_again_s": 3.0,
                "task_time_limit_s": 120,
            },
            "analysis": {"engine": "torch", "weights_dir": str(weights)},
        }
    )


def _write_chest(chest: Phantom, folder: Path) -> tuple[str, dict[str, str]]:
    """Write the middle of the chest under fresh UIDs; returns study UID and data set digests."""
    study_uid, series_uid = generate_uid(), generate_uid()
    digests = {}
    slices = list(datasets(chest))
    middle = (len(slices) - SLICES) // 2
    for number, ds in enumerate(slices[middle : middle + SLICES]):
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
        ds.SOPInstanceUID = generate_uid()
        path = as_file(ds, folder / f"{number:03d}.dcm")
        digests[ds.SOPInstanceUID] = _digest(dataset_bytes(path))
    return study_uid, digests


def _quick_models(folder: Path) -> Path:
    """Write models that take seconds: the lung net at half its resolution, the others tiny."""
    write_models(folder)
    shipped = open_bundle(shipped_weights() / "lungs")
    coarse = {**shipped.config.preprocessing, "spacing_mm": [5.0, 4.0, 4.0]}
    config = replace(shipped.config, preprocessing=coarse)
    write_bundle(folder / "lungs", config, shipped.network())
    return folder


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _under_way(sending: Sending, sender: threading.Thread) -> bool:
    """Whether another instance was answered since now, and the transfer goes on."""
    before = len(sending.taken)
    while sender.is_alive() and not sending.complete:
        if len(sending.taken) > before:
            return True
        time.sleep(0.005)
    return False


def _wait_for_step(running: Running, sending: Sending, step: str) -> bool:
    """Whether the analysis was seen in this step; false when it ended before."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        study = running.study(sending)
        if study is not None and study.state == State.ANALYSING and study.step == step:
            return True
        if study is not None and study.state in FINAL:
            return False
        time.sleep(0.002)
    raise TimeoutError(f"an analysis did not come to {step!r}")


def _wait_until_final(running: Running, sendings: list[Sending]) -> None:
    def over() -> bool:
        found = [running.study(sending) for sending in sendings]
        return all(study is not None and study.state in FINAL for study in found)

    _wait("every study has ended", over, timeout_s=READY_TIMEOUT_S + 10 * len(sendings))


def _wait(what: str, holds: Callable[[], bool], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in vain: {what}")
        time.sleep(0.1)


def _kill(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]


def _tell(row: Row, times: int) -> None:
    click.echo(f"\r{row.fault}: {row.kills.total()} of {times}   ", nl=False)


def _serve(settings_file: Path) -> None:
    """Run the supervisor as `appliance serve` does, but start what fell again without waiting."""
    vars(supervisor).update(FIRST_DELAY_S=0.1, LONGEST_DELAY_S=0.5, STEADY_S=3.0)
    logs.configure("supervisor")
    settings = Settings.load(settings_file)
    supervisor.Supervisor(settings, logs=settings.data_dir.parent / "logs").run()


@contextmanager
def _appliance(folder: Path, weights: Path | None, seed: int) -> Iterator[Running]:
    running = Running(folder, weights or _quick_models(folder / "weights"), random.Random(seed))
    running.start()
    try:
        yield running
    finally:
        running.stop()


def main() -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description="Kill the appliance's processes; count losses.")
    parser.add_argument("--listener", type=int, default=50, help="kills of the listener")
    parser.add_argument("--worker", type=int, default=20, help="kills of the worker")
    parser.add_argument("--broker", type=int, default=10, help="kills of the broker")
    parser.add_argument("--seed", type=int, default=1, help="of the moments that are chosen")
    parser.add_argument("--weights", type=Path, help="folder of models instead of tiny ones")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve is not None:
        _serve(chosen.serve)
        return 0
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = chosen.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with _appliance(folder, chosen.weights, chosen.seed) as running:
            rows = []
            for name, kill in CAMPAIGN.items():
                row = kill(running, getattr(chosen, name))
                _wait_until_final(running, row.sendings)
                row.seconds = time.monotonic() - row.began
                rows.append(row)
            faults = faults_in(running, rows)
            report(running, rows, faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
