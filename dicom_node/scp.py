"""The listener: C-ECHO and C-STORE as a service class provider (PS3.4 annexes A and B).

Queries and retrieves (annex C) are `query_scp`'s, storage commitment (annex J) `commitment`'s, and
the reports on what we asked others to commit themselves to `commitment_scu`'s.

Every storage SOP class is taken, private and unknown ones too, in every transfer syntax, unless the
settings say less (`acceptance`), and kept as it came; `reception` says what taking means, `guard`
what a connection must show before.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, cast

import structlog
from pydicom.config import IGNORE
from pydicom.config import settings as pydicom_settings
from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from appliance import vital_signs
from appliance.config import DicomSettings, Settings
from appliance.database import open_database
from appliance.errors import StoreError
from appliance.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, plain_uid
from appliance.reception import Command, Durability, Reception
from appliance.store import Store
from dicom_node import commitment, commitment_scu, query_scp
from dicom_node.acceptance import Acceptance
from dicom_node.dimse import PROCESSING_FAILURE, SUCCESS
from dicom_node.errors import DicomNodeError
from dicom_node.guard import GuardedServer
from dicom_node.pdu import Limits
from dicom_node.peers import AllowList
from dicom_node.tls import Credentials, ServerContext

log = structlog.get_logger()

NOTED: Final = {
    evt.EVT_ACCEPTED: "association.accepted",
    evt.EVT_RELEASED: "association.released",
    evt.EVT_ABORTED: "association.ended_by_abort",
}
# Together less than what the supervisor and systemd wait before they kill.
STOP_GRACE_S: Final = 6.0
FAREWELL_S: Final = 2.0


class Listener:
    """A listening socket and the associations that came in by it."""

    def __init__(
        self, settings: DicomSettings, reception: Reception, *, secure: bool = False
    ) -> None:
        """Bind the port, for TLS if `secure`; raises DicomNodeError."""
        port = (settings.tls_port or 0) if secure else settings.port
        tls = None
        if secure:  # broken files do not keep scanners that call without TLS waiting
            tls = ServerContext(Credentials.of(settings), patient=not settings.tls_only)
        try:
            self._server = GuardedServer(
                _application_entity(settings),
                (settings.host, port),
                allow_list=AllowList.from_settings(settings),
                limits=_limits(settings),
                reception=reception,
                acceptance=Acceptance.of(settings),
                tls=tls,
                evt_handlers=[
                    (evt.EVT_C_STORE, handle_store, [reception]),
                    *query_scp.handlers(reception.database, reception.store, settings),
                    *commitment_scu.report_handlers(reception.database),
                    *commitment.handlers(reception.database, reception.store),
                    *((event, note, [name]) for event, name in NOTED.items()),
                ],
            )
        except OSError as error:
            raise DicomNodeError(
                f"cannot listen on {settings.host}:{port}: {error.strerror};"
                " end the other program or change [dicom] host and port"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="listener"
        )

    @property
    def port(self) -> int:
        """The port it listens on, also when the settings left the choice to the system (0)."""
        return int(self._server.server_address[1])

    @property
    def connections(self) -> int:
        """How many are open, associated or about to be."""
        return self._server.connections

    def start(self) -> None:
        """Accept connections, in threads of their own."""
        self._thread.start()

    def close(self) -> None:
        """Accept no more; associations go on."""
        self._server.shutdown()
        self._thread.join()

    def abort_all(self, *, timeout_s: float) -> None:
        """End every association."""
        self._server.abort_all(timeout_s=timeout_s)


@contextmanager
def listening(
    settings: DicomSettings, reception: Reception, *, secure: bool = False
) -> Iterator[Listener]:
    """Listen on one port for as long as the block runs."""
    with _listening(settings, reception, [secure]) as (listener,):
        yield listener


@contextmanager
def _listening(
    settings: DicomSettings, reception: Reception, ways: Iterable[bool]
) -> Iterator[list[Listener]]:
    """Listen in each way, secure or not."""
    listeners: list[Listener] = []
    try:
        for secure in ways:
            listener = Listener(settings, reception, secure=secure)
            listener.start()
            listeners.append(listener)
            log.info("listener.ready", host=settings.host, port=listener.port, tls=secure)
        yield listeners
    finally:
        stop(listeners, reception)
        log.info("listener.stopped")


def stop(listeners: Sequence[Listener], reception: Reception) -> None:
    """Accept no more, finish the stores under way, and end every association, of all at once."""
    for listener in listeners:
        listener.close()
    if not reception.stop(timeout_s=STOP_GRACE_S):
        log.warning("listener.stores_unfinished")
    deadline = time.monotonic() + FAREWELL_S
    for listener in listeners:
        listener.abort_all(timeout_s=max(0.0, deadline - time.monotonic()))


def serve(settings: Settings, stopping: threading.Event) -> None:
    """Listen until told to stop, then finish what is under way.

    Raises:
        ApplianceError: the port is taken, or a setting cannot be used.
    """
    # Its messages quote what peers send, UIDs too; what matters of them is logged here.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    reception = Reception(
        open_database(settings),
        Store(settings.store_dir),
        min_free_bytes=settings.dicom.min_free_bytes,
        durability=Durability(settings.dicom.durability),
    )
    with _listening(settings.dicom, reception, settings.dicom.ports) as listeners:
        while True:
            vital_signs.leave(settings, sum(listener.connections for listener in listeners))
            if stopping.wait(vital_signs.EVERY_S):
                break


def handle_store(event: Event, reception: Reception) -> int | Dataset:
    """Answer one C-STORE (pynetdicom's EVT_C_STORE) with the status of PS3.4 table B.2-1."""
    try:
        reception.take(event.encoded_dataset(include_meta=False), _command(event))
    except StoreError as error:
        cause = type(error.__cause__).__name__ if error.__cause__ else ""  # its text may quote
        log.warning(
            "instance.refused", status=f"{error.status:#06x}", reason=str(error), cause=cause
        )
        return _refusal(error.status, error.comment)
    except Exception:
        # The last resort of this process: whatever it was, the sender must keep the instance.
        log.exception("instance.failed")
        return _refusal(PROCESSING_FAILURE, "internal error, see the appliance's log")
    return SUCCESS


def note(event: Event, name: str) -> None:
    """Log what becomes of an association."""
    peer = event.assoc.requestor
    log.info(name, address=peer.address, calling_ae=str(peer.ae_title).strip())


def _command(event: Event) -> Command:
    request = cast("C_STORE", event.request)
    return Command(
        sop_class_uid=plain_uid(str(request.AffectedSOPClassUID)),
        sop_instance_uid=plain_uid(str(request.AffectedSOPInstanceUID)),
        transfer_syntax_uid=plain_uid(str(event.context.transfer_syntax)),
        source_ae=str(event.assoc.requestor.ae_title).strip(),
    )


def _refusal(status: int, comment: str) -> Dataset:
    response = Dataset()
    response.Status = status
    response.ErrorComment = comment
    return response


def _application_entity(settings: DicomSettings) -> AE:
    """Return pynetdicom's application entity; the guard decides who may call it."""
    # Process-wide switches, set in the one process that listens.
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.LOG_HANDLER_LEVEL = "none"
    # pydicom would otherwise print every illegal UID that it meets into our log.
    pydicom_settings.reading_validation_mode = IGNORE
    pydicom_settings.writing_validation_mode = IGNORE
    ae = AE(settings.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = settings.max_pdu_bytes
    ae.maximum_associations = settings.max_associations + 1  # ours is the exact count
    for timeout in ("acse_timeout", "dimse_timeout", "network_timeout"):
        setattr(ae, timeout, settings.network_timeout_s)
    ae.add_supported_context(Verification)
    for context in query_scp.contexts():
        ae.add_supported_context(str(context.abstract_syntax), context.transfer_syntax)
    commitment_scu.listen_for_reports(ae)
    return ae


def _limits(settings: DicomSettings) -> Limits:
    return Limits(
        pdu_bytes=settings.max_pdu_bytes,
        message_bytes=settings.max_instance_bytes,
        pdu_timeout_s=settings.network_timeout_s,
        associations=settings.max_associations,
        connections_per_s=settings.max_connections_per_s,
    )
