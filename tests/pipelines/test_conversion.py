"""A NIfTI volume as a CT series: the same voxels to the pipeline, and a header that says so."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from pipelines.conversion import ANONYMOUS, Person, convert
from pipelines.errors import GeometryError, UnreadableInputError
from pipelines.series import load_input, load_nifti
from tests.support import ct_series, validators

TURNED = (
    np.diag([1.0, 1, 1]),
    np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]]),  # slices first, as some tools write them
    np.array([[0.9998, -0.0175, 0], [0.0175, 0.9998, 0], [0, 0, -1]]),  # oblique, feet last
)


def nifti(path: Path, turn: np.ndarray, *, shape: tuple[int, int, int] = (40, 36, 32)) -> Path:
    """A box of HU with a denser corner, so that no flip looks like another."""
    hu = np.full(shape, -1000, np.int16)
    hu[5:20, 7:30, 3:12] = np.arange(15)[:, None, None] * 7 - 500
    spacing = np.diag([0.9, 0.8, 1.7])
    affine = np.eye(4)
    affine[:3, :3] = (
        turn @ spacing if abs(turn[0, 0]) > 0.5 else spacing[[2, 0, 1]][:, [2, 0, 1]] @ turn
    )
    affine[:3, 3] = (-12.5, 33.25, -140.125)
    nib.save(nib.Nifti1Image(hu, affine), path)
    return path


@pytest.mark.parametrize("turn", TURNED)
def test_the_loader_sees_the_same_voxels_at_the_same_places(turn, tmp_path):
    source = nifti(tmp_path / "volume.nii.gz", turn)
    folder = tmp_path / "series"
    folder.mkdir()

    convert(source, folder, Person())

    wanted, (got, refused) = load_nifti(source), load_input(folder)
    assert refused == ()
    assert np.array_equal(got.hu, wanted.hu)
    assert np.allclose(got.affine, wanted.affine, rtol=0, atol=1e-3)


def test_a_real_volume_comes_through_voxel_by_voxel(tmp_path):
    source = ct_series.real("volumes/covidctmd_normal_normal001.nii.gz")
    folder = tmp_path / "series"
    folder.mkdir()

    convert(source, folder, Person())

    wanted, (got, refused) = load_nifti(source), load_input(folder)
    assert refused == ()
    assert np.array_equal(got.hu, wanted.hu)
    assert np.allclose(got.affine, wanted.affine, rtol=0, atol=1e-3)
    assert got.spacing == pytest.approx(wanted.spacing, abs=1e-4)


def test_the_header_says_that_it_was_converted_and_of_whom(tmp_path):
    source = nifti(tmp_path / "DOE_JANE.nii", TURNED[0])
    person = Person(name="王^小东", patient_id="P-7", study_date="20260105")

    path, *_ = convert(source, tmp_path, person)

    ds = dcmread(path)
    assert (str(ds.PatientName), ds.PatientID, ds.StudyDate) == ("王^小东", "P-7", "20260105")
    assert ds.ConversionType == "WSD"
    assert ds.ImageType[0] == "DERIVED"
    assert ds.DerivationDescription.startswith("Converted from a NIfTI volume")
    assert "DOE" not in str(ds)
    assert validators.dciodvfy_errors(path) == []
    assert all(
        str(ds[name].value).startswith("2.25.") for name in ("StudyInstanceUID", "SOPInstanceUID")
    )


def test_the_same_volume_of_the_same_person_is_the_same_series(tmp_path):
    source = nifti(tmp_path / "volume.nii", TURNED[0])
    made = {}
    for name, person in {
        "one": Person(),
        "again": Person(),
        "other": Person(patient_id="7"),
    }.items():
        (tmp_path / name).mkdir()
        made[name] = [path.read_bytes() for path in convert(source, tmp_path / name, person)]

    assert made["one"] == made["again"]
    assert not set(made["one"]) & set(made["other"])


def test_without_a_number_two_volumes_are_two_people(tmp_path):
    patients = set()
    for number, shape in enumerate([(40, 36, 32), (40, 36, 34)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = nifti(folder / "volume.nii", TURNED[0], shape=shape)
        ds = dcmread(convert(source, folder, Person())[0])
        assert str(ds.PatientName) == ANONYMOUS
        patients.add(ds.PatientID)

    assert len(patients) == 2


def test_what_is_no_chest_ct_in_hu_is_refused(tmp_path):
    grey = nib.Nifti1Image(np.full((40, 40, 40), 200, np.int16), np.eye(4))
    flat = nib.Nifti1Image(np.full((40, 40, 3), -1000, np.int16), np.eye(4))
    for image, error in ((grey, UnreadableInputError), (flat, GeometryError)):
        nib.save(image, tmp_path / "volume.nii")
        with pytest.raises(error):
            convert(tmp_path / "volume.nii", tmp_path, Person())
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(UnreadableInputError):
        convert(tmp_path / "text.nii", tmp_path, Person())
    assert not list(tmp_path.glob("*.dcm"))
