import os
import tempfile
import zipfile
import zlib
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
        path, path, CTImageStorage, ds.SOPInstanceUID, ImplicitVRLittleEndian
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


def refused(collected: collection.Collected) -> dict[str, str]:
    return {path.name: reason for path, reason in collected.refused}


def test_a_link_out_of_the_folder_is_told_and_not_followed(
    folder: Path, scratch: Path, tmp_path: Path
):
    (tmp_path / "elsewhere").mkdir()
    outside = as_file(ct_instance(Names.fresh()), tmp_path / "elsewhere/a.dcm")
    (folder / "link").symlink_to(outside)
    (folder / "folder").symlink_to(outside.parent)
    (folder / "nothing").symlink_to(folder / "gone")
    (folder / "inside").symlink_to(folder / "deep")
    (folder / "circle").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    os.mkfifo(folder / "pipe")

    collected = collection.collect(folder, scratch=scratch)

    assert collected.instances == ()
    assert refused(collected) == {
        "link": collection.OUTSIDE,
        "folder": collection.OUTSIDE,
        "nothing": "cannot be read: No such file or directory",
        "itself": "cannot be read: Too many levels of symbolic links",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without rights")
def test_a_folder_that_cannot_be_read_is_told(folder: Path, scratch: Path, tmp_path: Path):
    as_file(ct_instance(Names.fresh()), folder / "deep/a.dcm")
    as_file(ct_instance(Names.fresh()), folder / "closed.dcm").chmod(0)
    as_file(ct_instance(Names.fresh()), folder / "open.dcm")
    (folder / "deep").chmod(0)
    scratch.chmod(0o777)
    temporary = Path(tempfile.gettempdir())
    for place in (tmp_path, *tmp_path.parents):
        if place != temporary and place.is_relative_to(temporary):
            place.chmod(0o755)
    nobody = 65534
    try:
        os.seteuid(nobody)
        collected = collection.collect(folder, scratch=scratch)
    finally:
        os.seteuid(0)

    assert [found.path.name for found in collected.instances] == ["open.dcm"]
    assert refused(collected) == {
        "deep": "cannot be read: Permission denied",
        "closed.dcm": "cannot be read: Permission denied",
    }


def test_names_that_are_no_utf_8_are_found(folder: Path, scratch: Path):
    path = folder / os.fsdecode("Müller".encode("latin-1"))
    as_file(ct_instance(Names.fresh()), path)

    (found,) = collection.collect(folder, scratch=scratch).instances

    assert found.origin == path


def test_a_zip_file_within_is_told(folder: Path, scratch: Path, tmp_path: Path):
    path = as_file(ct_instance(Names.fresh()), folder / "a.dcm")
    with zipfile.ZipFile(folder / "inner.ZIP", "w") as packed:
        packed.write(path, "a.dcm")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as packed:
        packed.write(folder / "inner.ZIP", "deep/inner.ZIP")

    for source in (folder, tmp_path / "outer.zip"):
        found = collection.collect(source, scratch=scratch)
        assert refused(found) == {"inner.ZIP": collection.ARCHIVE}
        for copy in scratch.iterdir():
            copy.unlink()


@pytest.mark.parametrize(
    "packing",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
def test_a_damaged_member_is_told_by_its_name_and_the_others_are_taken(
    folder: Path, scratch: Path, tmp_path: Path, packing: int
):
    path = as_file(ct_instance(Names.fresh()), folder / "a.dcm")
    noise = b"".join(zlib.crc32(bytes([n % 256, n // 256])).to_bytes(4) for n in range(2000))
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", packing) as packed:
        packed.writestr("SERIES/BAD", noise)
        packed.write(path, "SERIES/GOOD")
    content = bytearray(archive.read_bytes())
    content[100:140] = bytes(40)
    archive.write_bytes(content)

    collected = collection.collect(archive, scratch=scratch)

    assert [found.origin for found in collected.instances] == [archive / "SERIES/GOOD"]
    ((place, reason),) = collected.refused
    assert place == archive / "SERIES/BAD"
    assert "damaged in the zip file" in reason


def test_an_encrypted_member_is_told(folder: Path, scratch: Path, tmp_path: Path):
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("secret", b"")
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= collection.ENCRYPTED
    archive.write_bytes(content)

    (reason,) = refused(collection.collect(archive, scratch=scratch)).values()

    assert "password" in reason


def test_a_zip_file_cut_short_is_said_to_be(folder: Path, scratch: Path, tmp_path: Path):
    path = as_file(ct_instance(Names.fresh()), folder / "a.dcm")
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(path, "a.dcm")
    archive.write_bytes(archive.read_bytes()[:-40])

    with pytest.raises(SourceError, match="cut short"):
        collection.collect(archive, scratch=scratch)


def test_a_file_larger_than_any_instance_is_not_read(folder: Path, scratch: Path):
    path = as_file(ct_instance(Names.fresh()), folder / "huge.dcm")
    with path.open("r+b") as file:
        file.truncate(collection.INSTANCE_LIMIT_BYTES + 1)  # a hole, which takes no space

    assert refused(collection.collect(folder, scratch=scratch)) == {
        "huge.dcm": "has more than 2 GiB"
    }
