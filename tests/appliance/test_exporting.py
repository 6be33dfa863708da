import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import BasicTextSRStorage, DeflatedExplicitVRLittleEndian

from appliance import collection, exporting
from appliance.errors import SourceError
from appliance.exporting import Exported
from pipelines.series import MIN_SLICES, load_input
from tests.support import ct_series, identified
from tests.support.ct_series import real
from tests.support.instances import Names, as_file, ct_instance

KEY = b"k" * 32
SECRET = "QZSCHMIDTOVA"


def export(source: Path, out: Path, scratch: Path) -> Exported:
    scratch.mkdir(exist_ok=True)
    collected = collection.collect(source, scratch=scratch)
    return exporting.export(collected.instances, out, KEY)


def exported_files(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.is_file())


def test_a_series_full_of_names_leaves_without_them_and_loads_as_before(tmp_path: Path):
    """Text in every attribute that can hold any, at the top and in items, and in file names."""
    series = ct_series.slices(MIN_SLICES)
    ct_series.write(series, tmp_path / "before")
    before, _ = load_input(tmp_path / "before")
    source = tmp_path / SECRET / f"{SECRET}^ANNA"
    source.mkdir(parents=True)
    places = list(identified.PLACES)
    assert len(places) > 2000
    for number, ds in enumerate(series):
        ds.PatientID = SECRET
        identified.plant(ds, places, SECRET.encode())
        identified.plant_deep(ds, places, SECRET.encode(), depth=1)
        identified.plant_privately(ds, SECRET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the test means to write nonsense
            ds.save_as(source / f"{SECRET}-{number}.dcm", enforce_file_format=True)

    exported = export(tmp_path / SECRET, tmp_path / "out", tmp_path / "scratch")

    assert exported == Exported(len(series), ())
    paths = exported_files(tmp_path / "out")
    assert len(paths) == len(series)
    assert not any(SECRET in str(path.relative_to(tmp_path)) for path in paths)
    assert not any(SECRET.encode() in path.read_bytes() for path in paths)
    uids = {uid for ds in series for uid in (ds.StudyInstanceUID, ds.SeriesInstanceUID)}
    uids |= {ds.SOPInstanceUID for ds in series[::9]} | {series[0].FrameOfReferenceUID}
    assert not any(uid.encode() in path.read_bytes() for path in paths for uid in uids)
    after, _ = load_input(tmp_path / "out")
    assert np.array_equal(after.hu, before.hu)
    assert np.allclose(after.affine, before.affine, atol=1e-9)
    first = pydicom.dcmread(paths[0])
    assert paths[0].stem == first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID
    assert paths[0].parent.name == first.SeriesInstanceUID
    assert paths[0].parent.parent.name == first.StudyInstanceUID


def test_what_must_not_leave_is_told_and_the_rest_leaves(tmp_path: Path):
    names = Names.fresh()
    (tmp_path / "in").mkdir()
    as_file(ct_instance(names), tmp_path / "in/image")
    as_file(ct_instance(names, SOPClassUID=BasicTextSRStorage), tmp_path / "in/report")

    exported = export(tmp_path / "in", tmp_path / "out", tmp_path / "scratch")

    assert exported.written == 1
    ((path, reason),) = exported.left_out
    assert path.name == "report"
    assert "do not leave: Basic Text SR" in reason


def test_nothing_is_written_where_nothing_may_leave(tmp_path: Path):
    (tmp_path / "in").mkdir()
    report = ct_instance(Names.fresh(), SOPClassUID=BasicTextSRStorage)
    as_file(report, tmp_path / "in/report")

    exported = export(tmp_path / "in", tmp_path / "out", tmp_path / "scratch")

    assert exported.written == 0
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "scratch"}


def test_an_image_that_names_nobody_is_the_studys_patients(tmp_path: Path):
    names = Names.fresh()
    (tmp_path / "in").mkdir()
    as_file(ct_instance(names), tmp_path / "in/named")
    as_file(ct_instance(names, PatientID="", PatientName=""), tmp_path / "in/nameless")

    export(tmp_path / "in", tmp_path / "out", tmp_path / "scratch")

    pseudonyms = {pydicom.dcmread(path).PatientID for path in exported_files(tmp_path / "out")}
    assert len(pseudonyms) == 1


def test_a_folder_in_use_is_not_written_to(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")

    with pytest.raises(SourceError, match="holds something"):
        exporting.export([], tmp_path / "out", KEY)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(SourceError, match="file/out cannot be written: File exists"):
        exporting.export([], tmp_path / "file/out", KEY)


def test_an_image_with_two_study_uids_is_left_out_and_the_rest_leaves(tmp_path: Path):
    names = Names.fresh()
    (tmp_path / "in").mkdir()
    as_file(ct_instance(names), tmp_path / "in/one")
    as_file(ct_instance(names, StudyInstanceUID=["1.2.3", "1.2.4"]), tmp_path / "in/two")

    exported = export(tmp_path / "in", tmp_path / "out", tmp_path / "scratch")

    assert exported.written == 1
    ((place, reason),) = exported.left_out
    assert (place.name, reason) == ("two", "StudyInstanceUID has several values")


def test_two_images_under_one_uid_are_not_mixed_up(tmp_path: Path):
    names = Names.fresh()
    (tmp_path / "in").mkdir()
    for number in range(2):
        ds = ct_instance(names, SOPInstanceUID="1.2.3", InstanceNumber=number)
        as_file(ds, tmp_path / f"in/{number}")

    exported = export(tmp_path / "in", tmp_path / "out", tmp_path / "scratch")

    assert exported.written == 1
    assert "another file" in exported.left_out[0][1]


def test_a_deflated_data_set_that_never_ends_is_left_out(tmp_path: Path, monkeypatch):
    (ds,) = ct_series.slices(1)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in/a", enforce_file_format=True)
    whole = export(tmp_path / "in", tmp_path / "out", tmp_path / "scratch")
    monkeypatch.setattr(exporting, "INFLATED_LIMIT_BYTES", 1000)

    cut = export(tmp_path / "in", tmp_path / "other", tmp_path / "scratch")

    assert whole.written == 1
    assert "far too large" in cut.left_out[0][1]


def test_the_real_study_leaves_and_loads_as_before(tmp_path: Path):
    source = real("dicom/chest_covid_P002")
    before, _ = load_input(source)

    exported = export(source, tmp_path / "out", tmp_path / "scratch")

    assert exported == Exported(133, ())
    after, _ = load_input(tmp_path / "out")
    assert np.array_equal(after.hu, before.hu)
    assert np.allclose(after.affine, before.affine, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "written", "left_out"),
    [
        ("chest_localizer", 1, 0),
        ("chest_sagittal_reformat", 20, 0),
        ("head_gantry_tilt", 4, 0),
        ("head_missing_slice", 4, 0),
        ("not_a_volume", 4, 0),
        ("philips_localizer_and_summary", 4, 3),  # its three sheets of text stay
    ],
)
def test_other_real_series_leave_with_their_pixels(
    tmp_path: Path, name: str, written: int, left_out: int
):
    source = real(f"dicom/{name}")

    exported = export(source, tmp_path / "out", tmp_path / "scratch")

    assert (exported.written, len(exported.left_out)) == (written, left_out), exported.left_out
    kept = {pydicom.dcmread(p).pixel_array.tobytes() for p in exported_files(tmp_path / "out")}
    originals = {pydicom.dcmread(p).pixel_array.tobytes() for p in source.iterdir()}
    assert kept <= originals


UNDECODABLE = ("1.2.4.51", "1.2.4.53", "1.2.4.55")


@pytest.mark.parametrize("number", range(16))
def test_a_real_slice_leaves_from_every_transfer_syntax_that_decodes(tmp_path: Path, number: int):
    source = sorted(real("dicom/one_chest_slice_in_many_transfer_syntaxes").iterdir())[number]
    decodes = not source.stem.endswith(UNDECODABLE)

    exported = export(source, tmp_path / "out", tmp_path / "scratch")

    assert exported.written == int(decodes)
    if decodes:
        (path,) = exported_files(tmp_path / "out")
        kept = pydicom.dcmread(path).pixel_array
        assert np.array_equal(kept, pydicom.dcmread(source).pixel_array)
    else:
        assert "cannot be decoded" in exported.left_out[0][1]


def missing_attributes(path: Path) -> set[str]:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dicom3tools' dciodvfy is not installed")
    told = subprocess.run(
        [program, path], capture_output=True, text=True, check=False, timeout=60, errors="replace"
    )
    return {line for line in told.stderr.splitlines() if line.startswith("Error - Missing")}


@pytest.mark.parametrize(
    "name",
    [
        "dicom/philips_localizer_and_summary/S1000_I10.dcm",
        "dicom/chest_sagittal_reformat/1-001.dcm",
        "dicom/one_chest_slice_in_many_transfer_syntaxes/CTImage.dcm",
        "dicom/head_gantry_tilt/IM-0001-0001.dcm",
    ],
)
def test_no_required_attribute_goes(tmp_path: Path, name: str):
    source = real(name)

    export(source, tmp_path / "out", tmp_path / "scratch")

    (path,) = exported_files(tmp_path / "out")
    assert missing_attributes(path) <= missing_attributes(source)
