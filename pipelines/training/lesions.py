"""Training of the lesion net: a 3-D U-Net++ on COVID stacks and on synthetic lesions in true HU."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.preprocessing import bounding_box, pad_to_multiple, resampled_shape, resize, window
from pipelines.training.augmentation import cut, random_pose, towards, vary_display
from pipelines.training.datasets import (
    Domain,
    Stack,
    covid_stacks,
    healthy_volumes,
    lung_stacks,
)
from pipelines.training.losses import segmentation_loss
from pipelines.training.metrics import dice
from pipelines.training.recipe import TrainingConfig
from pipelines.training.synthetic import add_lesions

# How often a sample comes from COVID stacks, single HU slices, whole healthy volumes.
SOURCE_SHARES: Final = (0.6, 0.2, 0.2)
HEALTHY_SHARE: Final = 0.25  # of the HU samples, left without a lesion
FLAT_SHARE: Final = 0.15  # of the COVID samples, one slice repeated: 2-D sets are read so
LUNG_LEVEL: Final = (0.08, 0.3)  # window level of aerated lung that both domains are brought to
AERATED_LEVEL: Final = 0.15  # of aerated lung at -820 HU, where display stacks are measured
THICK_SLICES: Final = 60  # a stack of fewer slices is taken as it is, others are thinned to 2.5 mm

Patch = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]
"""Image in [0, 1], lung and lesion, all (z, y, x)."""


class LesionRecipe:
    """Samples patches of the extracted lungs; targets are lesions of any kind (J41)."""

    def __init__(self, config: TrainingConfig, root: Path) -> None:
        self.patch = config.patch
        z, y, x = (float(s) for s in config.preprocessing["spacing_mm"])
        self.spacing = (z, y, x)
        low, high = config.preprocessing["window_hu"]
        self.window_hu = (float(low), float(high))
        held = {*config.data["validation"], *config.data["test"]}
        covid = list(covid_stacks(root))
        self.covid = [s for s in covid if s.group not in held]
        self.single = [s for i, s in enumerate(lung_stacks(root)) if i % 5 > 1]
        self.healthy = list(healthy_volumes(root, config.data["healthy"]))
        self.validation = [s for s in covid if s.group in config.data["validation"]]
        self.test = [s for s in covid if s.group in config.data["test"]]
        self._share = _shares(self.covid)

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        source = int(rng.choice(len(SOURCE_SHARES), p=SOURCE_SHARES))
        if source == 0:
            image, lung, lesion = self._covid(rng)
        else:
            image, lung, lesion = self._synthetic(rng, (self.single, self.healthy)[source - 1])
        image = towards(image, lung & ~lesion, float(rng.uniform(*LUNG_LEVEL)))
        image = vary_display(rng, image) * lung
        return torch.from_numpy(image)[None], torch.from_numpy(lesion & lung)[None].float()

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return segmentation_loss(logits, target)

    def validate(self, net: nn.Module) -> float:
        return float(np.mean([self.dice(net, _middle(stack)) for stack in self.validation]))

    def report(self, net: nn.Module) -> dict[str, Any]:
        scores = {stack.group: self.dice(net, stack) for stack in self.test}
        return {"lesion_dice": scores, "lesion_dice_mean": float(np.mean(list(scores.values())))}

    def dice(self, net: nn.Module, stack: Stack) -> float:
        """Dice of a whole stack on the set's own pixels, slab by slab as in the pipeline.

        A fine stack is read as several coarser ones, so that every slice has a result of its own.
        """
        lung, lesion = _masks(stack)
        mask = np.zeros(lesion.shape, dtype=bool)
        for phase in range(_stride(stack)):
            rows = slice(phase, None, _stride(stack))
            mask[rows] = self._probability(net, stack, rows) > 0.5
        return dice(mask & lung, lesion)

    def _probability(self, net: nn.Module, stack: Stack, rows: slice) -> NDArray[np.float32]:
        lung = _masks(stack)[0][rows]
        in_plane = (self.spacing[0], *stack.spacing[1:])  # slices are taken as they come
        shape = resampled_shape(lung.shape, in_plane, self.spacing)
        inside = resize(lung, shape) > 0.5
        box = bounding_box(inside)
        grey = resize(stack.image[rows], shape)[box] / np.float32(255)
        image = pad_to_multiple(towards(grey, inside[box], AERATED_LEVEL) * inside[box])
        slabs = image.reshape(-1, self.patch[0], *image.shape[1:])
        device = next(net.parameters()).device
        parts = []
        for slab in torch.from_numpy(slabs)[:, None].split(1):  # type: ignore[no-untyped-call]
            with torch.autocast(device.type, dtype=torch.bfloat16):
                parts.append(torch.sigmoid(net(slab.to(device)).float()).cpu().numpy())
        z, y, x = (side.stop - side.start for side in box)
        full = np.zeros(shape, dtype=np.float32)
        full[box] = np.concatenate(parts).reshape(image.shape)[:z, :y, :x]
        return resize(full, lung.shape)

    def _covid(self, rng: np.random.Generator) -> Patch:
        stack = self.covid[int(rng.choice(len(self.covid), p=self._share))]
        lung, lesion = _masks(stack)
        wanted = lesion if rng.random() < 0.7 else lung
        z, y, x = self._anchor(rng, wanted if wanted.any() else lung)
        if rng.random() < FLAT_SHARE:
            rows = np.full(self.patch[0], z)
        else:
            stride = 1 if len(stack.image) < THICK_SLICES else int(rng.integers(2, 4))
            first = z - stride * int(rng.integers(self.patch[0]))
            rows = np.clip(first + stride * np.arange(self.patch[0]), 0, len(stack.image) - 1)
            rows = rows[:: int(rng.choice([-1, 1]))]
        pose = random_pose(rng, (y, x), self.spacing[1] / stack.spacing[1], zoom=1.25)
        shape = (self.patch[1], self.patch[2])
        image = cut(stack.image[rows], pose, shape, fill=0.0) / np.float32(255)
        return (
            image,
            cut(lung[rows], pose, shape, fill=0.0) > rng.uniform(0.1, 0.5),
            cut(lesion[rows], pose, shape, fill=0.0) > 0.5,
        )

    def _synthetic(self, rng: np.random.Generator, stacks: list[Stack]) -> Patch:
        stack = stacks[int(rng.integers(len(stacks)))]
        if stack.lung is None:
            raise ValueError(f"Stack {stack.group} has no lung mask.")
        z, y, x = self._anchor(rng, stack.lung)
        depth = min(self.patch[0], len(stack.image))
        first = int(np.clip(z - rng.integers(depth), 0, len(stack.image) - depth))
        rows = slice(first, first + depth)
        pose = random_pose(rng, (y, x), self.spacing[1] / stack.spacing[1], zoom=1.2)
        shape = (self.patch[1], self.patch[2])
        hu = cut(stack.image[rows], pose, shape, fill=-1024.0) + np.float32(rng.normal(0, 30))
        lung = cut(stack.lung[rows], pose, shape, fill=0.0) > rng.uniform(0.1, 0.5)
        lesion = np.zeros(lung.shape, dtype=bool)
        if rng.random() > HEALTHY_SHARE:
            hu, lesion = add_lesions(hu, lung, rng, self.spacing)
        image = window(hu, self.window_hu)
        repeats = self.patch[0] // depth
        return (
            np.repeat(image, repeats, axis=0),
            np.repeat(lung, repeats, axis=0),
            np.repeat(lesion, repeats, axis=0),
        )

    @staticmethod
    def _anchor(rng: np.random.Generator, mask: NDArray[np.bool_]) -> tuple[int, int, int]:
        """Return a random voxel of `mask`, found without listing all of them."""
        counts = mask.sum(axis=(1, 2))
        z = int(rng.choice(len(mask), p=counts / counts.sum()))
        y, x = np.nonzero(mask[z])
        pick = int(rng.integers(len(y)))
        return z, int(y[pick]), int(x[pick])


def _masks(stack: Stack) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if stack.lung is None or stack.lesion is None:
        raise ValueError(f"Stack {stack.group} has no lung or lesion mask.")
    return stack.lung, stack.lesion


def _stride(stack: Stack) -> int:
    return 1 if len(stack.image) < THICK_SLICES else 2


def _middle(stack: Stack) -> Stack:
    """Return the middle half of a stack: enough to watch a training by."""
    quarter = len(stack.image) // 4
    rows = slice(quarter, len(stack.image) - quarter)
    lung, lesion = _masks(stack)
    return Stack(
        stack.group, Domain.DISPLAY, stack.image[rows], stack.spacing, lung[rows], lesion[rows]
    )


def _shares(stacks: list[Stack]) -> NDArray[np.float64]:
    weights = np.sqrt([len(stack.image) for stack in stacks])
    return np.asarray(weights / weights.sum())
