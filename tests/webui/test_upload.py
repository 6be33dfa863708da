"""Upload through Flask's client: pieces, offsets, what is taken in, and who may."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from appliance import accounts, importing, uploads
from appliance.tables import AuditEntry, Instance, Study
from tests.support.instances import Names, as_file, ct_instance
from tests.webui.world import PASSWORD, World, sign_in
from webui import upload


@pytest.fixture
def world(world: World) -> World:
    dicom = replace(world.settings.dicom, min_free_bytes=0)
    return replace(world, settings=replace(world.settings, dicom=dicom))


class Sender:
    """What the page does."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        self.token = client.get("/api/uploads").json["csrf_token"]

    def post(self, url: str, content: Any, **more: Any):
        return self.client.post(url, json=content, headers={"X-CSRFToken": self.token, **more})

    def begin(self, files: dict[str, bytes]):
        listed = [{"name": n, "size": len(c), "modified": 1} for n, c in files.items()]
        return self.post("/api/uploads", {"files": listed})

    def piece(self, place: dict[str, Any], content: bytes, offset: int):
        headers = {"X-CSRFToken": self.token, "Upload-Offset": str(offset)}
        return self.client.patch(
            place["url"],
            data=content,
            headers=headers,
            content_type="application/offset+octet-stream",
        )

    def take(self, begun: dict[str, Any], **person: str):
        said = {"patient_name": "", "patient_id": "", "study_date": "", **person}
        return self.post(begun["take_url"], said)

    def all(self, files: dict[str, bytes], **person: str) -> dict[str, Any]:
        """What became of these files."""
        begun = self.begin(files).json
        for place, content in zip(begun["files"], files.values(), strict=True):
            if content:
                assert self.piece(place, content, 0).status_code == 204
        outcome: dict[str, Any] = self.take(begun, **person).json["outcome"]
        return outcome


@pytest.fixture
def sender(client: FlaskClient) -> Sender:
    return Sender(client)


def dicom(names: Names, folder: Path, number: int = 1, **more: Any) -> bytes:
    path = folder / "made.dcm"
    as_file(ct_instance(names, InstanceNumber=number, **more), path)
    return path.read_bytes()


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def audited(world: World) -> list[tuple[str, dict[str, Any]]]:
    with world.database.snapshot() as db:
        entries = db.scalars(select(AuditEntry).where(AuditEntry.tag == importing.TAG))
        return [(entry.actor, entry.detail) for entry in entries]


def test_files_go_through_receptions_door_and_what_is_none_is_named(
    world: World, sender: Sender, tmp_path: Path
):
    names = Names.fresh()
    named = {"PatientName": "<b>Muster^Anna", "PatientID": "P-7"}
    archive = zipped({"a/1": dicom(names, tmp_path, 1, **named), "a/notes.txt": b"notes"})

    outcome = sender.all(
        {
            "Muster/IM2": dicom(names, tmp_path, 2, **named),
            "study.zip": archive,
            "cut.zip": archive[: len(archive) // 2],
            "nobodys": dicom(Names.fresh(), tmp_path, StudyInstanceUID=""),
            "empty": b"",
        }
    )

    assert (outcome["new"], outcome["duplicate"], outcome["conflict"]) == (2, 0, 0)
    left_out = {one["name"]: one["reason"] for one in outcome["left_out"]}
    assert left_out.keys() == {"study.zip/a/notes.txt", "cut.zip", "nobodys", "empty"}
    assert left_out["study.zip/a/notes.txt"] == "no DICOM file"
    assert left_out["cut.zip"] == "is no zip file, or one cut short; copy it again"
    (study,) = outcome["studies"]
    assert (study["patient"], study["url"]) == ("<b>Muster, Anna", "/studies/1")
    ((actor, detail),) = audited(world)
    assert actor == "reader"
    assert (detail["new"], detail["refused"]) == (2, 3)
    assert "Muster" not in json.dumps(detail)
    with world.database.snapshot() as db:
        assert set(db.scalars(select(Instance.source_ae))) == {"web reader"}
    assert not list(world.settings.uploads_dir.rglob("*.dcm"))


def test_a_padding_byte_that_was_left_out_is_told(sender: Sender, tmp_path: Path):
    outcome = sender.all({"IM1": dicom(Names.fresh(), tmp_path) + bytes(1)})

    assert (outcome["new"], outcome["left_out_count"]) == (1, 0)
    assert outcome["left_out"] == [{"name": "IM1", "reason": importing.PADDED}]


def test_a_file_goes_on_where_the_last_piece_ended(sender: Sender, tmp_path: Path):
    content = dicom(Names.fresh(), tmp_path)
    begun = sender.begin({"IM1": content}).json
    (place,) = begun["files"]

    assert sender.piece(place, content[:100], 0).headers["Upload-Offset"] == "100"
    for offset in (0, 200):
        refused = sender.piece(place, content[offset:], offset)
        assert (refused.status_code, refused.headers["Upload-Offset"]) == (409, "100")
    early = sender.take(begun)
    assert (early.status_code, early.json["error"]) == (400, upload.INCOMPLETE)
    assert sender.client.get(begun["url"]).json["files"][0]["offset"] == 100
    (waiting,) = sender.client.get("/api/uploads").json["uploads"]
    assert waiting["files"][0]["name"] == "IM1"
    assert sender.piece(place, content[100:], 100).status_code == 204

    first, again = sender.take(begun).json["outcome"], sender.take(begun).json["outcome"]

    assert first["new"] == 1
    assert again == first
    assert sender.client.get("/api/uploads").json["uploads"] == []
    assert sender.piece(place, b"", len(content)).json["error"] == upload.TAKEN


def test_who_comes_while_another_upload_is_taken_in_tries_again(sender: Sender, tmp_path: Path):
    content = dicom(Names.fresh(), tmp_path)
    begun = sender.begin({"IM1": content}).json
    assert sender.piece(begun["files"][0], content, 0).status_code == 204

    with upload._taking:
        busy = sender.take(begun)

    assert (busy.status_code, busy.json["error"]) == (429, upload.BUSY)
    assert busy.headers["Retry-After"] == "2"
    assert sender.take(begun).json["outcome"]["new"] == 1


def test_a_nifti_volume_becomes_a_study_of_whom_the_person_names(
    world: World, sender: Sender, tmp_path: Path
):
    hu = np.full((40, 36, 32), -1000, np.int16)
    image = nib.Nifti1Image(hu, np.diag([0.9, 0.8, 1.7, 1]))
    nib.save(image, tmp_path / "v.nii.gz")
    nib.save(nib.Nifti1Image(hu + 1500, image.affine), tmp_path / "grey.nii")
    files = {name: (tmp_path / name).read_bytes() for name in ("v.nii.gz", "grey.nii")}

    outcome = sender.all(files, patient_name="王^小东", patient_id="P-9", study_date="2026-01-05")

    assert outcome["new"] == 32
    (left,) = outcome["left_out"]
    assert left == {"name": "grey.nii", "reason": "grey.nii holds no air below -500: is it in HU?"}
    with world.database.snapshot() as db:
        (study,) = db.scalars(select(Study)).all()
        assert (study.patient.name, study.patient.patient_id) == ("王^小东", "P-9")
        assert (study.study_date, study.state) == ("20260105", "RECEIVING")


@pytest.mark.parametrize(
    ("person", "said"),
    [
        ({"patient_name": "a" * 65}, upload.BAD_PERSON),
        ({"patient_id": "1\\2"}, upload.BAD_PERSON),
        ({"study_date": "yesterday"}, upload.BAD_DATE),
    ],
)
def test_a_person_that_no_header_can_hold_is_refused(sender: Sender, person, said):
    begun = sender.begin({"v.nii": b""}).json

    refused = sender.take(begun, **person)

    assert (refused.status_code, refused.json["error"]) == (400, said)
    assert sender.take(begun).json["outcome"]["left_out_count"] == 1


def test_a_zip_bomb_and_a_full_disk_leave_nothing(world: World, client: FlaskClient):
    sender = Sender(client)
    bomb = zipped({"zeros": bytes(20 << 20)})

    outcome = sender.all({"bomb.zip": bomb})

    (left,) = outcome["left_out"]
    assert left["reason"] == "unpacks to more than an archive of images would"
    dicom_settings = replace(world.settings.dicom, min_free_bytes=1 << 60)
    full = (
        replace(world, settings=replace(world.settings, dicom=dicom_settings)).app().test_client()
    )
    sign_in(full)
    refused = Sender(full).begin({"IM1": b"x"})
    assert (refused.status_code, refused.json["error"]) == (507, upload.DISK)


def test_sizes_and_numbers_are_bounded(sender: Sender, monkeypatch: pytest.MonkeyPatch):
    place = sender.begin({"IM1": b"12"}).json["files"][0]
    assert sender.piece(place, b"123", 0).status_code == 400
    assert sender.piece(place, b"x" * (upload.LARGEST_PIECE_BYTES + 1), 0).status_code == 413
    for files in (
        [],
        [{"name": "", "size": 1, "modified": 1}],
        [{"name": "a", "size": -1, "modified": 1}],
    ):
        assert sender.post("/api/uploads", {"files": files}).status_code == 400
    huge = [{"name": "a", "size": uploads.MOST_BYTES + 1, "modified": 1}]
    monkeypatch.setattr("appliance.reception.Reception.require_space", lambda *_: None)
    assert "At most 64 GiB" in sender.post("/api/uploads", {"files": huge}).json["error"]
    for _ in range(uploads.MOST_WAITING - 1):
        assert sender.begin({"IM1": b"12"}).status_code == 201
    assert sender.begin({"IM1": b"12"}).status_code == 429


def test_uploads_are_their_owners_and_viewers_have_none(world: World, sender: Sender):
    begun = sender.begin({"IM1": b"12"}).json
    roles = {"viewer": accounts.Role.VIEWER, "other": accounts.Role.ADMINISTRATOR}
    clients = {}
    for name, role in roles.items():
        with world.database.transaction() as db:
            accounts.add(db, name, password=PASSWORD, role=role, actor="test")
        clients[name] = sender.client.application.test_client()
        sign_in(clients[name], name=name)

    assert clients["viewer"].get("/upload").status_code == 403
    assert "/upload" not in clients["viewer"].get("/").text
    other = Sender(clients["other"])
    assert other.client.get("/api/uploads").json["uploads"] == []
    assert other.piece(begun["files"][0], b"12", 0).status_code == 404
    assert other.take(begun).status_code == 404
    assert other.client.get("/api/uploads/..%2f..").status_code == 404


def test_without_the_token_nothing_changes(world: World, sender: Sender):
    begun = sender.begin({"IM1": b"12"}).json
    sender.token = ""

    assert sender.begin({"IM1": b"12"}).status_code == 400
    assert sender.piece(begun["files"][0], b"12", 0).status_code == 400
    assert sender.take(begun).status_code == 400
    assert sender.client.delete(begun["url"]).status_code == 400
    (kept,) = uploads.uploads_of(world.settings, 1)
    assert kept.offset(0) == 0


def test_a_discarded_upload_is_gone_and_an_old_one_is_removed(world: World, sender: Sender):
    first, second = (sender.begin({"IM1": b"12"}).json for _ in range(2))
    sender.piece(second["files"][0], b"1", 0)
    headers = {"X-CSRFToken": sender.token}

    assert sender.client.delete(first["url"], headers=headers).status_code == 204
    (kept,) = uploads.uploads_of(world.settings, 1)
    assert kept.name == second["name"]
    touched = kept.path_of(0).stat().st_mtime
    assert uploads.remove_old(world.settings, now=touched + uploads.KEPT_S - 60) == 0
    assert uploads.remove_old(world.settings, now=touched + uploads.KEPT_S + 60) == 1
    assert not list(world.settings.uploads_dir.iterdir())
