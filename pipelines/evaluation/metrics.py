"""Figures of merit: Dice, ROC, calibration, lesions found by size (J57, J58, J66)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np
from numpy.typing import NDArray

from pipelines.lesions import axial_diameter_mm

RESAMPLES: Final = 1000
CONFIDENCE: Final = 0.95
BINS: Final = 10


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return twice the overlap over the sum of both masks; 1 when both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def roc_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return the chance that a positive scores above a negative; ties count half.

    Raises:
        ValueError: one of the classes is absent.
    """
    above, below = scores[positive], scores[~positive]
    if len(above) == 0 or len(below) == 0:
        raise ValueError("The area under the curve needs both classes.")
    order = np.sort(below)
    less = np.searchsorted(order, above, side="left")
    upto = np.searchsorted(order, above, side="right")
    return float((less + upto).sum() / 2 / (len(above) * len(below)))


def roc_curve(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the false and true positive rates of every threshold, (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits, alarms = np.cumsum(positive[order]), np.cumsum(~positive[order])
    true_rate = np.append(0.0, hits[last_of_ties] / hits[-1])
    false_rate = np.append(0.0, alarms[last_of_ties] / alarms[-1])
    return false_rate, true_rate


def youden_threshold(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return the score from which sensitivity plus specificity is largest (A-15)."""
    candidates = np.unique(scores)
    sensitivity = np.array([(scores[positive] >= c).mean() for c in candidates])
    specificity = np.array([(scores[~positive] < c).mean() for c in candidates])
    return float(candidates[np.argmax(sensitivity + specificity)])


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds that 95 % of resamples of the groups lie in."""

    value: float
    low: float
    high: float


def bootstrap(
    figure: Callable[[NDArray[np.int64]], float], groups: Sequence[str], *, seed: int = 0
) -> Interval:
    """Return `figure` of all rows, and its bounds when groups are drawn with replacement.

    Rows of one group, the slices of a patient say, come or go together. Draws for which `figure`
    is not defined (ValueError: a class is absent) are drawn again.
    """
    names, of = np.unique(np.asarray(groups), return_inverse=True)
    rows_of = [np.flatnonzero(of == place) for place in range(len(names))]
    whole = figure(np.arange(len(groups)))
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(2 * RESAMPLES):
        picked = rng.integers(len(names), size=len(names))
        try:
            drawn.append(figure(np.concatenate([rows_of[place] for place in picked])))
        except ValueError:
            continue
        if len(drawn) == RESAMPLES:
            break
    if not drawn:
        return Interval(whole, whole, whole)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(whole, float(low), float(high))


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from frequencies.

    Attributes:
        brier: Mean squared distance of the probability from 0 or 1.
        error: Expected calibration error: mean distance in the bins, weighted by their cases.
        bins: Mean probability, share of positives and number of cases of every bin not empty.
    """

    brier: float
    error: float
    bins: tuple[tuple[float, float, int], ...]


def calibration(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> Calibration:
    """Return the calibration over ten bins of equal width."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = tuple(
        (float(scores[here].mean()), float(positive[here].mean()), int(here.sum()))
        for here in (place == p for p in range(BINS))
        if here.any()
    )
    error = sum(n * abs(said - seen) for said, seen, n in bins) / len(scores)
    return Calibration(float(((scores - positive) ** 2).mean()), error, bins)


@dataclass(frozen=True)
class Found:
    """A lesion of the truth: its longest axial diameter, and whether any of it was marked."""

    diameter_mm: float
    found: bool


def lesions_found(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> list[Found]:
    """Return every connected lesion of `truth` (z, y, x); `spacing` is (z, y, x) mm."""
    labels = cc3d.connected_components(truth, connectivity=26)
    lesions = []
    for number, box in enumerate(cc3d.statistics(labels)["bounding_boxes"][1:], start=1):
        lesion = labels[box] == number
        planes = (plane for plane in lesion if plane.any())
        diameter = max(axial_diameter_mm(p, (spacing[1], spacing[2])) for p in planes)
        lesions.append(Found(diameter, bool((mask[box] & lesion).any())))
    return lesions


def false_regions_ml(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_ml: float
) -> list[float]:
    """Return the volumes of the connected regions of `mask` that touch nothing of `truth`."""
    labels = cc3d.connected_components(mask, connectivity=26)
    sizes = np.bincount(labels.ravel())
    touching = np.unique(labels[truth])
    return [
        float(sizes[number]) * voxel_ml for number in range(1, len(sizes)) if number not in touching
    ]
