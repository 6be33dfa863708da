"""Training of the lesion net: a 3-D network on COVID stacks and synthetic lesions in true HU."""

import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.display import THICK_SLICES, lesion_probability, lung_mask, towards
from pipelines.engines.choice import EngineChoice
from pipelines.engines.torch import TorchEngine
from pipelines.evaluation.metrics import dice
from pipelines.inference import Model, predict_stack
from pipelines.manifest import Part, Stack
from pipelines.preprocessing import dilate, window
from pipelines.training.augmentation import (
    EQUALISED_CLIP,
    EQUALISED_SHARE,
    EQUALISED_TILE,
    cut,
    equalise,
    random_pose,
    vary_display,
)
from pipelines.training.losses import loss_named
from pipelines.training.recipe import TrainingConfig
from pipelines.training.sets import Mixture, load_part, open_sets, require
from pipelines.training.synthetic import add_lesions
from pipelines.weights import Precision, open_bundle

HEALTHY_SHARE: Final = 0.3  # of the HU samples, left without a lesion
LARGEST_RIM: Final = 2  # pixels of chest wall that a lung mask may bring along
FLAT_SHARE: Final = 0.15  # of the COVID samples, one slice repeated: 2-D sets are read so
LUNG_LEVEL: Final = (0.08, 0.3)  # window level of aerated lung that both domains are brought to

Patch = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]
"""Image in [0, 1], lung and lesion, all (z, y, x)."""


class LesionRecipe:
    """Samples patches of the extracted lungs; targets are lesions of any kind (J41)."""

    def __init__(self, config: TrainingConfig, folder: Path, models: Path) -> None:
        self._loss = loss_named(config.loss)
        self.flat = int(config.network["dimensions"]) == 2  # one slice at a time
        self.patch = (1, *config.patch) if self.flat else config.patch
        z, y, x = (float(s) for s in config.preprocessing["spacing_mm"])
        self.spacing = (z, y, x)
        low, high = config.preprocessing["window_hu"]
        self.window_hu = (float(low), float(high))
        self.slab_slices = int(config.preprocessing.get("slab_slices", 0))
        sets = open_sets(config.data, folder)
        train = _with_lungs(load_part(sets, Part.TRAIN), models)
        self.mixture = Mixture(train, config.data["shares"])
        self.validation = _marked_volumes(load_part(sets, Part.VALIDATION))
        test = _with_lungs(load_part(sets, Part.TEST), models)
        self.test = _marked_volumes(test)
        require(self.validation and self.test, "volumes with lung and lesion masks")
        self.test_slices = [s for s in test if s.lesion is not None and len(s.image) == 1]

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        stack = self.mixture.pick(rng)
        make = self._marked if stack.lesion is not None else self._synthetic
        image, lung, lesion = make(rng, stack)
        image = towards(image, lung & ~lesion, float(rng.uniform(*LUNG_LEVEL)))
        rim = int(rng.integers(LARGEST_RIM + 1))
        image = vary_display(rng, image) * dilate(lung, (0, rim, rim))
        seen, target = torch.from_numpy(image), torch.from_numpy(lesion & lung).float()
        return (seen, target) if self.flat else (seen[None], target[None])

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._loss(logits, target)

    def validate(self, net: nn.Module) -> float:
        return float(np.mean([self.dice(net, _middle(stack)) for stack in self.validation]))

    def report(self, net: nn.Module) -> dict[str, Any]:
        masks = {stack.case.id: (stack, self.mask(net, stack)) for stack in self.test}
        each = {name: dice(mask, _masks(stack)[1]) for name, (stack, mask) in masks.items()}
        both = sum(int((mask & _masks(stack)[1]).sum()) for stack, mask in masks.values())
        total = sum(int(mask.sum() + _masks(stack)[1].sum()) for stack, mask in masks.values())
        figures: dict[str, Any] = {
            "lesion_dice": each,
            "lesion_dice_mean": float(np.mean(list(each.values()))),
            "lesion_dice_pooled": 2 * both / total,
        }
        if self.test_slices:
            slices = {s.case.id: self.dice(net, s) for s in self.test_slices}
            figures |= {"slice_dice": slices}
            figures |= {"slice_dice_mean": float(np.mean(list(slices.values())))}
        return figures

    def dice(self, net: nn.Module, stack: Stack) -> float:
        """Dice of a whole stack on the set's own pixels, given its own lung mask."""
        return dice(self.mask(net, stack), _masks(stack)[1])

    def mask(self, net: nn.Module, stack: Stack) -> NDArray[np.bool_]:
        """Return the lesions that `net` finds in a display stack, given its own lung mask."""
        engine = TorchEngine(net, next(net.parameters()).device, Precision.BF16)
        network = partial(
            predict_stack,
            engine,
            dimensions=2 if self.flat else 3,
            slab_slices=self.slab_slices,
        )
        grey = np.divide(stack.image, 255, dtype=np.float32)
        lung = _masks(stack)[0]
        found = lesion_probability(grey, lung, stack.spacing, self.spacing, network)
        return found > 0.5

    def _marked(self, rng: np.random.Generator, stack: Stack) -> Patch:
        """Return a patch of a stack with lesion masks; a single slice is repeated."""
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
        distinct, back = np.unique(rows, return_inverse=True)
        image, inside, marked = (
            cut(array[distinct], pose, shape, fill=0.0)[back]
            for array in (stack.image, lung, lesion)
        )
        return image / np.float32(255), inside > rng.uniform(0.1, 0.5), marked > 0.5

    def _synthetic(self, rng: np.random.Generator, stack: Stack) -> Patch:
        if stack.lung is None:
            raise ValueError(f"Case {stack.case.id} has no lung mask.")
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
        if rng.random() < EQUALISED_SHARE:
            image = equalise(image, tile=EQUALISED_TILE, clip=float(rng.uniform(*EQUALISED_CLIP)))
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


def _with_lungs(stacks: Iterable[Stack], models: Path) -> list[Stack]:
    """Return the stacks; single display slices without lungs get the lung model's."""
    model = Model.open(open_bundle(models / "lungs"), EngineChoice.TORCH)
    found = []
    for stack in stacks:
        if stack.lung is not None or stack.lesion is None:
            found.append(stack)
            continue
        grey = np.divide(stack.image[0], 255, dtype=np.float32)
        lung = lung_mask(grey, stack.spacing[2], model)[None]
        found.append(dataclasses.replace(stack, lung=lung | stack.lesion))
    return found


def _marked_volumes(stacks: Iterable[Stack]) -> list[Stack]:
    return [s for s in stacks if s.lesion is not None and s.lung is not None and len(s.image) > 1]


def _masks(stack: Stack) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if stack.lung is None or stack.lesion is None:
        raise ValueError(f"Stack {stack.case.id} has no lung or lesion mask.")
    return stack.lung, stack.lesion


def _middle(stack: Stack) -> Stack:
    """Return the middle half of a stack: enough to watch a training by."""
    quarter = len(stack.image) // 4
    rows = slice(quarter, len(stack.image) - quarter)
    lung, lesion = _masks(stack)
    return dataclasses.replace(stack, image=stack.image[rows], lung=lung[rows], lesion=lesion[rows])
