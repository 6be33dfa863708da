"""STOW-RS (PS3.18 section 10.5): instances taken as the DICOM listener takes them.

What comes goes from the connection into the store's file piece by piece, under the same limits.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from flask import Blueprint, Response, request
from flask_login import current_user
from werkzeug.http import parse_options_header

from appliance import audit
from appliance.errors import DatasetMismatchError, StoreError
from appliance.part10 import first_uids, read_file
from appliance.reception import Command
from appliance.studies import Recorded
from webui import auth
from webui.dicomweb import json_model, multipart
from webui.dicomweb.json_model import Json
from webui.dicomweb.media import DICOM, JSON, MULTIPART, XML, accepted
from webui.dicomweb.multipart import MultipartError, MultipartLimitError, Part
from webui.dicomweb.problems import RequestProblem, bad_request, not_acceptable
from webui.dicomweb.services import Addresses, services
from webui.resources import resources

MOST_PARTS: Final = 10_000
BEGINNING_BYTES: Final = 64 * 1024
"""Of a part: the meta information and what names its instance have a few hundred bytes."""
KEPT: Final = "What came whole before it was taken"

blueprint = Blueprint("store", __name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one part; without `status` it was taken.

    `is_aside`: it was kept, but as one that contradicts what is held, so it cannot be retrieved.
    """

    study_uid: str = ""
    series_uid: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    status: int | None = None
    is_aside: bool = False


@auth.csrf.exempt  # type: ignore[untyped-decorator]
@blueprint.post("/studies", defaults={"study_uid": None})
@blueprint.post("/studies/<study_uid>")
def store(study_uid: str | None) -> Response:
    """Take the instances of a message; of a study alone, if the address names one."""
    auth.protect_session()
    answer_type = _answer_type()
    boundary = _boundary()
    if not services().uploads.acquire(blocking=False):
        raise RequestProblem(
            HTTPStatus.SERVICE_UNAVAILABLE, "Others are storing instances, send again later."
        )
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(_take(part, study_uid) for part in _parts(boundary))
    except MultipartLimitError as error:
        raise RequestProblem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{error} {KEPT}.") from error
    except MultipartError as error:
        raise bad_request(f"{error} {KEPT}; send it again.") from error
    finally:
        services().uploads.release()
        if outcomes:
            _note(outcomes)
    if not outcomes:
        raise bad_request("The message has no parts.")
    return _answer(outcomes, answer_type)


def _answer_type() -> str:
    for one in accepted(request):
        for kind in (JSON, XML):
            if one.takes(kind) or one.media_type == kind.replace("dicom+", ""):
                return kind
    raise not_acceptable(f"The outcome is given as {JSON} or {XML}.")


def _boundary() -> str:
    media_type, options = parse_options_header(request.headers.get("Content-Type"))
    inner = options.get("type", DICOM).lower()  # some leave it out, though RFC 2387 wants it
    # No page of another site may send this type unasked (https://fetch.spec.whatwg.org).
    if media_type.lower() != MULTIPART or inner != DICOM:
        raise RequestProblem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f'Instances are taken as {MULTIPART}; type="{DICOM}" alone.',
        )
    return options.get("boundary", "")


def _parts(boundary: str) -> Iterator[Part]:
    largest_bytes = resources().settings.dicom.max_instance_bytes
    request.max_content_length = MOST_PARTS * largest_bytes  # the disk has its own watermark
    return multipart.read(
        request.stream, boundary, largest_part_bytes=largest_bytes, most_parts=MOST_PARTS
    )


def _take(part: Part, study_uid: str | None) -> Outcome:
    """What became of a part, which is an instance as a file (PS3.10)."""
    named = Outcome()
    try:
        file = read_file(_beginning(part.content))
        sop_class_uid, sop_instance_uid = first_uids(file.dataset, file.transfer_syntax_uid)
        named = Outcome(
            sop_class_uid=sop_class_uid or file.sop_class_uid,
            sop_instance_uid=sop_instance_uid or file.sop_instance_uid,
        )
        command = Command(
            sop_class_uid=named.sop_class_uid,
            sop_instance_uid=named.sop_instance_uid,
            transfer_syntax_uid=file.transfer_syntax_uid,
            source_ae=f"web {current_user.name}",
        )
        with services().reception.taking(command) as taking:
            taking.write(file.dataset)
            for piece in part.content:
                taking.write(piece)
            header = taking.header()
            if study_uid not in {None, header.study_uid}:
                raise DatasetMismatchError("StudyInstanceUID differs from the address")
            is_aside = taking.finish() is Recorded.CONFLICT
    except StoreError as error:
        return replace(named, status=error.status)
    return replace(
        named, study_uid=header.study_uid, series_uid=header.series_uid, is_aside=is_aside
    )


def _beginning(content: Iterator[bytes]) -> bytes:
    pieces = bytearray()
    for piece in content:
        pieces += piece
        if len(pieces) >= BEGINNING_BYTES:
            break
    return bytes(pieces)


def _note(outcomes: list[Outcome]) -> None:
    """Write who stored how many; the studies' own events say which."""
    taken = sum(outcome.status is None for outcome in outcomes)
    with resources().database.transaction() as db:
        audit.record(
            db,
            actor=current_user.name,
            tag="web:instances:stored",
            subject=f"account {current_user.account_id}",
            detail={"taken": taken, "refused": len(outcomes) - taken},
        )


def _answer(outcomes: list[Outcome], answer_type: str) -> Response:
    """The Store Instances Response (PS3.18 10.5.3, tables 10.5.3-1 and I.2-1)."""
    taken = [outcome for outcome in outcomes if outcome.status is None]
    failed = [outcome for outcome in outcomes if outcome.status is not None]
    sequences = {
        "FailedSOPSequence": [_failed(one) for one in failed if one.sop_instance_uid],
        "ReferencedSOPSequence": [_taken(one) for one in taken],
        "OtherFailuresSequence": [_failed(one) for one in failed if not one.sop_instance_uid],
    }
    pairs = [json_model.sequence(keyword, items) for keyword, items in sequences.items() if items]
    studies = {outcome.study_uid for outcome in taken}
    if len(studies) == 1:
        pairs.append(json_model.attribute("RetrieveURL", Addresses().of(*studies)))
    model = dict(sorted(pairs))
    content = json_model.native_xml(model) if answer_type == XML else json.dumps(model)
    status = HTTPStatus.OK
    if failed:
        status = HTTPStatus.CONFLICT if len(failed) == len(outcomes) else HTTPStatus.ACCEPTED
    return Response(content, status, mimetype=answer_type)


def _taken(outcome: Outcome) -> Json:
    uids = (outcome.study_uid, outcome.series_uid, outcome.sop_instance_uid)
    address = None if outcome.is_aside else Addresses().of(*uids)
    return dict((*_reference(outcome), json_model.attribute("RetrieveURL", address)))


def _failed(outcome: Outcome) -> Json:
    reason = json_model.attribute("FailureReason", outcome.status)
    return dict((*(_reference(outcome) if outcome.sop_instance_uid else ()), reason))


def _reference(outcome: Outcome) -> Iterable[tuple[str, Json]]:
    yield json_model.attribute("ReferencedSOPClassUID", outcome.sop_class_uid)
    yield json_model.attribute("ReferencedSOPInstanceUID", outcome.sop_instance_uid)
