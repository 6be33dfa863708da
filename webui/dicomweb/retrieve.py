"""WADO-RS (PS3.18 section 10.4): instances, metadata, frames, bulk data, pictures.

Instances go out as they are stored wherever the client takes that; else, uncompressed, in Explicit
VR Little Endian. Nothing here holds more than a frame or a header in memory, but for deflated
instances.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

from flask import Blueprint, Response, request
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from appliance import holdings
from appliance.holdings import Held
from appliance.studies import StoredInstance
from webui.dicomweb import json_model, multipart, rendering, stored
from webui.dicomweb.media import ANY, DICOM, JSON, OCTETS, MediaRange, accepted
from webui.dicomweb.multipart import Outgoing
from webui.dicomweb.problems import bad_request, not_acceptable, not_found
from webui.dicomweb.services import Addresses, services, unbroken
from webui.resources import resources

STUDY: Final = "/studies/<study_uid>"
SERIES: Final = f"{STUDY}/series/<series_uid>"
INSTANCE: Final = f"{SERIES}/instances/<sop_instance_uid>"

FRAME_TYPES: Final = {
    JPEGBaseline8Bit: "image/jpeg",
    JPEGExtended12Bit: "image/jpeg",
    "1.2.840.10008.1.2.4.53": "image/jpeg",
    "1.2.840.10008.1.2.4.55": "image/jpeg",
    JPEGLossless: "image/jpeg",
    JPEGLosslessSV1: "image/jpeg",
    JPEGLSLossless: "image/jls",
    JPEGLSNearLossless: "image/jls",
    JPEG2000Lossless: "image/jp2",
    JPEG2000: "image/jp2",
    RLELossless: "image/dicom-rle",
    HTJ2KLossless: "image/jphc",
    HTJ2KLosslessRPCL: "image/jphc",
    HTJ2K: "image/jphc",
}
"""The media type of a stored frame by its transfer syntax (PS3.18 table 8.7.3-5)."""

DEFAULT_SYNTAX: Final = {
    "image/jpeg": JPEGLosslessSV1,
    "image/jls": JPEGLSLossless,
    "image/jp2": JPEG2000Lossless,
    "image/dicom-rle": RLELossless,
    "image/jphc": HTJ2KLossless,
}
"""The transfer syntax that a media type without one stands for (the same table)."""

MOST_FRAMES: Final = 10_000

blueprint = Blueprint("retrieve", __name__)


@blueprint.get(STUDY)
def study(study_uid: str) -> Response:
    """All instances of a study."""
    return _instances(_held(study_uid))


@blueprint.get(SERIES)
def series(study_uid: str, series_uid: str) -> Response:
    """All instances of a series."""
    return _instances(_held(study_uid, series_uid))


@blueprint.get(INSTANCE)
def instance(study_uid: str, series_uid: str, sop_instance_uid: str) -> Response:
    """An instance."""
    return _instances(_held(study_uid, series_uid, sop_instance_uid), is_one=True)


@blueprint.get(f"{STUDY}/metadata")
def study_metadata(study_uid: str) -> Response:
    """The headers of a study's instances."""
    return _metadata(study_uid, _held(study_uid))


@blueprint.get(f"{SERIES}/metadata")
def series_metadata(study_uid: str, series_uid: str) -> Response:
    """The headers of a series' instances."""
    return _metadata(study_uid, _held(study_uid, series_uid))


@blueprint.get(f"{INSTANCE}/metadata")
def instance_metadata(study_uid: str, series_uid: str, sop_instance_uid: str) -> Response:
    """The header of an instance."""
    return _metadata(study_uid, _held(study_uid, series_uid, sop_instance_uid))


@blueprint.get(f"{INSTANCE}/frames/<numbers>")
def frames(study_uid: str, series_uid: str, sop_instance_uid: str, numbers: str) -> Response:
    """Frames by their numbers, from 1: octets in little endian, or compressed as stored."""
    found = _one(study_uid, series_uid, sop_instance_uid)
    indices = _indices(numbers)
    as_stored = _frames_as_stored(found)
    path = services().store.path_of(found.digest)
    syntax = found.transfer_syntax_uid if as_stored else ExplicitVRLittleEndian
    media_type = FRAME_TYPES[found.transfer_syntax_uid] if as_stored else OCTETS

    def parts() -> Iterator[Outgoing]:
        with stored.opened(found, path) as source:
            for index in indices:
                octets = (stored.stored_frame if as_stored else _octets)(source, index)
                yield Outgoing(f"{media_type}; transfer-syntax={syntax}", (octets,))

    return _multipart(media_type, parts, (found,), f"frames {numbers}")


@blueprint.get(f"{INSTANCE}/bulkdata/<path:path>")
def bulk_data(study_uid: str, series_uid: str, sop_instance_uid: str, path: str) -> Response:
    """A value that the metadata give an address for, in little endian; pixel data uncompressed."""
    found = _one(study_uid, series_uid, sop_instance_uid)
    file = services().store.path_of(found.digest)
    wanted = next((one for one in accepted(request) if one.takes(OCTETS)), None)
    if wanted is None:
        raise not_acceptable(f"Bulk data are given as {OCTETS} alone.")

    def chunks() -> Iterator[bytes]:
        with stored.opened(found, file) as source:
            if path == f"{stored.PIXEL_DATA:08X}":
                if source.number_of_frames == 0:
                    raise not_found()
                for index in range(source.number_of_frames):
                    yield _octets(source, index)
                return
            try:
                yield stored.bulk_value(source, path)
            except stored.UNREADABLE as error:
                raise not_found() from error

    if wanted.is_multipart or wanted.media_type == ANY:
        return _multipart(OCTETS, lambda: _alone(OCTETS, chunks()), (found,), path)
    return _tagged(lambda: Response(unbroken(chunks()), mimetype=OCTETS), (found,), path)


@blueprint.get(f"{INSTANCE}/rendered")
def rendered(study_uid: str, series_uid: str, sop_instance_uid: str) -> Response:
    """The first frame of an instance as a picture."""
    return _rendered(_one(study_uid, series_uid, sop_instance_uid), 0)


@blueprint.get(f"{INSTANCE}/frames/<numbers>/rendered")
def rendered_frame(
    study_uid: str, series_uid: str, sop_instance_uid: str, numbers: str
) -> Response:
    """A frame as a picture."""
    indices = _indices(numbers)
    if len(indices) != 1:
        raise bad_request("A picture shows one frame.")
    return _rendered(_one(study_uid, series_uid, sop_instance_uid), indices[0])


def _held(study_uid: str, series_uid: str | None = None, sop: str | None = None) -> Held:
    """What UIDs name, noted as a look at its study; raises RequestProblem if there is nothing."""
    with resources().database.snapshot() as db:
        held = holdings.find(db, study_uid, series_uid, sop)
    if held is None:
        raise not_found()
    services().looks.note(held.study_id)
    return held


def _one(study_uid: str, series_uid: str, sop_instance_uid: str) -> StoredInstance:
    return _held(study_uid, series_uid, sop_instance_uid).instances[0]


def _instances(held: Held, *, is_one: bool = False) -> Response:
    """The instances, each as it is stored or uncompressed, whichever the client likes better."""
    wanted = [one for one in accepted(request) if one.takes(DICOM)]
    if not is_one:
        wanted = [one for one in wanted if one.is_multipart or one.media_type == ANY]
    fitting = [_fitting(found, wanted) for found in held.instances]
    if is_one and not fitting[0][0].is_multipart and fitting[0][0].media_type != ANY:
        return _attachment(held.instances[0], as_stored=fitting[0][1])
    store = services().store

    def parts() -> Iterator[Outgoing]:
        for found, (_, kept) in zip(held.instances, fitting, strict=True):
            syntax = found.transfer_syntax_uid if kept else ExplicitVRLittleEndian
            content_type = f"{DICOM}; transfer-syntax={_token(syntax)}"
            path = store.path_of(found.digest)
            yield Outgoing(content_type, _file(found, path, as_stored=kept))

    return _multipart(DICOM, parts, held.instances, ",".join(str(kept) for _, kept in fitting))


def _fitting(found: StoredInstance, wanted: Iterable[MediaRange]) -> tuple[MediaRange, bool]:
    """The range that an instance fits, and whether as it is stored, else uncompressed.

    Raises:
        RequestProblem: it accepts neither.
    """
    for one in wanted:
        # A media type without transfer syntax stands for Explicit VR Little Endian (8.7.3.5.2).
        default = "*" if one.media_type == ANY else ExplicitVRLittleEndian
        syntax = one.transfer_syntax or default
        if syntax in {"*", found.transfer_syntax_uid}:
            return one, True
        if syntax == ExplicitVRLittleEndian and stored.is_decodable(found.transfer_syntax_uid):
            return one, False
    raise not_acceptable(
        f"Instances are given as multipart/related of {DICOM}, with transfer-syntax=* as they are"
        f" stored, else with {ExplicitVRLittleEndian} where a decoder is at hand."
    )


def _frames_as_stored(found: StoredInstance) -> bool:
    syntax = found.transfer_syntax_uid
    media_type = FRAME_TYPES.get(syntax)
    for one in accepted(request):
        octets = one.takes(OCTETS) and one.transfer_syntax in {None, "*", ExplicitVRLittleEndian}
        if not one.is_multipart and one.media_type != ANY:
            continue
        if octets and stored.is_decodable(syntax):
            return False
        if media_type is not None and one.takes(media_type):
            # A group of media types names no default.
            default = DEFAULT_SYNTAX[media_type] if one.media_type == media_type else "*"
            if (one.transfer_syntax or default) in {"*", syntax}:
                return True
    kinds = f"{OCTETS}, uncompressed" if stored.is_decodable(syntax) else "no octets"
    as_stored = f" and as {media_type}; transfer-syntax={syntax}" if media_type else ""
    raise not_acceptable(f"Frames of this instance are given as {kinds}{as_stored}, multipart.")


def _file(found: StoredInstance, path: Path, *, as_stored: bool) -> Iterator[bytes]:
    if as_stored:
        with path.open("rb") as file:
            while chunk := file.read(stored.CHUNK_BYTES):
                yield chunk
        return
    with stored.opened(found, path) as source:
        yield from stored.explicit_little_endian(source, found)


def _attachment(found: StoredInstance, *, as_stored: bool) -> Response:
    def answer() -> Response:
        path = services().store.path_of(found.digest)
        response = Response(unbroken(_file(found, path, as_stored=as_stored)), mimetype=DICOM)
        # A name of ours: a received UID may be any text.
        response.headers["Content-Disposition"] = f'attachment; filename="{found.digest[:16]}.dcm"'
        return response

    return _tagged(answer, (found,), f"file {as_stored}")


def _metadata(study_uid: str, held: Held) -> Response:
    if not any(one.takes(JSON) or one.takes("application/json") for one in accepted(request)):
        raise not_acceptable(f"Metadata are given as {JSON} alone.")

    addresses, store = Addresses(), services().store

    def headers() -> Iterator[str]:
        opening = "["
        for found in held.instances:
            address = addresses.of(study_uid, found.series_uid, found.sop_instance_uid)
            with stored.opened(found, store.path_of(found.digest)) as source:
                model = json_model.dataset(source.dataset, f"{address}/bulkdata")
            yield opening + json.dumps(model, allow_nan=False)
            opening = ","
        yield "]"

    return _tagged(
        lambda: Response(unbroken(headers()), mimetype=JSON), held.instances, request.host_url
    )


def _rendered(found: StoredInstance, index: int) -> Response:
    media_type = next(
        (kind for one in accepted(request) for kind in rendering.FORMATS if one.takes(kind)), None
    )
    if media_type is None:
        raise not_acceptable(f"Pictures are given as {' or '.join(rendering.FORMATS)}.")
    wish = rendering.wanted(request.args, media_type)

    def answer() -> Response:
        with stored.opened(found, services().store.path_of(found.digest)) as source:
            return Response(rendering.render(source, index, wish), mimetype=media_type)

    return _tagged(answer, (found,), f"{index} {wish}")


def _octets(source: stored.Opened, index: int) -> bytes:
    pixels = stored.frame(source, index)
    return stored.little_endian(pixels, int(source.dataset.BitsAllocated))


def _alone(content_type: str, chunks: Iterable[bytes]) -> Iterator[Outgoing]:
    yield Outgoing(content_type, chunks)


def _indices(numbers: str) -> list[int]:
    """A list of frames' numbers, from 1, as indices from 0."""
    texts = numbers.split(",")
    if len(texts) > MOST_FRAMES or not all(
        text.isascii() and text.isdecimal() and int(text[:10]) > 0 for text in texts
    ):
        raise bad_request("Frames are named by numbers from 1, separated by commas.")
    return [int(text[:10]) - 1 for text in texts]


def _multipart(
    media_type: str,
    parts: Callable[[], Iterable[Outgoing]],
    instances: Iterable[StoredInstance],
    choice: str,
) -> Response:
    def answer() -> Response:
        boundary = multipart.new_boundary()
        response = Response(unbroken(multipart.write(parts(), boundary)))
        response.headers["Content-Type"] = multipart.content_type_of(media_type, boundary)
        return response

    return _tagged(answer, instances, f"{media_type} {choice}")


def _tagged(
    answer: Callable[[], Response], instances: Iterable[StoredInstance], choice: str
) -> Response:
    """The answer, or 304 if the client has it: the tag names the bytes and what is made of them."""
    digest = hashlib.sha256(f"{request.path}\0{choice}".encode())
    for found in instances:
        digest.update(found.digest.encode("ascii"))
    tag = digest.hexdigest()
    is_kept = request.if_none_match.contains(tag)
    response = Response(status=HTTPStatus.NOT_MODIFIED) if is_kept else answer()
    response.set_etag(tag)
    # A client may keep it and must ask whether it still holds.
    response.headers["Cache-Control"] = "private, no-cache"
    response.vary.update(("Accept", "Authorization", "Cookie"))
    return response


def _token(uid: str) -> str:
    """A transfer syntax as a parameter of a media type: a sender's may be any text."""
    return uid if uid.replace(".", "").isdecimal() and uid.isascii() else '"unknown"'
