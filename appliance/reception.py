"""Taking one instance: the bytes as they came to disk, then the row, and only then Success.

Whatever happens before the row is committed, the sender still has the instance and sends it again.
A file without a row is what a crash between the two leaves: it is removed an hour later at the
earliest (`retention.discard_unnamed`), because the same bytes sent again, by another association at
this very moment perhaps, are the same file.
"""

import errno
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from appliance import audit, studies
from appliance.database import Database
from appliance.errors import (
    DatasetMismatchError,
    OutOfResourcesError,
    StoreError,
    UnreadableDatasetError,
)
from appliance.part10 import (
    DEFLATED,
    Header,
    file_head,
    header_at_a_glance,
    read_header_from,
    require_whole,
)
from appliance.store import Incoming, Store, StoredObject
from appliance.studies import ReceivedInstance, Recorded

log = structlog.get_logger()

LONGEST_LINE: Final = 64  # instances in one transaction
BEGINNING_BYTES: Final = 64 << 10  # of a data set, kept in memory: most headers fit
CHECKED_EVERY_BYTES: Final = 16 << 20  # of one data set, between two looks at the free space
TAKE_TURNS: Final = ("40001", "40P01")  # PostgreSQL's serialization failure and deadlock
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
CONFLICT_TAG: Final = "dicom:instance:conflict"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a C-STORE-RQ and its presentation context say about the data set (PS3.7 9.3.1.1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae: str


class Durability(StrEnum):
    """How bytes are made permanent before Success; the row's commit always is."""

    INSTANCE = "instance"
    """Each file by itself, as its association comes to it."""
    ASSOCIATION = "association"
    """All files that wait at the same time, of however many associations, in one go."""


class Reception:
    """Takes instances, from any number of threads.

    Rows are committed together: while one thread commits, others wait in a line, and the next to
    commit takes the whole line along.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        *,
        min_free_bytes: int,
        durability: Durability = Durability.INSTANCE,
    ) -> None:
        self._database = database
        self._store = store
        self._min_free_bytes = min_free_bytes
        self._durability = durability
        self._turn = threading.Condition()
        self._line: deque[_Waiting] = deque()
        self._committing = False
        self._routes = studies.Routes()
        self._idle = threading.Condition()
        self._under_way = 0
        self._stopping = False

    @property
    def database(self) -> Database:
        """Where instances are noted."""
        return self._database

    @property
    def store(self) -> Store:
        """Where their bytes are kept."""
        return self._store

    def take(self, dataset: bytes, command: Command) -> Recorded:
        """Keep one encoded data set for good; raises StoreError, and then nothing is recorded."""
        with self.taking(command, size_bytes=len(dataset)) as taking:
            taking.write(dataset)
            return taking.finish()

    @contextmanager
    def taking(self, command: Command, *, size_bytes: int = 0) -> Iterator["Taking"]:
        """Keep a data set of about `size_bytes` that comes in pieces; unfinished, nothing stays.

        Raises StoreError.
        """
        with self._counted():
            self.require_space(size_bytes)
            with _disk_errors(), self._store.incoming() as incoming:
                yield Taking(self, incoming, command)

    def require_space(self, size_bytes: int = 0) -> None:
        """Raise OutOfResourcesError where the disk lacks `size_bytes` above the watermark."""
        if self._store.free_bytes() - size_bytes < self._min_free_bytes:
            raise OutOfResourcesError("disk space is below the watermark, send again later")

    def stop(self, *, timeout_s: float) -> bool:
        """Refuse what comes from now on; return whether what was under way ended in time."""
        with self._idle:
            self._stopping = True
            return self._idle.wait_for(lambda: self._under_way == 0, timeout=timeout_s)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._idle:
            if self._stopping:
                raise OutOfResourcesError("the appliance is stopping, send again later")
            self._under_way += 1
        try:
            yield
        finally:
            with self._idle:
                self._under_way -= 1
                self._idle.notify_all()

    def finish(self, incoming: Incoming, header: Header, command: Command) -> Recorded:
        """Make a written file permanent, then its row; raises StoreError."""
        stored = incoming.commit(sync=self._durability is Durability.INSTANCE)
        waiting = _Waiting(_received(header, command, stored))
        with self._turn:
            self._line.append(waiting)
        while (line := self._next_line(waiting)) is not None:
            try:
                self._record(line)
            finally:
                with self._turn:
                    self._committing = False
                    self._turn.notify_all()
        match waiting.outcome:
            case StoreError() as error:  # another thread may raise the same: each has its own
                raise copy(error) from error.__cause__
            case Exception() as error:
                raise error
            case Recorded() as recorded:
                return recorded
        raise AssertionError("an instance was left without an answer")

    def _next_line(self, waiting: "_Waiting") -> list["_Waiting"] | None:
        """Return whose rows this thread is to commit, None once its own has been."""
        with self._turn:
            self._turn.wait_for(lambda: waiting.outcome is not None or not self._committing)
            if waiting.outcome is not None:
                return None
            if waiting not in self._line:  # whoever took it along died
                raise OutOfResourcesError("the instance was not recorded, send again")
            self._committing = True
            return [self._line.popleft() for _ in range(min(len(self._line), LONGEST_LINE))]

    def _record(self, line: list["_Waiting"]) -> None:
        """Give everybody in the line an outcome, in one transaction if at all possible."""
        try:
            if self._durability is Durability.ASSOCIATION:
                with _disk_errors():
                    self._store.sync()
            outcomes = self._commit([waiting.received for waiting in line])
        except StoreError as error:
            outcomes = [error] * len(line)
        except Exception as error:  # noqa: BLE001 - raised again where the instance came from
            if len(line) > 1:  # whose fault it is, shows when each is alone
                for waiting in line:
                    self._record([waiting])
                return
            outcomes = [error]
        for waiting, outcome in zip(line, outcomes, strict=True):
            waiting.outcome = outcome

    def _commit(self, received: list[ReceivedInstance]) -> list[Recorded | Exception]:
        try:
            with self._routes.kept_if_committed(), self._database.transaction() as db:
                recorded = [studies.record_instance(db, one, self._routes) for one in received]
                for one, what in zip(received, recorded, strict=True):
                    if what is Recorded.CONFLICT:
                        _report_conflict(db, one)
                return [*recorded]
        except (OperationalError, PoolTimeoutError) as error:
            if len(received) > 1 and _is_deadlock(error):
                raise  # alone, each holds less that others wait for
            raise OutOfResourcesError("the database does not answer, send again later") from error


class Taking:
    """A data set on its way to the disk."""

    def __init__(self, reception: Reception, incoming: Incoming, command: Command) -> None:
        self._reception = reception
        self._incoming = incoming
        self._command = command
        head = file_head(
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=command.transfer_syntax_uid,
        )
        self._start = len(head)
        self._beginning = bytearray()
        self._unchecked_bytes = 0
        incoming.write(head)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append a piece of the encoded data set; raises StoreError when the disk is full."""
        self._unchecked_bytes += len(data)
        if self._unchecked_bytes >= CHECKED_EVERY_BYTES:
            self._reception.require_space()
            self._unchecked_bytes = 0
        with _disk_errors():
            self._incoming.write(data)
        if (missing := BEGINNING_BYTES - len(self._beginning)) > 0:
            self._beginning += data[:missing]

    def header(self) -> Header:
        """Return what the data set that was written says about itself; raises StoreError."""
        syntax = self._command.transfer_syntax_uid
        header = header_at_a_glance(bytes(self._beginning), self._size_bytes, syntax)
        if header is not None:
            return header
        with _disk_errors(), self._incoming.read_back() as file:
            file.seek(self._start)
            return read_header_from(file, syntax)

    def finish(self) -> Recorded:
        """Keep what was written for good; raises StoreError, and then nothing is recorded."""
        with _disk_errors():
            header = self.header()
            _check_identity(header, self._command)
            self._check_whole(header)
            return self._reception.finish(self._incoming, header, self._command)

    @property
    def _size_bytes(self) -> int:
        return self._incoming.size_bytes - self._start

    def _check_whole(self, header: Header) -> None:
        """Raise UnreadableDatasetError where receivers would choke on it, or miss a part."""
        syntax = self._command.transfer_syntax_uid
        # Every value has an even length (PS3.5 section 7.1). What is deflated shall be padded as
        # well (section A.5), and often is not.
        if self._size_bytes % 2 and syntax not in DEFLATED:
            raise UnreadableDatasetError("the data set has an odd length: send the original again")
        if header.pixels is not None:
            require_whole(
                header.pixels,
                syntax,
                lambda position, size: self._incoming.read_at(self._start + position, size),
            )


@dataclass(eq=False)
class _Waiting:
    """An instance whose row is to be committed, and what came of it."""

    received: ReceivedInstance
    outcome: Recorded | Exception | None = None


def _is_deadlock(error: Exception) -> bool:
    return isinstance(error, OperationalError) and (
        getattr(error.orig, "sqlstate", None) in TAKE_TURNS
    )


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Say in the protocol's terms that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OutOfResourcesError("the disk is full, send again later") from error
        raise


def _check_identity(header: Header, command: Command) -> None:
    """Raise if the data set contradicts the command that announced it (PS3.4 B.2.3).

    De-identified data comes with an empty SOP Instance UID: then the command's counts.
    """
    if not command.sop_class_uid or not command.sop_instance_uid:
        raise DatasetMismatchError("the command names no SOP class or no SOP instance")
    if header.sop_class_uid not in ("", command.sop_class_uid):
        raise DatasetMismatchError("SOPClassUID differs from the command's")
    if header.sop_instance_uid not in ("", command.sop_instance_uid):
        raise DatasetMismatchError("SOPInstanceUID differs from the command's")


def _received(header: Header, command: Command, stored: StoredObject) -> ReceivedInstance:
    return ReceivedInstance(
        study_uid=header.study_uid,
        series_uid=header.series_uid,
        sop_instance_uid=command.sop_instance_uid,
        sop_class_uid=command.sop_class_uid,
        transfer_syntax_uid=command.transfer_syntax_uid,
        digest=stored.digest,
        size_bytes=stored.size_bytes,
        source_ae=command.source_ae,
        is_image=header.is_image,
        patient=header.patient,
        study=header.study,
        series=header.series,
    )


def _report_conflict(db: Session, received: ReceivedInstance) -> None:
    """Note in audit and log that an instance was kept aside, and why: a sender is at fault."""
    conflict = studies.conflict_with(db, received.study_uid, received.digest)
    audit.record(
        db,
        actor=f"peer {received.source_ae}",
        tag=CONFLICT_TAG,
        subject=f"study {conflict.study_id}",
        detail={"other_digest": received.digest, "reason": conflict.reason},
    )
    log.warning(
        "instance.conflict",
        study_id=conflict.study_id,
        reason=conflict.reason,
        source_ae=received.source_ae,
    )
