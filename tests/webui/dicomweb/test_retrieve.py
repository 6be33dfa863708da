import struct
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels.utils import compress
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from appliance.reception import Command
from appliance.tables import AuditEntry
from tests.support.instances import (
    SIXTEEN_SYNTAXES,
    Names,
    as_file,
    ct_instance,
    dataset_bytes,
    encoded,
    needs_real_data,
)
from tests.support.pacs import dcmtk
from tests.webui.dicomweb.conftest import Archive
from tests.webui.world import NAME

EXPLICIT = f'multipart/related; type="application/dicom"; transfer-syntax={ExplicitVRLittleEndian}'
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
OCTETS = 'multipart/related; type="application/octet-stream"'
# 51 is so with its 12 bits.
UNDECODABLE = {f"1.2.840.10008.1.2.4.{number}" for number in (51, 53, 55)}
SIXTEEN = sorted(SIXTEEN_SYNTAXES.glob("*.dcm")) if SIXTEEN_SYNTAXES.is_dir() else []


def path_of(dataset: Dataset) -> str:
    return (
        f"/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
        f"/instances/{dataset.SOPInstanceUID}"
    )


def parts_of(answer: Any) -> list[tuple[str, bytes]]:
    """The parts of an answer: Content-Type and content."""
    assert answer.status_code == 200, answer.get_data()
    boundary = answer.content_type.partition("boundary=")[2].encode()
    pieces = answer.data.split(b"\r\n--" + boundary)
    assert pieces[-1] == b"--\r\n"
    split = [piece.removeprefix(b"\r\n").split(b"\r\n\r\n", 1) for piece in pieces[1:-1]]
    return [(head.decode().removeprefix("Content-Type: "), content) for head, content in split]


def series_of(archive: Archive, count: int = 3) -> list[Dataset]:
    names = Names.fresh()
    made = [ct_instance(names, InstanceNumber=number) for number in range(count)]
    archive.take(*made)
    return made


def test_a_study_comes_back_with_the_very_same_bytes(archive: Archive, peer: DICOMwebClient):
    made = series_of(archive)
    kept = {
        dataset.SOPInstanceUID: dataset_bytes(as_file(dataset, archive.folder / "again.dcm"))
        for dataset in made
    }

    study = peer.retrieve_study(made[0].StudyInstanceUID)
    series = peer.retrieve_series(made[0].StudyInstanceUID, made[0].SeriesInstanceUID)

    for found in (study, series):
        assert {str(one.SOPInstanceUID) for one in found} == kept.keys()
    for dataset in made:
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        assert peer.retrieve_instance(*uids).PixelData == dataset.PixelData


@needs_real_data
@pytest.mark.parametrize("path", SIXTEEN, ids=lambda path: path.stem[-24:])
def test_every_transfer_syntax_is_given(archive: Archive, get: Callable[..., Any], path: Path):
    kept = archive.take_file(path)
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        truth = dcmread(path)
    syntax = truth.file_meta.TransferSyntaxUID
    address = path_of(truth)

    ((content_type, content),) = parts_of(get(address, accept=AS_STORED))

    assert content.endswith(kept)
    assert content_type == f"application/dicom; transfer-syntax={syntax}"
    frames = get(f"{address}/frames/1", accept=OCTETS)
    if syntax in UNDECODABLE:
        assert frames.status_code == get(address, accept=EXPLICIT).status_code == 406
        assert frames.json["error"].endswith(".")
        return
    pixels = truth.pixel_array
    little = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    ((_, octets),) = parts_of(frames)
    assert octets == little
    ((_, bulk),) = parts_of(get(f"{address}/bulkdata/7FE00010"))
    assert bulk == little
    ((content_type, content),) = parts_of(get(address, accept=EXPLICIT))
    assert content_type == f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"
    plain = dcmread(BytesIO(content))
    assert plain.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(plain.pixel_array, pixels)
    assert plain.PatientName == truth.PatientName
    assert get(f"{address}/rendered", accept="image/png").status_code == 200


@needs_real_data
def test_a_compressed_frame_is_given_as_it_is_stored(archive: Archive, get: Callable[..., Any]):
    (path,) = [path for path in SIXTEEN if "JPEGLSLossless" in path.name]
    archive.take_file(path)
    address = f"{path_of(dcmread(path))}/frames/1"

    for accepted in ("image/jls", "image/jls; transfer-syntax=1.2.840.10008.1.2.4.80", "image/*"):
        media_type, _, syntax = accepted.partition(";")
        accept = f'multipart/related; type="{media_type}"; {syntax}'
        ((content_type, coded),) = parts_of(get(address, accept=accept))
        assert content_type == "image/jls; transfer-syntax=1.2.840.10008.1.2.4.80"
        assert coded.startswith(b"\xff\xd8\xff")
        assert coded.rstrip(b"\0").endswith(b"\xff\xd9")
    for refused in ("image/jp2", "image/jls; transfer-syntax=1.2.840.10008.1.2.4.81"):
        media_type, _, syntax = refused.partition(";")
        accept = f'multipart/related; type="{media_type}"; {syntax}'
        assert get(address, accept=accept).status_code == 406


def frames_of(rows: int = 8, count: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(-1000, 1000, (count, rows, rows), np.int16)


def multi_frame(pixels: np.ndarray) -> Dataset:
    dataset = ct_instance(Names.fresh(), NumberOfFrames=len(pixels))
    dataset.Rows, dataset.Columns = pixels.shape[1:]
    dataset.PixelData = pixels.tobytes()
    return dataset


@pytest.mark.parametrize("table", ["basic", "extended", "none", "native"])
def test_frames_of_a_multi_frame_instance(
    archive: Archive, get: Callable[..., Any], peer: DICOMwebClient, table: str
):
    pixels = frames_of()
    dataset = multi_frame(pixels)
    syntax = ExplicitVRLittleEndian
    if table != "native":
        syntax = RLELossless
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        compress(dataset, RLELossless, generate_instance_uid=False)
        coded = list(generate_frames(dataset.PixelData, number_of_frames=5))
        dataset["PixelData"].VR = "OB"
        if table == "extended":
            dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = (
                encapsulate_extended(coded)
            )
        else:
            dataset.PixelData = encapsulate(coded, has_bot=table == "basic")
    archive.take(dataset, transfer_syntax_uid=syntax)
    uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)

    found = peer.retrieve_instance_frames(
        *uids, frame_numbers=[5, 2, 2], media_types=("application/octet-stream",)
    )

    assert found == [pixels[number].tobytes() for number in (4, 1, 1)]
    ((_, content),) = parts_of(get(path_of(dataset), accept=EXPLICIT))
    assert np.array_equal(dcmread(BytesIO(content)).pixel_array, pixels)
    ((_, bulk),) = parts_of(get(f"{path_of(dataset)}/bulkdata/7FE00010"))
    assert bulk == pixels.tobytes()
    assert get(f"{path_of(dataset)}/frames/6").status_code == 404
    if table != "native":
        accept = 'multipart/related; type="image/dicom-rle"'
        ((_, stored),) = parts_of(get(f"{path_of(dataset)}/frames/3", accept=accept))
        assert stored == coded[2]


def test_fragmented_frames_of_dcmtk_are_joined(archive: Archive, get: Callable[..., Any]):
    pixels = frames_of(rows=64, count=3)
    dataset = multi_frame(pixels)
    plain = as_file(dataset, archive.folder / "plain.dcm")
    fragmented = archive.folder / "fragmented.dcm"
    done = dcmtk("dcmcjpeg", "+e1", "+fs", "1", "+ot", plain, fragmented)
    assert done.returncode == 0, done.stderr
    archive.take_file(fragmented)

    found = parts_of(get(f"{path_of(dataset)}/frames/1,2,3", accept=OCTETS))

    assert [octets for _, octets in found] == [frame.tobytes() for frame in pixels]


def test_single_bits_are_packed(archive: Archive, get: Callable[..., Any]):
    mask = np.random.default_rng(2).integers(0, 2, (3, 10, 10), np.uint8)
    dataset = ct_instance(Names.fresh(), NumberOfFrames=3, BitsAllocated=1, BitsStored=1, HighBit=0)
    dataset.PixelRepresentation = 0
    dataset.Rows = dataset.Columns = 10
    dataset.PixelData = np.packbits(mask.ravel(), bitorder="little").tobytes()
    archive.take(dataset)

    found = parts_of(get(f"{path_of(dataset)}/frames/1,3", accept=OCTETS))

    for (_, octets), frame in zip(found, mask[[0, 2]], strict=True):
        bits = np.unpackbits(np.frombuffer(octets, np.uint8), bitorder="little")[:100]
        assert np.array_equal(bits, frame.ravel())


def test_big_endian_words_are_turned_round(archive: Archive, get: Callable[..., Any]):
    dataset = ct_instance(Names.fresh())
    dataset.add_new(0x60003000, "OW", b"\x01\x02" * 600)  # an overlay, big endian as it lies there
    little = dataset.PixelData
    dataset.PixelData = np.frombuffer(little, "<u2").astype(">u2").tobytes()
    archive.take(dataset, transfer_syntax_uid=ExplicitVRBigEndian)

    ((_, content),) = parts_of(get(path_of(dataset), accept=EXPLICIT))
    plain = dcmread(BytesIO(content))

    assert plain.PixelData == little
    assert plain[0x60003000].value == b"\x02\x01" * 600
    ((_, overlay),) = parts_of(get(f"{path_of(dataset)}/bulkdata/60003000"))
    assert overlay == b"\x02\x01" * 600


def test_metadata_are_the_header_with_addresses_for_bulk(
    archive: Archive, get: Callable[..., Any], peer: DICOMwebClient
):
    dataset = ct_instance(Names.fresh(), WindowCenter=[40, -600], SliceThickness="1.5")
    item = Dataset()
    item.CodeValue = "113100"
    item.EncapsulatedDocument = bytes(4000)
    dataset.DeidentificationMethodCodeSequence = [item]
    dataset.add_new(0x00091001, "UN", b"bytes!")
    archive.take(dataset)
    uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)

    model = peer.retrieve_instance_metadata(*uids)

    assert model["00281050"] == {"vr": "DS", "Value": [40.0, -600.0]}
    assert model["00080005"]["Value"] == ["ISO_IR 192"]
    assert model["00081030"]["Value"] == ["Thorax nativ für Prüfung"]
    assert model["00091001"] == {"vr": "UN", "InlineBinary": "Ynl0ZXMh"}
    assert model["7FE00010"]["vr"] == "OW"
    nested = model["00120064"]["Value"][0]["00420011"]["BulkDataURI"]
    assert nested.endswith("/bulkdata/00120064/0/00420011")
    ((_, value),) = parts_of(get(nested.partition("/dicom-web")[2]))
    assert value == bytes(4000)
    again = Dataset.from_json(model, bulk_data_uri_handler=lambda _uri: b"")
    assert again.PatientName == dataset.PatientName
    assert len(get(f"/studies/{uids[0]}/metadata").json) == 1


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_values_that_are_none_are_given_as_text(
    archive: Archive, get: Callable[..., Any], syntax: str
):
    dataset = ct_instance(
        Names.fresh(), SeriesNumber=31415, StudyDate="yesterday", PatientAge="", KVP="1e400"
    )
    path = as_file(dataset, archive.folder / "made.dcm", syntax)
    path.write_bytes(path.read_bytes().replace(b"31415", b"three"))
    archive.take_file(path)

    ((model,), (study,)) = get(f"{path_of(dataset)}/metadata").json, get("/studies").json

    assert model["00080020"] == study["00080020"] == {"vr": "DA", "Value": ["yesterday"]}
    assert model["00200011"]["Value"] == ["three"]
    assert model["00180060"] == {"vr": "DS"}  # JSON has no infinity
    assert model["00101010"] == {"vr": "AS"}


def test_a_malformed_element_is_given_as_its_bytes(archive: Archive, get: Callable[..., Any]):
    dataset = ct_instance(Names.fresh(), SamplesPerPixel=1)
    content = as_file(dataset, archive.folder / "made.dcm").read_bytes()
    # Rows (0028,0010), of three bytes.
    broken = content.replace(
        b"\x28\x00\x10\x00US\x02\x00\x08\x00", b"\x28\x00\x10\x00US\x03\x00\x08\x00\x00"
    )
    assert broken != content
    (archive.folder / "broken.dcm").write_bytes(of_even_length(broken))
    archive.take_file(archive.folder / "broken.dcm")

    (model,) = get(f"{path_of(dataset)}/metadata").json
    (answer,) = get("/instances").json

    assert model["00280010"] == {"vr": "UN", "InlineBinary": "CAAA"}
    assert model["00280011"]["Value"] == [8]
    assert answer["00280011"]["Value"] == [8]
    assert get(f"{path_of(dataset)}/frames/1", accept=OCTETS).status_code == 406


@pytest.mark.parametrize(
    ("resource", "accept"),
    [
        ("", "application/json"),
        ("", "image/jpeg"),
        ("", 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.5'),
        ("", 'multipart/related; type="application/dicom+xml"'),
        ("/metadata", "application/dicom+xml"),
        ("/metadata", 'multipart/related; type="application/dicom+xml"'),
        ("/frames/1", 'multipart/related; type="image/jp2"'),
        ("/frames/1", "application/octet-stream"),
        ("/bulkdata/7FE00010", "image/png"),
        ("/rendered", "video/mp4"),
        ("/rendered", "image/png; q=0"),
    ],
)
def test_what_cannot_be_given_is_refused(
    archive: Archive, get: Callable[..., Any], resource: str, accept: str
):
    (dataset,) = series_of(archive, 1)

    answer = get(path_of(dataset) + resource, accept=accept)

    assert answer.status_code == 406
    assert answer.json["error"].endswith(".")


def test_the_better_of_two_is_given(archive: Archive, get: Callable[..., Any]):
    dataset = ct_instance(Names.fresh())
    archive.take(dataset, transfer_syntax_uid=ImplicitVRLittleEndian)

    def given(accept: str) -> str:
        return parts_of(get(path_of(dataset), accept=accept))[0][0].partition("syntax=")[2]

    assert given(AS_STORED) == ImplicitVRLittleEndian
    assert given('multipart/related; type="application/dicom"') == ExplicitVRLittleEndian
    assert given(f"{AS_STORED}; q=0.5, {EXPLICIT}; q=0.9") == ExplicitVRLittleEndian
    assert given(f"{AS_STORED}, {EXPLICIT}; q=0.9") == ImplicitVRLittleEndian
    assert given("*/*") == ImplicitVRLittleEndian


def test_an_instance_alone_is_an_attachment(archive: Archive, get: Callable[..., Any]):
    (dataset,) = series_of(archive, 1)

    answer = get(path_of(dataset), accept="application/dicom; transfer-syntax=*")

    assert answer.mimetype == "application/dicom"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert dcmread(BytesIO(answer.data)).SOPInstanceUID == dataset.SOPInstanceUID


def test_what_the_client_has_is_not_sent_again(archive: Archive, get: Callable[..., Any]):
    dataset, _ = series_of(archive, 2)
    address = path_of(dataset)

    tags = {
        get(address + resource, accept=accept).headers["ETag"]
        for resource, accept in (
            ("", AS_STORED),
            ("/metadata", "*/*"),
            ("/frames/1", OCTETS),
            ("/bulkdata/7FE00010", OCTETS),
            ("/bulkdata/7FE00010", "application/octet-stream"),
            ("/rendered", "image/png"),
            ("/rendered?window=1,2,linear", "image/png"),
        )
    }
    study = get(f"/studies/{dataset.StudyInstanceUID}", accept=AS_STORED)
    archive.take(ct_instance(Names(dataset.StudyInstanceUID, dataset.SeriesInstanceUID)))
    grown = get(f"/studies/{dataset.StudyInstanceUID}", accept=AS_STORED)

    assert len(tags) == 7
    assert study.headers["ETag"] != grown.headers["ETag"]
    tag = grown.headers["ETag"]
    again = get(f"/studies/{dataset.StudyInstanceUID}", accept=AS_STORED, kept=tag)
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
    assert "no-cache" in study.headers["Cache-Control"]


@pytest.mark.parametrize(
    "path",
    [
        "/studies/1.2.3",
        "/studies/1.2.3/metadata",
        "/studies/1.2.3/series/4",
        "/studies/1.2.3/series/4/instances/5/frames/1",
        "/nonsense",
    ],
)
def test_what_is_not_held_is_not_found(get: Callable[..., Any], path: str):
    answer = get(path)

    assert answer.status_code == 404
    assert answer.json["error"]


@pytest.mark.parametrize("numbers", ["0", "a", "1,,2", "-1", "1-2", "٣", ","])
def test_frames_are_named_by_numbers(archive: Archive, get: Callable[..., Any], numbers: str):
    (dataset,) = series_of(archive, 1)

    assert get(f"{path_of(dataset)}/frames/{numbers}").status_code == 400


def of_even_length(broken: bytes) -> bytes:
    """Return a file with one odd element with one more, or it is refused."""
    pixels = bytes(range(128))
    assert broken.endswith(b"\x80\0\0\0" + pixels)
    return broken[: -len(pixels) - 4] + b"\x81\0\0\0" + pixels + b"\0"


@pytest.mark.parametrize(
    "path", ["7FE00011", "00100010", "xyz", "00100010/0/00100010", "00081140/0", "7FE00010/a"]
)
def test_only_bulk_values_have_an_address(archive: Archive, get: Callable[..., Any], path: str):
    (dataset,) = series_of(archive, 1)

    assert get(f"{path_of(dataset)}/bulkdata/{path}").status_code == 404


def test_a_damaged_image_is_refused_and_its_bytes_are_given(
    archive: Archive, get: Callable[..., Any]
):
    short = ct_instance(
        Names.fresh(),
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        PixelData=bytes(256),  # as YBR_FULL_422 it would be whole
    )
    lying = ct_instance(Names.fresh(), BitsAllocated=13)
    archive.take(short, lying)

    for dataset in (short, lying):
        assert get(f"{path_of(dataset)}/frames/1", accept=OCTETS).status_code == 406
        assert get(f"{path_of(dataset)}/rendered").status_code == 406
        assert len(parts_of(get(path_of(dataset), accept=AS_STORED))) == 1


def test_a_value_that_is_none_keeps_nobody_from_the_stored_bytes(
    archive: Archive, get: Callable[..., Any]
):
    dataset = ct_instance(Names.fresh(), RepresentativeFrameNumber=8)
    path = as_file(dataset, archive.folder / "made.dcm", ImplicitVRLittleEndian)
    content = path.read_bytes()
    broken = content.replace(
        b"\x28\x00\x10\x60\x02\x00\x00\x00\x08\x00",
        b"\x28\x00\x10\x60\x03\x00\x00\x00\x08\x00\x00",
    )
    assert broken != content
    (archive.folder / "broken.dcm").write_bytes(of_even_length(broken))
    archive.take_file(archive.folder / "broken.dcm")

    refused = get(path_of(dataset), accept=EXPLICIT)
    kept = get(path_of(dataset), accept=AS_STORED)

    assert refused.status_code == 406
    assert len(parts_of(kept)) == 1


def test_sequences_nested_beyond_reason_are_refused_and_listed_all_the_same(
    archive: Archive, get: Callable[..., Any]
):
    dataset = ct_instance(Names.fresh())
    header = Dataset(dataset)
    del header.PixelData
    depth = 600
    opening = struct.pack("<HH2sxxL", 0x0040, 0xA730, b"SQ", 0xFFFFFFFF)
    opening += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    command = Command(
        sop_class_uid=dataset.SOPClassUID,
        sop_instance_uid=dataset.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        source_ae="CT1",
    )
    pixels = struct.pack("<HH2sxxL", 0x7FE0, 0x0010, b"OW", 128) + bytes(128)
    archive.reception.take(encoded(header) + opening * depth + closing * depth + pixels, command)

    metadata = get(f"{path_of(dataset)}/metadata")
    (listed,) = get(f"/studies/{dataset.StudyInstanceUID}/instances").json

    assert metadata.status_code == 406
    assert "as it is stored" in metadata.json["error"]
    assert listed["00080018"]["Value"] == [dataset.SOPInstanceUID]
    assert len(parts_of(get(path_of(dataset), accept=AS_STORED))) == 1


def test_the_text_of_an_item_is_utf_8_whatever_it_was(archive: Archive, get: Callable[..., Any]):
    item = Dataset()
    item.SpecificCharacterSet, item.CodeMeaning = "ISO_IR 100", "Überweisung"
    dataset = ct_instance(Names.fresh(), ReferencedImageSequence=[item])
    archive.take(dataset)

    (model,) = get(f"{path_of(dataset)}/metadata").json

    (nested,) = model["00081140"]["Value"]
    assert nested["00080104"]["Value"] == ["Überweisung"]
    assert nested["00080005"]["Value"] == ["ISO_IR 192"]


def test_a_retrieval_is_one_look_at_the_study(archive: Archive, get: Callable[..., Any]):
    first, second = series_of(archive, 1)[0], series_of(archive, 1)[0]
    for _ in range(2):
        get(f"/studies/{first.StudyInstanceUID}/metadata")
        get(f"{path_of(first)}/frames/1", accept=OCTETS)
    get(path_of(second))
    get("/studies")

    with archive.world.database.snapshot() as db:
        looks = db.query(AuditEntry).filter_by(tag="web:study:viewed").all()
    assert [(look.actor, look.subject) for look in looks] == [
        (NAME, "study 1"),
        (NAME, "study 2"),
    ]
