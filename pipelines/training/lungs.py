"""Training of the lung net: a 2-D U-Net on axial slices of both domains."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.engines.torch import TorchEngine, best_precision
from pipelines.evaluation.metrics import dice
from pipelines.inference import predict_slices
from pipelines.manifest import Domain, Part, Stack
from pipelines.preprocessing import bounding_box, window
from pipelines.training.augmentation import (
    EQUALISED_CLIP,
    EQUALISED_SHARE,
    EQUALISED_TILE,
    Pose,
    cut,
    equalise,
    random_pose,
    vary_display,
)
from pipelines.training.losses import loss_named
from pipelines.training.recipe import TrainingConfig
from pipelines.training.sets import (
    Mixture,
    by_source,
    in_grey,
    load_part,
    open_sets,
    require,
    told,
)
from pipelines.training.synthetic import add_lesions

REPORT_STRIDE: Final = 3  # neighbouring slices of a volume tell the same
WATCH_STRIDE: Final = 10
LESION_SHARE: Final = 0.5  # of the HU samples, given lesions
CROPPED_SHARE: Final = 0.2  # of the samples, cropped to the lungs


class LungRecipe:
    """Samples slices at the network's spacing; targets are both lungs together."""

    def __init__(
        self, config: TrainingConfig, folder: Path, *, say: Callable[[str], None] = print
    ) -> None:
        """Read the stacks and say how many there are.

        Raises:
            PipelineError: they cannot be read, or there is nothing to learn from or to measure on.
        """
        self._loss = loss_named(config.loss)
        self._precision = config.precision
        self.patch = (config.patch[0], config.patch[1])
        self.spacing_mm = float(config.preprocessing["spacing_mm"][1])
        low, high = config.preprocessing["window_hu"]
        self.window_hu = (float(low), float(high))
        sets = open_sets(config.data, folder)
        of = {part: load_part(sets, part) for part in Part}
        marked = {part: [s for s in stacks if s.lung is not None] for part, stacks in of.items()}
        self.mixture = Mixture(marked[Part.TRAIN], config.data["shares"])
        for part in (Part.VALIDATION, Part.TEST):
            require(marked[part], "lung masks", part)
        self.validation = _thinned(marked[Part.VALIDATION], WATCH_STRIDE)
        self.test = {
            source: _thinned(found, REPORT_STRIDE)
            for source, found in by_source(marked[Part.TEST]).items()
        }
        used = {part: len(stacks) for part, stacks in marked.items()}
        used[Part.TRAIN] = sum(self.mixture.counts.values())
        say(told(self.mixture, {part: len(stacks) for part, stacks in of.items()}, used))

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        stack = self.mixture.pick(rng)
        z = int(rng.integers(len(stack.image)))
        lung = _lung(stack)[z : z + 1]
        height, width = lung.shape[1:]
        centre = (height / 2 + rng.uniform(-30, 30), width / 2 + rng.uniform(-30, 30))
        pose = random_pose(rng, centre, self.spacing_mm / stack.spacing[1], zoom=1.35, turn_deg=15)
        image = cut(self._varied(rng, stack, z), pose, self.patch, fill=0.0)
        target = cut(lung, pose, self.patch, fill=0.0) > 0.5
        image = vary_display(rng, image, saturate=True)
        if target.any() and rng.random() < CROPPED_SHARE:
            image = _cropped(rng, image, target)
        return torch.from_numpy(image), torch.from_numpy(target).float()

    def _varied(self, rng: np.random.Generator, stack: Stack, z: int) -> NDArray[np.float32]:
        """Return a slice in [0, 1]; in HU with an offset, often with lesions, often equalised."""
        if stack.case.domain is Domain.DISPLAY:
            return in_grey(stack.image[z : z + 1], stack.case.domain, self.window_hu)
        hu = stack.image[z : z + 1] + np.float32(rng.normal(0, 60))
        if rng.random() < LESION_SHARE:  # their lung is lung all the same
            hu, _ = add_lesions(hu, _lung(stack)[z : z + 1], rng, stack.spacing)
        grey = window(hu, self.window_hu)
        if rng.random() < EQUALISED_SHARE:
            clip = float(rng.uniform(*EQUALISED_CLIP))
            grey = equalise(grey, tile=EQUALISED_TILE, clip=clip)
        return grey

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._loss(logits, target)

    def validate(self, net: nn.Module) -> float:
        return float(np.mean([self._dice(net, stack) for stack in self.validation]))

    def report(self, net: nn.Module) -> dict[str, Any]:
        scores = {
            name: {stack.case.id: self._dice(net, stack) for stack in stacks}
            for name, stacks in self.test.items()
        }
        sources = {name: list(each.values()) for name, each in scores.items()}
        return {
            "lung_dice": {case: value for each in scores.values() for case, value in each.items()},
            "lung_dice_mean": {name: float(np.mean(each)) for name, each in sources.items()},
            "lung_dice_worst": {name: min(each) for name, each in sources.items()},
        }

    def _dice(self, net: nn.Module, stack: Stack) -> float:
        """Dice of a whole stack, on the set's own pixels, without post-processing."""
        size = tuple(
            -(-round(n * s / self.spacing_mm) // 16) * 16
            for n, s in zip(stack.image.shape[1:], stack.spacing[1:], strict=True)
        )
        height, width = stack.image.shape[1:]
        scale = self.spacing_mm / stack.spacing[1]
        there = Pose(((height - 1) / 2, (width - 1) / 2), scale * np.eye(2))
        back = Pose(((size[0] - 1) / 2, (size[1] - 1) / 2), np.eye(2) / scale)
        grey = in_grey(stack.image, stack.case.domain, self.window_hu)
        image = cut(grey, there, (size[0], size[1]), fill=0.0)
        device = next(net.parameters()).device
        engine = TorchEngine(net, device, best_precision(device, self._precision))
        found = predict_slices(engine, image[:, None])[:, 0]
        mask = cut(found, back, (height, width), fill=0.0) > 0.5
        return dice(mask, _lung(stack))


def _cropped(
    rng: np.random.Generator, image: NDArray[np.float32], lung: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return `image` black but for a box around the lungs, as papers and some sets crop slices."""
    margin = (0, int(rng.integers(12)), int(rng.integers(12)))
    box = bounding_box(lung, margin)
    out = np.zeros_like(image)
    out[box] = image[box]
    return out


def _lung(stack: Stack) -> NDArray[np.bool_]:
    if stack.lung is None:
        raise ValueError(f"Case {stack.case.id} has no lung mask.")
    return stack.lung


def _thinned(stacks: Iterable[Stack], stride: int) -> list[Stack]:
    return [
        dataclasses.replace(s, image=s.image[::stride], lung=_lung(s)[::stride], lesion=None)
        for s in stacks
    ]
