"""Query/retrieve as a service class provider (PS3.4 annex C) over what the box holds.

Study root and patient root. Instances that were kept aside as conflicts are in no answer, for none
is in the table that is asked. Whom the listener lets in may ask.

pynetdicom's own C-MOVE and C-GET encode each data set anew, convert between transfer syntaxes and
name us as the Move Originator; here the stored bytes go out as they are, under a context of their
own transfer syntax or not at all, with the AE title that asked (PS3.7 section 9.1.1.1).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_GET, C_MOVE
from pynetdicom.dsutils import decode, encode
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from pynetdicom.status import STATUS_SUCCESS, STATUS_WARNING, code_to_category

from appliance import audit, holdings
from appliance.config import DestinationSettings, DicomSettings
from appliance.database import Database
from appliance.errors import QueryError, SharedUIDError
from appliance.holdings import ATTRIBUTES, MODALITIES, UNIQUE, Level
from appliance.part10 import leniently
from appliance.store import Store
from appliance.tables import Instance
from dicom_node.dimse import SUCCESS
from dicom_node.errors import AssociationError, DicomNodeError, IdentifierError
from dicom_node.identifiers import identifier_of, texts
from dicom_node.information_model import Query
from dicom_node.scu import NO_ANSWER, NOT_SENT, Answer, Destination, send_each

log = structlog.get_logger()

# PS3.4 tables C.4-1 to C.4-3.
PENDING: Final = 0xFF00
PENDING_WITHOUT_SOME_KEYS: Final = 0xFF01
CANCELLED: Final = 0xFE00
TOO_MANY_ANSWERS: Final = 0xA700
TOO_MANY_INSTANCES: Final = 0xA701
ALL_FAILED: Final = 0xA702
SOME_FAILED: Final = 0xB000
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
IDENTIFIER_DOES_NOT_MATCH: Final = 0xA900
UNABLE_TO_PROCESS: Final = 0xC000

SUBOPERATIONS_LIMIT: Final = 65_535  # the counts are US
ROWS_AT_ONCE: Final = 100
COMMENT_CHARACTERS: Final = 64  # Error Comment is an LO
RETRIEVED_TAG: Final = "dicom:study:retrieved"

INTERNAL: Final = "internal error, see the appliance's log"

# The information models of each service, and the top level of each (PS3.4 section C.6).
FIND: Final = {
    PatientRootQueryRetrieveInformationModelFind: Level.PATIENT,
    StudyRootQueryRetrieveInformationModelFind: Level.STUDY,
}
MOVE: Final = {
    PatientRootQueryRetrieveInformationModelMove: Level.PATIENT,
    StudyRootQueryRetrieveInformationModelMove: Level.STUDY,
}
GET: Final = {
    PatientRootQueryRetrieveInformationModelGet: Level.PATIENT,
    StudyRootQueryRetrieveInformationModelGet: Level.STUDY,
}


def contexts() -> list[PresentationContext]:
    """Return the presentation contexts that an acceptor must support for query/retrieve."""
    return [build_context(model) for model in (*FIND, *MOVE, *GET)]


def handlers(database: Database, store: Store, settings: DicomSettings) -> list[tuple[Any, ...]]:
    """Return pynetdicom's event handlers by which an acceptor answers queries and retrieves."""
    # Process-wide: identifiers would be formatted for a log, and files be decoded before sending.
    _config.LOG_RESPONSE_IDENTIFIERS = _config.LOG_REQUEST_IDENTIFIERS = False
    _config.STORE_SEND_CHUNKED_DATASET = True
    provider = Provider(database, store, settings)
    return [
        (evt.EVT_C_FIND, provider.find),
        (evt.EVT_ESTABLISHED, provider.take_over_retrieves),
    ]


@dataclass(frozen=True)
class Match:
    """One instance to send."""

    study_id: int
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    digest: str

    @property
    def context(self) -> tuple[str, str]:
        """SOP class and transfer syntax."""
        return self.sop_class_uid, self.transfer_syntax_uid


SENT: Final = (
    Instance.study_id,
    Instance.sop_instance_uid,
    Instance.sop_class_uid,
    Instance.transfer_syntax_uid,
    Instance.digest,
)
"""The columns of a `Match`."""


class Provider:
    """Answers the queries and retrieves of every association, each in its own thread."""

    def __init__(self, database: Database, store: Store, settings: DicomSettings) -> None:
        self._database = database
        self._store = store
        self._settings = settings

    def find(self, event: Event) -> Iterator[tuple[int | Dataset, Dataset | None]]:
        """Yield the answers to one C-FIND (pynetdicom's EVT_C_FIND)."""
        try:
            with leniently():  # pydicom decodes it only now
                asked = texts(event.identifier)
            query = Query.parse(asked, top=FIND[event.context.abstract_syntax])
            yield from self._answers(event, query)
        except RefusalError as refusal:
            yield refusal.response(), None
        except (IdentifierError, QueryError) as error:
            yield RefusalError(IDENTIFIER_DOES_NOT_MATCH, str(error)).response(), None
        except SharedUIDError as error:
            yield RefusalError(UNABLE_TO_PROCESS, str(error)).response(), None
        except Exception:
            # The last resort of this process: the peer gets a status, whatever it was.
            log.exception("query.failed")
            yield RefusalError(UNABLE_TO_PROCESS, INTERNAL).response(), None

    def _answers(
        self, event: Event, query: Query
    ) -> Iterator[tuple[int | Dataset, Dataset | None]]:
        syntax = UID(event.context.transfer_syntax)
        status = PENDING if query.complete else PENDING_WITHOUT_SOME_KEYS
        limit = self._settings.max_answers
        columns = [ATTRIBUTES[keyword].column.label(keyword) for keyword in query.held]
        unique = ATTRIBUTES[UNIQUE[query.level]].column.label("unique_key")
        wanted = holdings.statement(query.level, query.matched, [unique, *columns])
        rows_wanted = wanted.limit(limit + 1)
        with self._database.snapshot() as db:
            if query.level > Level.STUDY:
                holdings.require_one_person(db, query.level, query.matched)
            rows = db.execute(rows_wanted, execution_options={"yield_per": ROWS_AT_ONCE})
            for number, row in enumerate(rows.mappings()):
                if event.is_cancelled:
                    yield CANCELLED, None
                    return
                if number == limit:
                    raise RefusalError(
                        TOO_MANY_ANSWERS, f"more than {limit} answers: narrow the query"
                    )
                yield status, self._answer(query, row, syntax)

    def _answer(self, query: Query, row: Any, syntax: UID) -> Dataset:
        values = {keyword: _told(row.get(keyword)) for keyword in query.keys}
        for level in Level:
            if query.top <= level < query.level:
                values[UNIQUE[level]] = query.keys[UNIQUE[level]]
        values[UNIQUE[query.level]] = row["unique_key"]
        if MODALITIES in values:
            values[MODALITIES] = "\\".join(holdings.modalities(values[MODALITIES]))
        if "InstanceAvailability" in values:
            values["InstanceAvailability"] = "ONLINE"
        return identifier_of(
            {
                **values,
                "QueryRetrieveLevel": query.level.name,
                "RetrieveAETitle": self._settings.ae_title,
            },
            syntax,
        )

    def take_over_retrieves(self, event: Event) -> None:
        """Answer the association's C-MOVE and C-GET requests (pynetdicom's EVT_ESTABLISHED)."""
        assoc: Any = event.assoc
        others = assoc._serve_request  # noqa: SLF001 - pynetdicom has no other place for it

        def serve(request: Any, context_id: int) -> None:
            context = assoc._accepted_cx.get(context_id)  # noqa: SLF001
            if context is None or not (
                (isinstance(request, C_MOVE) and context.abstract_syntax in MOVE)
                or (isinstance(request, C_GET) and context.abstract_syntax in GET)
            ):
                others(request, context_id)
                return
            # As pynetdicom does around a service of its own.
            assoc.dimse.cancel_req = {}
            assoc._is_paused = True  # noqa: SLF001
            try:
                self._retrieve(Operation(assoc, request, context))
            finally:
                assoc._is_paused = False  # noqa: SLF001
                assoc.dimse.cancel_req = {}

        assoc._serve_request = serve  # noqa: SLF001

    def _retrieve(self, operation: "Operation") -> None:
        try:
            destination = self._destination(operation.request)
            matches = self._matches(operation.query())
            operation.remaining = len(matches)
            try:
                if destination is None:
                    operation.send_back(matches, self._path)
                else:
                    self._move(operation, destination, matches)
            finally:
                self._note(operation, destination)
            operation.conclude()
        except RefusalError as refusal:
            operation.refuse(refusal)
        except (IdentifierError, QueryError) as error:
            operation.refuse(RefusalError(IDENTIFIER_DOES_NOT_MATCH, str(error)))
        except SharedUIDError as error:
            operation.refuse(RefusalError(UNABLE_TO_PROCESS, str(error)))
        except Exception:
            # The last resort of this process: the peer gets a status, whatever it was.
            log.exception("retrieve.failed")
            operation.refuse(RefusalError(UNABLE_TO_PROCESS, INTERNAL))

    def _destination(self, request: C_GET | C_MOVE) -> DestinationSettings | None:
        """Return where a C-MOVE goes, `None` for a C-GET."""
        if isinstance(request, C_GET):
            return None
        for destination in self._settings.destinations:
            if destination.ae_title == str(request.MoveDestination or "").strip():
                return destination
        raise RefusalError(MOVE_DESTINATION_UNKNOWN, "no configured destination has this AE title")

    def _matches(self, query: Query) -> list[Match]:
        query.require_unique()
        wanted = holdings.statement(Level.IMAGE, query.matched, SENT)
        with self._database.snapshot() as db:
            holdings.require_one_person(db, query.level, query.matched)
            rows = db.execute(wanted.limit(SUBOPERATIONS_LIMIT + 1))
            matches = [Match(*row) for row in rows]
        if len(matches) > SUBOPERATIONS_LIMIT:
            raise RefusalError(TOO_MANY_INSTANCES, "more than 65535 instances: ask for fewer")
        return matches

    def _move(
        self, operation: "Operation", destination: DestinationSettings, matches: list[Match]
    ) -> None:
        to = Destination.configured(self._settings, destination.name)
        answered = 0
        sending = send_each(
            matches,
            to,
            lambda assoc, match, _number: operation.send(match, assoc, self._path(match)),
            over=lambda: operation.ended,
        )
        try:
            with closing(sending):
                for match, answer in sending:
                    operation.count(match, answer)
                    answered += 1
        except AssociationError as error:
            log.warning("retrieve.no_association", destination=destination.name)
            operation.fail_all(matches[answered:], str(error))

    def _path(self, match: Match) -> Path:
        return self._store.path_of(match.digest)

    def _note(self, operation: "Operation", destination: DestinationSettings | None) -> None:
        """Record in the audit which studies left, to whom."""
        peer = str(operation.assoc.requestor.ae_title).strip()
        for study_id, count in operation.sent.items():
            with self._database.transaction() as db:
                audit.record(
                    db,
                    actor=f"peer {peer}",
                    tag=RETRIEVED_TAG,
                    subject=f"study {study_id}",
                    detail={
                        "instances": count,
                        "destination": destination.name if destination else peer,
                    },
                )


class Operation:
    """One C-MOVE or C-GET: its sub-operations, counted, and the answers about them."""

    def __init__(
        self, assoc: Association, request: C_GET | C_MOVE, context: PresentationContext
    ) -> None:
        self.assoc = assoc
        self.request = request
        self.remaining = 0
        self.sent: Counter[int] = Counter()
        """Instances that the receiver took, by study id."""
        self._context = context
        self._message_id = int(request.MessageID or 0)
        self._completed = self._warning = self._failed = 0
        self._failed_uids: list[str] = []
        self._comment = ""
        self._cancelled = False

    @property
    def ended(self) -> bool:
        """Whether no further sub-operation is wanted: cancelled, or the requestor has gone."""
        if self.assoc.dimse.cancel_req.pop(self._message_id, None) is not None:
            self._cancelled = True
        # An abort is noted in `is_established` only once this thread returns to pynetdicom.
        gone = self.assoc.acse.is_aborted() or not self.assoc.is_established
        return self._cancelled or gone

    def query(self) -> Query:
        """Return what is asked for; raises IdentifierError."""
        syntax = self._context.transfer_syntax[0]
        with leniently():
            identifier = decode(
                self.request.Identifier or BytesIO(),
                syntax.is_implicit_VR,
                syntax.is_little_endian,
                syntax.is_deflated,
            )
        models = MOVE if isinstance(self.request, C_MOVE) else GET
        return Query.parse(texts(identifier), top=models[self._context.abstract_syntax])

    def send_back(self, matches: Sequence[Match], path_of: Callable[[Match], Path]) -> None:
        """Send instances over the requestor's own association; stops when `ended`."""
        for number, match in enumerate(matches):
            if self.ended:
                return
            answer = self.send(match, self.assoc, path_of(match))
            if answer.problem in {NO_ANSWER, NOT_SENT}:
                self.fail_all(matches[number:], answer.problem)
                return
            self.count(match, answer)

    def count(self, match: Match, answer: Answer) -> None:
        """Count one instance and tell how far it is."""
        self._comment = answer.problem or self._comment
        self._count(match, answer.status)
        if self.remaining:
            self._respond(PENDING)

    def fail_all(self, matches: Sequence[Match], comment: str) -> None:
        """Count instances as failed for one reason."""
        self._comment = comment
        for match in matches:
            self._count(match, None)

    def conclude(self) -> None:
        """Send the last answer, PS3.4 tables C.4-2 and C.4-3."""
        if self._cancelled:
            self._respond(CANCELLED)
        elif not self._failed:
            self._respond(SOME_FAILED if self._warning else SUCCESS)
        else:
            some = self._completed + self._warning
            self._respond(SOME_FAILED if some else ALL_FAILED)

    def refuse(self, refusal: "RefusalError") -> None:
        """Send a failure as the last answer; what was still to be sent counts as failed."""
        self._comment = str(refusal)
        self._failed += self.remaining
        self.remaining = 0
        self._respond(refusal.status)

    def send(self, match: Match, assoc: Association, path: Path) -> Answer:
        """Send one instance; of a receiver's answer only the status is kept."""
        moving = isinstance(self.request, C_MOVE)
        if not moving and not self._may_receive(match.sop_class_uid):
            return Answer(None, "no SCP role was negotiated for a SOP class")
        number = self.remaining % SUBOPERATIONS_LIMIT + 1
        originator: dict[str, Any] = {}
        if moving:
            originator = {
                "originator_aet": str(self.assoc.requestor.ae_title).strip(),
                "originator_id": self._message_id,
            }
        try:
            status = assoc.send_c_store(path, msg_id=number, **originator)
        except ValueError:
            return Answer(None, "an instance's transfer syntax was not accepted")
        except RuntimeError:  # the association ended between two instances
            return Answer(None, NOT_SENT)
        except OSError:
            log.exception("retrieve.unreadable", study_id=match.study_id)
            return Answer(None, "an instance cannot be read, see the appliance's log")
        if "Status" not in status:
            return Answer(None, NO_ANSWER)
        return Answer(int(status.Status), "")

    def _may_receive(self, sop_class_uid: str) -> bool:
        """Whether the requestor of a C-GET takes the SCP role for a class (PS3.7 D.3.3.4)."""
        role = self.assoc.requestor.role_selection.get(UID(sop_class_uid))
        return role is not None and bool(role.scp_role)

    def _count(self, match: Match, status: int | None) -> None:
        self.remaining -= 1
        category = None if status is None else code_to_category(status)
        if category == STATUS_SUCCESS:
            self._completed += 1
        elif category == STATUS_WARNING:
            self._warning += 1
        else:
            self._failed += 1
            self._failed_uids.append(match.sop_instance_uid)
            return
        self.sent[match.study_id] += 1

    def _respond(self, status: int) -> None:
        if not self.assoc.is_established:
            return
        response: Any = type(self.request)()
        response.MessageIDBeingRespondedTo = self._message_id
        response.AffectedSOPClassUID = self.request.AffectedSOPClassUID
        response.Status = status
        if status in (PENDING, CANCELLED):
            response.NumberOfRemainingSuboperations = self.remaining
        response.NumberOfCompletedSuboperations = self._completed
        response.NumberOfFailedSuboperations = self._failed
        response.NumberOfWarningSuboperations = self._warning
        if status not in (PENDING, SUCCESS):
            response.ErrorComment = self._comment[:COMMENT_CHARACTERS] or None
            response.Identifier = self._failed_list()
        self.assoc.dimse.send_msg(response, int(self._context.context_id or 0))

    def _failed_list(self) -> BytesIO | None:
        """Return the Failed SOP Instance UID List (0008,0058), if there is any."""
        if not self._failed_uids:
            return None
        syntax = self._context.transfer_syntax[0]
        identifier = identifier_of(
            {"FailedSOPInstanceUIDList": "\\".join(self._failed_uids)}, syntax
        )
        with leniently():  # pydicom warns where more than 64 KiB become UN (PS3.5 6.2.2)
            encoded = encode(
                identifier, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated
            )
        return BytesIO(encoded or b"")


class RefusalError(DicomNodeError):
    """A query or retrieve that ends in a failure status."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.status = status

    def response(self) -> Dataset:
        """Return the status with its Error Comment, as pynetdicom takes it from a handler."""
        response = Dataset()
        response.Status = self.status
        response.ErrorComment = str(self)[:COMMENT_CHARACTERS]
        return response


def _told(value: object) -> str:
    return "" if value is None else str(value)
