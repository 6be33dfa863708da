"""Upload: DICOM files, folders, zip and NIfTI files from the browser, through reception's door.

Files come piece by piece and wait under names of ours (`appliance.uploads`); once all are here they
are taken in together, as an import from a disk is, and a NIfTI volume as the CT series that it is
made into. Whoever uploads asks again after a lost connection: the answer says where to go on.
"""

import datetime as dt
import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import numpy as np
from flask import (
    Blueprint,
    Response,
    abort,
    jsonify,
    make_response,
    render_template,
    request,
    url_for,
)
from flask_login import current_user
from flask_wtf.csrf import generate_csrf

from appliance import importing, studies, uploads
from appliance.collection import Collected, collect
from appliance.errors import (
    OutOfResourcesError,
    SourceError,
    UploadBusyError,
    UploadError,
    UploadOffsetError,
)
from appliance.reception import DISK_FULL
from appliance.studies import Recorded
from appliance.uploads import Upload, UploadedFile
from pipelines.conversion import Person, convert
from pipelines.errors import PipelineError
from pipelines.series import MAX_VOXELS
from webui import auth, display
from webui.dicomweb.services import services
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

NIFTI: Final = frozenset({".nii", ".nii.gz"})
PIECE_BYTES: Final = 4 << 20
"""What a browser sends at once; each piece is acknowledged by itself."""
LARGEST_PIECE_BYTES: Final = 16 << 20
LARGEST_LIST_BYTES: Final = 8 << 20
READ_BYTES: Final = 1 << 20
AT_ONCE_PER_PERSON: Final = 4
AT_ONCE: Final = 12
"""Pieces under way in this process: each holds one of the server's threads."""
NEW_LIMIT: Final = "60 per hour"
MOST_REASONS: Final = 200
"""Files that an outcome names one by one; the others are counted."""

MALFORMED: Final = marked(
    "The browser sent something that could not be understood: reload the page."
)
GONE: Final = marked("This upload is not here any more: choose the files again.")
INCOMPLETE: Final = marked("Files are still missing: send them first.")
BUSY: Final = marked("Others are uploading: it goes on in a moment.")
DISK: Final = marked(
    "The disk of the appliance is almost full: tell an administrator, then try again."
)
TAKEN: Final = marked("This upload was taken in already.")
EMPTY: Final = marked("is empty")
BAD_PERSON: Final = marked("A name or number has at most 64 characters, none of them a backslash.")
BAD_DATE: Final = marked("Give the date of the study as year, month and day.")

_LONGEST_KEY: Final = 64  # an LO, PS3.5 section 6.2

blueprint = Blueprint("upload", __name__)

# One at a time: a volume is in memory while it is converted.
_taking = threading.Lock()


class Turns:
    """Who has pieces under way, so that nobody takes all threads."""

    def __init__(self) -> None:
        self._by_person: dict[int, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def one(self, account_id: int) -> Iterator[None]:
        """Take a turn; raises UploadBusyError where there is none."""
        with self._lock:
            mine = self._by_person.get(account_id, 0)
            if mine >= AT_ONCE_PER_PERSON or sum(self._by_person.values()) >= AT_ONCE:
                raise UploadBusyError(BUSY)
            self._by_person[account_id] = mine + 1
        try:
            yield
        finally:
            with self._lock:
                self._by_person[account_id] -= 1


_turns = Turns()


@blueprint.errorhandler(UploadError)
def refused(error: UploadError) -> Response:
    """Say in a sentence why nothing was kept, and where a file goes on."""
    match error:
        case UploadOffsetError():
            response = make_response(jsonify(error=told(str(error))), HTTPStatus.CONFLICT)
            response.headers["Upload-Offset"] = str(error.offset)
            return response
        case UploadBusyError():
            response = make_response(jsonify(error=told(str(error))), HTTPStatus.TOO_MANY_REQUESTS)
            response.headers["Retry-After"] = "2"
            return response
        case _:
            return make_response(jsonify(error=told(str(error))), HTTPStatus.BAD_REQUEST)


@blueprint.errorhandler(OutOfResourcesError)
def disk_full(_error: OutOfResourcesError) -> Response:
    """Nothing is wrong with the file, but there is no room for it."""
    return make_response(jsonify(error=_(DISK)), HTTPStatus.INSUFFICIENT_STORAGE)


@blueprint.get("/upload")
def index() -> str:
    """The page."""
    return render_template("upload/index.html", piece_bytes=PIECE_BYTES)


@blueprint.get("/api/uploads")
def mine() -> Response:
    """This person's uploads that wait for the rest of their files."""
    found = uploads.uploads_of(resources().settings, current_user.account_id)
    return jsonify(
        uploads=[_state(upload) for upload in found if upload.outcome is None],
        csrf_token=generate_csrf(),
    )


@auth.csrf.exempt  # type: ignore[untyped-decorator]
@blueprint.post("/api/uploads")
@auth.limiter.limit(NEW_LIMIT, key_func=lambda: f"upload {current_user.account_id}")
def begin() -> Response:
    """Announce files; the answer says where to send them."""
    # The protection below reads the request, so that its limit comes first.
    request.max_content_length = LARGEST_LIST_BYTES
    auth.csrf.protect()
    files = _announced(request.get_json(silent=True))
    services().reception.require_space(sum(file.size_bytes for file in files))
    upload = uploads.open_upload(resources().settings, current_user.account_id, files)
    return make_response(jsonify(_state(upload)), HTTPStatus.CREATED)


@blueprint.get("/api/uploads/<name>")
def state(name: str) -> Response:
    """How far each file has come, and what became of the upload."""
    upload = _mine(name)
    # A page that outlived its session gets a token of the new one.
    return jsonify({**_state(upload), "csrf_token": generate_csrf()})


@auth.csrf.exempt  # type: ignore[untyped-decorator]
@blueprint.patch("/api/uploads/<name>/files/<int:number>")
def append(name: str, number: int) -> Response:
    """Take a piece of a file at Upload-Offset; 409 names another offset to go on at."""
    request.max_content_length = LARGEST_PIECE_BYTES
    auth.csrf.protect()
    upload = _mine(name)
    offset = request.headers.get("Upload-Offset", type=int)
    if offset is None or number >= len(upload.files):
        raise UploadError(MALFORMED)
    if upload.outcome is not None:
        raise UploadError(TAKEN)
    with _turns.one(current_user.account_id), _room():
        here = upload.append(number, offset, _pieces(), check=services().reception.require_space)
    response = Response(status=HTTPStatus.NO_CONTENT)
    response.headers["Upload-Offset"] = str(here)
    return response


@blueprint.post("/api/uploads/<name>/take")
def take(name: str) -> Response:
    """Take in what has come, once; asked again, the answer is the same."""
    upload = _mine(name)
    person = _person(request.get_json(silent=True))
    with upload.taking():
        if upload.outcome is None:
            if upload.missing_bytes:
                raise UploadError(INCOMPLETE)
            if not _taking.acquire(blocking=False):
                raise UploadBusyError(BUSY)
            try:
                with _room():
                    upload.finish(_taken(upload, person))
            finally:
                _taking.release()
    return jsonify(_state(upload))


@blueprint.delete("/api/uploads/<name>")
def discard(name: str) -> tuple[str, int]:
    """Forget an upload that was not taken in, or what became of it."""
    upload = _mine(name)
    with upload.taking():
        upload.remove()
    return "", HTTPStatus.NO_CONTENT


@contextmanager
def _room() -> Iterator[None]:
    """Say that the disk is full as reception does."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OutOfResourcesError(DISK) from error
        raise


def _mine(name: str) -> Upload:
    upload = uploads.find(resources().settings, current_user.account_id, name)
    if upload is None:
        abort(make_response(jsonify(error=_(GONE)), HTTPStatus.NOT_FOUND))
    return upload


def _announced(said: object) -> list[UploadedFile]:
    match said:
        case {"files": list(listed)}:
            return [_file(one) for one in listed]
        case _:
            raise UploadError(MALFORMED)


def _file(said: object) -> UploadedFile:
    match said:
        case {"name": str(name), "size": int(size), "modified": int(modified)} if (
            size >= 0 and 0 < len(name) <= uploads.LONGEST_NAME
        ):
            return UploadedFile(name, size, modified)
        case _:
            raise UploadError(MALFORMED)


def _person(said: object) -> Person:
    """Whose a NIfTI volume is: its own header does not say."""
    match said:
        case {"patient_name": str(name), "patient_id": str(number), "study_date": str(date)}:
            pass
        case _:
            raise UploadError(MALFORMED)
    name, number, date = name.strip(), number.strip(), date.strip()
    for text in (name, number):
        if len(text) > _LONGEST_KEY or "\\" in text or not text.isprintable():
            raise UploadError(BAD_PERSON)
    return Person(name=name, patient_id=number, study_date=_day(date))


def _day(date: str) -> str:
    if not date:
        return ""
    try:
        return f"{dt.date.fromisoformat(date):%Y%m%d}"
    except ValueError as error:
        raise UploadError(BAD_DATE) from error


def _pieces() -> Iterator[bytes]:
    while piece := request.stream.read(READ_BYTES):
        yield piece


def _taken(upload: Upload, person: Person) -> dict[str, Any]:
    """Take in every file and return what became of them."""
    shutil.rmtree(upload.scratch, ignore_errors=True)  # of a try that was killed
    upload.scratch.mkdir(mode=0o700)
    found = [_collected(upload, number, person) for number in range(len(upload.files))]
    collected = Collected(
        tuple(instance for one in found for instance in one.instances),
        tuple(skipped for one in found for skipped in one.skipped),
    )
    imported = importing.take(
        collected,
        services().reception,
        resources().database,
        actor=current_user.name,
        source_ae=f"web {current_user.name}",
    )
    others = (skipped for skipped in collected.skipped if skipped not in collected.refused)
    left_out = [*imported.refused, *others]
    listed = [*left_out, *imported.mended][:MOST_REASONS]
    return {
        **{kind.value: imported.taken[kind] for kind in Recorded},
        "left_out": [{"name": str(path), "reason": why} for path, why in listed],
        "left_out_count": len(left_out),
        "study_uids": list(imported.study_uids),
    }


def _collected(upload: Upload, number: int, person: Person) -> Collected:
    """Return the instances of one file, by the names that the person knows."""
    path, name = upload.path_of(number), Path(upload.files[number].name)
    if not upload.files[number].size_bytes:
        return Collected((), ((name, EMPTY),))
    scratch = upload.scratch / f"{number:05d}"
    scratch.mkdir()
    try:
        if upload.files[number].suffix in NIFTI:
            found = _converted(path, scratch, person)
        else:
            services().reception.require_space(_unpacked_bytes(path))
            found = collect(path, scratch=scratch)
    except (SourceError, PipelineError) as error:
        why = str(error).removeprefix(f"{path}: ").replace(str(path), str(name))
        return Collected((), ((name, why.replace(path.name, name.name)),))

    def known(origin: Path) -> Path:
        return name / origin.relative_to(path) if origin.is_relative_to(path) else name

    return Collected(
        tuple(replace(instance, origin=known(instance.origin)) for instance in found.instances),
        tuple((known(origin), why) for origin, why in found.skipped),
    )


def _converted(path: Path, scratch: Path, person: Person) -> Collected:
    services().reception.require_space(MAX_VOXELS * np.int16().itemsize)
    series = scratch / "series"
    series.mkdir()
    convert(path, series, person)
    return collect(series, scratch=scratch)


def _unpacked_bytes(path: Path) -> int:
    """Return what a zip file says that it unpacks to, and never exceeds; 0 for any other file."""
    if not zipfile.is_zipfile(path):
        return 0
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile:
        return 0  # whoever collects says what is wrong with it


def _state(upload: Upload) -> dict[str, Any]:
    outcome = upload.outcome
    return {
        "name": upload.name,
        "url": url_for("upload.state", name=upload.name),
        "take_url": url_for("upload.take", name=upload.name),
        "files": [
            {
                "name": file.name,
                "size": file.size_bytes,
                "modified": file.modified,
                "offset": upload.offset(number),
                "url": url_for("upload.append", name=upload.name, number=number),
            }
            for number, file in enumerate(upload.files)
        ],
        "outcome": None if outcome is None else _told(outcome),
    }


def _told(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return an outcome with links to the studies, as they are called by now."""
    with resources().database.snapshot() as db:
        found = [study for uid in outcome["study_uids"] for study in studies.named(db, uid)]
        shown = [
            {
                "url": url_for("viewer.show", study_id=study.id),
                "patient": display.person_name(study.patient.name),
                "patient_id": display.number(study.patient.patient_id),
                "study_date": display.date(study.study_date),
                "description": display.text(study.description),
            }
            for study in found
        ]
    kept = ("new", "duplicate", "conflict", "left_out", "left_out_count")
    return {**{name: outcome[name] for name in kept}, "studies": shown}
