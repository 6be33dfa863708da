"""Losses of the segmenters and of the classifiers (J56, A-7; U20)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from monai.losses.dice import DiceLoss
from torch.nn import functional

from pipelines.errors import PipelineError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_dice = DiceLoss(sigmoid=True, batch=True)
_squared_dice = DiceLoss(sigmoid=True, batch=True, squared_pred=True)


def dice_and_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return Dice plus binary cross-entropy; nested outputs `(k, n, 1, ...)` count equally."""
    terms = [
        _dice(output, target) + functional.binary_cross_entropy_with_logits(output, target)
        for output in _nested(logits, target)
    ]
    return torch.stack(terms).mean()


def dice_alone(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return V-Net's Dice, squares in the denominator (Milletari 2016); nested likewise."""
    return torch.stack([_squared_dice(o, target) for o in _nested(logits, target)]).mean()


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return binary cross-entropy of logits `(n, 1)`."""
    return functional.binary_cross_entropy_with_logits(logits.float(), target)


WEIGHTED_CROSS_ENTROPY: Final = "weighted cross-entropy"


def weighted_cross_entropy(weights: Sequence[float]) -> Loss:
    """Return cross-entropy of logits `(n, classes)` and class numbers `(n,)` (U20)."""

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        by_class = torch.tensor(weights, device=logits.device)
        return functional.cross_entropy(logits.float(), target, weight=by_class)

    return loss


LOSSES: Final[Mapping[str, Loss]] = {
    "dice and cross-entropy": dice_and_cross_entropy,
    "dice": dice_alone,
    "cross-entropy": cross_entropy,
}


def loss_named(name: str) -> Loss:
    """Return a loss by its name in a training file.

    Raises:
        PipelineError: there is no such loss.
    """
    if name not in LOSSES:
        raise PipelineError(f"Unknown loss '{name}'; known are {', '.join(LOSSES)}.")
    return LOSSES[name]


def _nested(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.ndim > target.ndim else logits.float()[None]
