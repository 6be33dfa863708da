import gzip
import random
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLosslessSV1, generate_uid

from pipelines import series
from pipelines.errors import (
    GeometryError,
    NoUsableSeriesError,
    PipelineError,
    Refusal,
    Rule,
    UnreadableInputError,
)
from pipelines.series import choose_series, describe_files, load_input, study_candidates
from tests.support.ct_series import (
    compressed,
    copied,
    real,
    renamed,
    slices,
    tilted,
    turned,
    write,
)
from tests.support.phantom import small_chest


def refusals(datasets: list[Dataset], folder: Path) -> tuple[Refusal, ...]:
    """The refusals of a study without a usable series."""
    write(datasets, folder)
    with pytest.raises(NoUsableSeriesError) as caught:
        load_input(folder)
    return caught.value.refusals


def only_rule(datasets: list[Dataset], folder: Path) -> Rule:
    (refusal,) = refusals(datasets, folder)
    assert refusal.reason
    return refusal.rule


# Geometry


def test_slices_are_stacked_by_position_whatever_their_names_and_numbers(tmp_path: Path):
    made = slices()
    for number, ds in enumerate(made):
        ds.InstanceNumber = (number * 37) % 101
    write(made, tmp_path)

    volume, refused = load_input(tmp_path)

    assert refused == ()
    assert (volume.hu == small_chest().volume.hu).all()
    assert volume.sop_instance_uids == small_chest().volume.sop_instance_uids


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_prone_and_feet_first_come_out_the_same(tmp_path: Path, rows: bool, columns: bool):  # noqa: FBT001
    # Head or feet first, supine or prone: rows and columns run either way through the patient.
    write(turned(slices(), rows=rows, columns=columns), tmp_path)

    volume, _ = load_input(tmp_path)

    assert (volume.hu == small_chest().volume.hu).all()
    np.testing.assert_allclose(volume.affine, small_chest().volume.affine, atol=1e-3)


@pytest.mark.parametrize(("rows", "columns"), [(True, True), (False, True), (True, False)])
def test_a_mask_goes_back_into_the_inputs_own_array(tmp_path: Path, rows: bool, columns: bool):  # noqa: FBT001
    made = turned(slices(), rows=rows, columns=columns)
    own = np.stack([ds.pixel_array for ds in sorted(made, key=_height)]).astype(int) - 1024
    write(made, tmp_path)

    volume, _ = load_input(tmp_path)

    orientation = volume.orientation
    back = orientation.to_input(volume.hu)
    # Slices run along the normal of the slices, which a single reversed axis turns to the feet.
    assert (back == (own if rows == columns else own[::-1])).all()
    lesions = orientation.to_input(small_chest().lesions)
    assert (orientation.to_canonical(lesions) == small_chest().lesions).all()


def _height(ds: Dataset) -> float:
    return float(ds.ImagePositionPatient[2])


def test_a_missing_slice_is_refused_and_named(tmp_path: Path):
    made = slices(20)
    missing = made.pop(7)

    (refusal,) = refusals(made, tmp_path)

    assert refusal.rule is Rule.MISSING_SLICE
    assert f"image {missing.InstanceNumber + 1}" in refusal.reason
    assert refusal.series_uid == missing.SeriesInstanceUID


def test_two_phases_in_one_series_are_two_volumes(tmp_path: Path):
    late = [copied(ds, AcquisitionNumber=2) for ds in slices(20)]
    for ds in late:
        ds.RescaleIntercept = -1000
    write([*slices(20), *late], tmp_path)

    choice = choose_series(describe_files(tmp_path.iterdir()))

    assert [len(part.instances) for part in choice.candidates] == [20, 20]
    assert choice.refused == ()


# What a series is


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"BodyPartExamined": "HEAD", "ProtocolName": "", "SeriesDescription": ""}, Rule.NOT_CHEST),
        ({"RescaleType": "Z_EFF"}, Rule.UNDECODABLE),
        ({"PhotometricInterpretation": "RGB"}, Rule.UNDECODABLE),
        ({"RescaleSlope": 0}, Rule.UNDECODABLE),
    ],
)
def test_what_is_no_chest_ct_is_refused(tmp_path: Path, changes: dict[str, object], rule: Rule):
    made = [copied(ds, **changes) for ds in slices(20)]

    assert only_rule(made, tmp_path) is rule


def test_a_series_that_names_head_and_chest_is_not_refused(tmp_path: Path):
    write([copied(ds, BodyPartExamined="HEAD") for ds in slices(20)], tmp_path)

    assert load_input(tmp_path)[0].shape[0] == 20


def test_all_reasons_are_told(tmp_path: Path):
    (refusal,) = refusals(tilted(slices(6), 12), tmp_path)

    assert refusal.rule is Rule.GANTRY_TILT
    assert 'Series 2 "Synthetic chest, soft kernel" (6 images)' in refusal.reason
    assert "12.0°" in refusal.reason
    assert "fewer than the 16" in refusal.reason


def test_the_chest_series_with_the_usual_spacing_is_preferred(tmp_path: Path):
    usual = slices(40)
    thick = renamed(slices(40)[::3], SeriesNumber=1)
    unnamed = renamed(slices(40), ProtocolName="", SeriesDescription="", BodyPartExamined="ABDOMEN")
    write([*usual, *thick, *unnamed], tmp_path)

    volume, refused = load_input(tmp_path)

    assert volume.series_uid == usual[0].SeriesInstanceUID
    assert {refusal.series_uid for refusal in refused} == {
        thick[0].SeriesInstanceUID,
        unnamed[0].SeriesInstanceUID,
    }


def test_a_series_that_does_not_decode_gives_way_to_the_next(tmp_path: Path):
    broken = compressed(slices(20), JPEGLosslessSV1)
    broken[5].PixelData = broken[5].PixelData[:-2000]
    other = renamed(slices(20), SeriesNumber=9)
    write([*broken, *other], tmp_path)

    volume, refused = load_input(tmp_path)

    assert volume.series_uid == other[0].SeriesInstanceUID
    (refusal,) = refused
    assert (refusal.rule, refusal.series_uid) == (Rule.UNDECODABLE, broken[0].SeriesInstanceUID)
    assert "`appliance study remove`" in refusal.reason


def test_images_that_all_lack_an_instance_uid_are_all_used(tmp_path: Path):
    for number, ds in enumerate(slices(20)):
        ds.SOPInstanceUID = ""
        ds.preamble = bytes(128)
        ds.save_as(tmp_path / str(number), enforce_file_format=False)

    volume, _ = load_input(tmp_path)

    assert volume.shape[0] == 20


# Inputs


def test_files_that_are_not_dicom_are_passed_over(tmp_path: Path):
    write(slices(20), tmp_path / "deep" / "deeper")
    (tmp_path / "README").write_text("hello")
    (tmp_path / "DICM").write_bytes(bytes(128) + b"DICOM")

    volume, refused = load_input(tmp_path)

    assert volume.shape[0] == 20
    assert refused == ()


def test_malformed_dicom_is_reported(tmp_path: Path):
    write(slices(20), tmp_path)
    (tmp_path / "bad").write_bytes(bytes(128) + b"DICM" + b"\xff" * 100)

    _, refused = load_input(tmp_path)

    assert [refusal.rule for refusal in refused] == [Rule.UNREADABLE]


def test_nesting_without_end_is_a_malformed_file(tmp_path: Path):
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    element = b"\x40\x00\x75\x02SQ\x00\x00\xff\xff\xff\xff"
    path = write([slices(1)[0]], tmp_path)[0]
    content = path.read_bytes()
    cut = content.index(b"\x28\x00\x02\x00")
    path.write_bytes(content[:cut] + (element + item) * 20_000)

    with pytest.raises(NoUsableSeriesError, match="malformed"):
        load_input(tmp_path)


def test_an_empty_folder_holds_no_usable_series(tmp_path: Path):
    with pytest.raises(NoUsableSeriesError, match="No DICOM image"):
        load_input(tmp_path)


def test_a_path_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(UnreadableInputError, match="does not exist"):
        load_input(tmp_path / "nothing")


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_zip_is_read_and_its_names_never_become_paths(tmp_path: Path):
    paths = write(slices(20), tmp_path / "study")
    files = {f"../../escaped/{p.name}": p.read_bytes() for p in paths}
    archive = make_zip(tmp_path / "study.zip", files)

    volume, _ = load_input(archive)

    assert volume.shape[0] == 20
    assert not (tmp_path.parent / "escaped").exists()
    assert not (tmp_path / "escaped").exists()


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(series, "MAX_UNPACKED_BYTES", 2**20)
    archive = make_zip(tmp_path / "bomb.zip", {"a": bytes(2**19), "b": bytes(2**22)})

    with pytest.raises(UnreadableInputError, match="more than it should"):
        load_input(archive)


def test_a_zip_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(series, "MAX_FILES", 10)
    archive = make_zip(tmp_path / "many.zip", {str(n): b"" for n in range(11)})

    with pytest.raises(UnreadableInputError, match="more than 10 files"):
        load_input(archive)


def test_a_damaged_zip_is_said(tmp_path: Path):
    archive = make_zip(tmp_path / "study.zip", {"a": random.Random(0).randbytes(10_000)})
    content = bytearray(archive.read_bytes())
    content[3000:3100] = bytes(100)
    archive.write_bytes(content)

    with pytest.raises(UnreadableInputError, match="cannot be unpacked"):
        load_input(archive)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_end_in_a_volume_or_a_reason(tmp_path: Path, seed: int):
    chance = random.Random(seed)
    (source,) = write([compressed(slices(1), JPEGLosslessSV1)[0]], tmp_path / "source")
    content = source.read_bytes()
    header = content.index(b"\xe0\x7f\x10\x00")

    for number in range(60):
        mutated = bytearray(content)
        for _ in range(chance.randint(1, 8)):
            mutated[chance.randrange(132, header)] = chance.randrange(256)
        if chance.random() < 0.2:
            del mutated[chance.randrange(132, len(mutated)) :]
        path = tmp_path / str(number)
        path.write_bytes(mutated)
        with pytest.raises(PipelineError):
            load_input(path)


# NIfTI


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SRA", "PIL"])
def test_a_nifti_in_any_axis_order_comes_out_the_same(tmp_path: Path, axes: str):
    volume = small_chest().volume
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    lps = nib.Nifti1Image(volume.hu.transpose(2, 1, 0), ras)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(axes)
    )
    image = lps.as_reoriented(turn)
    path = tmp_path / "chest.nii.gz"
    nib.save(image, path)

    loaded, refused = load_input(path)

    assert refused == ()
    assert (loaded.hu == volume.hu).all()
    np.testing.assert_allclose(loaded.affine, volume.affine, atol=1e-3)
    assert (loaded.orientation.to_input(loaded.hu) == np.asarray(image.dataobj)).all()
    assert loaded.series_uid == "chest.nii.gz"


def save_nifti(array: np.ndarray, path: Path, *, spacing: float = 2.0) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, spacing, 1.0])), path)
    return path


def test_a_nifti_of_floats_is_rounded(tmp_path: Path):
    array = np.full((8, 8, 20), -1000.4, np.float32)
    array[0, 0, 0] = np.nan

    volume, _ = load_input(save_nifti(array, tmp_path / "a.nii"))

    assert set(np.unique(volume.hu)) == {-1000, -1024}


def test_a_nifti_with_holes_or_without_spacing_is_analysed_with_a_warning(tmp_path: Path):
    array = np.full((8, 8, 20), -1000.0, np.float32)
    whole, _ = load_input(save_nifti(array, tmp_path / "whole.nii"))
    array[0, 0, :3] = np.nan

    holes, _ = load_input(save_nifti(array, tmp_path / "holes.nii"))
    lost, _ = load_input(save_nifti(array * 0 - 1000, tmp_path / "lost.nii", spacing=1.0))

    assert whole.warnings == ()
    assert holes.warnings == ("3 voxels hold no number: they are taken for air outside the scan.",)
    assert lost.warnings[1].startswith("The file gives no spacing of its own, but voxels of 1 mm")


def test_a_nifti_without_air_is_not_in_hu(tmp_path: Path):
    array = np.arange(8 * 8 * 20, dtype=np.uint8).reshape(8, 8, 20)

    with pytest.raises(UnreadableInputError, match="is it in HU"):
        load_input(save_nifti(array, tmp_path / "a.nii"))


def test_a_nifti_without_orientation_is_refused(tmp_path: Path):
    image = nib.Nifti1Image(np.full((8, 8, 20), -1000, np.int16), None)
    nib.save(image, tmp_path / "a.nii")

    with pytest.raises(UnreadableInputError, match="left and right"):
        load_input(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("shape", "spacing", "rule"),
    [((8, 8, 20), 12.0, Rule.SPACING_OUT_OF_RANGE), ((8, 8, 5), 2.0, Rule.TOO_FEW_SLICES)],
)
def test_a_nifti_that_is_no_chest_volume_is_refused(
    tmp_path: Path, shape: tuple[int, ...], spacing: float, rule: Rule
):
    path = save_nifti(np.full(shape, -1000, np.int16), tmp_path / "a.nii", spacing=spacing)

    with pytest.raises(GeometryError) as caught:
        load_input(path)

    assert caught.value.rule is rule


def test_a_damaged_nifti_is_said(tmp_path: Path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"not a volume"))

    with pytest.raises(UnreadableInputError, match="no readable NIfTI"):
        load_input(tmp_path / "a.nii.gz")


def test_a_nifti_that_claims_a_huge_volume_is_refused_unread(tmp_path: Path):
    path = save_nifti(np.full((8, 8, 20), -1000, np.int16), tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[42:48] = b"\xff\x7f" * 3
    path.write_bytes(content)

    with pytest.raises(UnreadableInputError, match="shape"):
        load_input(path)


# Real files


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("chest_localizer", {Rule.LOCALISER}),
        ("chest_sagittal_reformat", {Rule.REFORMAT}),
        ("head_gantry_tilt", {Rule.GANTRY_TILT}),
        ("head_missing_slice", {Rule.MISSING_SLICE}),
        ("not_a_volume", {Rule.DUPLICATE_POSITION}),
        ("philips_localizer_and_summary", {Rule.LOCALISER, Rule.UNSUPPORTED_OBJECT}),
    ],
)
def test_each_bad_real_series_is_refused_for_its_fault(name: str, rules: set[Rule]):
    with pytest.raises(NoUsableSeriesError) as caught:
        load_input(real(f"dicom/{name}"))

    assert {refusal.rule for refusal in caught.value.refusals} == rules


def test_the_real_chest_is_found_among_what_a_pacs_sends_with_it(tmp_path: Path):
    report = slices(1)[0]
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    report.Modality = "SR"
    report.SeriesInstanceUID = generate_uid()
    paths = write([report], tmp_path)
    names = ("chest_covid_P002", "chest_localizer", "chest_sagittal_reformat")
    for name in names:
        paths += real(f"dicom/{name}").iterdir()
    random.Random(0).shuffle(paths)

    volume, refused = next(study_candidates(paths))

    assert volume.shape == (133, 512, 512)
    assert volume.spacing == pytest.approx((2.0, 0.6035, 0.6035), abs=1e-3)
    assert (volume.instance_numbers[0], volume.instance_numbers[-1]) == (133, 1)
    assert {refusal.rule for refusal in refused} == {Rule.LOCALISER, Rule.REFORMAT, Rule.NOT_CT}


def test_the_real_chest_has_simpleitks_values():
    sitk = pytest.importorskip("SimpleITK")
    folder = real("dicom/chest_covid_P002")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    expected = reader.Execute()

    volume, _ = load_input(folder)

    assert (volume.hu == sitk.GetArrayFromImage(expected)).all()
    np.testing.assert_allclose(volume.affine[:3, 3], expected.GetOrigin(), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "covidctmd_covid_P001",
        "covidctmd_cap_cap001",
        "covidctmd_normal_normal001",
        "lidc_0001_noncovid",
    ],
)
def test_each_real_nifti_volume_is_read(name: str):
    volume, _ = load_input(real(f"volumes/{name}.nii.gz"))

    assert volume.orientation.flipped == (False, False, False)
    assert volume.hu.min() == -1024
