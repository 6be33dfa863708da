import zipfile
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from appliance import collection
from appliance.errors import SourceError
from tests.support.instances import Names, as_file, ct_instance, dataset_bytes


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    (folder / "deep/er").mkdir(parents=True)
    return folder


def test_a_folder_is_searched_to_its_depths_in_the_order_of_names(folder: Path, scratch: Path):
    names = Names.fresh()
    for number, place in enumerate(["deep/er/2.dcm", "1", "deep/3.ima"]):
        as_file(ct_instance(names, SOPInstanceUID=f"1.2.{number}"), folder / place)

    collected = collection.collect(folder, scratch=scratch)

    assert [found.path.name for found in collected.instances] == ["1", "3.ima", "2.dcm"]
    assert not any(scratch.iterdir())  # nothing had to be changed


def test_a_file_keeps_its_transfer_syntax(folder: Path, scratch: Path):
    ds = ct_instance(Names.fresh())
    path = as_file(ds, folder / "a.dcm", ImplicitVRLittleEndian)

    (found,) = collection.collect(path, scratch=scratch).instances

    assert found == collection.InstanceFile(
        path, CTImageStorage, ds.SOPInstanceUID, ImplicitVRLittleEndian
    )


def test_what_is_no_instance_is_skipped_with_the_reason(folder: Path, scratch: Path):
    (folder / "README.txt").write_text("hello")
    (folder / "empty").write_bytes(b"")
    (folder / "cut").write_bytes(bytes(128) + b"DICM\x02\x00")
    as_file(ct_instance(Names.fresh(), StudyInstanceUID=""), folder / "nostudy")
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = MediaStorageDirectoryStorage, "1.2.3"
    as_file(directory, folder / "DICOMDIR")

    collected = collection.collect(folder, scratch=scratch)

    assert collected.instances == ()
    assert {(path.name, reason) for path, reason in collected.skipped} == {
        ("README.txt", "no DICOM file"),
        ("empty", "no DICOM file"),
        ("cut", "the file does not name its transfer syntax"),
        ("nostudy", "StudyInstanceUID is missing"),
        ("DICOMDIR", "a DICOMDIR, no instance"),
        ("DICOMDIR", "the directory cannot be read; all files were searched"),
    }


def test_an_instance_without_a_uid_gets_the_same_one_each_time(folder: Path, scratch: Path):
    path = as_file(ct_instance(Names.fresh(), SOPInstanceUID=""), folder / "a.dcm")

    (first,) = collection.collect(path, scratch=scratch).instances
    (second,) = collection.collect(path, scratch=scratch).instances

    assert first == second
    sent = pydicom.dcmread(first.path)
    assert sent.SOPInstanceUID == sent.file_meta.MediaStorageSOPInstanceUID
    assert sent.SOPInstanceUID == first.sop_instance_uid
    assert sent.SOPInstanceUID.is_valid
    assert sent.PixelData == pydicom.dcmread(path).PixelData


def test_the_data_sets_uid_counts_when_the_file_meta_names_another(folder: Path, scratch: Path):
    ds = ct_instance(Names.fresh())
    path = as_file(ds, folder / "a.dcm")
    meta = FileMetaDataset()
    other = pydicom.dcmread(path)
    meta.update(other.file_meta)
    other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    other.save_as(path)

    (found,) = collection.collect(path, scratch=scratch).instances

    assert found.sop_instance_uid == ds.SOPInstanceUID
    assert dataset_bytes(found.path) == dataset_bytes(path)
    assert pydicom.dcmread(found.path).file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_a_zip_file_is_unpacked_into_the_scratch_folder_alone(
    folder: Path, scratch: Path, tmp_path: Path
):
    path = as_file(ct_instance(Names.fresh()), folder / "a.dcm")
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("../../escaped.dcm", path.read_bytes())
        packed.writestr("a/b/c.dcm", path.read_bytes())
    before = {found for found in tmp_path.rglob("*") if scratch not in found.parents}

    collected = collection.collect(archive, scratch=scratch)

    assert len(collected.instances) == 2
    assert {found for found in tmp_path.rglob("*") if scratch not in found.parents} == before


def test_a_zip_bomb_is_refused_unpacked(scratch: Path, tmp_path: Path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", bytes(64 << 20))

    with pytest.raises(SourceError, match="unpacks to more"):
        collection.collect(archive, scratch=scratch)
    assert not any(scratch.iterdir())


def test_a_path_that_is_not_there_is_named(scratch: Path, tmp_path: Path):
    with pytest.raises(SourceError, match="nowhere"):
        collection.collect(tmp_path / "nowhere", scratch=scratch)


def test_transfer_syntax_is_never_guessed(folder: Path, scratch: Path):
    path = as_file(ct_instance(Names.fresh()), folder / "a.dcm", ExplicitVRLittleEndian)
    ds = pydicom.dcmread(path)
    del ds.file_meta.TransferSyntaxUID
    with path.open("wb") as file:
        pydicom.filewriter.write_file_meta_info(file, ds.file_meta, enforce_standard=False)
    path.write_bytes(bytes(128) + b"DICM" + path.read_bytes())

    ((_, reason),) = collection.collect(path, scratch=scratch).skipped

    assert reason == "the file does not name its transfer syntax"
