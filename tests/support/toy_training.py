"""A training so small that it takes milliseconds: a network learns to copy its input."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn

from pipelines.training.loop import Process, train
from pipelines.training.losses import dice_and_cross_entropy
from pipelines.training.recipe import TrainingConfig
from pipelines.weights import Precision

CPU = torch.device("cpu")


def config(**changes: object) -> TrainingConfig:
    settings = TrainingConfig(
        name="toy",
        version="0",
        purpose="toy",
        network={"dimensions": 2},
        preprocessing={},
        decision={},
        precision=Precision.FP32,
        data={},
        seed=4,
        steps=8,
        batch=2,
        learning_rate=0.01,
        weight_decay=0.0,
        validate_every=4,
        patch=(8, 8),
        loss="dice and cross-entropy",
    )
    return replace(settings, **changes)


class Toy:
    """`stop_at` kills the training at that sample, as a power cut would; `scores` are told.

    At the step `nan_at` the loss is no number, at `steep_at` its gradient.
    """

    def __init__(
        self,
        *,
        stop_at: int | None = None,
        nan_at: int | None = None,
        steep_at: int | None = None,
        scores: tuple[float, ...] = (),
        dimensions: int = 2,
    ) -> None:
        self.shape = (1, *[8] * dimensions)
        self.left = stop_at
        self.good_losses = nan_at
        self.gentle_losses = steep_at
        self.scores = list(scores)

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        image = torch.from_numpy(rng.random(self.shape, dtype=np.float32))
        return image, (image > 0.5).float()

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = dice_and_cross_entropy(logits, target)
        if self.good_losses is not None:
            self.good_losses -= 1
            if self.good_losses < 0:
                return loss * float("nan")
        if self.gentle_losses is not None:
            self.gentle_losses -= 1
            if self.gentle_losses < 0:  # a number whose gradient is none
                return loss + torch.sqrt(logits.sum() * 0.0)
        return loss

    def validate(self, net: nn.Module) -> float:
        return self.scores.pop(0) if self.scores else 0.5

    def report(self, net: nn.Module) -> dict[str, object]:
        return {}


def network(*, norm: bool = True, dimensions: int = 2) -> nn.Module:
    """Return a network some of whose weights lie otherwise in the fastest layout."""
    torch.manual_seed(0)
    conv, batch_norm = (nn.Conv2d, nn.BatchNorm2d)
    if dimensions == 3:
        conv, batch_norm = (nn.Conv3d, nn.BatchNorm3d)
    between = [batch_norm(8), nn.Dropout(0.2)] if norm else []
    return nn.Sequential(
        conv(1, 4, 3, padding=1), conv(4, 8, 3, padding=1), *between, conv(8, 1, 1)
    )


def train_as_one_of_two(place: int, meeting: str, folder: Path, settings: TrainingConfig) -> None:
    distributed.init_process_group("gloo", init_method=meeting, rank=place, world_size=2)
    net = network(norm=False)
    train(settings, Toy(), net, folder, device=CPU, process=Process(place, 2))
    distributed.destroy_process_group()
