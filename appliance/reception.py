"""Taking one instance: the bytes as they came to disk, then the row, and only then Success.

Whatever happens before the row is committed, the sender still has the instance and sends it again.
A file without a row is what a crash between the two leaves: it is never removed, because the same
bytes sent again, by another association at this very moment perhaps, are the same file.
"""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from appliance import audit, studies
from appliance.database import Database
from appliance.errors import DatasetMismatchError, OutOfResourcesError
from appliance.part10 import Header, file_head, read_header
from appliance.store import Store, StoredObject
from appliance.studies import ReceivedInstance, Recorded

log = structlog.get_logger()

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
CONFLICT_TAG: Final = "dicom:instance:conflict"


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a C-STORE-RQ and its presentation context say about the data set (PS3.7 9.3.1.1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae: str


class Reception:
    """Takes instances, from any number of threads."""

    def __init__(self, database: Database, store: Store, *, min_free_bytes: int) -> None:
        self._database = database
        self._store = store
        self._min_free_bytes = min_free_bytes
        # SQLite has one writer at a time anyway, and here they wait in turn instead of polling.
        self._recording = threading.Lock()
        self._idle = threading.Condition()
        self._under_way = 0
        self._stopping = False

    def take(self, dataset: bytes, command: Command) -> Recorded:
        """Keep one encoded data set for good; raises StoreError, and then nothing is recorded."""
        with self._taking():
            self._check_space(len(dataset))
            header = read_header(dataset, command.transfer_syntax_uid)
            _check_identity(header, command)
            stored = self._keep(dataset, command)
            return self._record(_received(header, command, stored))

    def stop(self, *, timeout_s: float) -> bool:
        """Refuse what comes from now on; return whether what was under way ended in time."""
        with self._idle:
            self._stopping = True
            return self._idle.wait_for(lambda: self._under_way == 0, timeout=timeout_s)

    @contextmanager
    def _taking(self) -> Iterator[None]:
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

    def _check_space(self, size_bytes: int) -> None:
        if self._store.free_bytes() - size_bytes < self._min_free_bytes:
            raise OutOfResourcesError("disk space is below the watermark, send again later")

    def _keep(self, dataset: bytes, command: Command) -> StoredObject:
        head = file_head(
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=command.transfer_syntax_uid,
        )
        try:
            with self._store.incoming() as incoming:
                incoming.write(head)
                incoming.write(dataset)
                return incoming.commit()
        except OSError as error:
            if error.errno in DISK_FULL:
                raise OutOfResourcesError("the disk is full, send again later") from error
            raise

    def _record(self, received: ReceivedInstance) -> Recorded:
        try:
            with self._recording, self._database.transaction() as db:
                recorded = studies.record_instance(db, received)
                if recorded is Recorded.CONFLICT:
                    _report_conflict(db, received)
                return recorded
        except (OperationalError, PoolTimeoutError) as error:
            raise OutOfResourcesError("the database does not answer, send again later") from error


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
