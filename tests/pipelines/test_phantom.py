import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipelines import phantom
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG
from pipelines.phantom import Kind
from pipelines.series import load_input
from tests.support.phantom import small_chest


def test_tissues_have_the_attenuation_of_patients():
    chest = small_chest()
    hu, lungs, lesions = chest.volume.hu, chest.lungs, chest.lesions

    assert -900 < np.median(hu[(lungs > 0) & (lesions == 0)]) < -800
    assert np.mean(hu[0] < -950) > 0.2  # air around the patient
    assert hu.max() > 300  # bone
    for number, opacity in enumerate(chest.opacities, start=1):
        mean = hu[lesions == number].mean()
        if opacity.kind is Kind.GROUND_GLASS:
            assert -700 < mean < -400
        else:
            assert -150 < mean < 60


def test_lungs_hold_what_an_adults_lungs_hold():
    chest = small_chest()

    for label in (RIGHT_LUNG, LEFT_LUNG):
        assert 2000 < (chest.lungs == label).sum() * chest.volume.voxel_ml < 4000


def test_left_and_right_differ():
    chest = small_chest()
    x = np.arange(chest.volume.shape[2])
    middle = chest.volume.shape[2] / 2

    right_x = np.average(x, weights=(chest.lungs == RIGHT_LUNG).sum(axis=(0, 1)))
    left_x = np.average(x, weights=(chest.lungs == LEFT_LUNG).sum(axis=(0, 1)))

    assert right_x < middle < left_x
    assert (chest.lungs == RIGHT_LUNG).sum() > 1.04 * (chest.lungs == LEFT_LUNG).sum()
    assert chest.lesions[:, :, : int(middle)].astype(bool).sum() > 1.5 * (
        chest.lesions[:, :, int(middle) :].astype(bool).sum()
    )


def test_dependent_lung_is_denser():
    chest = small_chest()
    healthy = np.where((chest.lungs > 0) & (chest.lesions == 0), chest.volume.hu, np.nan)
    half = chest.volume.shape[1] // 2

    assert np.nanmedian(healthy[:, half:]) - np.nanmedian(healthy[:, :half]) > 20


def test_lesions_lie_in_the_lungs():
    chest = small_chest()

    assert (chest.lungs[chest.lesions > 0] > 0).all()
    assert set(np.unique(chest.lesions)) == set(range(len(chest.opacities) + 1))


def test_the_same_seed_makes_the_same_chest():
    again = phantom.small_chest()
    other = phantom.small_chest(seed=1)

    assert (again.volume.hu == small_chest().volume.hu).all()
    assert again.volume.series_uid == small_chest().volume.series_uid
    assert (other.volume.hu != again.volume.hu).any()
    assert other.study_uid != again.study_uid


def test_a_healthy_chest_has_no_lesions():
    chest = phantom.small_chest(opacities=())

    assert not chest.lesions.any()


def test_its_files_are_read_back_voxel_for_voxel(tmp_path: Path):
    chest = small_chest()

    phantom.write_dicom(chest, tmp_path)
    volume, refused = load_input(tmp_path)

    assert refused == ()
    assert (volume.hu == chest.volume.hu).all()
    np.testing.assert_allclose(volume.affine, chest.volume.affine, atol=1e-3)
    assert volume.sop_instance_uids == chest.volume.sop_instance_uids
    assert volume.instance_numbers == chest.volume.instance_numbers


@pytest.mark.parametrize("keyword", ["PatientName", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_its_files_say_what_a_scanner_would(tmp_path: Path, keyword: str):
    paths = phantom.write_dicom(small_chest(), tmp_path)

    ds = pydicom.dcmread(paths[0])

    assert ds[keyword].value
    assert ds.SOPClassUID.name == "CT Image Storage"
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_dciodvfy_finds_no_error_in_a_slice(tmp_path):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dicom3tools' dciodvfy is not installed")
    path = phantom.write_dicom(small_chest(), tmp_path)[48]

    done = subprocess.run([program, path], capture_output=True, text=True, check=False)

    # Its exit status alone does not tell: errors are lines.
    assert "CTImage" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []
