"""Directories of media, as DCMTK writes them and as somebody who means harm does."""

import shutil
import zipfile
from pathlib import Path, PurePosixPath

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from appliance import collection, media
from tests.support.instances import Names, as_file, ct_instance
from tests.support.pacs import dcmtk


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    """Three images as a CD holds them, without a directory."""
    folder = tmp_path / "cd"
    (folder / "IMAGES").mkdir(parents=True)
    names = Names.fresh()
    for number in range(3):
        as_file(
            ct_instance(names, InstanceNumber=number, StudyID="1"), folder / f"IMAGES/IM{number}"
        )
    (folder / "AUTORUN.INF").write_text("[autorun]")
    return folder


def directory(folder: Path, *file_ids: object, **root: object) -> Path:
    """A DICOMDIR with a record for each file ID; `root` adds attributes to the records."""
    ds = Dataset()
    ds.FileSetID = ""
    ds.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 4242
    ds.DirectoryRecordSequence = []
    for file_id in file_ids:
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = 4242  # in a circle
        record.RecordInUseFlag = 0xFFFF
        record.DirectoryRecordType = "IMAGE"
        with pydicom.config.disable_value_validation():
            record.ReferencedFileID = file_id
        for keyword, value in root.items():
            setattr(record, keyword, value)
        ds.DirectoryRecordSequence.append(record)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / "DICOMDIR"
    ds.save_as(path, enforce_file_format=True)
    return path


def reasons(collected: collection.Collected) -> list[str]:
    return [reason for _, reason in collected.refused]


def test_a_medium_of_dcmtks_is_whole(medium: Path, scratch: Path):
    result = dcmtk("dcmmkdir", "+r", "+id", medium, "+D", medium / "DICOMDIR", "+m", "-W", "-Nxc")
    assert (medium / "DICOMDIR").exists(), result.stderr

    collected = collection.collect(medium, scratch=scratch)

    assert len(collected.instances) == 3
    assert reasons(collected) == []
    assert {reason for _, reason in collected.skipped} == {
        collection.NO_DICOM,
        collection.DIRECTORY,
    }


def test_what_dcmtks_directory_names_and_nobody_finds_is_told(medium: Path, scratch: Path):
    dcmtk("dcmmkdir", "+r", "+id", medium, "+D", medium / "DICOMDIR", "+m", "-W", "-Nxc")
    (medium / "IMAGES/IM1").unlink()

    collected = collection.collect(medium, scratch=scratch)

    assert len(collected.instances) == 2
    assert reasons(collected) == ["1 files that it names are not there"]


def test_names_are_compared_as_iso_9660_does(medium: Path, scratch: Path):
    directory(medium, ["IMAGES", "IM0"], ["IMAGES", "IM1"], ["IMAGES", "IM2"])
    (medium / "IMAGES").rename(medium / "images")
    for number in range(3):
        (medium / f"images/IM{number}").rename(medium / f"images/im{number}.;1")

    collected = collection.collect(medium, scratch=scratch)

    assert (len(collected.instances), reasons(collected)) == (3, [])


def test_an_image_that_the_directory_forgot_is_taken_all_the_same(medium: Path, scratch: Path):
    directory(medium, ["IMAGES", "IM0"])

    collected = collection.collect(medium, scratch=scratch)

    assert (len(collected.instances), reasons(collected)) == (3, [])


@pytest.mark.parametrize(
    "file_id",
    [
        ["..", "secret"],
        ["IMAGES", "..", "..", "secret"],
        "/etc/passwd",
        "../secret",
        "..\\secret",
        ["C:", "secret"],
        ["", "IMAGES", "IM0"],
        "IM0\0",
        ".",
    ],
)
def test_a_file_id_never_leads_out_of_the_medium(medium: Path, scratch: Path, file_id: object):
    secret = as_file(ct_instance(Names.fresh()), medium.parent / "secret")
    directory(medium, file_id)

    collected = collection.collect(medium, scratch=scratch)

    assert len(collected.instances) == 3
    assert secret not in {found.path for found in collected.instances}
    assert len(reasons(collected)) == 1


def test_a_link_out_of_the_medium_is_not_followed(medium: Path, scratch: Path):
    as_file(ct_instance(Names.fresh()), medium.parent / "secret")
    (medium / "IMAGES/LINK").symlink_to(medium.parent / "secret")
    (medium / "LOOP").symlink_to(medium, target_is_directory=True)
    directory(medium, ["IMAGES", "LINK"])

    collected = collection.collect(medium, scratch=scratch)

    assert len(collected.instances) == 3
    assert sorted(reasons(collected)) == [
        "1 files that it names are not there",
        "a link that leads out of the folder",
    ]


@pytest.mark.parametrize("damage", ["cut", "noise", "deep", "no sequence"])
def test_a_broken_directory_costs_nothing(medium: Path, scratch: Path, damage: str):
    path = directory(medium, ["IMAGES", "IM0"])
    content = path.read_bytes()
    at = content.index(b"\x04\x00\x20\x12")
    if damage == "cut":
        path.write_bytes(content[: at + 30])
    elif damage == "noise":
        path.write_bytes(content[:at] + bytes(range(256)) * 20)
    elif damage == "deep":
        opening = b"\x04\x00\x20\x12SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        path.write_bytes(content[:at] + opening * 5000)
    else:
        path.write_bytes(content[:at])

    collected = collection.collect(medium, scratch=scratch)

    assert len(collected.instances) == 3
    assert reasons(collected) == [media.UNREADABLE]


def test_a_huge_directory_is_not_read(medium: Path, scratch: Path, monkeypatch):
    directory(medium, *[["IMAGES", f"IM{number}"] for number in range(50)])
    monkeypatch.setattr(media, "DIRECTORY_LIMIT_BYTES", 1000)

    collected = collection.collect(medium, scratch=scratch)

    assert len(collected.instances) == 3
    assert "larger than" in reasons(collected)[0]


def test_records_out_of_use_are_not_missed(medium: Path):
    path = directory(medium, ["GONE"], RecordInUseFlag=0)

    assert list(media.lacks(path, PurePosixPath("DICOMDIR"), [])) == []


def test_a_medium_in_a_zip_file_is_checked_by_its_members_names(
    medium: Path, scratch: Path, tmp_path: Path
):
    directory(medium, ["IMAGES", "IM0"], ["IMAGES", "IM7"])
    archive = Path(shutil.make_archive(str(tmp_path / "cd"), "zip", tmp_path, "cd"))
    assert "cd/DICOMDIR" in zipfile.ZipFile(archive).namelist()

    collected = collection.collect(archive, scratch=scratch)

    assert len(collected.instances) == 3
    assert reasons(collected) == ["1 files that it names are not there"]
