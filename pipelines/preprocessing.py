"""Resampling, windowing and lung extraction: the same functions train and infer (J29-J32).

Arrays are `(z, y, x)`; positions of voxel centres are kept: the first and the last voxel of the
resampled grid lie half a voxel inside the same outer box as before.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipelines.errors import PipelineError

# SimpleITK, MONAI and SciPy take 2 to 6 times as long as this for 300 slices (ARCHITECTURE.md).
MULTIPLE: Final = 16  # four halvings in every network of the library

Box = tuple[slice, slice, slice]


def resampled_shape(
    shape: tuple[int, ...], spacing: tuple[float, ...], target: tuple[float, ...]
) -> tuple[int, ...]:
    """Return the grid that covers the same box at the spacing `target` (mm)."""
    return tuple(
        max(1, round(n * have / want)) for n, have, want in zip(shape, spacing, target, strict=True)
    )


def resize(array: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return `array` linearly interpolated onto `shape`, one axis after the other.

    Masks go through here as 0 and 1 and come out as fractions: threshold them at 0.5.
    """
    out = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    for axis in _cheapest_first(out.shape, shape):
        out = _resize_axis(out, axis, shape[axis])
    return out.numpy()


def _cheapest_first(have: tuple[int, ...], want: tuple[int, ...]) -> list[int]:
    return sorted(range(len(have)), key=lambda axis: want[axis] / have[axis])


def _resize_axis(array: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    old = array.shape[axis]
    if old == size:
        return array
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (old / size) - 0.5
    centres = centres.clamp(0, old - 1)
    low = centres.floor().long().clamp(max=max(old - 2, 0))
    high = (low + 1).clamp(max=old - 1)
    weight = (centres - low).to(array.dtype)
    weight = weight.view([-1 if a == axis else 1 for a in range(array.ndim)])
    lower = array.index_select(axis, low)
    return lower.lerp_(array.index_select(axis, high), weight.expand_as(lower))


def nearest(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return `mask` on the grid `shape`, each voxel the value of the old voxel it lies in."""
    picked = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for old, new in zip(mask.shape, shape, strict=True)
    )
    out: NDArray[np.bool_] = mask[np.ix_(*picked)]
    return out


def window(hu: NDArray[np.generic], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Return HU clipped to `limits` and scaled to [0, 1] (J30, J32)."""
    low, high = limits
    scaled = (hu.astype(np.float32) - low) / (high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def bounding_box(mask: NDArray[np.generic], margin: tuple[int, int, int] = (0, 0, 0)) -> Box:
    """Return the smallest box around `mask`, widened by `margin` voxels and cut at the edges.

    Raises:
        PipelineError: the mask is empty.
    """
    if not mask.any():
        raise PipelineError("There is nothing in the mask to put a box around.")
    box = []
    for axis, extra in enumerate(margin):
        others = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        first, last = int(inside[0]), int(inside[-1])
        box.append(slice(max(0, first - extra), min(mask.shape[axis], last + 1 + extra)))
    return box[0], box[1], box[2]


def dilate(mask: NDArray[np.bool_], radius: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return `mask` grown by a box of `radius` voxels, so that pleural lesions stay inside."""
    out = torch.from_numpy(mask).float()[None, None]
    kernel = tuple(2 * r + 1 for r in radius)
    for axis, size in enumerate(kernel):  # a box is the product of three lines
        line = [1, 1, 1]
        line[axis] = size
        out = functional.max_pool3d(out, line, stride=1, padding=[s // 2 for s in line])
    return out[0, 0].numpy() > 0


def pad_to_multiple(image: NDArray[np.float32], multiple: int = MULTIPLE) -> NDArray[np.float32]:
    """Return `image` with zeros appended until each axis is a multiple of `multiple`."""
    widths = [(0, -n % multiple) for n in image.shape]
    return np.pad(image, widths) if any(after for _, after in widths) else image


@dataclass(frozen=True)
class LungExtraction:
    """The lungs of a volume, cut out and resampled (J29, J31).

    `box` is where they lie in the volume's own grid; `hu` and `lung` are (z, y, x) at `spacing` mm.
    """

    box: Box
    hu: NDArray[np.float32]
    lung: NDArray[np.bool_]
    spacing: tuple[float, float, float]


def extract_lungs(
    hu: NDArray[np.int16],
    lungs: NDArray[np.uint8],
    spacing: tuple[float, float, float],
    *,
    target: tuple[float, float, float],
    margin_mm: float,
) -> LungExtraction:
    """Return the box around `lungs` at `target` spacing, its mask grown by `margin_mm`.

    Raises:
        PipelineError: the mask is empty.
    """
    margin = _voxels(10.0, spacing)
    box = bounding_box(lungs, margin)
    crop = hu[box]
    shape = resampled_shape(crop.shape, spacing, target)
    fine = resize(lungs[box] > 0, shape) > 0.5
    actual = tuple(n * s / m for n, s, m in zip(crop.shape, spacing, shape, strict=True))
    grown = dilate(fine, _voxels(margin_mm, target))
    return LungExtraction(box, resize(crop, shape), grown, (actual[0], actual[1], actual[2]))


def slice_input(
    image: NDArray[np.float32],
    lung: NDArray[np.bool_],
    regions: NDArray[np.bool_],
    size: int,
) -> NDArray[np.float32]:
    """Return what the classifier sees of one axial slice: `(2, size, size)` (J46).

    Channel 0 is the windowed CT inside the lungs, channel 1 the mask of the regions in question;
    both are the square around the lungs of this slice. All three arrays are (y, x).
    """
    rows, columns = np.flatnonzero(lung.any(axis=1)), np.flatnonzero(lung.any(axis=0))
    if len(rows) == 0:
        return np.zeros((2, size, size), dtype=np.float32)
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    here = (slice(top, top + height), slice(left, left + width))
    both = np.stack([image[here] * lung[here], regions[here].astype(np.float32)])
    side = max(height, width)
    before = ((side - height) // 2, (side - width) // 2)
    square = np.pad(
        both,
        (
            (0, 0),
            (before[0], side - height - before[0]),
            (before[1], side - width - before[1]),
        ),
    )
    out: NDArray[np.float32] = functional.interpolate(
        torch.from_numpy(square)[None], (size, size), mode="bilinear", antialias=True
    )[0].numpy()
    return out


def _voxels(length_mm: float, spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    z, y, x = (math.ceil(length_mm / step) if length_mm else 0 for step in spacing)
    return z, y, x
