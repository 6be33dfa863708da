import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from flask.testing import FlaskClient

from appliance.studies import PatientAttributes, StudyAttributes
from pipelines.findings import Analysis, HeatMap, SecondOpinion
from pipelines.presentation import decode_slab
from pipelines.volume import CTVolume
from tests.webui.world import PATIENT, World
from webui.results import open_result


@pytest.fixture
def shown(world: World, chest: tuple[CTVolume, Analysis]):
    """A study with a result: its row id and the result's."""
    volume, found = chest
    study_id = world.receive("1.1")
    return study_id, world.finish(study_id, volume, found)


@pytest.fixture
def manifest(client: FlaskClient, shown: tuple[int, int]):
    return client.get(f"/api/analyses/{shown[1]}/manifest").get_json()


def test_the_page_names_patient_models_and_the_warning(client: FlaskClient, shown: tuple[int, int]):
    page = client.get(f"/studies/{shown[0]}").get_data(as_text=True)

    for text in (
        "Phantom, Chest",
        "PHANTOM-0001",
        "1970-01-01",
        "AI result, not for primary diagnosis",
        "87 %",
        "threshold 50 %",
        "U-Net++",
        "1.0.0",
    ):
        assert text in page


def test_the_page_shows_the_burden_of_each_lung_and_what_the_grade_is_worth(
    world: World, client: FlaskClient, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    study_id = world.receive("1.1")
    world.finish(study_id, volume, found)
    burden = found.burden
    assert burden is not None

    page = client.get(f"/studies/{study_id}").get_data(as_text=True)

    for part in (burden.right.whole, burden.left.whole, burden.right.lower, burden.left.upper):
        assert f"{part.lesion_ml:.1f} ml, {100 * part.share:.1f} %" in page
    assert f"<b>{burden.grade}</b>" in page
    assert "Computed from the lesion mask." in page
    assert "not validated as a clinical grade" in page


def test_a_result_from_before_the_burden_was_measured_is_shown_as_it_was(
    world: World, client: FlaskClient, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    study_id = world.receive("1.1")
    analysis_id = world.finish(study_id, volume, found)
    path = world.settings.data_dir / f"analyses/{study_id}-1/viewer/viewer.json"
    older = json.loads(path.read_text())
    for later in ("burden", "second_opinion", "heat_maps"):
        del older[later]
    path.write_text(json.dumps(older))

    page = client.get(f"/studies/{study_id}").get_data(as_text=True)
    manifest = client.get(f"/api/analyses/{analysis_id}/manifest").get_json()

    assert "% of both lungs" in page
    assert "clinical grade" not in page
    assert "Second opinion" not in page
    assert manifest["heat_maps"] == []


@pytest.mark.parametrize(
    ("validated", "title"), [(False, "Second opinion, not validated"), (True, "Second opinion")]
)
def test_a_second_opinion_is_shown_with_what_it_is_worth(
    world: World,
    client: FlaskClient,
    chest: tuple[CTVolume, Analysis],
    validated,
    title: str,
):
    volume, found = chest
    opinion = SecondOpinion(
        {"healthy": 0.04, "COVID-19": 0.81, "<b>odd</b>": 0.15}, "COVID-19", "II", validated
    )
    study_id = world.receive("1.1")
    world.finish(study_id, volume, replace(found, second_opinion=opinion))

    page = client.get(f"/studies/{study_id}").get_data(as_text=True)

    assert f"<h2>{title}</h2>" in page
    assert '<div class="most-likely"><dt>COVID-19</dt><dd>81 %</dd></div>' in page
    assert "grade II" in page
    assert "&lt;b&gt;odd" in page


def test_a_heat_map_is_listed_and_sent(
    world: World, client: FlaskClient, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    heat = np.zeros(volume.shape, np.uint8)
    heat[10:12, 20:30, 40:60] = 200
    maps = (
        HeatMap("screening", "COVID-likeness", 0.4, heat),
        HeatMap("pneumonia", "healthy", None, np.zeros_like(heat)),
    )
    study_id = world.receive("1.1")
    analysis_id = world.finish(study_id, volume, replace(found, heat_maps=maps))

    page = client.get(f"/studies/{study_id}").get_data(as_text=True)
    (told,) = client.get(f"/api/analyses/{analysis_id}/manifest").get_json()["heat_maps"]
    sent = client.get(told["url"], headers={"Accept-Encoding": ""}).data

    assert "40 % of the heat in lesions" in page
    assert "no heat" in page
    assert (told["first"], told["last"]) == ([40, 20, 10], [59, 29, 11])
    assert sent == heat[10:12, 20:30, 40:60].tobytes()


def test_the_manifest_speaks_x_y_z(manifest: dict[str, Any], chest: tuple[CTVolume, Analysis]):
    volume, found = chest
    lesion, told = found.lesions[0], manifest["lesions"][0]

    assert tuple(manifest["size"]) == volume.shape[::-1]
    assert tuple(manifest["spacing_mm"]) == volume.spacing[::-1]
    assert told["first"] == list(lesion.bbox[0][::-1])
    assert told["last"] == [end - 1 for end in lesion.bbox[1][::-1]]
    assert told["look_at"][2] == lesion.key_slice == manifest["key_slabs"][0]["first"]


def test_the_manifest_tells_the_box_around_both_lungs(
    manifest: dict[str, Any], chest: tuple[CTVolume, Analysis]
):
    where = np.argwhere(chest[1].lung_mask > 0)

    assert manifest["lungs"] == {
        "first": where.min(axis=0)[::-1].tolist(),
        "last": where.max(axis=0)[::-1].tolist(),
    }


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate", "gzip"),
        ("br, gzip;q=0.5, zstd;q=0", "gzip"),
        ("", "identity"),
    ],
)
def test_a_slab_holds_the_volume_however_it_is_packed(
    client: FlaskClient,
    manifest: dict[str, Any],
    chest: tuple[CTVolume, Analysis],
    accepted: str,
    encoding: str,
):
    slab = manifest["slabs"][1]

    answer = client.get(slab["url"], headers={"Accept-Encoding": accepted})

    unpack = {
        "zstd": zstandard.ZstdDecompressor().decompress,
        "gzip": gzip.decompress,
        "identity": bytes,
    }[encoding]
    expected = chest[0].hu[slab["first"] : slab["first"] + slab["count"]]
    assert answer.headers["Content-Encoding"] == encoding
    assert np.array_equal(decode_slab(unpack(answer.data), expected.shape), expected)


def test_a_piece_is_kept_for_ever_and_not_sent_again(client: FlaskClient, manifest: dict[str, Any]):
    first = client.get(manifest["slabs"][0]["url"])

    again = client.get(
        manifest["slabs"][0]["url"], headers={"If-None-Match": first.headers["ETag"]}
    )

    assert "immutable" in first.headers["Cache-Control"]
    assert "Accept-Encoding" in first.headers["Vary"]
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize(
    "name",
    [
        "viewer.json",
        "..",
        "../analysis.json",
        "..%2fanalysis.json",
        "%2fetc%2fpasswd",
        "x.slab",
        "%00",
    ],
)
def test_only_names_that_the_result_lists_are_looked_for(
    client: FlaskClient, shown: tuple[int, int], name: str
):
    assert client.get(f"/api/analyses/{shown[1]}/files/{name}").status_code == 404


@pytest.mark.parametrize(
    "address",
    ["/studies/999", "/api/studies/999", "/api/analyses/999/manifest", "/studies/1/analyses/999"],
)
def test_what_is_not_there_is_not_found(client: FlaskClient, shown: tuple[int, int], address: str):
    assert client.get(address).status_code == 404


def test_a_superseded_result_stays_reachable_and_is_marked(
    world: World, client: FlaskClient, shown: tuple[int, int], chest: tuple[CTVolume, Analysis]
):
    study_id, old = shown
    volume, found = chest
    world.receive("1.1", instance="2")
    new = world.finish(study_id, volume, replace(found, probability=0.1, positive=False))

    current = client.get(f"/studies/{study_id}").get_data(as_text=True)
    superseded = client.get(f"/studies/{study_id}/analyses/{old}").get_data(as_text=True)

    assert "Superseded" not in current
    assert f"/studies/{study_id}/analyses/{old}" in current
    assert f"/api/analyses/{new}/manifest" in current
    assert "Superseded" in superseded
    assert f"/api/analyses/{old}/manifest" in superseded


def test_a_result_is_to_be_replaced_while_newer_images_are_on_their_way(
    world: World, client: FlaskClient, shown: tuple[int, int]
):
    world.receive("1.1", instance="2")

    page = client.get(f"/studies/{shown[0]}").get_data(as_text=True)

    assert "made from 1 images; 2 have arrived. It will be replaced." in page


@pytest.mark.parametrize(
    ("end", "said"), [("REJECTED", "were refused"), ("FAILED", "analysis failed")]
)
def test_a_result_that_is_not_going_to_be_replaced_says_why(
    world: World, client: FlaskClient, shown: tuple[int, int], end: str, said: str
):
    world.receive("1.1", instance="2")
    if end == "REJECTED":
        world.reject(shown[0], "Two slices share a <place>.", {})
    else:
        world.fail(world.claim(shown[0]), "Two slices share a <place>.")

    page = client.get(f"/studies/{shown[0]}").get_data(as_text=True)

    assert said in page
    assert "Two slices share a &lt;place&gt;." in page
    assert "2 have arrived" in page
    assert "will be replaced" not in page


def test_a_result_that_was_never_current_is_not_called_superseded(
    world: World, client: FlaskClient, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    study_id = world.receive("1.1")
    claim = world.claim(study_id)
    world.receive("1.1", instance="2")
    early = world.finish(study_id, volume, found, claim=claim)
    world.finish(study_id, volume, found)

    old = client.get(f"/studies/{study_id}/analyses/{early}").get_data(as_text=True)
    current = client.get(f"/studies/{study_id}").get_data(as_text=True)

    assert "Made before all images had arrived" in old
    assert "uperseded:" not in old
    assert ", superseded" not in current
    assert "1 images, not all" in current


def test_a_result_is_shown_only_under_its_own_study(
    world: World, client: FlaskClient, shown: tuple[int, int]
):
    other = world.receive("1.2")

    assert client.get(f"/studies/{other}/analyses/{shown[1]}").status_code == 404


def test_a_study_without_a_result_shows_how_far_it_is(world: World, client: FlaskClient):
    study_id = world.receive("1.2")

    page = client.get(f"/studies/{study_id}").get_data(as_text=True)

    assert "Receiving" in page
    assert f'data-state="/api/studies/{study_id}"' in page
    assert client.get(f"/api/studies/{study_id}").get_json() == {
        "analysis_id": None,
        "state": "RECEIVING",
    }


def test_a_refused_study_shows_why(world: World, client: FlaskClient):
    study_id = world.receive("1.2")
    world.reject(study_id, "No series can be analysed.", {"1.2.series": "Too few slices."})

    page = client.get(f"/studies/{study_id}").get_data(as_text=True)

    assert "Refused" in page
    assert "No series can be analysed." in page
    assert "Too few slices." in page


def test_a_result_of_another_release_is_refused(tmp_path: Path):
    (tmp_path / "viewer").mkdir()
    (tmp_path / "viewer" / "viewer.json").write_text('{"schema": 99}')

    with pytest.raises(ValueError, match="schema 99"):
        open_result(tmp_path)


def test_the_patients_last_study_before_is_offered_and_nobody_elses(
    world: World, client: FlaskClient, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    somebody = PatientAttributes(patient_id="PHANTOM-0001", name="Other^Person")

    def finished(uid: str, date: str, patient: PatientAttributes = PATIENT) -> tuple[int, int]:
        dated = StudyAttributes(description="Thorax", study_date=date)
        study_id = world.receive(uid, study=dated, patient=patient)
        return study_id, world.finish(study_id, volume, found)

    _, older = finished("1.1", "20240101")
    _, wanted = finished("1.2", "20250101")
    finished("1.3", "20251231", somebody)
    finished("1.4", "")
    this, _ = finished("1.5", "20260305")
    finished("1.6", "20260401")
    world.receive("1.7", study=StudyAttributes(study_date="20260101"))

    page = client.get(f"/studies/{this}").get_data(as_text=True)
    first = client.get("/studies/1").get_data(as_text=True)

    assert f'data-manifest="/api/analyses/{wanted}/manifest"' in page
    assert f"/api/analyses/{older}/manifest" not in page
    assert "<strong>Prior 2025-01-01</strong> Phantom, Chest" in page
    assert 'id="prior"' not in first
