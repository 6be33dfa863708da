"""Writing de-identified studies to a folder, for whatever leaves the appliance as DICOM.

Names of files and folders are the new UIDs. The folder appears whole, once all is written.
"""

import os
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID
from pynetdicom.dsutils import split_dataset

from appliance.collection import InstanceFile
from appliance.deidentification import as_file, deidentify, person_of
from appliance.errors import DeidentificationError, SourceError
from appliance.part10 import DEFLATED, leniently

INFLATED_LIMIT_BYTES: Final = 1 << 30
TOO_DEEP: Final = "its sequences are nested too deep"


@dataclass(frozen=True)
class Exported:
    """How many files were written, and which instances were left out, with why."""

    written: int
    left_out: tuple[tuple[Path, str], ...]


def export(
    instances: Iterable[InstanceFile],
    out: Path,
    key: bytes,
    *,
    report: Callable[[], None] = lambda: None,
) -> Exported:
    """Write instances without their patients to a new folder, one for each study and series in it.

    An image that names no patient is the study's, if the study has one alone.

    Args:
        instances: what is to leave.
        out: a folder that is not there yet, or empty; it is made if anything can leave.
        key: this appliance's secret, `config.deidentification_key`.
        report: called after each instance.

    Raises:
        SourceError: the folder holds something already, or cannot be written.
    """
    try:
        return _export(list(instances), out, key, report)
    except OSError as error:
        raise SourceError(f"{out} cannot be written: {error.strerror}") from error


def _export(
    files: Sequence[InstanceFile], out: Path, key: bytes, report: Callable[[], None]
) -> Exported:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SourceError(f"{out} holds something already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    people = _people(files)
    left_out: list[tuple[Path, str]] = []
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".part-") as aside:
        folder = Path(aside) / "export"
        folder.mkdir(mode=0o700)
        for file in files:
            try:
                ds = _read(file)
                _write(deidentify(ds, key, person=people.get(_study(ds), "")), folder)
            except DeidentificationError as error:
                left_out.append((file.origin, str(error)))
            report()
        written = len(files) - len(left_out)
        if written:
            folder.replace(out)
    return Exported(written, tuple(left_out))


def _people(files: Iterable[InstanceFile]) -> dict[str, str]:
    """Return the person of each study that names one alone."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for file in files:
        try:
            ds = _read(file, header_only=True)
        except DeidentificationError:
            continue  # it is left out, and said so, when its turn comes
        if person := person_of(ds):
            found[_study(ds)].add(person)
    return {study: people.pop() for study, people in found.items() if len(people) == 1}


def _study(ds: Dataset) -> str:
    with leniently():
        return str(ds.get("StudyInstanceUID", ""))


def _read(file: InstanceFile, *, header_only: bool = False) -> Dataset:
    try:
        with leniently():
            if file.transfer_syntax_uid in DEFLATED:
                return _inflated(file)
            return dcmread(file.path, stop_before_pixels=header_only)
    except DeidentificationError:
        raise
    except RecursionError as error:
        raise DeidentificationError(TOO_DEEP) from error
    except Exception as error:  # pydicom raises a dozen kinds on malformed bytes
        raise DeidentificationError(f"it cannot be read ({type(error).__name__})") from error


def _inflated(file: InstanceFile) -> Dataset:
    """Return a deflated data set; pydicom would inflate without a bound."""
    _, offset = split_dataset(file.path)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(file.path.read_bytes()[offset:], INFLATED_LIMIT_BYTES)
    if not inflater.eof:
        raise DeidentificationError("its deflated data set is cut short, or far too large")
    ds = read_dataset(BytesIO(content), is_implicit_VR=False, is_little_endian=True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(file.transfer_syntax_uid)
    ds.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
    return ds


def _write(ds: Dataset, folder: Path) -> None:
    target = folder / ds.StudyInstanceUID / ds.SeriesInstanceUID / f"{ds.SOPInstanceUID}.dcm"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = target.open("xb")
    except FileExistsError:
        raise DeidentificationError("another file has its SOP Instance UID") from None
    with file:
        file.write(as_file(ds))
        file.flush()
        os.fsync(file.fileno())
