"""The PACS that results go to: it keeps each object once, and fails as it is told."""

import hashlib
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum

from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.transport import ThreadedAssociationServer

from tests.support.pacs import HOST, SUCCESS, free_port

OUT_OF_RESOURCES = 0xA700
REJECTED_FOR_NOW = (0x02, 0x03, 0x02)  # transient, local limit exceeded (PS3.8 table 9-21)


class Fault(StrEnum):
    """What goes wrong with one association; the last three at its k-th object."""

    REJECT = "association rejected"
    ABORT = "abort"
    LOST_ANSWER = "object kept, then abort"
    REFUSE = "0xA700"


@dataclass(frozen=True)
class Kept:
    """An object that was taken."""

    study_uid: str
    sop_class_uid: str
    digest: str


class Pacs:
    """A storage SCP on the loopback that can be switched off and on."""

    ae_title = "PACS"

    def __init__(self) -> None:
        self.port = free_port()
        self.kept: dict[str, Kept] = {}
        self.differing: set[str] = set()
        """UIDs under which different bytes came."""
        self.planned: deque[tuple[Fault, int]] = deque()
        """What befalls the next associations, and at which of their objects, from 1."""
        self.befell: Counter[str] = Counter()
        self.delay_s = 0.0
        """How long each object takes."""
        self._server: ThreadedAssociationServer | None = None
        self._lock = threading.Lock()

    def up(self) -> None:
        """Listen."""
        ae = AE(self.ae_title)
        ae.maximum_associations = 100
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax)
        handlers = [(evt.EVT_REQUESTED, self._requested), (evt.EVT_C_STORE, self._store)]
        self._server = ae.start_server((HOST, self.port), block=False, evt_handlers=handlers)

    def down(self) -> None:
        """Listen no more, and end what is under way."""
        server, self._server = self._server, None
        if server is not None:
            for assoc in server.active_associations:
                assoc.abort(block=False)
            server.shutdown()

    def of(self, study_uid: str) -> dict[str, Kept]:
        """What it has of a study, by SOP Instance UID."""
        with self._lock:
            return {uid: kept for uid, kept in self.kept.items() if kept.study_uid == study_uid}

    def _requested(self, event: evt.Event) -> None:
        with self._lock:
            fault, at = self.planned.popleft() if self.planned else (None, 0)
        if fault is Fault.REJECT:
            event.assoc.acse.send_reject(*REJECTED_FOR_NOW)
            self._note(fault)
        event.assoc.fault = [fault, at]

    def _store(self, event: evt.Event) -> int:
        time.sleep(self.delay_s)
        planned = event.assoc.fault
        planned[1] -= 1
        fault = planned[0] if planned[1] == 0 else None
        if fault is Fault.REFUSE:
            self._note(fault)
            return OUT_OF_RESOURCES
        if fault is Fault.ABORT:
            self._note(fault)
            event.assoc.abort(block=False)
            return SUCCESS
        self._keep(event)
        if fault is Fault.LOST_ANSWER:
            self._note(fault)
            event.assoc.abort(block=False)
        return SUCCESS

    def _keep(self, event: evt.Event) -> None:
        uid = str(event.request.AffectedSOPInstanceUID)
        ds: Dataset = event.dataset
        encoded = event.encoded_dataset(include_meta=False)
        kept = Kept(
            str(ds.StudyInstanceUID), str(ds.SOPClassUID), hashlib.sha256(encoded).hexdigest()
        )
        with self._lock:
            if self.kept.setdefault(uid, kept) != kept:
                self.differing.add(uid)

    def _note(self, fault: Fault) -> None:
        with self._lock:
            self.befell[fault] += 1
