"""Is the scan good enough? Metal, motion, noise and cut edges, measured and told (J69).

- *Metal*: connected voxels above `METAL_HU` in the slices of the lungs, for streaks run in the
  plane. Streaks themselves are not measured: their energy read the same on hilar vessels.
- *Motion*: how far contours in and around the lungs move from one slice to the next, the sum of
  differences over the sum of gradients in mm, beyond what the slices on either side lead one to
  expect. Thick slices move further everywhere, so their neighbours allow for it. Comparing edge
  slices is the idea of Cui et al. 2012, doi:10.1120/jacmp.v13i6.3838.
- *Noise*: the most frequent local standard deviation in soft tissue, the global noise level of
  Christianson et al. 2015, AJR 205:W93, in slices averaged to `NOISE_SLICE_MM`, the spacing at
  which lesions are sought: thin slices are noisier, and the result no worse for it.
- *Truncation*: lung or body at the edge of the reconstructed field, the square of the image or the
  circle in it. Whether the scan ends inside the lungs, `pipelines.lungs.cut_off` tells.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipelines.findings import Flaw, Quality
from pipelines.preprocessing import Box, bounding_box
from pipelines.volume import CTVolume

# Bone stays below 2000 HU; steel and titanium fill a 12-bit scale (3071 HU). 2500 HU segments
# clinical implants in work on metal artefacts, as in Wang et al. 2021, arXiv:2109.05298.
METAL_HU: Final = 2500
METAL_PIECE_ML: Final = 0.05  # a surgical clip; less is a calcified spot
METAL_ML: Final = 0.5  # a few sternal wires; a pacemaker has 10 ml. Chosen here, not measured.
METAL_REACH_MM: Final = 5.0  # above and below the lungs
SATURATED_VOXELS: Final = 50  # so many share the highest value: what was above it was cut off

# Yamamoto et al. 2008, IJROBP 72:1250, count artefacts from 4 mm on. A step of 4 mm within the
# plane moves the contours of a chest by 1.6 mm or more on average, for some run along it.
MOTION_MM: Final = 0.8
MOTION_RATIO: Final = 1.5  # of the neighbours' movement: anatomy is not evenly smooth
REACH_MM: Final = 12.0  # around the lungs: chest wall and diaphragm
# Denser voxels count as this: bones and contrast agent are no contours here.
SOFT_HU: Final = np.int16(0)
NEIGHBOURS_MM: Final = 10.0
FEWEST_NEIGHBOURS: Final = 3
FULL_SLICE: Final = 0.25  # of the largest: domes and apices of the lungs change too fast
GRID_MM: Final = 2.0

# Screening at 0.37 mSv and a noise index of 40 HU was still diagnosable: Chen et al. 2014,
# doi:10.1371/journal.pone.0092414.
NOISE_HU: Final = 45.0
NOISE_SLICE_MM: Final = 2.5
NOISE_WINDOW_MM: Final = 7.0  # Kuo et al. 2024, doi:10.1088/1361-6560/ad3883: 10 x 10 pixels
NOISE_SLABS: Final = 16
SOFT_TISSUE_HU: Final = (0.0, 120.0)  # mean of a window: muscle, blood, liver
FEWEST_WINDOWS: Final = 200

# Tissue beyond the field is common in lung screening (Xu et al. 2023,
# doi:10.1016/j.media.2023.102852), so only much of it is told. Both thresholds are chosen here.
LUNGS_CUT_CM2: Final = 1.0
BODY_CUT: Final = 0.5
EDGE_MM: Final = 3.0  # the chest wall is thicker: lung so near to the edge is cut
BLOCK_MM: Final = 8.0  # neither the table's shell nor a cable fills one
BODY_HU: Final = -300.0  # mean of a block; fat has -100
LUNG_BLOCK: Final = 0.25  # with more lung a block is body, whatever its HU
EDGE_SLICES: Final = 40

METAL_UNKNOWN: Final = (
    "High values are cut off in this series: whether metal causes streaks cannot be told."
)


def assess(volume: CTVolume, lungs: NDArray[np.uint8]) -> Quality:
    """Return what was measured of the scan's flaws, and which of them are worth a warning.

    `lungs` is the mask of the lungs (z, y, x) on the volume's own grid, not empty.
    """
    height, width = (math.ceil(REACH_MM / mm) for mm in volume.spacing[1:])
    box = bounding_box(lungs, (0, height, width))
    metal_ml, holds_metal = _metal(volume, box[0])
    motion_mm, motion_steps = _motion(_Surroundings.of(volume, lungs, box), holds_metal[box[0]])
    noise_hu = _noise(volume, box)
    body_cut, lungs_cut_cm2 = _truncation(volume, lungs, box[0])
    found = {
        Flaw.METAL: metal_ml is not None and metal_ml >= METAL_ML,
        Flaw.MOTION: motion_steps > 0,
        Flaw.NOISE: noise_hu is not None and noise_hu >= NOISE_HU,
        Flaw.LUNGS_CUT: lungs_cut_cm2 >= LUNGS_CUT_CM2,
        Flaw.BODY_CUT: body_cut >= BODY_CUT,
    }
    return Quality(
        metal_ml=metal_ml,
        motion_mm=motion_mm,
        motion_steps=motion_steps,
        noise_hu=noise_hu,
        body_cut=body_cut,
        lungs_cut_cm2=lungs_cut_cm2,
        flaws=tuple(flaw for flaw, present in found.items() if present),
    )


def warnings(quality: Quality) -> tuple[str, ...]:
    """Return what a radiologist should know of the scan's flaws, as sentences."""
    told = tuple(_sentence(flaw, quality) for flaw in quality.flaws)
    return told if quality.metal_ml is not None else (*told, METAL_UNKNOWN)


def _sentence(flaw: Flaw, quality: Quality) -> str:
    """Return what one flaw is and what it means for the result."""
    match flaw:
        case Flaw.METAL:
            return (
                f"Metal in the slices of the lungs ({quality.metal_ml:.1f} ml above {METAL_HU} "
                "HU): streaks may hide or imitate lesions."
            )
        case Flaw.MOTION:
            places = "1 place" if quality.motion_steps == 1 else f"{quality.motion_steps} places"
            return (
                f"Motion (contours jump by up to {quality.motion_mm:.1f} mm between slices, in "
                f"{places}): lesions there may be missed, doubled or measured wrongly."
            )
        case Flaw.NOISE:
            return (
                f"Noise ({quality.noise_hu:.0f} HU in soft tissue, {NOISE_HU:.0f} HU or more is "
                "unusual): faint ground glass may be missed, and noise taken for it."
            )
        case Flaw.LUNGS_CUT:
            return (
                f"The field of view cuts the lungs ({quality.lungs_cut_cm2:.0f} cm² at its edge): "
                "lesions beyond it are not seen, and volumes are too small."
            )
        case Flaw.BODY_CUT:
            return (
                f"The field of view cuts the body ({100 * quality.body_cut:.0f} % of its outline "
                "at the edge): HU near the edge may be wrong."
            )


# --- Metal


def _metal(volume: CTVolume, lung_slices: slice) -> tuple[float | None, NDArray[np.bool_]]:
    """Return the ml of metal near the lungs, None if no metal could show, and whose slices it is.

    The second is True for each of the volume's slices that holds some.
    """
    holds_metal = np.zeros(volume.shape[0], bool)
    highest = int(volume.hu.max())
    if highest <= METAL_HU:
        saturated = np.count_nonzero(volume.hu == highest) > SATURATED_VOXELS
        return (None if saturated else 0.0), holds_metal
    reach = math.ceil(METAL_REACH_MM / volume.spacing[0])
    first = max(0, lung_slices.start - reach)
    dense = volume.hu[first : lung_slices.stop + reach] > METAL_HU
    if not dense.any():
        return 0.0, holds_metal
    box = bounding_box(dense)
    pieces = cc3d.connected_components(dense[box], connectivity=26)
    sizes_ml = np.bincount(pieces.ravel()) * volume.voxel_ml
    sizes_ml[0] = 0.0
    kept = sizes_ml >= METAL_PIECE_ML
    holds_metal[first:][box[0]] = kept[pieces].any(axis=(1, 2))
    return float(sizes_ml[kept].sum()), holds_metal


# --- The lungs and what is around them, on a coarse grid


@dataclass(frozen=True, eq=False)
class _Surroundings:
    """A box around the lungs, each slice averaged to pixels of about `GRID_MM`, as (z, y, x).

    Attributes:
        hu: Up to `SOFT_HU`.
        lungs: Whether it is lung.
        slice_mm: Distance between slices.
        pixel_mm: Size of a pixel (y, x).
    """

    hu: NDArray[np.float32]
    lungs: NDArray[np.bool_]
    slice_mm: float
    pixel_mm: tuple[float, float]

    @classmethod
    def of(cls, volume: CTVolume, lungs: NDArray[np.uint8], box: Box) -> "_Surroundings":
        """Return the grid of `box`."""
        height_mm, width_mm = volume.spacing[1:]
        rows, columns = max(1, round(GRID_MM / height_mm)), max(1, round(GRID_MM / width_mm))
        hu = _pooled(volume.hu[box], (rows, columns))
        inside = lungs[box][:, ::rows, ::columns][:, : hu.shape[1], : hu.shape[2]] > 0
        return cls(
            hu=hu,
            lungs=inside,
            slice_mm=volume.spacing[0],
            pixel_mm=(rows * height_mm, columns * width_mm),
        )


def _pooled(hu: NDArray[np.int16], pixels: tuple[int, int]) -> NDArray[np.float32]:
    """Return each slice averaged over blocks of `pixels`, values above `SOFT_HU` lowered to it."""
    height, width = pixels
    rows, columns = hu.shape[1] // height, hu.shape[2] // width
    out = np.empty((hu.shape[0], rows, columns), np.float32)
    for plane, pooled in zip(hu, out, strict=True):
        soft = np.minimum(plane[: rows * height, : columns * width], SOFT_HU)
        lines = soft.reshape(rows, height, -1).sum(axis=1, dtype=np.int32)
        np.sum([lines[:, n::width] for n in range(width)], axis=0, out=pooled, dtype=np.float32)
    out /= height * width
    return out


def _motion(around: _Surroundings, holds_metal: NDArray[np.bool_]) -> tuple[float, int]:
    """Return the furthest that contours jump between slices (mm), and how many times they do.

    Slices with metal are left out: where streaks begin and end, everything seems to jump.
    """
    moved_mm, full = _movement(around)
    judged = ~(holds_metal[1:] | holds_metal[:-1])[full]
    reach = max(FEWEST_NEIGHBOURS, round(NEIGHBOURS_MM / around.slice_mm))
    furthest_mm, jumps = 0.0, 0
    last = len(moved_mm) - FEWEST_NEIGHBOURS
    for k in np.flatnonzero(judged[FEWEST_NEIGHBOURS:last]) + FEWEST_NEIGHBOURS:
        # The faster side: towards the diaphragm slices change more and more.
        expected_mm = max(
            float(np.median(moved_mm[max(0, k - reach) : k])),
            float(np.median(moved_mm[k + 1 : k + 1 + reach])),
        )
        jump_mm = float(moved_mm[k]) - expected_mm
        if jump_mm > (MOTION_RATIO - 1) * expected_mm:
            furthest_mm = max(furthest_mm, jump_mm)
            jumps += jump_mm >= MOTION_MM
    return furthest_mm, jumps


def _movement(around: _Surroundings) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how far contours near the lungs move from slice to slice, mean in mm.

    It is told for the steps between full slices; the second array says which these are.
    """
    change = np.array([np.abs(b - a).sum() for a, b in pairwise(around.hu)])
    slope = np.array([_slope(plane, around.pixel_mm) for plane in around.hu])
    area = around.lungs.sum(axis=(1, 2))
    full = (area >= FULL_SLICE * area.max())[1:]
    return (change / np.maximum(1, (slope[1:] + slope[:-1]) / 2))[full], full


def _slope(plane: NDArray[np.float32], pixel_mm: tuple[float, float]) -> float:
    """Return the sum of the gradient's magnitude, HU/mm."""
    along_y, along_x = np.gradient(plane, *pixel_mm)
    return float(np.sqrt(along_y * along_y + along_x * along_x).sum())


# --- Noise


def _noise(volume: CTVolume, box: Box) -> float | None:
    """Return the noise in soft tissue (HU), None if there is too little of that."""
    thickness = max(1, round(NOISE_SLICE_MM / volume.spacing[0]))
    window = max(5, round(NOISE_WINDOW_MM / volume.spacing[1]))
    found = []
    for first in _spread(box[0], NOISE_SLABS):
        slab = volume.hu[first : first + thickness, box[1], box[2]]
        averaged = slab.mean(axis=0, dtype=np.float32)
        mean = _windows(averaged, window)
        deviation = (_windows(averaged * averaged, window) - mean * mean).clamp(min=0).sqrt()
        found.append(deviation[(mean > SOFT_TISSUE_HU[0]) & (mean < SOFT_TISSUE_HU[1])])
    deviations = np.sort(torch.cat(found).numpy())
    return _densest(deviations) if len(deviations) >= FEWEST_WINDOWS else None


def _windows(plane: NDArray[np.float32], window: int) -> torch.Tensor:
    """Return the means of square windows of `window` pixels, side by side."""
    return functional.avg_pool2d(torch.from_numpy(plane)[None], window)


def _densest(ascending: NDArray[np.float32]) -> float:
    """Return the mode: the mean of the quarter of the values that lie closest together."""
    quarter = len(ascending) // 4
    first = int(np.argmin(ascending[quarter:] - ascending[:-quarter]))
    return float(ascending[first : first + quarter].mean())


# --- Truncation


def _truncation(
    volume: CTVolume, lungs: NDArray[np.uint8], lung_slices: slice
) -> tuple[float, float]:
    """Return the body's share of outline at the edge of the field, and the lungs' area there."""
    planes = _spread(lung_slices, EDGE_SLICES)
    hu = volume.hu[planes]
    margin_mm = _margin(hu, volume.spacing[1:])
    at_edge = lungs[lung_slices, (margin_mm >= 0) & (margin_mm < EDGE_MM)] > 0
    pixel_mm = volume.spacing[1]
    depth_mm = math.ceil(EDGE_MM / pixel_mm) * pixel_mm  # whole pixels lie at the edge
    lungs_cut_mm2 = int(at_edge.sum()) * volume.voxel_ml * 1000 / depth_mm
    blocks = tuple(
        max(1, round(n * mm / BLOCK_MM))
        for n, mm in zip(hu.shape[1:], volume.spacing[1:], strict=True)
    )
    seen = _blocks((margin_mm >= 0)[None], blocks)[0] > 0.99
    lung = _blocks(lungs[planes] > 0, blocks) > LUNG_BLOCK
    body = ((_blocks(hu, blocks) > BODY_HU) | lung) & seen
    outline = body & _beside(~body)
    cut = body & _beside(~seen)
    return int(cut.sum()) / max(1, int(outline.sum())), lungs_cut_mm2 / 100


def _margin(hu: NDArray[np.int16], pixel_mm: tuple[float, float]) -> NDArray[np.float32]:
    """Return how far each pixel (y, x) is from the edge of the field, in mm; negative outside.

    The field is the square of the image or a circle around its middle, beyond which every slice
    holds the lowest value.
    """
    from_middle_mm = [
        (np.arange(n, dtype=np.float32) - (n - 1) / 2) * mm
        for n, mm in zip(hu.shape[1:], pixel_mm, strict=True)
    ]
    distance_mm = np.hypot(from_middle_mm[0][:, None], from_middle_mm[1])
    reconstructed = (hu != hu.min()).any(axis=0)
    radius_mm = np.max(distance_mm, where=reconstructed, initial=0.0)
    to_sides_mm = [half[-1] - np.abs(half) for half in from_middle_mm]
    to_square_mm = np.minimum(to_sides_mm[0][:, None], to_sides_mm[1])
    margin: NDArray[np.float32] = np.minimum(to_square_mm, radius_mm - distance_mm)
    return margin


def _blocks(planes: NDArray[np.generic], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return each slice averaged over a grid of `shape` blocks, (z, y, x)."""
    averaged: NDArray[np.float32] = torch.cat([
        functional.adaptive_avg_pool2d(torch.from_numpy(plane.astype(np.float32))[None], shape)
        for plane in planes
    ]).numpy()  # fmt: skip
    return averaged


def _beside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which blocks (…, y, x) have one of `mask` at a side; the outside is all of it."""
    wide = np.pad(mask, [*[(0, 0)] * (mask.ndim - 2), (1, 1), (1, 1)], constant_values=True)
    rows, columns = wide[..., 1:-1], wide[..., 1:-1, :]
    beside: NDArray[np.bool_] = (
        rows[..., :-2, :] | rows[..., 2:, :] | columns[..., :-2] | columns[..., 2:]
    )
    return beside


def _spread(slices: slice, most: int) -> NDArray[np.intp]:
    """Return up to `most` slices, evenly spread."""
    count = min(most, slices.stop - slices.start)
    return np.linspace(slices.start, slices.stop - 1, count).round().astype(np.intp)
