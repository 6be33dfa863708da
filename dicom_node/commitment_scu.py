"""Storage commitment as a service class user (PS3.4 annex J, Storage Commitment Push Model).

A peer is asked by N-ACTION and reports by N-EVENT-REPORT: on the same association, or later on one
that it opens to our listener, where it keeps the role of the SCP by role selection (J.3.3).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import N_EVENT_REPORT_RSP
from pynetdicom.events import Event
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from pynetdicom.status import code_to_category

from appliance import commitment_transactions
from appliance.database import Database
from dicom_node.dimse import SUCCESS
from dicom_node.errors import QueryError
from dicom_node.scu import Destination, associated

log = structlog.get_logger()

REQUEST: Final = 1  # the Action Type ID, PS3.4 table J.3-1
REPORTS: Final = (1, 2)  # Event Type IDs, table J.3-3: all is kept, or not all
NO_SUCH_EVENT_TYPE: Final = 0x0113  # PS3.7 annex C
INVALID_ARGUMENT_VALUE: Final = 0x0115
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
REPORT_AT_ONCE_S: Final = 3.0
"""Seconds that the association is held open for the report."""
SEND_AGAIN_S: Final = 60.0
"""Seconds before what a peer does not keep is sent to it again."""

# Failure Reason, PS3.4 table J.3-4 with PS3.3 C.14.1.1.
REASONS: Final = {
    0x0110: "processing failure",
    0x0112: "no such object instance",
    0x0119: "class-instance conflict",
    0x0122: "SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}

Reported = Callable[[Event], tuple[int, None]]


def ask(
    destination: Destination,
    begin: Callable[[], str],
    references: Sequence[tuple[str, str]],
    *,
    reported: Reported,
) -> None:
    """Ask a peer to commit itself to keep objects; a report that comes soon is taken at once.

    Args:
        destination: the peer.
        begin: notes that the peer is about to be asked; returns the new Transaction UID. It is
            called once the peer is there: one that is away was not asked.
        references: SOP class and instance UID of each object.
        reported: what takes the report, as `Reports.take`.

    Raises:
        AssociationError: no association came about, or the peer offers no storage commitment.
        QueryError: it did not answer, or refused.
    """
    answered = threading.Event()

    def note_sent(event: Event) -> None:
        if isinstance(event.message, N_EVENT_REPORT_RSP):
            answered.set()

    handlers = [(evt.EVT_N_EVENT_REPORT, reported), (evt.EVT_DIMSE_SENT, note_sent)]
    context = build_context(StorageCommitmentPushModel)
    with associated(destination, [context], handlers=handlers) as assoc:
        status, _ = assoc.send_n_action(
            _request(begin(), references),
            REQUEST,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        if "Status" not in status:
            raise QueryError("no answer to the request for a commitment", retriable=True)
        if code_to_category(status.Status) not in {"Success", "Warning"}:
            raise QueryError(
                f"0x{status.Status:04X}: the request for a commitment was refused",
                retriable=status.Status != SOP_CLASS_NOT_SUPPORTED,
            )
        answered.wait(REPORT_AT_ONCE_S)


class Reports:
    """Takes the reports of peers, on whichever association they come."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, event: Event) -> tuple[int, None]:
        """Answer one N-EVENT-REPORT (pynetdicom's EVT_N_EVENT_REPORT)."""
        if event.event_type not in REPORTS:
            return NO_SUCH_EVENT_TYPE, None
        ds = event.event_information
        known = commitment_transactions.report(
            self._database,
            str(ds.get("TransactionUID", "")),
            committed={_instance(item) for item in ds.get("ReferencedSOPSequence") or ()},
            failed={
                _instance(item): _reason(item.get("FailureReason"))
                for item in ds.get("FailedSOPSequence") or ()
            },
            retry_s=SEND_AGAIN_S,
        )
        if not known:
            log.warning("commitment.unknown", address=event.assoc.remote.get("address"))
            return INVALID_ARGUMENT_VALUE, None
        log.info("commitment.reported", complete=event.event_type == REPORTS[0])
        return SUCCESS, None


def listen_for_reports(ae: AE) -> None:
    """Let an acceptor's application entity accept the role reversal of who reports."""
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)


def report_handlers(database: Database) -> list[tuple[Any, ...]]:
    """Return pynetdicom's event handlers by which an acceptor takes reports."""
    return [(evt.EVT_N_EVENT_REPORT, Reports(database).take)]


def _request(transaction_uid: str, references: Sequence[tuple[str, str]]) -> Dataset:
    """Return the Action Information (PS3.4 table J.3-2)."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = []
    for sop_class_uid, sop_instance_uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        ds.ReferencedSOPSequence.append(item)
    return ds


def _instance(item: Dataset) -> str:
    return str(item.get("ReferencedSOPInstanceUID", ""))


def _reason(code: int | None) -> str:
    if code is None:
        return "no reason given"
    return f"0x{code:04X} {REASONS.get(code, 'unknown reason')}"
