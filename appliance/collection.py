"""Files, folders and zip files as instances ready to be sent (PS3.10).

A file goes out as it is, under the UIDs of its data set: in de-identified data the file meta
information may name others, or none. An instance without a SOP Instance UID, which cannot be sent
(PS3.7 9.1.1.1), gets one derived from its content, so that sending it again sends the same
instance. What has to be changed for that is changed in a copy.
"""

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final
from uuid import NAMESPACE_OID, uuid5

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage
from pynetdicom.dsutils import split_dataset

from appliance import media
from appliance.errors import ApplianceError, SourceError
from appliance.part10 import file_head, read_header, with_instance_uid

# What a zip file may unpack to; a chest CT compresses to a half or a third.
UNZIPPED_BYTES: Final = 64 << 30
UNZIPPED_RATIO: Final = 200
UNZIPPED_FILES: Final = 100_000

NO_DICOM: Final = "no DICOM file"
DIRECTORY: Final = "a DICOMDIR, no instance"
OUTSIDE: Final = "a link that leads out of the folder"


@dataclass(frozen=True)
class InstanceFile:
    """A Part 10 file whose meta information is complete."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @property
    def context(self) -> tuple[str, str]:
        """The abstract and the transfer syntax of the presentation context it needs."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True)
class Collected:
    """What was found: instances in the order of their names, and files that are none, with why."""

    instances: tuple[InstanceFile, ...]
    skipped: tuple[tuple[Path, str], ...]

    @property
    def refused(self) -> tuple[tuple[Path, str], ...]:
        """What of the skipped should have been an instance, or is missing."""
        harmless = (NO_DICOM, DIRECTORY)
        return tuple((path, reason) for path, reason in self.skipped if reason not in harmless)


def collect(source: Path, *, scratch: Path) -> Collected:
    """Return the instances in a file, a folder or a zip file; copies are made in `scratch`.

    A medium's directory (DICOMDIR) leads to no file: all files are searched, and what it names
    beyond them is told.

    Raises:
        SourceError: there is no such path, or the zip file is broken or a bomb.
    """
    instances: list[InstanceFile] = []
    skipped: list[tuple[Path, str]] = []
    directories: list[tuple[Path, PurePosixPath]] = []
    names: list[PurePosixPath] = []
    for path, name in _files(source, scratch):
        if _leads_outside(path, source):
            skipped.append((path, OUTSIDE))
            continue
        names.append(name)
        try:
            instances.append(_instance(path, scratch))
        except ApplianceError as error:
            skipped.append((path, str(error)))
            if str(error) == DIRECTORY:
                directories.append((path, name))
        except OSError as error:  # as of a scratched disk
            skipped.append((path, f"cannot be read: {error.strerror}"))
    for path, name in directories:
        skipped += [(path, lack) for lack in media.lacks(path, name, names)]
    return Collected(tuple(instances), tuple(skipped))


def _leads_outside(path: Path, source: Path) -> bool:
    """Return whether a file of a folder is a link to one elsewhere: a medium may hold any link."""
    return (
        source.is_dir()
        and path.is_symlink()
        and not path.resolve().is_relative_to(source.resolve())
    )


def _files(source: Path, scratch: Path) -> Iterator[tuple[Path, PurePosixPath]]:
    """Yield each file, and its name in the folder or the archive, which is data alone."""
    if source.is_dir():
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            yield path, PurePosixPath(path.relative_to(source))
    elif not source.is_file():
        raise SourceError(f"{source}: no such file or folder")
    elif zipfile.is_zipfile(source):
        yield from _unzipped(source, scratch)
    else:
        yield source, PurePosixPath(source.name)


def _unzipped(source: Path, scratch: Path) -> Iterator[tuple[Path, PurePosixPath]]:
    """Unpack under numbers: the names in a zip file are data, never paths."""
    allowed = min(UNZIPPED_BYTES, UNZIPPED_RATIO * source.stat().st_size)
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            # The sizes are the archive's own claim, and what zipfile reads at most.
            if len(members) > UNZIPPED_FILES or sum(m.file_size for m in members) > allowed:
                raise SourceError(f"{source}: unpacks to more than an archive of images would")
            for number, member in enumerate(members):
                target = scratch / f"member-{number:06d}"
                with archive.open(member) as packed, target.open("xb") as file:
                    shutil.copyfileobj(packed, file)
                yield target, PurePosixPath(member.filename)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{source}: cannot be unpacked: {error}") from error


def _instance(path: Path, scratch: Path) -> InstanceFile:
    meta, offset = _split(path)
    if _uid(meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise ApplianceError(DIRECTORY)
    transfer_syntax_uid = _uid(meta, "TransferSyntaxUID")
    if not transfer_syntax_uid:
        raise ApplianceError("the file does not name its transfer syntax")
    dataset = path.read_bytes()[offset:]
    header = read_header(dataset, transfer_syntax_uid)
    sop_class_uid = header.sop_class_uid or _uid(meta, "MediaStorageSOPClassUID")
    sop_instance_uid = header.sop_instance_uid
    if not sop_class_uid:
        raise ApplianceError("SOPClassUID is missing")
    if not sop_instance_uid:
        sop_instance_uid = _derived_uid(dataset)
        dataset = with_instance_uid(dataset, transfer_syntax_uid, sop_instance_uid)
    found = InstanceFile(path, sop_class_uid, sop_instance_uid, transfer_syntax_uid)
    named = _uid(meta, "MediaStorageSOPClassUID"), _uid(meta, "MediaStorageSOPInstanceUID")
    return found if named == (sop_class_uid, sop_instance_uid) else _copy(found, dataset, scratch)


def _derived_uid(dataset: bytes) -> str:
    """Return a UID in the manner of PS3.5 B.2 that the same bytes always get."""
    return f"2.25.{uuid5(NAMESPACE_OID, hashlib.sha256(dataset).hexdigest()).int}"


def _copy(found: InstanceFile, dataset: bytes, scratch: Path) -> InstanceFile:
    """Return the instance as a file whose meta information agrees with its data set."""
    head = file_head(
        sop_class_uid=found.sop_class_uid,
        sop_instance_uid=found.sop_instance_uid,
        transfer_syntax_uid=found.transfer_syntax_uid,
    )
    content = head + dataset
    path = scratch / f"{hashlib.sha256(content).hexdigest()}.dcm"
    path.write_bytes(content)
    return replace(found, path=path)


def _split(path: Path) -> tuple[Dataset, int]:
    """Return the file meta information and where the data set begins."""
    try:
        return split_dataset(path)
    except InvalidDicomError as error:
        raise ApplianceError(NO_DICOM) from error
    except Exception as error:  # pydicom raises a dozen kinds on malformed bytes
        raise ApplianceError(f"unreadable meta information ({type(error).__name__})") from error


def _uid(meta: Dataset, keyword: str) -> str:
    return str(meta.get(keyword, "") or "")
