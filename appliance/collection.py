"""Files, folders and zip files as instances ready to be sent (PS3.10).

A file goes out as it is, under the UIDs of its data set: in de-identified data the file meta
information may name others, or none. An instance without a SOP Instance UID, which cannot be sent
(PS3.7 9.1.1.1), gets one derived from its content, so that sending it again sends the same
instance. What has to be changed for that is changed in a copy.
"""

import hashlib
import lzma
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from stat import S_ISREG
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
ARCHIVE: Final = "a zip file within; name it by itself"
ENCRYPTED: Final = 0x1  # a member's general purpose bit flag (APPNOTE.TXT 4.4.4)
DAMAGED: Final = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    lzma.LZMAError,
    zlib.error,
)
"""What zipfile raises on members that it cannot unpack."""

INSTANCE_LIMIT_BYTES: Final = 2 << 30
"""No scanner writes larger ones; each is read into memory, one after the other."""


@dataclass(frozen=True)
class InstanceFile:
    """A Part 10 file whose meta information is complete.

    `origin` is where a person finds it; `path` may be a copy's.
    """

    path: Path
    origin: Path
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
    directories: list[_File] = []
    names: list[PurePosixPath] = []
    for file in _files(source, scratch):
        if file.problem:
            skipped.append((file.origin, file.problem))
            continue
        names.append(file.name)
        try:
            instances.append(_instance(file, scratch))
        except ApplianceError as error:
            reason = str(error)
            if reason == NO_DICOM and file.name.suffix.lower() == ".zip":
                reason = ARCHIVE
            skipped.append((file.origin, reason))
            if reason == DIRECTORY:
                directories.append(file)
        except OSError as error:  # as of a scratched disk
            skipped.append((file.origin, f"cannot be read: {error.strerror}"))
    for file in directories:
        skipped += [(file.origin, lack) for lack in media.lacks(file.path, file.name, names)]
    return Collected(tuple(instances), tuple(skipped))


@dataclass(frozen=True)
class _File:
    """What was found at one place.

    Attributes:
        path: where it lies now.
        origin: where a person finds it.
        name: its place in the folder or the archive, which is data alone.
        problem: why it cannot be looked into, "" if it can.
    """

    path: Path
    origin: Path
    name: PurePosixPath
    problem: str = ""


def _files(source: Path, scratch: Path) -> Iterator[_File]:
    if source.is_dir():
        yield from _walked(source)
    elif not source.is_file():
        raise SourceError(f"{source}: no such file or folder")
    elif zipfile.is_zipfile(source):
        yield from _unzipped(source, scratch)
    elif source.suffix.lower() == ".zip":
        raise SourceError(f"{source}: is no zip file, or one cut short; copy it again")
    else:
        yield _File(source, source, PurePosixPath(source.name))


def _walked(folder: Path) -> Iterator[_File]:
    """Yield what lies in a folder, in the order of names, then the folders that cannot be read."""
    unreadable: list[OSError] = []
    paths: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=unreadable.append):
        paths += [Path(place, name) for name in files]
        # No link to a folder is followed: if it leads outside, that is told below.
        paths += [path for name in folders if (path := Path(place, name)).is_symlink()]
    root = folder.resolve()
    for path in sorted(paths):
        name = PurePosixPath(path.relative_to(folder))
        yield _File(path, path, name, _obstacle(path, root))
    for error in unreadable:
        path = Path(error.filename)
        name = PurePosixPath(path.relative_to(folder))
        yield _File(path, path, name, f"cannot be read: {error.strerror}")


def _obstacle(path: Path, root: Path) -> str:
    """Return why a file of a folder is not to be opened, "" if it is: a medium may hold any."""
    try:
        # Not Path.resolve, which has an error of its own for links in a circle.
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            return OUTSIDE
        return "" if S_ISREG(path.stat().st_mode) else NO_DICOM
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _unzipped(source: Path, scratch: Path) -> Iterator[_File]:
    """Unpack under numbers: the names in a zip file are data, never paths."""
    allowed = min(UNZIPPED_BYTES, UNZIPPED_RATIO * source.stat().st_size)
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise SourceError(f"{source}: cannot be unpacked: {error}") from error
    with archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        # The sizes are the archive's own claim, and what zipfile reads at most.
        if len(members) > UNZIPPED_FILES or sum(m.file_size for m in members) > allowed:
            raise SourceError(f"{source}: unpacks to more than an archive of images would")
        for number, member in enumerate(members):
            target = scratch / f"member-{number:06d}"
            name = PurePosixPath(member.filename)
            problem = _unpacked(archive, member, target)
            yield _File(target, source / name.relative_to(name.anchor), name, problem)


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> str:
    """Unpack one member; return why it cannot be, "" if it was. Raises SourceError."""
    if member.flag_bits & ENCRYPTED:
        return "is encrypted; unpack it with its password first"
    try:
        with archive.open(member) as packed, target.open("xb") as file:
            shutil.copyfileobj(packed, file)
    except DAMAGED as error:
        return f"is damaged in the zip file ({type(error).__name__})"
    except OSError as error:
        if error.errno is None:  # bz2's way to say that data are damaged
            return "is damaged in the zip file"
        raise SourceError(f"{archive.filename}: cannot be unpacked: {error.strerror}") from error
    return ""


def _instance(file: _File, scratch: Path) -> InstanceFile:
    path = file.path
    meta, offset = _split(path)
    if _uid(meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise ApplianceError(DIRECTORY)
    transfer_syntax_uid = _uid(meta, "TransferSyntaxUID")
    if not transfer_syntax_uid:
        raise ApplianceError("the file does not name its transfer syntax")
    if path.stat().st_size > INSTANCE_LIMIT_BYTES:
        raise ApplianceError(f"has more than {INSTANCE_LIMIT_BYTES >> 30} GiB")
    dataset = path.read_bytes()[offset:]
    header = read_header(dataset, transfer_syntax_uid)
    sop_class_uid = header.sop_class_uid or _uid(meta, "MediaStorageSOPClassUID")
    sop_instance_uid = header.sop_instance_uid
    if not sop_class_uid:
        raise ApplianceError("SOPClassUID is missing")
    named = _uid(meta, "MediaStorageSOPClassUID"), _uid(meta, "MediaStorageSOPInstanceUID")
    if sop_instance_uid and named == (sop_class_uid, sop_instance_uid):
        return InstanceFile(path, file.origin, *named, transfer_syntax_uid)
    if not sop_instance_uid:
        sop_instance_uid = _derived_uid(dataset)
        dataset = with_instance_uid(dataset, transfer_syntax_uid, sop_instance_uid)
    found = InstanceFile(path, file.origin, sop_class_uid, sop_instance_uid, transfer_syntax_uid)
    return _copy(found, dataset, scratch)


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
    except OSError:
        raise
    except InvalidDicomError as error:
        raise ApplianceError(NO_DICOM) from error
    except Exception as error:  # pydicom raises a dozen kinds on malformed bytes
        raise ApplianceError(f"unreadable meta information ({type(error).__name__})") from error


def _uid(meta: Dataset, keyword: str) -> str:
    return str(meta.get(keyword, "") or "")
