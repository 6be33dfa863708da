"""DICOM series of the synthetic chest, whole or with one fault, and where the real ones lie."""

from __future__ import annotations

import random
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from pipelines import phantom
from tests.support.phantom import small_chest

SHARED = Path(__file__).parents[3] / "shared" / "data"

CODECS = {
    JPEGLosslessSV1: lambda stored: imagecodecs.jpeg8_encode(stored, lossless=True),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda stored: imagecodecs.jpeg2k_encode(stored, codecformat="J2K"),
}


def real(name: str) -> Path:
    """A folder or file of the shared data; skips the test where there is none."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    return path


def slices(count: int | None = None) -> list[Dataset]:
    """Fresh data sets of the shared chest from head to foot, or of its middle `count` slices."""
    made = list(phantom.datasets(small_chest()))
    first = 0 if count is None else (len(made) - count) // 2
    return made[first : None if count is None else first + count]


def write(series: Iterable[Dataset], folder: Path) -> list[Path]:
    """Write data sets under names and in an order that tell nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    shuffled = list(series)
    random.Random(0).shuffle(shuffled)
    paths = []
    for number, ds in enumerate(shuffled):
        path = folder / f"{len(list(folder.iterdir())):04d}-{number}"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def tilted(series: list[Dataset], degrees: float) -> list[Dataset]:
    """The gantry leans: slices turn about the x axis, the couch still moves along z."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    for ds in series:
        ds.ImageOrientationPatient = [1, 0, 0, 0, float(cos), float(sin)]
    return series


def turned(series: list[Dataset], *, rows: bool, columns: bool) -> list[Dataset]:
    """The same anatomy in the same place, with rows (up-down) or columns stored in reverse."""
    for ds in series:
        stored = ds.pixel_array[:: -1 if rows else 1, :: -1 if columns else 1]
        position = np.array(ds.ImagePositionPatient, float)
        along_row, along_column = (np.array(v) for v in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
        if columns:
            position += along_row * float(ds.PixelSpacing[1]) * (ds.Columns - 1)
            along_row = -along_row
        if rows:
            position += along_column * float(ds.PixelSpacing[0]) * (ds.Rows - 1)
            along_column = -along_column
        ds.ImagePositionPatient = [round(float(v), 4) for v in position]
        ds.ImageOrientationPatient = [*along_row.tolist(), *along_column.tolist()]
        ds.PixelData = np.ascontiguousarray(stored).tobytes()
    return series


def compressed(series: list[Dataset], transfer_syntax_uid: UID) -> list[Dataset]:
    """The same pixels in another transfer syntax."""
    for ds in series:
        if transfer_syntax_uid == RLELossless:
            ds.compress(RLELossless, generate_instance_uid=False)
            continue
        frame = CODECS[transfer_syntax_uid](ds.pixel_array)
        ds.PixelData = encapsulate([frame])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = transfer_syntax_uid
    return series


def copied(ds: Dataset, **changes: object) -> Dataset:
    """The slice once more, as another instance."""
    copy = deepcopy(ds)
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in changes.items():
        setattr(copy, keyword, value)
    return copy


def renamed(series: list[Dataset], **changes: object) -> list[Dataset]:
    """The images as another series, with other attributes."""
    uid = generate_uid()
    return [copied(ds, SeriesInstanceUID=uid, **changes) for ds in series]
