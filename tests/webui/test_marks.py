"""Regions and drafts by HTTP: taken, measured, given back, and told to nobody as confirmed."""

from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts, audit, marks
from appliance.accounts import Role
from pipelines.findings import Analysis
from pipelines.marks import Region, clash, measure
from pipelines.volume import CTVolume
from tests.webui.world import NAME, PASSWORD, World, sign_in
from webui.presence import GONE_AFTER_S, Presence
from webui.results import open_result


@pytest.fixture
def analysis_id(world: World, chest: tuple[CTVolume, Analysis]) -> int:
    volume, found = chest
    return world.finish(world.receive("1.1"), volume, found)


@pytest.fixture
def missed(chest: tuple[CTVolume, Analysis]) -> Region:
    """Lung beside the lesions, in one slice."""
    _, found = chest
    free = (found.lung_mask > 0) & (found.lesion_labels == 0)
    free[: found.shape[0] // 2] = False
    free[found.shape[0] // 2 + 2 :] = False
    return region_of(free)


def region_of(mask: np.ndarray) -> Region:
    z, y, x = mask.shape
    return Region.unpacked((0, 0, 0, x, y, z), np.packbits(mask, bitorder="little"), (x, y, z))


def signed_in(app: Flask, world: World, name: str, role: Role = Role.RADIOLOGIST) -> FlaskClient:
    with world.database.transaction() as db:
        accounts.add(db, name, password=PASSWORD, role=role, actor="test")
    client = app.test_client()
    assert sign_in(client, name=name).status_code == 302
    return client


def state(client: FlaskClient, analysis_id: int) -> Any:
    return client.get(f"/api/analyses/{analysis_id}/review").json


def token(client: FlaskClient, analysis_id: int) -> dict[str, str]:
    return {"X-CSRFToken": state(client, analysis_id)["csrf_token"]}


def upload(client: FlaskClient, analysis_id: int, region: Region, *, bits: bytes | None = None):
    box = ",".join(map(str, region.box))
    return client.post(
        f"/api/analyses/{analysis_id}/marks?box={box}",
        data=region.bits if bits is None else bits,
        content_type="application/octet-stream",
        headers=token(client, analysis_id),
    )


def draft(client: FlaskClient, analysis_id: int, *, revision: int = 0, **judged: Any):
    return client.put(
        f"/api/analyses/{analysis_id}/draft",
        json={"revision": revision, "judged": {"marks": {}} | judged},
        headers=token(client, analysis_id),
    )


def confirm(client: FlaskClient, analysis_id: int, found: Analysis, **said: Any):
    judgement = {
        "seen": 0,
        "positive": True,
        "lesions": {str(lesion.id): True for lesion in found.lesions},
        "reason": None,
        "reason_text": "",
        "comment": "",
    }
    return client.post(
        f"/api/analyses/{analysis_id}/review",
        json=judgement | said,
        headers=token(client, analysis_id),
    )


def test_a_region_is_measured_kept_and_given_back(
    client: FlaskClient,
    world: World,
    analysis_id: int,
    missed: Region,
    chest: tuple[CTVolume, Analysis],
):
    answer = upload(client, analysis_id, missed)

    assert answer.status_code == 201
    viewer = world.settings.data_dir / "analyses" / "1-1" / "viewer"
    expected = measure(missed, viewer, open_result(viewer.parent).facts)
    told = answer.json
    assert (told["digest"], told["by"]) == (missed.digest, NAME)
    assert (told["volume_ml"], told["mean_hu"]) == (expected.volume_ml, expected.mean_hu)
    assert (told["diameter_mm"], told["side"]) == (expected.diameter_mm, expected.side.value)
    for encoding in ("identity", "gzip"):
        headers = {"Accept-Encoding": encoding}
        sent = client.get(told["mask_url"], headers=headers)
        assert sent.headers["Content-Encoding"] == encoding
    assert client.get(told["mask_url"], headers={"Accept-Encoding": "identity"}).data == missed.bits
    with world.database.snapshot() as db:
        row = marks.regions(db, analysis_id)[missed.digest]
    assert marks.bits_of(row) == missed.bits


def test_a_region_may_be_as_large_as_the_volume(
    client: FlaskClient, analysis_id: int, chest: tuple[CTVolume, Analysis]
):
    whole = Region((0, 0, 0), np.ones(chest[0].shape, bool))

    assert len(whole.bits) > client.application.config["MAX_CONTENT_LENGTH"]
    assert upload(client, analysis_id, whole).status_code == 201
    answer = upload(client, analysis_id, whole, bits=whole.bits + b"\x00")
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("box", "bits"),
    [("0,0,0,2,2,2", b""), ("0,0,0,2,2,2", b"\x00"), ("0,0,0,999,2,2", b"\xff"), ("x", b"\x01")],
)
def test_what_is_no_region_is_refused_in_words(
    client: FlaskClient, world: World, analysis_id: int, box: str, bits: bytes
):
    answer = client.post(
        f"/api/analyses/{analysis_id}/marks?box={box}",
        data=bits,
        headers=token(client, analysis_id),
    )

    assert answer.status_code == 400
    assert answer.json["error"].endswith((".", "page."))
    with world.database.snapshot() as db:
        assert marks.regions(db, analysis_id) == {}


def test_a_region_needs_its_token_its_role_and_its_result(
    client: FlaskClient, app: Flask, world: World, analysis_id: int, missed: Region
):
    address = f"/api/analyses/{analysis_id}/marks?box=0,0,0,1,1,1"
    assert client.post(address, data=b"\x01").status_code == 400
    guest = signed_in(app, world, "guest", Role.VIEWER)
    assert upload(guest, analysis_id, missed).status_code == 403
    assert draft(guest, analysis_id).status_code == 403
    assert client.get(f"/api/analyses/{analysis_id}/marks/{'0' * 64}").status_code == 404
    assert client.get("/api/analyses/4711/others").status_code == 404


def test_a_draft_comes_back_and_a_second_window_is_told(
    client: FlaskClient, analysis_id: int, missed: Region
):
    digest = upload(client, analysis_id, missed).json["digest"]
    outlined = {"90": {"digest": digest, "grown": True}}
    assert draft(client, analysis_id, comment="Mine.", marks=outlined).json == {"revision": 1}

    said = state(client, analysis_id)
    assert said["draft"]["revision"] == 1
    assert said["draft"]["judged"] == {"comment": "Mine.", "marks": outlined}
    assert said["regions"][digest]["by"] == NAME

    answer = draft(client, analysis_id, comment="Other.")
    assert answer.status_code == 409
    assert "another window" in answer.json["error"]
    assert state(client, analysis_id)["draft"] == said["draft"]
    gone = client.delete(f"/api/analyses/{analysis_id}/draft", headers=token(client, analysis_id))
    assert gone.status_code == 204
    assert state(client, analysis_id)["draft"] is None


@pytest.mark.parametrize(
    "said", [None, {"revision": 0}, {"revision": 0, "judged": {"marks": {"1": "x"}}}]
)
def test_what_is_no_draft_is_refused(client: FlaskClient, analysis_id: int, said: Any):
    answer = client.put(
        f"/api/analyses/{analysis_id}/draft", json=said, headers=token(client, analysis_id)
    )

    assert answer.status_code == 400
    assert "no draft" in answer.json["error"]


def test_nobody_reads_anothers_draft_but_sees_that_there_is_one(
    client: FlaskClient, app: Flask, world: World, analysis_id: int
):
    draft(client, analysis_id, comment="Mine.")
    bob = signed_in(app, world, "bob")
    others = f"/api/analyses/{analysis_id}/others"

    seen = bob.get(others)
    assert state(bob, analysis_id)["draft"] is None
    assert "Mine." not in seen.get_data(as_text=True)
    assert [one["name"] for one in seen.json["drafts"]] == [NAME]
    assert seen.json["present"] == []
    assert client.get(others).json == {"present": ["bob"], "drafts": []}
    assert bob.get(others).json["present"] == [NAME]


def test_who_stopped_asking_is_gone():
    now = [0.0]
    presence = Presence(clock=lambda: now[0])
    presence.others(1, "ann")

    now[0] = GONE_AFTER_S - 1
    assert presence.others(1, "bob") == ["ann"]
    assert presence.others(2, "cem") == []
    now[0] = GONE_AFTER_S
    assert presence.others(1, "bob") == []


def test_a_confirmation_shows_who_added_what(
    client: FlaskClient, analysis_id: int, missed: Region, chest: tuple[CTVolume, Analysis]
):
    digest = upload(client, analysis_id, missed).json["digest"]
    outlined = {"90": {"digest": digest, "grown": False}}
    draft(client, analysis_id, marks=outlined)
    signs = {"90": ["honeycomb lung"], "1": ["ground-glass opacity"]}

    answer = confirm(client, analysis_id, chest[1], marks=outlined, signs=signs)

    assert answer.status_code == 201
    (version,) = answer.json["history"]
    assert (version["marks"], version["signs"]) == (outlined, dict(sorted(signs.items())))
    assert answer.json["regions"][digest]["by"] == NAME
    assert answer.json["draft"] is None


def test_outlines_are_compared_before_anybody_has_to_wait(
    client: FlaskClient,
    world: World,
    analysis_id: int,
    missed: Region,
    chest: tuple[CTVolume, Analysis],
    monkeypatch: pytest.MonkeyPatch,
):
    compared = []

    def compare_while_others_write(*asked: Any) -> Any:
        with world.database.transaction() as db:
            audit.record(db, actor="bob", tag="tests:marks:compared", subject="study 1")
        compared.append(asked)
        return clash(*asked)

    monkeypatch.setattr("webui.reviews.clash", compare_while_others_write)
    digest = upload(client, analysis_id, missed).json["digest"]

    answer = confirm(
        client, analysis_id, chest[1], marks={"90": {"digest": digest, "grown": False}}
    )

    assert answer.status_code == 201
    assert len(compared) == 1


def test_lesions_that_overlap_are_refused_and_nothing_is_kept(
    client: FlaskClient, analysis_id: int, chest: tuple[CTVolume, Analysis]
):
    _, found = chest
    digest = upload(client, analysis_id, region_of(found.lesion_labels == 1)).json["digest"]
    outlined = {"90": {"digest": digest, "grown": False}}

    answer = confirm(client, analysis_id, found, marks=outlined)

    assert answer.status_code == 400
    assert answer.json["error"].startswith("Lesions 1 and 90 overlap:")
    assert state(client, analysis_id)["version"] == 0
    lesions = {str(lesion.id): lesion.id != 1 for lesion in found.lesions}
    assert confirm(client, analysis_id, found, marks=outlined, lesions=lesions).status_code == 201


def test_dicomweb_gives_out_nothing_of_what_was_not_confirmed(
    client: FlaskClient, analysis_id: int, missed: Region, chest: tuple[CTVolume, Analysis]
):
    digest = upload(client, analysis_id, missed).json["digest"]
    draft(client, analysis_id, comment="Mine.", marks={"90": {"digest": digest, "grown": False}})

    series = client.get("/dicom-web/studies/1.1/series").get_json(force=True)

    assert [one["00080060"]["Value"] for one in series] == [["CT"]]  # no report, no Segmentation
    assert state(client, analysis_id)["history"] == []
    row = client.get("/api/worklist").json["rows"][0]
    assert row["waits_for_review"]
    assert row["review"] is None
