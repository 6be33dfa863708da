"""Resampling, windowing and lung extraction: the same functions train and infer (J29-J32).

Arrays are `(z, y, x)`; positions of voxel centres are kept: the first and the last voxel of the
resampled grid lie half a voxel inside the same outer box as before.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipelines.errors import PipelineError

SLAB: Final = 8  # slices; more leave the cache, fewer leave threads waiting for each other
BOX_MARGIN_MM: Final = (10.0, 3.0, 3.0)  # around the lungs: a net sees where they end along z
MULTIPLE: Final = 16  # the U-Nets and the V-Net halve four times; the others take any size

Box = tuple[slice, slice, slice]
Region = tuple[slice, slice]
Voxel = TypeVar("Voxel", bound=np.generic)


def resampled_shape(
    shape: tuple[int, ...], spacing: tuple[float, ...], target: tuple[float, ...]
) -> tuple[int, ...]:
    """Return the grid that covers the same box at the spacing `target` (mm)."""
    return tuple(
        max(1, round(n * have / want)) for n, have, want in zip(shape, spacing, target, strict=True)
    )


def resize(array: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a volume (z, y, x), or a slice (y, x), linearly interpolated onto `shape`."""
    if array.ndim == 2:
        return resize(array[None], (1, *shape)).reshape(shape)
    out = np.empty(shape, dtype=np.float32)
    for rows, slab in _along_z(array, shape[0]):
        out[rows] = _in_plane(slab, shape[1:])
    return out


def resize_above(
    array: NDArray[np.generic], shape: tuple[int, ...], threshold: float
) -> NDArray[np.bool_]:
    """Return where `array` (z, y, x), interpolated onto `shape`, is above `threshold`.

    That is how masks are resized, at 0.5; no volume of floats is made on the way.
    """
    out = np.zeros(shape, dtype=np.bool_)
    for rows, slab in _along_z(array, shape[0]):
        if slab.max() > threshold:
            np.greater(_in_plane(slab, shape[1:]), threshold, out=out[rows])
    return out


def _along_z(array: NDArray[np.generic], count: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield where a slab lies among `count` slices and the slab, interpolated along z."""
    last = len(array) - 1
    centres = np.clip((np.arange(count) + 0.5) * (len(array) / count) - 0.5, 0, last)
    for first in range(0, count, SLAB):
        rows = slice(first, first + SLAB)
        low = centres[rows].astype(np.intp)
        share = (centres[rows] - low).astype(np.float32)[:, None, None]
        below = array[low].astype(np.float32)
        slab = array[np.minimum(low + 1, last)].astype(np.float32)
        slab -= below
        slab *= share
        slab += below
        yield rows, slab


def _in_plane(slab: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    resized: NDArray[np.float32] = functional.interpolate(
        torch.from_numpy(slab)[None], shape, mode="bilinear"
    )[0].numpy()
    return resized


def nearest(mask: NDArray[Voxel], shape: tuple[int, ...]) -> NDArray[Voxel]:
    """Return `mask` on the grid `shape`, each voxel the value of the old voxel it lies in."""
    for axis in reversed(range(mask.ndim)):  # whole slices are copied last, and fastest
        old, new = mask.shape[axis], shape[axis]
        mask = mask.take(((np.arange(new) + 0.5) * old / new).astype(np.intp), axis)
    return mask


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
    slices = np.flatnonzero([plane.any() for plane in mask])
    if len(slices) == 0:
        raise PipelineError("There is nothing in the mask to put a box around.")
    seen = np.any(mask[slices[0] : slices[-1] + 1], axis=0)
    inside = (slices, np.flatnonzero(seen.any(axis=(1,))), np.flatnonzero(seen.any(axis=(0,))))
    z, y, x = (
        slice(max(0, int(i[0]) - extra), min(n, int(i[-1]) + 1 + extra))
        for i, n, extra in zip(inside, mask.shape, margin, strict=True)
    )
    return z, y, x


def dilate(mask: NDArray[np.bool_], radius: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return `mask` grown by a box of `radius` voxels, so that pleural lesions stay inside."""
    for axis, reach in enumerate(radius):  # a box is the product of three lines
        grown = mask.copy()
        old, new = mask.swapaxes(0, axis), grown.swapaxes(0, axis)
        for step in range(1, min(reach, len(old) - 1) + 1):
            new[step:] |= old[:-step]
            new[:-step] |= old[step:]
        mask = grown
    return mask


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
    z, y, x = (
        math.ceil(max(mm, margin_mm) / step)
        for mm, step in zip(BOX_MARGIN_MM, spacing, strict=True)
    )
    box = bounding_box(lungs, (z, y, x))
    crop = hu[box]
    shape = resampled_shape(crop.shape, spacing, target)
    fine = resize_above(lungs[box] > 0, shape, 0.5)
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
    both are the square around the lungs of this slice. All three arrays are (y, x), of any spacing:
    the slices to learn from come in their own resolution, too.
    """
    if not lung.any():
        return np.zeros((2, size, size), dtype=np.float32)
    here, there, side = square_around(lung)
    square = np.zeros((2, side, side), dtype=np.float32)
    square[(0, *there)] = image[here] * lung[here]
    square[(1, *there)] = regions[here]
    out: NDArray[np.float32] = functional.interpolate(
        torch.from_numpy(square)[None], (size, size), mode="bilinear", antialias=True
    )[0].numpy()
    return out


def square_around(lung: NDArray[np.bool_]) -> tuple[Region, Region, int]:
    """Return where the lungs of a slice (y, x) lie in it, where in a square, and the square's side.

    The lungs fill the square along their longer side and lie in its middle along the other.
    """
    _, y, x = bounding_box(lung[None])
    height, width = y.stop - y.start, x.stop - x.start
    side = max(height, width)
    above, before = (side - height) // 2, (side - width) // 2
    return (y, x), (slice(above, above + height), slice(before, before + width)), side


def _voxels(length_mm: float, spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    z, y, x = (math.ceil(length_mm / step) if length_mm else 0 for step in spacing)
    return z, y, x
