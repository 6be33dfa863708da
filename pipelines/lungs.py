"""The lungs: a 2-D U-Net slice by slice on a coarse grid, then what anatomy knows (J31, A-21)."""

from typing import Final

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from pipelines.errors import NoUsableSeriesError, Refusal, Rule
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, LungMeasures
from pipelines.inference import Model, predict_slices
from pipelines.preprocessing import MULTIPLE, resampled_shape, resize, window
from pipelines.volume import CTVolume

# An adult's two lungs hold 2 to 7 litres in inspiration; a head or an abdomen holds nothing.
MINIMUM_LUNGS_ML: Final = 400.0
SMALL_PART: Final = 0.05  # a region below this share of the largest is bowel gas or noise
OTHER_SIDE: Final = 0.1  # the second lung holds at least this share of the first


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
    right, left = split_sides(keep_lungs(coarse))
    voxel_ml = float(np.prod(volume.spacing)) * volume.hu.size / coarse.size / 1000
    lungs_ml = int((right | left).sum()) * voxel_ml
    if lungs_ml < MINIMUM_LUNGS_ML:
        raise NoUsableSeriesError((_no_lungs(volume, lungs_ml),))
    # The edge comes from the probability, the side from the coarse grid it was decided on.
    inside = resize(np.where(right | left, probability, 0), volume.shape) > threshold
    is_left = resize(left, volume.shape) > resize(right, volume.shape)
    return np.where(inside, np.where(is_left, LEFT_LUNG, RIGHT_LUNG), 0).astype(np.uint8)


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


def split_sides(lungs: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the masks of the patient's right and left lung; x runs to the patient's left.

    Lungs that touch, mostly in front of the heart, are eroded until they come apart; each voxel
    then belongs to the nearer one.
    """
    for radius in range(6):
        labels = cc3d.connected_components(_eroded(lungs, radius), connectivity=6)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        first, second = (int(i) for i in np.argsort(sizes)[::-1][:2]) if len(sizes) > 2 else (1, 0)
        if second and sizes[second] >= OTHER_SIDE * sizes[first]:
            seeds = [labels == first, labels == second]
            seeds.sort(key=lambda seed: float(np.flatnonzero(seed.any(axis=(0, 1))).mean()))
            nearer_left = _distance(seeds[1]) < _distance(seeds[0])
            return lungs & ~nearer_left, lungs & nearer_left
    return _by_midline(lungs)


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


def _by_midline(lungs: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """One lung, or two that do not come apart: the middle of the image decides."""
    left_half = np.arange(lungs.shape[2]) >= lungs.shape[2] / 2
    return lungs & ~left_half, lungs & left_half


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
            f"The series shows {lungs_ml:.0f} ml of lung, too little for a chest CT "
            f"(at least {MINIMUM_LUNGS_ML:.0f} ml). Send a series that covers the lungs."
        ),
    )
