"""How much of the lungs is lesion: arithmetic on the masks, and a grade by the share of a lung.

The grade follows the scale of MosMedData (Morozov et al. 2020, doi:10.1101/2020.05.20.20100362):
CT-0 no involvement, CT-1 up to a quarter of the lung, CT-2 up to half, CT-3 up to three quarters,
CT-4 more, by the lung that is more affected. There a radiologist estimates the share by eye, and
CT-0 means no sign of pneumonia; here it is the share of the lesion mask, which may hold other
disease, or vessels. Nobody has validated it as a clinical grade (A-U5).
"""

from collections.abc import Collection
from dataclasses import replace
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import RegionError
from pipelines.findings import (
    LEFT_LUNG,
    RIGHT_LUNG,
    Analysis,
    Burden,
    Grade,
    Involvement,
    Lesion,
    LungInvolvement,
    Side,
)
from pipelines.marks import Mark

LARGEST_SHARES: Final = (
    (Grade.CT_0, 0.0),
    (Grade.CT_1, 0.25),
    (Grade.CT_2, 0.5),
    (Grade.CT_3, 0.75),
    (Grade.CT_4, 1.0),
)
THIRDS: Final = 3


class Third(StrEnum):
    """A third of a lung's own height."""

    UPPER = "upper"
    MIDDLE = "middle"
    LOWER = "lower"


def measure_burden(lungs: NDArray[np.uint8], labels: NDArray[np.uint16], voxel_ml: float) -> Burden:
    """Return volume and share of lesion by lung and third; the masks are (z, y, x), z to the head.

    The thirds are those of each lung's own height, for lobes are not told apart.
    """
    right, left = (_by_slice(lungs, labels, side) for side in (RIGHT_LUNG, LEFT_LUNG))
    of_right, of_left = _of_lung(right, voxel_ml), _of_lung(left, voxel_ml)
    return Burden(
        right=of_right,
        left=of_left,
        both=_involvement(right + left, voxel_ml),
        grade=grade(max(of_right.whole.share, of_left.whole.share)),
    )


def as_judged(
    analysis: Analysis, *, rejected: Collection[int] = (), marks: Collection[Mark] = ()
) -> Analysis:
    """Return an analysis as a person left it, its burden measured again.

    Without the lesions that were rejected, with those that were outlined; the same object where
    nothing was changed.

    Raises:
        RegionError: An outline does not lie in its volume.
    """
    if not (rejected or marks):
        return analysis
    # The network scored the lesion that it saw: of another outline its probability is not known.
    outlined = {mark.lesion.id: mark.lesion for mark in marks}
    gone = outlined.keys() | set(rejected)
    kept = np.where(np.isin(analysis.lesion_labels, list(gone)), 0, analysis.lesion_labels)
    labels = kept.astype(analysis.lesion_labels.dtype)
    for mark in marks:
        if labels[mark.region.place].shape != mark.region.mask.shape:
            raise RegionError("A marked lesion is not in the volume.")
        labels[mark.region.place][mark.region.mask] = mark.lesion.id
    found = {lesion.id: lesion for lesion in analysis.lesions if lesion.id not in gone}
    standing = found | outlined
    voxel_ml = float(np.prod(analysis.spacing)) / 1000
    return replace(
        analysis,
        lesions=tuple(standing[number] for number in sorted(standing)),
        lesion_labels=labels,
        burden=analysis.burden and measure_burden(analysis.lung_mask, labels, voxel_ml),
    )


def third_of(analysis: Analysis, lesion: Lesion) -> Third | None:
    """Return the third of its lung in which the middle of a lesion lies.

    Of both lungs together for a lesion in both; None where no lung was found.
    """
    lung = {Side.RIGHT: RIGHT_LUNG, Side.LEFT: LEFT_LUNG}.get(lesion.side)
    mask = analysis.lung_mask > 0 if lung is None else analysis.lung_mask == lung
    filled = np.flatnonzero(mask.any(axis=(1, 2)))
    if not filled.size:
        return None
    height = filled[-1] + 1 - filled[0]
    place = (lesion.centroid[0] + 0.5 - filled[0]) * THIRDS // height
    return (Third.LOWER, Third.MIDDLE, Third.UPPER)[int(np.clip(place, 0, THIRDS - 1))]


def grade(share: float) -> Grade:
    """Return the grade of a lung of which `share`, 0 to 1, is lesion."""
    return next(grade for grade, largest in LARGEST_SHARES if share <= largest)


def _by_slice(lungs: NDArray[np.uint8], labels: NDArray[np.uint16], side: int) -> NDArray[np.int64]:
    """Return the voxels (2, z) of lesion in one lung, and of that lung, in each slice."""
    counts = np.zeros((2, len(lungs)), dtype=np.int64)
    for z, (plane, regions) in enumerate(zip(lungs, labels, strict=True)):
        inside = plane == side
        counts[:, z] = np.count_nonzero(inside & (regions > 0)), np.count_nonzero(inside)
    return counts


def _of_lung(counts: NDArray[np.int64], voxel_ml: float) -> LungInvolvement:
    filled = np.flatnonzero(counts[1])
    counts = counts[:, filled[0] : filled[-1] + 1] if filled.size else counts
    height = counts.shape[1]
    third = (2 * np.arange(height) + 1) * THIRDS // (2 * height)  # where a slice's middle lies
    lower, middle, upper = (
        _involvement(counts[:, third == place], voxel_ml) for place in range(THIRDS)
    )
    return LungInvolvement(_involvement(counts, voxel_ml), upper, middle, lower)


def _involvement(counts: NDArray[np.int64], voxel_ml: float) -> Involvement:
    lesion, lung = (int(voxels) for voxels in counts.sum(axis=1))
    return Involvement(lesion_ml=lesion * voxel_ml, share=lesion / lung if lung else 0.0)
