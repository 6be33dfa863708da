"""Asking a PACS: C-ECHO, C-FIND, C-MOVE and C-GET as a service class user (PS3.4 annex C).

The study root model; one association for each call. What C-GET brings goes through the core's
`Reception.take`, as what the listener receives does: on disk and committed before the answer.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Final, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from pynetdicom.status import (
    QR_FIND_SERVICE_CLASS_STATUS,
    QR_GET_SERVICE_CLASS_STATUS,
    QR_MOVE_SERVICE_CLASS_STATUS,
    STATUS_PENDING,
    code_to_category,
)

from appliance.errors import StoreError
from appliance.matching import listed
from appliance.part10 import plain_uid
from appliance.reception import Command, Reception
from appliance.studies import UID_LIMIT
from dicom_node.dimse import PROCESSING_FAILURE, SUCCESS
from dicom_node.errors import AssociationError, NotOfferedError, QueryError
from dicom_node.identifiers import identifier_of, texts
from dicom_node.proposal import storage_proposal
from dicom_node.scu import Destination, associated

log = structlog.get_logger()

MESSAGE_ID: Final = 1
CANCELLED: Final = 0xFE00
OUT_OF_RESOURCES: Final = frozenset({0xA700, 0xA701, 0xA702})
SOME_FAILED: Final = 0xB000
UNABLE_TO_PROCESS: Final = range(0xC000, 0xD000)
MOVE_DESTINATION_UNKNOWN: Final = 0xA801
SURPLUS_LIMIT: Final = 10_000  # answers that still come after a cancel
STOP_POLL_S: Final = 0.2
LOST: Final = "the association was lost"
DAY: Final = re.compile(r"[0-9]{8}")


@dataclass(frozen=True, kw_only=True)
class StudyKeys:
    """What a study is looked for by; "" matches any (PS3.4 section C.2.2.2.3)."""

    study_uid: str = ""
    patient_id: str = ""
    accession_number: str = ""
    study_date: str = ""
    """One date or a range, "20260101-20260131" (PS3.4 section C.2.2.2.5)."""
    modality: str = ""
    description: str = ""
    """Wildcards "*" and "?" may be used, as far as the peer matches descriptions."""


@dataclass(frozen=True, kw_only=True)
class StudyAnswer:
    """One study as a peer describes it: received text, "" where it says nothing."""

    study_uid: str
    patient_id: str = ""
    patient_name: str = ""
    birth_date: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    modalities: str = ""
    """Joined by a backslash."""
    description: str = ""
    instances: str = ""

    @property
    def instance_count(self) -> int:
        """How many instances the peer says it has; 0 where it does not say."""
        return int(self.instances) if self.instances.isascii() and self.instances.isdigit() else 0


@dataclass(frozen=True, kw_only=True)
class SeriesAnswer:
    """One series as a peer describes it: received text, "" where it says nothing."""

    series_uid: str
    modality: str = ""
    description: str = ""
    body_part: str = ""


STUDY: Final = {
    "study_uid": "StudyInstanceUID",
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "birth_date": "PatientBirthDate",
    "accession_number": "AccessionNumber",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "modalities": "ModalitiesInStudy",
    "description": "StudyDescription",
    "instances": "NumberOfStudyRelatedInstances",
}
SERIES: Final = {
    "series_uid": "SeriesInstanceUID",
    "modality": "Modality",
    "description": "SeriesDescription",
    "body_part": "BodyPartExamined",
}


@dataclass(frozen=True)
class Studies:
    """The answers to a study query; `cut_off` says that the peer had more than were wanted."""

    answers: tuple[StudyAnswer, ...]
    cut_off: bool = False


class Service(StrEnum):
    """By what a study is retrieved."""

    GET = "C-GET"
    MOVE = "C-MOVE"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The sub-operations as the peer counts them, PS3.7 table 9.1-3; 0 where it does not say."""

    remaining: int = 0
    completed: int = 0
    failed: int = 0
    warning: int = 0


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """What became of one retrieval; `problem` is "" when everything came."""

    service: Service
    counts: Counts
    failed_uids: tuple[str, ...] = ()
    """The SOP Instance UIDs that the peer names as failed; it need not name any."""
    problem: str = ""
    retriable: bool = False
    """Whether the same request may succeed later."""
    refused_here: int = 0
    """How many instances of a C-GET came and could not be taken."""


Report = Callable[[Counts], None]
"""Called after each answer of the peer, and in a C-GET after each instance."""


def echo(destination: Destination) -> None:
    """Return if the peer answers a C-ECHO with Success.

    Raises:
        AssociationError: no association came about.
        QueryError: it answers something else, or nothing.
    """
    with associated(destination, [build_context(Verification)]) as assoc:
        status = assoc.send_c_echo().get("Status")
    if status is None:
        raise QueryError(f"C-ECHO: {LOST}", retriable=True)
    if status != SUCCESS:
        raise QueryError(f"C-ECHO is answered with 0x{status:04X}", retriable=False)


def find_studies(
    destination: Destination,
    keys: StudyKeys,
    *,
    at_most: int,
    stop: threading.Event | None = None,
) -> Studies:
    """Return the studies that a peer holds, in its own order.

    Answers that contradict the keys asked for are left out: some peers ignore what they do not
    match by. So are those whose Study Instance UID is no single one.

    Args:
        destination: the peer.
        keys: what to match by.
        at_most: answers after which the query is cancelled.
        stop: set it to cancel.

    Raises:
        AssociationError: no association came about.
        QueryError: the peer offers no C-FIND, failed in it, or was lost in the middle.
    """
    asked = dict.fromkeys(STUDY.values(), "")
    asked |= {
        STUDY[name]: getattr(keys, name)
        for name in ("study_uid", "patient_id", "accession_number", "study_date", "description")
    }
    asked["ModalitiesInStudy"] = keys.modality
    found, cut_off = _find(destination, "STUDY", asked, at_most=at_most, stop=stop)
    answers = (
        StudyAnswer(**{name: answer.get(keyword, "") for name, keyword in STUDY.items()})
        for answer in found
    )
    return Studies(
        tuple(answer for answer in answers if _names_one(answer.study_uid) and _fits(answer, keys)),
        cut_off,
    )


def find_series(
    destination: Destination, study_uid: str, *, at_most: int
) -> tuple[SeriesAnswer, ...]:
    """Return the series of one study that a peer holds; raises as `find_studies`."""
    asked = dict.fromkeys(SERIES.values(), "") | {"StudyInstanceUID": study_uid}
    found, _cut_off = _find(destination, "SERIES", asked, at_most=at_most, stop=None)
    return tuple(
        SeriesAnswer(**{name: answer.get(keyword, "") for name, keyword in SERIES.items()})
        for answer in found
    )


def retrieve(
    destination: Destination,
    study_uid: str,
    reception: Reception,
    *,
    report: Report = lambda _counts: None,
    stop: threading.Event | None = None,
) -> Retrieved:
    """Retrieve one study: by C-GET where the peer offers it, else by C-MOVE to our own AE title.

    What a peer cannot send by C-GET, for want of a presentation context or because it takes the
    request and then refuses it, it may by C-MOVE. For that it must know our AE title's address, and
    our listener must run.

    Raises:
        AssociationError: no association came about.
        QueryError: the peer offers neither.
    """
    try:
        got = get(destination, study_uid, reception, report=report, stop=stop)
    except NotOfferedError:
        return move(destination, study_uid, report=report, stop=stop)
    stopped = stop is not None and stop.is_set()
    some_came = got.counts.completed and not got.counts.failed
    if not got.problem or some_came or got.refused_here or stopped:
        return got
    try:
        moved = move(destination, study_uid, report=report, stop=stop)
    except (AssociationError, QueryError):
        return got
    return got if moved.problem else moved


def get(
    destination: Destination,
    study_uid: str,
    reception: Reception,
    *,
    report: Report = lambda _counts: None,
    stop: threading.Event | None = None,
) -> Retrieved:
    """Retrieve one study over the association itself (PS3.4 section C.4.3).

    Each instance is on disk and committed before the peer is told Success.

    Raises:
        AssociationError: no association came about.
        NotOfferedError: the peer takes no C-GET, or leaves us no role in which to receive.
    """
    model = StudyRootQueryRetrieveInformationModelGet
    contexts, roles = storage_proposal()
    taking = _Taking(reception, destination.called_ae, report)
    with associated(
        destination,
        [build_context(model), *contexts],
        roles=roles,
        handlers=[(evt.EVT_C_STORE, taking.store)],
    ) as assoc:
        syntax = _accepted(assoc, model)
        if syntax is None or not any(cx.as_scp for cx in assoc.accepted_contexts):
            raise NotOfferedError(Service.GET, destination.called_ae)
        with _cancelling(assoc, model, stop):
            responses = assoc.send_c_get(_study(study_uid, syntax), model, msg_id=MESSAGE_ID)
            done = replace(_follow(responses, Service.GET, report), refused_here=taking.failed)
    if not done.problem or done.counts.completed or done.counts.failed:
        return done
    # Some count nothing when they fail, or were lost: then what came here is known.
    counts = replace(done.counts, completed=taking.completed, failed=taking.failed)
    return replace(done, counts=counts)


def move(
    destination: Destination,
    study_uid: str,
    *,
    report: Report = lambda _counts: None,
    stop: threading.Event | None = None,
) -> Retrieved:
    """Have a peer send one study to our AE title, where our listener takes it (PS3.4 C.4.2).

    Raises:
        AssociationError: no association came about.
        NotOfferedError: the peer takes no C-MOVE.
    """
    model = StudyRootQueryRetrieveInformationModelMove
    with associated(destination, [build_context(model)]) as assoc:
        syntax = _accepted(assoc, model)
        if syntax is None:
            raise NotOfferedError(Service.MOVE, destination.called_ae)
        with _cancelling(assoc, model, stop):
            responses = assoc.send_c_move(
                _study(study_uid, syntax), destination.calling_ae, model, msg_id=MESSAGE_ID
            )
            return _follow(responses, Service.MOVE, report)


class _Taking:
    """The storage SCP of a C-GET."""

    def __init__(self, reception: Reception, source_ae: str, report: Report) -> None:
        self.completed = 0
        self.failed = 0
        self._reception = reception
        self._source_ae = source_ae
        self._report = report

    def store(self, event: Event) -> int | Dataset:
        """Answer one C-STORE sub-operation (pynetdicom's EVT_C_STORE), PS3.4 table B.2-1."""
        try:
            self._reception.take(event.encoded_dataset(include_meta=False), self._command(event))
        except StoreError as error:
            self.failed += 1
            log.warning("retrieval.instance_refused", status=f"{error.status:#06x}")
            return _refusal(error.status, error.comment)
        except Exception:
            # Whatever it was, the peer must count the instance as failed and name it.
            self.failed += 1
            log.exception("retrieval.instance_failed")
            return _refusal(PROCESSING_FAILURE, "internal error, see the appliance's log")
        self.completed += 1
        self._report(Counts(completed=self.completed, failed=self.failed))
        return SUCCESS

    def _command(self, event: Event) -> Command:
        request = cast("C_STORE", event.request)
        return Command(
            sop_class_uid=plain_uid(str(request.AffectedSOPClassUID)),
            sop_instance_uid=plain_uid(str(request.AffectedSOPInstanceUID)),
            transfer_syntax_uid=plain_uid(str(event.context.transfer_syntax)),
            source_ae=self._source_ae,
        )


def _refusal(status: int, comment: str) -> Dataset:
    response = Dataset()
    response.Status = status
    response.ErrorComment = comment
    return response


def _find(
    destination: Destination,
    level: str,
    asked: dict[str, str],
    *,
    at_most: int,
    stop: threading.Event | None,
) -> tuple[list[dict[str, str]], bool]:
    """Return the answers as text by keyword, and whether the peer had more than `at_most`."""
    model = StudyRootQueryRetrieveInformationModelFind
    # Process-wide: pynetdicom would format every identifier for its log, names and all.
    _config.LOG_RESPONSE_IDENTIFIERS = _config.LOG_REQUEST_IDENTIFIERS = False
    found: list[dict[str, str]] = []
    surplus = 0
    with associated(destination, [build_context(model)]) as assoc:
        syntax = _accepted(assoc, model)
        if syntax is None:
            raise NotOfferedError("C-FIND", destination.called_ae)
        identifier = identifier_of({"QueryRetrieveLevel": level, **asked}, syntax)
        with _cancelling(assoc, model, stop):
            for status, answer in assoc.send_c_find(identifier, model, msg_id=MESSAGE_ID):
                if "Status" not in status:
                    raise QueryError(f"C-FIND: {LOST} after {len(found)} answers", retriable=True)
                if code_to_category(status.Status) != STATUS_PENDING:
                    break
                if answer is None:
                    raise QueryError("C-FIND: an answer cannot be read", retriable=False)
                if len(found) < at_most:
                    found.append(texts(answer))
                    continue
                if not surplus:
                    assoc.send_c_cancel(MESSAGE_ID, query_model=model)
                surplus += 1
                if surplus > SURPLUS_LIMIT:
                    assoc.abort()  # it ignores the cancel
                    return found, True
        if status.Status not in (SUCCESS, CANCELLED):
            raise QueryError(
                _meaning("C-FIND", status, QR_FIND_SERVICE_CLASS_STATUS),
                retriable=_is_retriable(status.Status),
            )
        return found, bool(surplus) or status.Status == CANCELLED


@contextmanager
def _cancelling(assoc: Association, model: str, stop: threading.Event | None) -> Iterator[None]:
    """Send a C-CANCEL when `stop` is set within the block, whatever the peer is waiting for."""
    if stop is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if stop.wait(STOP_POLL_S):
                if not done.is_set() and assoc.is_established:
                    assoc.send_c_cancel(MESSAGE_ID, query_model=model)
                return

    watcher = threading.Thread(target=watch, name="cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _follow(
    responses: Iterator[tuple[Dataset, Dataset | None]], service: Service, report: Report
) -> Retrieved:
    """Read the answers to a C-GET or C-MOVE to the last one (PS3.4 tables C.4-2 and C.4-3)."""
    counts = Counts()
    for status, identifier in responses:
        if "Status" not in status:
            problem = f"{service}: {LOST}, no answer came in time"
            return Retrieved(service=service, counts=counts, problem=problem, retriable=True)
        counts = _counts(status, counts)
        report(counts)
        if code_to_category(status.Status) == STATUS_PENDING:
            continue
        named = texts(identifier).get("FailedSOPInstanceUIDList", "") if identifier else ""
        return Retrieved(
            service=service,
            counts=counts,
            failed_uids=tuple(listed(named)),
            problem=_problem(service, status, counts),
            retriable=_is_retriable(status.Status) or bool(counts.failed),
        )
    raise QueryError(f"{service}: {LOST}", retriable=True)


def _counts(status: Dataset, before: Counts) -> Counts:
    """Return what one answer counts; what it leaves out is as before, remaining ones are none."""
    told = {
        key.name: getattr(before, key.name)
        if (value := status.get(f"NumberOf{key.name.capitalize()}Suboperations")) is None
        else int(value)
        for key in fields(Counts)
    }
    if "NumberOfRemainingSuboperations" not in status:
        told["remaining"] = 0
    return Counts(**told)


def _problem(service: Service, status: Dataset, counts: Counts) -> str:
    if status.Status == SUCCESS and not counts.failed:
        return ""
    if status.Status == CANCELLED:
        return f"{service}: cancelled"
    meanings = (
        QR_GET_SERVICE_CLASS_STATUS if service is Service.GET else QR_MOVE_SERVICE_CLASS_STATUS
    )
    if status.Status == MOVE_DESTINATION_UNKNOWN:
        return _meaning(service, status, meanings) + "; have our AE title entered at the peer"
    return _meaning(service, status, meanings)


def _meaning(service: str, status: Dataset, meanings: Mapping[int, tuple[str, str]]) -> str:
    """Return a status by name, with the peer's comment."""
    meaning = meanings.get(status.Status, ("", "a status that the standard does not name"))[1]
    comment = str(status.get("ErrorComment", "")).strip()
    return f"{service}: 0x{status.Status:04X} {meaning}" + (f": {comment}" if comment else "")


def _is_retriable(status: int) -> bool:
    return status in OUT_OF_RESOURCES or status in UNABLE_TO_PROCESS or status == SOME_FAILED


def _accepted(assoc: Association, model: str) -> UID | None:
    """Return the transfer syntax in which the peer takes a model, if it takes it."""
    for context in assoc.accepted_contexts:
        if context.abstract_syntax == model:
            return context.transfer_syntax[0]
    return None


def _study(study_uid: str, syntax: UID) -> Dataset:
    return identifier_of({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": study_uid}, syntax)


def _names_one(uid: str) -> bool:
    """Whether a peer's UID asks for one study when sent back; a wildcard would ask for all."""
    return 0 < len(uid) <= UID_LIMIT and not set(uid) & set("*?\\")


def _fits(answer: StudyAnswer, keys: StudyKeys) -> bool:
    """Whether an answer contradicts none of the keys, as far as it says anything of them."""
    for name in ("study_uid", "patient_id", "accession_number"):
        asked, given = getattr(keys, name), getattr(answer, name)
        if asked and given and not set(asked) & set("*?\\") and asked.strip() != given.strip():
            return False
    wanted, modalities = set(listed(keys.modality)), set(listed(answer.modalities))
    if wanted and modalities and not wanted & modalities:
        return False
    return _fits_date(answer.study_date, keys.study_date) and _fits_description(
        answer.description, keys.description
    )


def _fits_date(given: str, asked: str) -> bool:
    """Whether a date lies in a range; one that is none contradicts nothing."""
    if not asked or not DAY.fullmatch(given):
        return True
    first, dash, last = asked.partition("-")
    return first <= given <= ((last or "99999999") if dash else first)


def _fits_description(given: str, asked: str) -> bool:
    """Whether wildcards fit, whatever the case: not every peer matches descriptions (C.6.2.1.2)."""
    if not asked or not given:
        return True
    pieces = asked.casefold().split("*")
    pattern = ".*".join(re.escape(piece).replace(r"\?", ".") for piece in pieces)
    return re.fullmatch(pattern, given.casefold(), re.DOTALL) is not None
