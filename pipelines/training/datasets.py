"""The public research sets this project trains on, brought to one form.

Each set keeps its own traps here (orientation, intensity, grouping), so that nothing after this
module knows where a slice came from. The folder layout and licences: the data's own README.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import cc3d
import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import PipelineError

# The 8-bit sets carry no spacing. A chest of about 350 mm fills 256 pixels; training varies it.
ASSUMED_PIXEL_MM: Final = 1.4
AIR_HU: Final = -400  # between aerated lung and soft tissue
AIRWAY_MM2: Final = 700.0  # a trachea is 150 to 400 mm2 wide
SARS_RUN: Final = 10  # neighbouring numbers are often the same patient


class Domain(StrEnum):
    """What a pixel value means."""

    HU = "hu"
    DISPLAY = "display"  # 8 bit, windowed and equalised by somebody else


@dataclass(frozen=True)
class Stack:
    """Axial slices of one patient, `(z, y, x)`, y to the back, x to the patient's left.

    `spacing` is (z, y, x) mm, for `DISPLAY` an assumption. A stack of one slice is a 2-D image.
    """

    group: str
    domain: Domain
    image: NDArray[np.int16]
    spacing: tuple[float, float, float]
    lung: NDArray[np.bool_] | None
    lesion: NDArray[np.bool_] | None


@dataclass(frozen=True)
class LabelledSlice:
    """One axial slice `(y, x)` of 8 bits that somebody called COVID-19 or not.

    `source` is the set and `group` what in it belongs together: a paper, or a run of numbers.
    """

    source: str
    group: str
    image: NDArray[np.uint8]
    covid: bool


def covid_stacks(root: Path) -> Iterator[Stack]:
    """Yield the 15 COVID volumes with lung and lesion masks (Zenodo 3757476, reduced)."""
    masks = np.load(_existing(root / "lesion_slices" / "masks.npz"))
    lung = np.unpackbits(masks["lung"], axis=-1).astype(bool)
    lesion = np.unpackbits(masks["lesion"], axis=-1).astype(bool)
    names = [Path(str(name)).stem for name in masks["name"]]
    volumes = [name.split("_")[0] for name in names]
    for volume in sorted(set(volumes)):
        rows = [i for i, v in enumerate(volumes) if v == volume]
        slices = [_grey(root / "lesion_slices" / "ct" / f"{names[i]}.jpg") for i in rows]
        # The Radiopaedia volumes are stored upside down against the others.
        upright = slice(None, None, -1 if int(volume[1:]) >= 10 else 1)
        yield Stack(
            group=volume,
            domain=Domain.DISPLAY,
            image=np.stack(slices)[:, upright].astype(np.int16),
            spacing=(1.25, ASSUMED_PIXEL_MM, ASSUMED_PIXEL_MM),
            lung=(lung[rows] | lesion[rows])[:, upright],
            lesion=lesion[rows][:, upright],
        )


def lung_stacks(root: Path) -> Iterator[Stack]:
    """Yield 237 single HU slices with lung masks, one per scan."""
    data = np.load(_existing(root / "lung_slices" / "lungs.npz"))
    lung = np.unpackbits(data["lung"], axis=-1).astype(bool)
    for hu, mask, name in zip(data["hu"], lung, data["name"], strict=True):
        yield Stack(
            group=str(name),
            domain=Domain.HU,
            image=hu[None],
            spacing=(2.5, ASSUMED_PIXEL_MM, ASSUMED_PIXEL_MM),
            lung=mask[None],
            lesion=None,
        )


def healthy_volumes(root: Path, names: Iterable[str]) -> Iterator[Stack]:
    """Yield whole HU volumes without pneumonia; their lungs are found by a threshold."""
    for name in names:
        image = nibabel.as_closest_canonical(
            nibabel.load(_existing(root / "volumes" / f"{name}.nii.gz"))
        )
        # NIfTI's canonical axes point right, front, up; ours left, back, up.
        hu = np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.int16)
        dx, dy, dz = (float(step) for step in image.header.get_zooms()[:3])
        yield Stack(
            group=name,
            domain=Domain.HU,
            image=np.ascontiguousarray(hu),
            spacing=(dz, dy, dx),
            lung=threshold_lungs(hu, pixel_mm2=dx * dy),
            lesion=None,
        )


def threshold_lungs(hu: NDArray[np.int16], *, pixel_mm2: float) -> NDArray[np.bool_]:
    """Return the aerated lungs of a healthy chest: the air that does not touch the border."""
    air = hu < AIR_HU
    labels = cc3d.connected_components(air, connectivity=6)
    sides = [labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]]
    for outside in np.unique(np.concatenate([np.unique(side) for side in sides])):
        air &= labels != outside
    labels = cc3d.connected_components(air, connectivity=6)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    lungs = np.isin(labels, np.flatnonzero(sizes > 0.1 * sizes.max()))
    return np.stack([_fill_holes(_without_airways(p, AIRWAY_MM2 / pixel_mm2)) for p in lungs])


def _without_airways(plane: NDArray[np.bool_], largest: float) -> NDArray[np.bool_]:
    """Drop the trachea and main bronchi: small islands of air in a slice that has real lung."""
    labels = cc3d.connected_components(plane, connectivity=4)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max() < 4 * largest:
        return plane
    kept: NDArray[np.bool_] = np.isin(labels, np.flatnonzero(sizes > largest))
    return kept


def _fill_holes(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    holes = cc3d.connected_components(np.pad(~plane, 1, constant_values=True), connectivity=4)
    filled: NDArray[np.bool_] = (holes != holes[0, 0])[1:-1, 1:-1]
    return filled


def ucsd_slices(root: Path) -> Iterator[LabelledSlice]:
    """Yield COVID-CT's slices; the group is the paper they were cut from."""
    for folder, covid in (("CT_COVID", True), ("CT_NonCOVID", False)):
        for path in sorted(_existing(root / "slices_ucsd" / folder).iterdir()):
            yield LabelledSlice("ucsd", f"{folder}/{_paper(path.stem)}", _grey(path), covid)


def _paper(stem: str) -> str:
    numbered = re.match(r"\d+$", stem)
    if numbered:  # no paper in the name: neighbours stay together
        return f"run{int(stem) // SARS_RUN}"
    return re.split(r"-p\d+|%|_\d", stem)[0]


def sars_slices(root: Path) -> Iterator[LabelledSlice]:
    """Yield the SARS-CoV-2 set; runs of numbers stand in for the patients it does not name."""
    for folder, covid in (("COVID", True), ("non-COVID", False)):
        for path in sorted(_existing(root / "slices_sars" / folder).iterdir()):
            number = int("".join(re.findall(r"\d+", path.stem)) or 0)
            yield LabelledSlice("sars", f"{folder}/{number // SARS_RUN}", _grey(path), covid)


def infected_slices(root: Path, case: str) -> frozenset[int]:
    """Return the slices a radiologist called infected; 0 is the most cranial one."""
    labels = json.loads(
        _existing(root / "volumes" / "covidctmd_slice_lobe_labels.json").read_text()
    )
    return frozenset(labels["cases"][case]["infected_slices"])


def _grey(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise PipelineError(f"{path} is missing. Name the folder of the data sets with --data.")
    return path
