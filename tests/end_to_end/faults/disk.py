"""A disk that fills up: F10 of the figures."""

import json
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
from pydicom.uid import CTImageStorage
from sqlalchemy import select

from appliance import deliveries, lifecycle, retention
from appliance.config import RetentionSettings
from appliance.database import Database, open_database
from appliance.deliveries import Content, Kind
from appliance.lifecycle import FinishedAnalysis, State
from appliance.store import Store
from appliance.tables import Instance, Study
from tests.end_to_end.faults.box import Row, connect
from tests.end_to_end.faults.holds import partial_files
from tests.support import upper_layer
from tests.support.disks import on_small_disk
from tests.support.instances import Names, ct_instance, dataset_bytes, encoded
from tests.support.listeners import ListenerProcess, listener_process
from tests.support.pacs import SUCCESS

OUT_OF_RESOURCES: Final = 0xA700
DISK_BYTES: Final = 96 << 20
WATERMARK_BYTES: Final = 16 << 20
PIXELS: Final = 512 * 512 * 2
UNSENT_EVERY: Final = 10
KINDS: Final = ("watermark", "full", "nearly full")


@dataclass(frozen=True)
class Acknowledged:
    """An instance that was answered with Success, and the study that it is."""

    data: bytes
    study_id: int


@dataclass(frozen=True)
class Disk:
    """The listener's own small disk."""

    folder: Path

    @contextmanager
    def filled(self, leaving: int) -> Iterator[None]:
        """Let no more than so many bytes be free while the block runs."""
        ballast = self.folder / "ballast"
        with ballast.open("wb") as file:
            while (surplus := shutil.disk_usage(self.folder).free - leaving) > 0:
                with suppress(OSError):  # the listener has just written, too
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), surplus)
        try:
            yield
        finally:
            ballast.unlink()


def fill_the_disk(_box: object, row: Row) -> None:
    """F10: below the watermark before an instance, or full in the middle of one."""
    with tempfile.TemporaryDirectory(prefix="faults-disk-") as folder:
        seed = str(row.chance.random())
        command = (sys.executable, "-m", __name__, folder, str(row.wanted), seed)
        ended = on_small_disk(Path(folder), DISK_BYTES, *command)
    if ended.returncode:
        row.faults.append("the sender to a small disk broke: its traceback is above")
        return
    told = json.loads(ended.stdout.splitlines()[-1])  # after what is logged
    row.times, row.faults = told["times"], told["faults"]
    row.kinds.update(told["kinds"])


def main() -> None:
    """Meet a full disk in the folder that the command line names, and print what came of it."""
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    row = Row("F10", "", count, random.Random(seed))
    with listener_process(folder, min_free_bytes=WATERMARK_BYTES) as listener:
        database = open_database(listener.settings)
        sender = Sender(listener, Disk(folder), database, row)
        while row.left:
            sender.meet(KINDS[row.times % len(KINDS)])
        row.faults += sender.in_the_end()
        database.dispose()
    click.echo(json.dumps({"times": row.times, "kinds": row.kinds, "faults": row.faults}))


class Sender:
    """A scanner that meets a full disk again and again."""

    def __init__(self, listener: ListenerProcess, disk: Disk, database: Database, row: Row) -> None:
        self._listener = listener
        # All that may go goes, so that what stays is what must stay.
        greedy = RetentionSettings(free_bytes=DISK_BYTES, at_least_days=0, unconfirmed=True)
        self._settings = replace(listener.settings, retention=greedy)
        self._disk = disk
        self._database = database
        self._row = row
        self._store = Store(self._settings.store_dir)
        self._acknowledged: dict[str, Acknowledged] = {}
        self._unsent: set[int] = set()
        self._removed: set[int] = set()

    def meet(self, kind: str) -> None:
        """Send an instance into a full disk, then again when there is room, and clean up."""
        ds = ct_instance(Names.fresh(), PixelData=self._row.chance.randbytes(PIXELS))
        ds.Rows = ds.Columns = 512
        uid, data = str(ds.SOPInstanceUID), encoded(ds)
        message = upper_layer.store(data, size=16_000, uid=uid.encode() + b"\0" * (len(uid) % 2))
        middle = 0 if kind == "watermark" else self._row.chance.randrange(2000, len(message))
        leaving = {
            "watermark": WATERMARK_BYTES - 4096,
            "full": 0,
            "nearly full": self._row.chance.randrange(len(data)),
        }[kind]
        with connect(self._listener.port) as connection:
            connection.sendall(upper_layer.request((CTImageStorage, upper_layer.EXPLICIT)).encode())
            upper_layer.read_pdu(connection)
            connection.sendall(message[:middle])
            with self._disk.filled(leaving):
                connection.sendall(message[middle:])
                status = _answer(connection)
                if status != SUCCESS or kind == "watermark":  # what was left may have sufficed
                    self._expect(f"{kind}: in need", status, OUT_OF_RESOURCES)
                self._nothing_partial(kind)
                if kind == "watermark":
                    self._nothing_unsent_goes()
            connection.sendall(message)
            self._expect(f"{kind}: afterwards", _answer(connection), SUCCESS)
        self._acknowledged[uid] = Acknowledged(data, self._finish(ds.StudyInstanceUID))
        if status == OUT_OF_RESOURCES:
            self._row.did(kind)

    def in_the_end(self) -> list[str]:
        """What is wrong when everything is over."""
        self._nothing_unsent_goes()
        with self._database.snapshot() as db:
            rows = db.execute(select(Instance.sop_instance_uid, Instance.digest)).all()
        kept = {uid: self._store.path_of(digest) for uid, digest in rows}
        wanted = {
            uid: each.data
            for uid, each in self._acknowledged.items()
            if each.study_id not in self._removed
        }
        if kept.keys() != wanted.keys():
            return ["what is in the database is not what was acknowledged and stays"]
        wrong = [uid for uid, path in kept.items() if dataset_bytes(path) != wanted[uid]]
        found = [f"{len(wrong)} instances have other bytes than were sent"] if wrong else []
        if not self._removed:
            found.append("retention made no room at all: nothing was shown about what it leaves")
        return found

    def _expect(self, what: str, status: int, wanted: int) -> None:
        if status != wanted:
            self._row.faults.append(f"{what} the answer was {status:#06x}")

    def _nothing_partial(self, kind: str) -> None:
        found = [*partial_files(self._store)]
        found += (f"left behind: {path.name}" for path in self._store.incoming_dir.iterdir())
        with self._database.snapshot() as db:
            named = set(db.scalars(select(Instance.digest)))
        there = {path.stem for path in self._store.objects_dir.glob("*/*")}
        found += (f"a row without its file: {digest}" for digest in named - there)
        self._row.faults += (f"{kind}: {each}" for each in found)

    def _finish(self, study_uid: str) -> int:
        """Bring the study to its end, its delivery done, but for one in ten; returns its id."""
        with self._database.snapshot() as db:
            study = db.scalars(select(Study).where(Study.study_uid == study_uid)).one()
        lifecycle.move(self._database, None, study.id, State.RECEIVING, State.QUEUED)
        claim = lifecycle.claim(self._database, study.id, owner="test", lease_s=60)
        assert claim is not None
        result = FinishedAnalysis(
            folder=f"analyses/{study.id}/a",
            probability=0.5,
            positive=False,
            lesion_count=0,
            lesion_volume_ml=0.0,
        )
        lifecycle.finish(self._database, claim, result)
        destination = f"node {study.id}"
        with self._database.transaction() as db:
            (occasion,) = deliveries.open_occasions(db)
            taken = deliveries.take(db, occasion)
            assert taken is not None
            deliveries.queue(
                db, taken[1], destination=destination, kind=Kind.DICOM, contents=[Content.SR]
            )
        if len(self._acknowledged) % UNSENT_EVERY == 1:
            self._unsent.add(study.id)
            return study.id
        order = deliveries.claim_next(self._database, destination, lease_s=60)
        assert order is not None
        assert deliveries.sent(self._database, order, commitment=False)
        return study.id

    def _nothing_unsent_goes(self) -> None:
        """Let retention make all the room it can: what was sent goes, what was not stays."""
        self._removed.update(retention.enforce(self._database, self._settings))
        if lost := self._unsent & self._removed:
            self._row.faults.append(f"studies {lost} were removed unsent")


def _answer(connection: socket.socket) -> int:
    answer = upper_layer.read_pdu(connection)
    return upper_layer.status_in(answer) if answer[:1] == b"\x04" else -1


if __name__ == "__main__":
    main()
