"""The directory of a CD, DVD or memory stick (DICOMDIR, PS3.10 section 8) against its files.

What it says is data: its file IDs are compared with the files that are there and never lead to one,
so none can name a file outside of the medium (CVE-2026-32711). Its records are read as the flat
list they are stored as, so offsets that point in a circle lead nowhere. A directory that cannot be
read costs nothing but the knowledge of what should have been there.
"""

from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from appliance.errors import SourceError
from appliance.part10 import leniently

DIRECTORY_LIMIT_BYTES: Final = 32 << 20  # a record of an image has 200 bytes or so
UNREADABLE: Final = "the directory cannot be read; all files were searched"
INACTIVE: Final = 0x0000  # Record In-use Flag (PS3.3 F.3.2.2)


def lacks(directory: Path, place: PurePosixPath, names: Collection[PurePosixPath]) -> Iterator[str]:
    """Yield what is wrong with a medium's directory, in words, at most a line of each kind.

    Args:
        directory: the DICOMDIR, wherever it lies now.
        place: where it lies on the medium.
        names: where the medium's files lie.
    """
    try:
        references = _references(directory)
    except SourceError as error:
        yield str(error)
        return
    folder = place.parent.parts
    there = {tuple(map(_plain, name.parts)) for name in names}
    wanted = {(*map(_plain, folder), *map(_plain, parts)) for parts in references if _legal(parts)}
    if illegal := sum(not _legal(parts) for parts in references):
        yield f"{illegal} of its file IDs name no file of a medium"
    if missing := len(wanted - there):
        yield f"{missing} files that it names are not there"


def _references(directory: Path) -> list[tuple[str, ...]]:
    """Return the file ID of each record in use, as its components. Raises SourceError."""
    if directory.stat().st_size > DIRECTORY_LIMIT_BYTES:
        raise SourceError("the directory is larger than one of a medium; all files were searched")
    try:
        with leniently():
            ds = dcmread(directory)
            _check_whole(ds)
            records = ds.get("DirectoryRecordSequence") or ()
            file_ids = [file_id for record in records if (file_id := _file_id(record))]
    except Exception as error:  # pydicom raises a dozen kinds, and RecursionError on deep nesting
        raise SourceError(UNREADABLE) from error
    if not records:
        raise SourceError(UNREADABLE)
    return file_ids


def _check_whole(ds: Dataset) -> None:
    """Raise if the records end before their end: pydicom takes what there is."""
    records: object = ds.get_item("DirectoryRecordSequence")
    if isinstance(records, RawDataElement) and len(records.value or b"") < records.length:
        raise SourceError(UNREADABLE)


def _file_id(record: Dataset) -> tuple[str, ...]:
    file_id = record.get("ReferencedFileID") or ""
    if not file_id or record.get("RecordInUseFlag") == INACTIVE:
        return ()
    return tuple(map(str, file_id)) if isinstance(file_id, MultiValue) else (str(file_id),)


def _legal(parts: tuple[str, ...]) -> bool:
    """Return whether components are names; longer ones than PS3.10 8.2 allows are common."""
    return all(p.strip(" .") and not set(p) & set("/\\\0:") for p in parts)


def _plain(name: str) -> str:
    """Return a name as ISO 9660 compares it: systems show it in either case, with a version."""
    return name.strip().upper().partition(";")[0].rstrip(".")
