"""Losses of the segmenters and of the classifier (J56; A-7)."""

import torch
from monai.losses.dice import DiceLoss
from torch.nn import functional

_dice = DiceLoss(sigmoid=True, batch=True)


def segmentation_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return Dice plus binary cross-entropy; nested outputs `(k, n, 1, ...)` count equally."""
    nested = logits.float() if logits.ndim > target.ndim else logits.float()[None]
    terms = [
        _dice(output, target) + functional.binary_cross_entropy_with_logits(output, target)
        for output in nested
    ]
    return torch.stack(terms).mean()


def classification_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return binary cross-entropy of logits `(n, 1)`."""
    return functional.binary_cross_entropy_with_logits(logits.float(), target)
