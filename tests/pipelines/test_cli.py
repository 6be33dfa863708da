"""`appliance analyse`, `phantom` and `train` as a person types them."""

import errno
import json
import os
import shutil
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pydicom import dcmread

from pipelines import cli
from pipelines.training.recipe import TrainingConfig
from pipelines.training.select import Evaluation
from tests.support import ct_series
from tests.support.tiny_models import write_models, write_opinion_models


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path / "weights")


def run(*arguments: object) -> tuple[int, str]:
    command, *rest = arguments
    result = CliRunner().invoke(getattr(cli, str(command)), [str(a) for a in rest])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception  # what a person would see as a traceback
    return result.exit_code, result.output


def test_a_dicom_folder_is_analysed_into_four_files(tmp_path, models):
    source = tmp_path / "study"
    ct_series.write(ct_series.slices(24), source)

    code, output = run(
        "analyse", source, "--out", tmp_path / "out", "--engine", "torch", "--weights", models
    )

    assert code == 0, output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "analysis.json",
        "contact_sheet.png",
        "lesions.nii.gz",
        "lungs.nii.gz",
    ]
    written = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert written["shape"] == [24, 128, 128]
    assert len(set(written["sop_instance_uids"])) == 24
    assert set(written["timings_s"]) == {"lungs", "lesions", "screening"}
    assert written["burden"]["grade"].startswith("CT-")
    assert (written["second_opinion"], written["heat_maps"]) == (None, [])
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 300


def test_a_second_opinion_and_heat_maps_come_when_they_are_asked_for(tmp_path, models):
    source = tmp_path / "study"
    ct_series.write(ct_series.slices(24), source)
    write_opinion_models(models)

    code, output = run(
        "analyse", source, "--out", tmp_path / "out", "--engine", "torch", "--weights", models,
        "--second-opinion", "--heat-map",
    )  # fmt: skip

    assert code == 0, output
    assert "second opinion, not validated: " in output
    written = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert sum(written["second_opinion"]["probabilities"].values()) == pytest.approx(1)
    purposes = {model["purpose"] for model in written["models"]}
    assert purposes >= {"lungs", "lesions", "screening", "pneumonia"}
    assert ("severity" in purposes) == (written["second_opinion"]["severity"] is not None)
    assert list(written["timings_s"])[3:] == ["second opinion", "heat map"]
    assert [heat_map["purpose"] for heat_map in written["heat_maps"]] == ["screening", "pneumonia"]
    for name in ("heatmap.nii.gz", "heatmap_pneumonia.nii.gz"):
        heat, lungs = (nib.load(tmp_path / "out" / n) for n in (name, "lungs.nii.gz"))
        np.testing.assert_allclose(heat.affine, lungs.affine)
        assert heat.shape == lungs.shape


def test_a_second_opinion_without_its_model_says_so(tmp_path, models):
    source = tmp_path / "study"
    ct_series.write(ct_series.slices(24), source)

    code, output = run(
        "analyse", source, "--out", tmp_path / "out", "--weights", models, "--second-opinion"
    )

    assert code == 1
    assert f"The second opinion needs a model in {models / 'pneumonia'}" in output
    assert "analysis.second_opinion = false" in output


def test_masks_of_a_nifti_lie_in_its_own_geometry(tmp_path, models):
    volume = ct_series.small_chest().volume
    # An axis order and directions of its own: (y, z, x), head to foot.
    array = volume.hu[30:60].transpose(1, 0, 2)[:, ::-1]
    dz, dy, dx = volume.spacing[0], volume.spacing[1], volume.spacing[2]
    affine = np.array([[0, 0, -dx, 5], [-dy, 0, 0, 7], [0, -dz, 0, 9], [0, 0, 0, 1.0]])
    source = tmp_path / "chest.nii.gz"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), source)

    code, output = run(
        "analyse", source, "--out", tmp_path / "out", "--engine", "torch", "--weights", models
    )

    assert code == 0, output
    lungs = nib.load(tmp_path / "out" / "lungs.nii.gz")
    assert lungs.shape == array.shape
    np.testing.assert_allclose(lungs.affine, affine)


class DicomWriter:
    """What the entry point `dicom` would load in an installation of this release."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[dict[str, str]] = []
        # Of the command alone: torch looks for entry points too.
        monkeypatch.setattr(cli, "metadata", SimpleNamespace(entry_points=self._entry_points))

    def _entry_points(self, **asked: str) -> list[metadata.EntryPoint]:
        self.asked.append(asked)
        return [metadata.EntryPoint("dicom", "dicom_node.cli:write_dicom", asked["group"])]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_study_comes_back_as_dicom_objects(tmp_path, models, monkeypatch, kind):
    writer = DicomWriter(monkeypatch)
    monkeypatch.setenv("APPLIANCE_SETTINGS", str(tmp_path / "settings.toml"))
    (tmp_path / "settings.toml").write_text('[dicom]\nserial_number = "box 7"\n')
    source = tmp_path / "study"
    ct_series.write(ct_series.slices(24), source)
    if kind == "zip":
        source = Path(shutil.make_archive(str(source), "zip", source))

    code, output = run(
        "analyse", source, "--out", tmp_path / "out", "--engine", "torch", "--weights", models,
        "--dicom",
    )  # fmt: skip

    assert code == 0, output
    assert writer.asked == [{"group": "appliance.outputs", "name": "dicom"}]
    made = [dcmread(path) for path in sorted((tmp_path / "out" / "dicom").iterdir())]
    assert [ds.Modality for ds in made][:2] == ["SEG", "SR"]
    assert {ds.Modality for ds in made} == {"SEG", "SR", "OT", "DOC"}
    assert {ds.DeviceSerialNumber for ds in made} == {"box 7"}


def test_a_nifti_file_cannot_become_dicom_objects(tmp_path, models, monkeypatch):
    writer = DicomWriter(monkeypatch)
    (tmp_path / "chest.nii.gz").write_bytes(b"")

    code, output = run(
        "analyse", tmp_path / "chest.nii.gz", "--out", tmp_path / "out", "--dicom",
        "--weights", models,
    )  # fmt: skip

    assert code == 1
    assert output.splitlines() == [
        "Error: --dicom needs DICOM images: a NIfTI file names no patient and no study."
    ]
    assert writer.asked == []
    assert not (tmp_path / "out").exists()


def test_an_installation_without_a_writer_says_so(tmp_path, models, monkeypatch):
    monkeypatch.setattr(cli, "metadata", SimpleNamespace(entry_points=lambda **_asked: []))
    ct_series.write(ct_series.slices(5), tmp_path / "study")

    code, output = run(
        "analyse", tmp_path / "study", "--out", tmp_path / "out", "--dicom", "--weights", models
    )

    assert code == 1
    assert "install the appliance again" in output


def test_an_unusable_study_ends_in_one_sentence(tmp_path, models):
    source = tmp_path / "study"
    ct_series.write(ct_series.slices(5), source)

    code, output = run("analyse", source, "--out", tmp_path / "out", "--weights", models)

    assert code == 1
    assert output.splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "out").exists()


def test_an_input_without_an_image_is_named(tmp_path, models):
    source = tmp_path / "study"
    source.mkdir()
    (source / "picture.jpg").write_bytes(b"jpeg")

    code, output = run("analyse", source, "--out", tmp_path / "out", "--weights", models)

    assert code == 1
    assert f"Error: {source} holds no DICOM image: give a folder" in output


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_folder(number):
    told = cli.told_of(OSError(number, os.strerror(number)), Path("/results"))

    assert told == "There was no room for /results: make some and start again."
    assert cli.told_of(PermissionError(13, "Permission denied", "x"), Path()).endswith(": 'x'")


def test_every_key_of_a_training_and_of_a_comparison_can_be_printed():
    code, keys = run("train", "--keys")
    also, comparison = run("select", "--keys")

    assert (code, also) == (0, 0)
    for field in fields(TrainingConfig):
        assert f"\n{field.name}: " in f"\n{keys}", field.name
    assert "momentum: a number from 0 to below 1; 0.9 if left out\n    Of `Optim" in keys
    for field in fields(Evaluation):
        assert f"    {field.name} = " in comparison, field.name


def test_a_result_is_never_written_over(tmp_path, models):
    source = tmp_path / "study"
    ct_series.write(ct_series.slices(24), source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")

    code, output = run(
        "analyse", source, "--out", tmp_path / "out", "--engine", "torch", "--weights", models
    )

    assert code == 1
    assert "exists already and is not empty" in output


def test_the_small_phantom_is_written_as_a_series(tmp_path):
    code, output = run("phantom", tmp_path / "chest", "--small")

    assert code == 0
    assert len(list((tmp_path / "chest").iterdir())) == 96
    assert "96 slices" in output


def test_training_without_its_data_says_what_is_missing(tmp_path):
    shipped = Path(__file__).parents[2] / "weights" / "lungs" / "training.toml"
    config = tmp_path / "training.toml"
    config.write_text(shipped.read_text())

    code, output = run("train", config, "--sets", tmp_path, "--work", tmp_path / "work")

    assert code == 1
    assert "holds no covid-volumes.json, lung-slices.json, whole-volumes.json." in output
    assert "`appliance prepare`" in output
