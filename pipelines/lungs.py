"""The lungs: a 2-D U-Net slice by slice on a coarse grid, then what anatomy knows (J31, A-21)."""

from typing import Final

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from pipelines.errors import NoUsableSeriesError, Refusal, Rule
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, LungMeasures
from pipelines.inference import Model, predict_slices
from pipelines.preprocessing import MULTIPLE, nearest, resampled_shape, resize, window
from pipelines.volume import CTVolume

# An adult's two lungs hold 2 to 7 litres in inspiration; a head or an abdomen holds nothing.
MINIMUM_LUNGS_ML: Final = 400.0
SMALL_PART: Final = 0.05  # a region below this share of the largest is bowel gas or noise
LARGE_PART: Final = 0.1  # of the largest part: what is left of a lung holds at least this
ACROSS: Final = 0.1  # a part with more than this on either side of the middle is both lungs
TISSUE: Final = 0.6  # of the window: soft tissue and bone


def segment_lungs(volume: CTVolume, model: Model) -> NDArray[np.uint8]:
    """Return uint8 (z, y, x) on the volume's own grid: `RIGHT_LUNG`, `LEFT_LUNG`, 0 elsewhere.

    Raises:
        NoUsableSeriesError: there are no lungs in the series.
    """
    shape = resampled_shape(volume.shape, volume.spacing, model.config.spacing)
    image = window(resize(volume.hu, shape), model.config.window_hu)
    height, width = (n + -n % MULTIPLE for n in shape[1:])
    padded = np.pad(image, ((0, 0), (0, height - shape[1]), (0, width - shape[2])))
    probability = predict_slices(model.engine, padded[:, None])[:, 0, : shape[1], : shape[2]]
    threshold = float(model.config.decision["threshold"])
    coarse = probability > threshold
    kept = keep_lungs(coarse)
    _, left = split_sides(kept, middle=_middle(image))
    voxel_ml = float(np.prod(volume.spacing)) * volume.hu.size / coarse.size / 1000
    lungs_ml = int(kept.sum()) * voxel_ml
    if lungs_ml < MINIMUM_LUNGS_ML:
        raise NoUsableSeriesError((_no_lungs(volume, lungs_ml),))
    # The edge comes from the probability; what was filled counts as sure, or it would open again.
    sure = np.where(coarse, probability, np.float32(1))
    lungs = (resize(np.where(kept, sure, np.float32(0)), volume.shape) > threshold).view(np.uint8)
    lungs[nearest(left, volume.shape) & (lungs > 0)] = LEFT_LUNG
    return lungs


def keep_lungs(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the large connected parts of `mask`, holes filled; bowel gas and noise go."""
    labels = cc3d.connected_components(mask, connectivity=6)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max() == 0:
        return mask
    kept = np.isin(labels, np.flatnonzero(sizes >= SMALL_PART * sizes.max()))
    filled = sitk.BinaryFillhole(sitk.GetImageFromArray(kept.astype(np.uint8)))
    return sitk.GetArrayFromImage(filled).astype(bool)


def split_sides(
    lungs: NDArray[np.bool_], *, middle: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the masks of the patient's right and left lung; x runs to the patient's left.

    `middle` is the x index of the body's middle. Lungs that touch, mostly in front of the heart,
    are eroded until no large part reaches across the middle; each voxel then belongs to the side of
    the nearest part. Lungs that never come apart are cut at the middle.
    """
    for radius in range(6):
        labels = cc3d.connected_components(_eroded(lungs, radius), connectivity=6)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        parts = [int(i) for i in np.flatnonzero(sizes >= max(1, LARGE_PART * sizes.max()))]
        shares = [_left_share(labels == part, middle) for part in parts]
        if all(min(share, 1 - share) <= ACROSS for share in shares):
            lefts = [part for part, share in zip(parts, shares, strict=True) if share > 0.5]
            on_left = np.isin(labels, lefts)
            on_right = np.isin(labels, parts) & ~on_left
            if not on_left.any() or not on_right.any():
                return (lungs, on_left) if on_right.any() else (on_right, lungs)
            left = _distance(on_left) < _distance(on_right)
            return lungs & ~left, lungs & left
    beyond = np.arange(lungs.shape[2]) >= middle
    return lungs & ~beyond, lungs & beyond


def measure_lungs(lungs: NDArray[np.uint8], voxel_ml: float) -> LungMeasures:
    """Return the volumes of both lungs in ml."""
    counts = np.bincount(lungs.ravel(), minlength=3)
    return LungMeasures(
        left_ml=float(counts[LEFT_LUNG]) * voxel_ml, right_ml=float(counts[RIGHT_LUNG]) * voxel_ml
    )


def cut_off(lungs: NDArray[np.uint8]) -> bool:
    """Return whether the scan ends inside the lungs, at the top or at the bottom."""
    largest = max(int((plane > 0).sum()) for plane in lungs)
    return any(int((lungs[end] > 0).sum()) > 0.1 * largest for end in (0, -1))


def _middle(image: NDArray[np.float32]) -> float:
    """Return the x index of the middle of the body; `image` is windowed, (z, y, x)."""
    columns = (image > TISSUE).sum(axis=(0, 1))
    if not columns.any():
        return float(image.shape[2]) / 2
    weighted = int((columns * np.arange(len(columns))).sum())
    return weighted / int(columns.sum())


def _left_share(part: NDArray[np.bool_], middle: float) -> float:
    columns = part.sum(axis=(0, 1))
    beyond = np.arange(len(columns)) >= middle
    return int(columns[beyond].sum()) / int(columns.sum())


def _eroded(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    if radius == 0:
        return mask
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    eroded = sitk.BinaryErode(image, [radius, radius, max(1, radius // 2)], sitk.sitkBall)
    return sitk.GetArrayFromImage(eroded).astype(bool)


def _distance(seed: NDArray[np.bool_]) -> NDArray[np.float32]:
    image = sitk.GetImageFromArray(seed.astype(np.uint8))
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=True, useImageSpacing=False)
    return sitk.GetArrayFromImage(distance)


def _no_lungs(volume: CTVolume, lungs_ml: float) -> Refusal:
    return Refusal(
        series_uid=volume.series_uid,
        rule=Rule.NOT_CHEST,
        reason=(
            f"{volume.name} shows {lungs_ml:.0f} ml of lung, too little for a chest CT "
            f"(at least {MINIMUM_LUNGS_ML:.0f} ml). Send a series that covers the lungs."
        ),
    )
