"""Figures of merit: Dice and area under the ROC curve (J57, J58)."""

import numpy as np
from numpy.typing import NDArray


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


def youden_threshold(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return the score from which sensitivity plus specificity is largest (A-15)."""
    candidates = np.unique(scores)
    sensitivity = np.array([(scores[positive] >= c).mean() for c in candidates])
    specificity = np.array([(scores[~positive] < c).mean() for c in candidates])
    return float(candidates[np.argmax(sensitivity + specificity)])
