"""The lungs: a 2-D U-Net slice by slice on a coarse grid, then what anatomy knows (J31, A-21)."""

from collections.abc import Iterator
from typing import Final

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from pipelines.errors import NoUsableSeriesError, Refusal, Rule
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, LungMeasures
from pipelines.inference import Model
from pipelines.preprocessing import (
    bounding_box,
    dilate,
    nearest,
    resampled_shape,
    resize,
    resize_above,
    window,
)
from pipelines.volume import CTVolume

# An adult's two lungs hold 2 to 7 litres in inspiration; a head or an abdomen holds nothing.
MINIMUM_LUNGS_ML: Final = 400.0
SMALL_PART: Final = 0.05  # a region below this share of the largest is bowel gas or noise
LARGE_PART: Final = 0.1  # of the largest part: what is left of a lung holds at least this
ACROSS: Final = 0.1  # a part with more than this on either side of the middle is both lungs
EROSION_MM: Final = (2.0, 4.0, 6.0, 8.0, 10.0)  # lungs that touch are far thicker
ALONG_Z: Final = 1.6  # a millimetre across the slices counts as so many: lungs touch along them
TISSUE_HU: Final = -200.0  # above it lie soft tissue and bone
DOME_MM2: Final = (100.0, 500.0)  # of the diaphragm in a slice: at its top, and at least once
DOME_ML: Final = 15.0  # of it taken for lung, at most; the shipped net's are below 8 ml
STANDS: Final = 0.8  # of a dome rests on what is no lung, and of its rim is on one side


def segment_lungs(volume: CTVolume, model: Model) -> NDArray[np.uint8]:
    """Return uint8 (z, y, x) on the volume's own grid: `RIGHT_LUNG`, `LEFT_LUNG`, 0 elsewhere.

    Raises:
        NoUsableSeriesError: there are no lungs in the series.
    """
    shape = resampled_shape(volume.shape, volume.spacing, model.config.spacing)
    hu = resize(volume.hu, shape)
    middle = _middle(hu)
    probability = model.probability(window(hu, model.config.window_hu))
    threshold = float(model.config.decision["threshold"])
    coarse = probability > threshold
    kept = without_domes(keep_lungs(coarse), hu, model.config.spacing)
    voxel_ml = float(np.prod(volume.spacing)) * volume.hu.size / coarse.size / 1000
    lungs_ml = int(kept.sum()) * voxel_ml
    if lungs_ml < MINIMUM_LUNGS_ML:
        raise NoUsableSeriesError((_no_lungs(volume, lungs_ml),))
    box = bounding_box(kept, (1, 1, 1))  # tight sides would not be eroded
    _, left = split_sides(kept[box], model.config.spacing, middle=middle - box[2].start)
    sides = np.full(kept.shape, RIGHT_LUNG, dtype=np.uint8)
    sides[box][left] = LEFT_LUNG
    # The edge comes from the probability; what was filled counts as sure, or it would open again.
    sure = np.where(coarse, probability, np.float32(1))
    inside = resize_above(np.where(kept, sure, np.float32(0)), volume.shape, threshold)
    lungs = nearest(sides, volume.shape)
    lungs *= inside.view(np.uint8)
    return lungs


def keep_lungs(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the large connected parts of `mask`, holes filled; bowel gas and noise go."""
    labels, sizes = _parts(mask)
    if sizes.max() == 0:
        return mask
    kept: NDArray[np.bool_] = (sizes >= SMALL_PART * sizes.max())[labels]
    box = bounding_box(kept)
    kept[box] = _fill_holes(kept[box])
    return kept


def without_domes(
    lungs: NDArray[np.bool_], hu: NDArray[np.float32], spacing: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """Return `lungs` (z, y, x) without the tops of the diaphragm, which look like consolidation.

    In one slice the liver's top is a dense disk within the lung; what lies below tells what it is:
    a disk that rests on what is no lung is no lung, and so on upwards. A consolidation on the
    diaphragm stays where it reaches the chest wall or the mediastinum beside aerated lung, or is
    larger than what a net takes for lung of a dome (`DOME_ML`), as a whole lobe is. Slices ascend;
    `spacing` is (z, y, x) in mm.
    """
    given, lungs = lungs, lungs.copy()
    top, base = (round(area / (spacing[1] * spacing[2])) for area in DOME_MM2)
    dome = np.zeros(lungs.shape[1:], dtype=bool)  # in the slice below
    for z in range(1, len(lungs)):
        below_dome, dome = dome, np.zeros_like(dome)
        dense, beneath = hu[z] > TISSUE_HU, ~lungs[z - 1]
        if np.count_nonzero(lungs[z] & dense & beneath) < top:
            continue
        outline = _fill_holes(lungs[z])
        bodies = cc3d.connected_components(outline & dense, connectivity=4)
        sizes = np.bincount(bodies[lungs[z]], minlength=int(bodies.max()) + 1)
        for number in np.flatnonzero(sizes[1:] >= top) + 1:
            body = bodies == number
            rest = beneath if np.count_nonzero(body) >= base else below_dome
            if np.mean(rest[body]) >= STANDS and _is_island(body, lungs[z], outline):
                dome |= body
        lungs[z] &= ~dome
    removed = given & ~lungs
    if removed.any():
        box = bounding_box(removed)
        domes = cc3d.connected_components(removed[box], connectivity=26)
        sizes_ml = np.bincount(domes.ravel()) * float(np.prod(spacing)) / 1000
        large: NDArray[np.bool_] = sizes_ml > DOME_ML
        large[0] = False
        lungs[box] |= large[domes]
    return lungs


def _is_island(
    body: NDArray[np.bool_], lungs: NDArray[np.bool_], outline: NDArray[np.bool_]
) -> bool:
    """Return whether a body in a slice (y, x) lies within the lungs, or altogether beside them."""
    ring = dilate(body[None], (0, 1, 1))[0] & ~body
    if not ring.any():  # it fills the image
        return False
    return bool(np.mean(outline[ring]) >= STANDS or np.mean(lungs[ring]) <= 1 - STANDS)


def split_sides(
    lungs: NDArray[np.bool_], spacing: tuple[float, float, float], *, middle: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the masks of the patient's right and left lung; x runs to the patient's left.

    `lungs` is (z, y, x) at `spacing` mm, `middle` the x index of the body's middle. Lungs that
    touch, mostly in front of the heart, are eroded until no large part reaches across the middle;
    what was eroded then belongs to the side of the nearest part. Lungs that never come apart are
    cut at the middle.
    """
    for core in _eroded(lungs, spacing):
        labels, sizes = _parts(core)
        large = sizes >= max(1, LARGE_PART * sizes.max())
        shares = np.zeros(len(sizes))
        for part in np.flatnonzero(large):
            shares[part] = _left_share(labels == part, middle)
        if np.minimum(shares, 1 - shares).max() <= ACROSS:
            is_left = shares > 0.5
            return _grown(lungs, (large & ~is_left)[labels], is_left[labels])
    beyond = np.arange(lungs.shape[2]) >= middle
    return lungs & ~beyond, lungs & beyond


def measure_lungs(lungs: NDArray[np.uint8], voxel_ml: float) -> LungMeasures:
    """Return the volumes of both lungs in ml."""
    left, right = (
        sum(np.count_nonzero(plane == side) for plane in lungs) for side in (LEFT_LUNG, RIGHT_LUNG)
    )
    return LungMeasures(left_ml=left * voxel_ml, right_ml=right * voxel_ml)


def cut_off(lungs: NDArray[np.uint8]) -> bool:
    """Return whether the scan ends inside the lungs, at the top or at the bottom."""
    areas = [np.count_nonzero(plane) for plane in lungs]
    return bool(max(areas[0], areas[-1]) > 0.1 * max(areas))


def _parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.intp]]:
    """Return the connected parts, numbered from 1, and how many voxels each has; 0 is no part."""
    labels = cc3d.connected_components(mask, connectivity=6)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels, sizes


def _fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    filled = sitk.BinaryFillhole(sitk.GetImageFromArray(mask.view(np.uint8)))
    return sitk.GetArrayFromImage(filled).view(np.bool_)


def _middle(hu: NDArray[np.float32]) -> float:
    """Return the x index of the middle of the body; `hu` is (z, y, x)."""
    columns = (hu > TISSUE_HU).sum(axis=(0, 1))
    if not columns.any():
        return float(hu.shape[2]) / 2
    weighted = int((columns * np.arange(len(columns))).sum())
    return weighted / int(columns.sum())


def _left_share(part: NDArray[np.bool_], middle: float) -> float:
    columns = part.sum(axis=(0, 1))
    beyond = np.arange(len(columns)) >= middle
    return int(columns[beyond].sum()) / int(columns.sum())


def _eroded(
    lungs: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> Iterator[NDArray[np.bool_]]:
    """Yield `lungs`, then without an outer layer that grows; it is thinner along z."""
    yield lungs
    z, y, x = spacing
    depth = -_distance(lungs, (z * ALONG_Z, y, x))
    for radius in EROSION_MM:
        yield depth >= radius * radius


def _grown(
    lungs: NDArray[np.bool_], on_right: NDArray[np.bool_], on_left: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return both sides with the rest of `lungs`, each voxel with the part fewer voxels away."""
    if not on_left.any() or not on_right.any():
        return (lungs, on_left) if on_right.any() else (on_right, lungs)
    rest = lungs & ~on_left & ~on_right
    if not rest.any():
        return on_right, on_left
    nearer_left = _distance(on_left) < _distance(on_right)
    return on_right | (rest & ~nearer_left), on_left | (rest & nearer_left)


def _distance(
    parts: NDArray[np.bool_], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> NDArray[np.float32]:
    """Return the squared distance to the nearest voxel of `parts`; negative inside.

    It is in the unit of `spacing` (z, y, x), by default in voxels.
    """
    image = sitk.GetImageFromArray(parts.view(np.uint8))
    image.SetSpacing(spacing[::-1])
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, useImageSpacing=True))


def _no_lungs(volume: CTVolume, lungs_ml: float) -> Refusal:
    return Refusal(
        series_uid=volume.series_uid,
        rule=Rule.NOT_CHEST,
        reason=(
            f"{volume.name} shows {lungs_ml:.0f} ml of lung, too little for a chest CT "
            f"(at least {MINIMUM_LUNGS_ML:.0f} ml). Send a series that covers the lungs."
        ),
    )
