from collections.abc import Callable
from io import BytesIO
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from dicomweb_client.api import DICOMwebClient
from flask import Flask
from flask.testing import FlaskClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from appliance import studies
from appliance.config import Settings
from appliance.part10 import read_file
from appliance.store import Store
from appliance.tables import AuditEntry
from tests.support.instances import SIXTEEN_SYNTAXES, Names, as_file, ct_instance, needs_real_data
from tests.webui.dicomweb.conftest import Archive, Connect
from tests.webui.world import NAME, PASSWORD, World
from webui.app import create_app

TYPE = 'multipart/related; type="application/dicom"; boundary=b0undary'
TAKEN, FAILED, OTHER = "00081199", "00081198", "0008119A"
REASON = "00081197"


def message(*files: bytes, boundary: str = "b0undary") -> bytes:
    parts = b"".join(
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file + b"\r\n"
        for file in files
    )
    return parts + f"--{boundary}--\r\n".encode()


@pytest.fixture
def as_bytes(archive: Archive) -> Callable[..., bytes]:
    def made(dataset: Dataset, *syntax: str) -> bytes:
        return as_file(dataset, archive.folder / "sent.dcm", *syntax).read_bytes()

    return made


@pytest.fixture
def post(app: Flask) -> Callable[..., Any]:
    client: FlaskClient = app.test_client()

    def answered(data: bytes, path: str = "/studies", **options: Any) -> Any:
        options = {"content_type": TYPE, "auth": (NAME, PASSWORD)} | options
        return client.post(f"/dicom-web{path}", data=data, **options)

    return answered


def instances(world: World, study_uid: str) -> list[studies.StoredInstance]:
    with world.database.snapshot() as db:
        return [
            instance
            for study in studies.named(db, study_uid)
            for instance in studies.instances_of(db, study.id)
        ]


def test_a_client_stores_and_gets_the_same_back(archive: Archive, connect: Connect):
    peer: DICOMwebClient = connect(chunk_size=1000)  # so that it sends in chunks
    names = Names.fresh()
    sent = []
    for number in range(3):
        made = ct_instance(names, InstanceNumber=number)
        sent.append(dcmread(as_file(made, archive.folder / f"{number}.dcm")))

    answer = peer.store_instances(sent)

    assert len(answer.ReferencedSOPSequence) == 3
    assert "FailedSOPSequence" not in answer
    assert answer.RetrieveURL.endswith(names.study_uid)
    found = {one.SOPInstanceUID: one for one in peer.retrieve_study(names.study_uid)}
    assert all(found[one.SOPInstanceUID].PixelData == one.PixelData for one in sent)
    with archive.world.database.snapshot() as db:
        (entry,) = db.query(AuditEntry).filter_by(tag="web:instances:stored")
        assert (entry.actor, entry.detail) == (NAME, {"taken": 3, "refused": 0})


@needs_real_data
def test_every_transfer_syntax_is_stored_as_it_came(archive: Archive, post: Callable[..., Any]):
    files = sorted(SIXTEEN_SYNTAXES.glob("*.dcm"))
    contents = [path.read_bytes() for path in files]

    answer = post(message(*contents))

    assert answer.status_code == 200
    assert len(answer.json[TAKEN]["Value"]) == 16
    # Some are one instance under one UID: the first is kept, the others are kept aside.
    first: dict[str, bytes] = {}
    for path, content in zip(files, contents, strict=True):
        first.setdefault(str(dcmread(path).SOPInstanceUID), content)
    kept = instances(archive.world, str(dcmread(files[0]).StudyInstanceUID))
    store = Store(archive.world.settings.store_dir)
    assert {one.sop_instance_uid for one in kept} == first.keys()
    for one in kept:
        dataset = read_file(first[one.sop_instance_uid]).dataset
        assert store.path_of(one.digest).read_bytes().endswith(dataset)


def test_an_instance_sent_twice_is_kept_once(
    archive: Archive, post: Callable[..., Any], as_bytes: Callable[..., bytes]
):
    names = Names.fresh()
    file = as_bytes(ct_instance(names))

    answers = [post(message(file, file)), post(message(file))]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(instances(archive.world, names.study_uid)) == 1


def test_what_fails_is_named_with_its_reason(
    archive: Archive, post: Callable[..., Any], as_bytes: Callable[..., bytes]
):
    good, other = ct_instance(Names.fresh()), ct_instance(Names.fresh())
    nameless = ct_instance(Names.fresh(), SeriesInstanceUID="")
    cut = ct_instance(Names.fresh())

    some = post(
        message(as_bytes(good), as_bytes(other), as_bytes(nameless), as_bytes(cut)[:-20], b"none"),
        f"/studies/{good.StudyInstanceUID}",
    )
    none = post(message(b"none"))

    assert some.status_code == 202
    (taken,) = some.json[TAKEN]["Value"]
    assert taken["00081155"]["Value"] == [good.SOPInstanceUID]
    failed = some.json[FAILED]["Value"]
    assert [item["00081155"]["Value"] for item in failed] == [
        [other.SOPInstanceUID],
        [nameless.SOPInstanceUID],
        [cut.SOPInstanceUID],
    ]
    reasons = [item[REASON] for item in failed]
    assert reasons == [{"vr": "US", "Value": [code]} for code in (0xA900, 0xA900, 0xC000)]
    assert [item[REASON]["Value"] for item in some.json[OTHER]["Value"]] == [[0xC000]]
    assert instances(archive.world, other.StudyInstanceUID) == []
    assert none.status_code == 409


def test_a_full_disk_is_told_as_such(
    world: World, post: Callable[..., Any], as_bytes: Callable[..., bytes], monkeypatch
):
    monkeypatch.setattr("appliance.store.Store.free_bytes", lambda _self: 0)

    answer = post(message(as_bytes(ct_instance(Names.fresh()))))

    assert answer.status_code == 409
    assert answer.json[FAILED]["Value"][0][REASON]["Value"] == [0xA700]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_are_taken(archive: Archive, post: Callable[..., Any], syntax: str):
    names = Names.fresh()
    made = ct_instance(names)
    path = as_file(made, archive.folder / "made.dcm")
    sent = dcmread(path)
    sent.file_meta.TransferSyntaxUID = syntax
    content = BytesIO()
    sent.save_as(content, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)

    assert post(message(content.getvalue())).status_code == 200
    (kept,) = instances(archive.world, names.study_uid)
    assert kept.transfer_syntax_uid == syntax


def test_the_outcome_is_given_as_xml(post: Callable[..., Any], as_bytes: Callable[..., bytes]):
    made = ct_instance(Names.fresh())

    answer = post(message(as_bytes(made), b"none"), headers={"Accept": "application/dicom+xml"})

    root = ET.fromstring(answer.data)
    (taken,) = root.findall(".//*[@keyword='ReferencedSOPInstanceUID']/Value")
    assert taken.text == made.SOPInstanceUID
    assert root.find(".//*[@keyword='FailureReason']/Value").text == str(0xC000)
    refused = post(message(as_bytes(made)), headers={"Accept": "text/html"})
    assert refused.status_code == 406


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=b0undary",
        "application/dicom",
        "application/x-www-form-urlencoded",
        "text/plain",
        "",
        'multipart/related; type="application/dicom+xml"; boundary=b0undary',
    ],
)
def test_other_kinds_of_messages_are_refused(
    post: Callable[..., Any], as_bytes: Callable[..., bytes], content_type: str
):
    body = message(as_bytes(ct_instance(Names.fresh())))

    assert post(body, content_type=content_type).status_code == 415


def test_a_message_that_does_not_name_the_type_of_its_parts_is_taken(
    archive: Archive, post: Callable[..., Any], as_bytes: Callable[..., bytes]
):
    body = message(as_bytes(ct_instance(Names.fresh())))

    assert post(body, content_type="multipart/related; boundary=b0undary").status_code == 200


def test_a_part_beyond_the_listeners_limit_is_refused_and_leaves_nothing(
    world: World, as_bytes: Callable[..., bytes]
):
    settings = Settings.parse(
        {"data_dir": str(world.settings.data_dir), "dicom": {"max_instance_bytes": 1 << 20}}
    )
    client = create_app(settings).test_client()
    large = ct_instance(Names.fresh(), Rows=1024, Columns=1024, PixelData=bytes(2 << 20))

    answer = client.post(
        "/dicom-web/studies",
        data=message(as_bytes(large)),
        content_type=TYPE,
        auth=(NAME, PASSWORD),
    )

    assert answer.status_code == 413
    assert instances(world, large.StudyInstanceUID) == []
    assert not any(Store(settings.store_dir).incoming_dir.iterdir())


def test_what_is_kept_aside_has_no_address(
    archive: Archive, post: Callable[..., Any], as_bytes: Callable[..., bytes]
):
    made = ct_instance(Names.fresh())
    first = as_bytes(made)
    made.PixelData = bytes(128)

    answer = post(message(first, as_bytes(made)))

    assert answer.status_code == 200
    addresses = [item["00081190"] for item in answer.json[TAKEN]["Value"]]
    assert addresses[0]["Value"][0].endswith(made.SOPInstanceUID)
    assert addresses[1] == {"vr": "UR"}


def test_a_message_cut_short_keeps_what_came_whole_and_says_so(
    archive: Archive, post: Callable[..., Any], as_bytes: Callable[..., bytes]
):
    first, second = Names.fresh(), Names.fresh()
    whole = message(as_bytes(ct_instance(first)), as_bytes(ct_instance(second)))

    answer = post(whole[:-30])

    assert answer.status_code == 400
    assert "send it again" in answer.json["error"]
    assert len(instances(archive.world, first.study_uid)) == 1
    assert instances(archive.world, second.study_uid) == []
    assert post(b"--b0undary--").status_code == 400
    no_boundary = TYPE.partition("; boundary")[0]
    assert post(whole, content_type=no_boundary).status_code == 400


def test_parts_have_a_limit(
    archive: Archive, post: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("webui.dicomweb.store.MOST_PARTS", 2)

    assert post(message(b"1", b"2")).status_code == 409
    assert post(message(b"1", b"2", b"3")).status_code == 413


def test_too_many_at_once_are_told_to_come_again(
    app: Flask, post: Callable[..., Any], as_bytes: Callable[..., bytes]
):
    uploads = app.extensions["dicomweb"].uploads
    body = message(as_bytes(ct_instance(Names.fresh())))
    while uploads.acquire(blocking=False):
        pass

    assert post(body).status_code == 503
    uploads.release()
    assert post(body).status_code == post(body).status_code == 200


@pytest.mark.parametrize(
    ("name", "status"), [("viewer", 403), ("radiologist", 200), ("administrator", 200)]
)
def test_viewers_store_nothing(
    people: None,
    post: Callable[..., Any],
    as_bytes: Callable[..., bytes],
    name: str,
    status: int,
):
    body = message(as_bytes(ct_instance(Names.fresh())))

    assert post(body, auth=(name, PASSWORD)).status_code == status


def test_a_session_needs_the_form_token(client: FlaskClient, as_bytes: Callable[..., bytes]):
    body = message(as_bytes(ct_instance(Names.fresh())))
    page = client.get("/").get_data(as_text=True)
    token = page.split('name="csrf_token" value="')[1].split('"')[0]

    def posted(**headers: str) -> int:
        return client.post(
            "/dicom-web/studies", data=body, content_type=TYPE, headers=headers
        ).status_code

    assert posted() == 400
    assert posted(**{"X-CSRFToken": "made up"}) == 400
    assert posted(**{"X-CSRFToken": token}) == 200
