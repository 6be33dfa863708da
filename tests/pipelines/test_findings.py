import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines.errors import Refusal, ResultError, Rule
from pipelines.findings import (
    Analysis,
    Flaw,
    HeatMap,
    Lesion,
    LungMeasures,
    ModelRef,
    Quality,
    SecondOpinion,
    Side,
    whole_folder,
)
from pipelines.severity import measure_burden
from pipelines.volume import Affine, CTVolume

SHAPE = (3, 4, 5)


def make_volume(affine: Affine | None = None) -> CTVolume:
    array = np.zeros(SHAPE, np.int16)
    return CTVolume.from_input(
        array, np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]] if affine is None else affine,
        series_uid="1.2.3",
    )  # fmt: skip


def make_analysis(volume: CTVolume) -> Analysis:
    lungs = np.zeros(volume.shape, np.uint8)
    lungs[1, 1:3, 0] = 1
    lungs[1, 1:3, 2] = 2
    lesions = np.zeros(volume.shape, np.uint16)
    lesions[1, 1, 2] = 1
    lesion = Lesion(
        id=1, volume_ml=0.002, diameter_mm=1.0, mean_hu=-500.0, side=Side.LEFT, first_slice=1,
        last_slice=1, key_slice=1, centroid=(1.0, 1.0, 2.0), bbox=((1, 1, 2), (2, 2, 3)),
        lung_share=0.25, probability=None,
    )  # fmt: skip
    return Analysis(
        series_uid=volume.series_uid,
        shape=volume.shape,
        spacing=volume.spacing,
        affine=volume.affine,
        lungs=LungMeasures(left_ml=0.004, right_ml=0.004),
        lesions=(lesion,),
        probability=0.7,
        positive=True,
        threshold=0.5,
        models=(ModelRef("lesions", "net", "1", "ab" * 32),),
        engine="torch fp32",
        timings_s={"lungs": 0.5},
        warnings=("Careful.",),
        refused_series=(Refusal("1.2.4", Rule.LOCALISER, "Series 1 is a localiser."),),
        lung_mask=lungs,
        lesion_labels=lesions,
        quality=Quality(
            metal_ml=None, motion_mm=1.5, motion_steps=2, noise_hu=12.5,
            body_cut=0.25, lungs_cut_cm2=0.0, flaws=(Flaw.MOTION,),
        ),
        burden=measure_burden(lungs, lesions, 0.002),
        second_opinion=SecondOpinion(
            probabilities={"healthy": 0.25, "COVID-19": 0.75}, most_likely="COVID-19",
            severity="II", validated=False,
        ),
        heat_maps=(
            HeatMap("screening", "COVID-likeness", 0.5, np.where(lesions > 0, 255, 0).astype("u1")),
            HeatMap("pneumonia", "COVID-19", None, np.zeros(volume.shape, np.uint8)),
        ),
        sop_instance_uids=("1.2.3.1", "1.2.3.2", "1.2.3.3"),
    )  # fmt: skip


def test_an_analysis_comes_back_as_it_was_saved(tmp_path: Path):
    volume = make_volume()
    analysis = make_analysis(volume)

    analysis.save(tmp_path / "result", volume)
    loaded = Analysis.load(tmp_path / "result")

    assert loaded.summary() == analysis.summary()
    assert loaded.lesions == analysis.lesions
    assert loaded.refused_series == analysis.refused_series
    assert loaded.quality == analysis.quality
    assert loaded.burden == analysis.burden
    assert loaded.second_opinion == analysis.second_opinion
    for kept, made in zip(loaded.heat_maps, analysis.heat_maps, strict=True):
        assert (kept.heat == made.heat).all()
        assert (kept.purpose, kept.lesion_share) == (made.purpose, made.lesion_share)
    assert (loaded.lung_mask == analysis.lung_mask).all()
    assert (loaded.lesion_labels == analysis.lesion_labels).all()
    assert loaded.lesion_labels.dtype == np.uint16


def test_masks_lie_in_the_inputs_own_array(tmp_path: Path):
    # Array axes: (x from the left, z from the head, y from the back).
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = -1.5, -2.0, -1.0, 1.0
    volume = make_volume(affine)
    analysis = make_analysis(volume)

    analysis.save(tmp_path / "result", volume)
    saved = nib.load(tmp_path / "result" / "lesions.nii.gz")

    assert saved.shape == SHAPE
    np.testing.assert_allclose(saved.affine, np.diag([-1, -1, 1, 1]) @ affine)
    index = np.argwhere(np.asarray(saved.dataobj))[0]
    np.testing.assert_allclose(affine @ (*index, 1), volume.affine @ (2, 1, 1, 1))
    assert (Analysis.load(tmp_path / "result").lung_mask == analysis.lung_mask).all()


def test_the_same_analysis_makes_the_same_bytes(tmp_path: Path):
    volume = make_volume()

    for name in ("a", "b"):
        make_analysis(volume).save(tmp_path / name, volume)

    for file in ("analysis.json", "lungs.nii.gz", "lesions.nii.gz", "heatmap.nii.gz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_result_is_never_written_over_another(tmp_path: Path):
    volume = make_volume()
    make_analysis(volume).save(tmp_path / "result", volume)

    with pytest.raises(ResultError, match="exists already"):
        make_analysis(volume).save(tmp_path / "result", volume)


def test_a_folder_that_fails_half_way_never_appears(tmp_path: Path):
    def fail_half_way() -> None:
        with whole_folder(tmp_path / "result") as staging:
            (staging / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()

    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_are_not_written(tmp_path: Path):
    volume = make_volume()
    analysis = replace(make_analysis(volume), probability=float("nan"))

    with pytest.raises(ValueError, match="JSON"):
        analysis.save(tmp_path / "result", volume)


def test_another_schema_is_not_read(tmp_path: Path):
    volume = make_volume()
    make_analysis(volume).save(tmp_path / "result", volume)
    path = tmp_path / "result" / "analysis.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))

    with pytest.raises(ResultError, match="schema"):
        Analysis.load(tmp_path / "result")


def test_a_result_from_before_quality_and_burden_were_measured_is_read(tmp_path: Path):
    volume = make_volume()
    make_analysis(volume).save(tmp_path / "result", volume)
    path = tmp_path / "result" / "analysis.json"
    older = json.loads(path.read_text())
    later = ("quality", "burden", "second_opinion", "heat_maps")
    path.write_text(json.dumps({k: v for k, v in older.items() if k not in later}))

    loaded = Analysis.load(tmp_path / "result")

    assert (loaded.quality, loaded.burden, loaded.second_opinion) == (None, None, None)
    assert loaded.heat_maps == ()
    assert loaded.warnings == ("Careful.",)


def test_a_missing_mask_is_said(tmp_path: Path):
    volume = make_volume()
    make_analysis(volume).save(tmp_path / "result", volume)
    (tmp_path / "result" / "lungs.nii.gz").unlink()

    with pytest.raises(ResultError, match="no readable analysis"):
        Analysis.load(tmp_path / "result")
