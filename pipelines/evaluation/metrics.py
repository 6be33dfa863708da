"""Figures of merit: Dice, ROC, calibration, lesions found by size (J57, J58, J66)."""

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import cc3d
import numpy as np
from numpy.typing import NDArray

from pipelines.measures import axial_diameter_mm

RESAMPLES: Final = 1000
CONFIDENCE: Final = 0.95
BINS: Final = 10
FEWEST_GROUPS: Final = 10  # a resample of fewer says little of what is not among them
INTERVALS: Final = (
    f"Intervals of Dice and AUC hold 95 % of {RESAMPLES:,} resamples of the groups (patients, "
    f"papers); with fewer than {FEWEST_GROUPS} groups, of each class for the AUC, there are none. "
    "Those of sensitivity and specificity are Wilson's, a group counting once."
)


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
    """A figure with its 95 % bounds, where there are enough groups for any."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Return it as tables show it."""
        bounds = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{bounds}"


def bootstrap(
    figure: Callable[[NDArray[np.int64]], float],
    groups: Sequence[Hashable],
    *,
    classes: Sequence[Hashable] = (),
    seed: int = 0,
) -> Interval:
    """Return `figure` of all rows, and its bounds when groups are drawn with replacement.

    Rows of one group, the slices of a patient say, come or go together. There are no bounds with
    less than `FEWEST_GROUPS`, in any of the classes if those of the rows are given, nor where no
    draw differs from another: neither knows how far off the figure may be. Draws for which `figure`
    is not defined (ValueError: a class is absent) are drawn again, until there are `RESAMPLES`.
    """
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    rows_of = [np.array(found) for found in rows.values()]
    whole = figure(np.arange(len(groups)))
    of_class: dict[Hashable, set[Hashable]] = {}
    for group, name in zip(groups, classes or [None] * len(groups), strict=True):
        of_class.setdefault(name, set()).add(group)
    if min(map(len, of_class.values())) < FEWEST_GROUPS:
        return Interval(whole)
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    while len(drawn) < RESAMPLES:
        picked = rng.integers(len(rows_of), size=len(rows_of))
        with suppress(ValueError):
            drawn.append(figure(np.concatenate([rows_of[place] for place in picked])))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(whole, float(low), float(high)) if low < high else Interval(whole)


def proportion(flags: NDArray[np.bool_], groups: Sequence[Hashable]) -> Interval:
    """Return the share of the flags that are set, with Wilson's bounds for as many as groups.

    Rows of one group are as one: the bounds are too wide rather than too narrow. They hold for a
    share of 0 or 1 as well (Wilson 1927, doi:10.1080/01621459.1927.10502953).
    """
    share, count = float(flags.mean()), len(set(groups))
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


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
class Region:
    """A connected region of a mask; `met` where the other mask has any voxel in it.

    Of the truth, the regions that are not met were missed; of what was found, they are false.
    `diameter_mm` is the longest axial one.
    """

    volume_ml: float
    diameter_mm: float
    met: bool


def regions(
    mask: NDArray[np.bool_], other: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> list[Region]:
    """Return every connected region of `mask`, held against `other`; both are (z, y, x).

    `spacing` is (z, y, x) mm.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    labels = cc3d.connected_components(mask, connectivity=26)
    found = []
    for number, box in enumerate(cc3d.statistics(labels)["bounding_boxes"][1:], start=1):
        region = labels[box] == number
        planes = (plane for plane in region if plane.any())
        found.append(
            Region(
                volume_ml=int(region.sum()) * voxel_ml,
                diameter_mm=max(axial_diameter_mm(p, (spacing[1], spacing[2])) for p in planes),
                met=bool((other[box] & region).any()),
            )
        )
    return found
