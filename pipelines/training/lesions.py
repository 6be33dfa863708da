"""Training of the lesion net: a 3-D network on COVID stacks and synthetic lesions in true HU."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.display import (
    THICK_SLICES,
    Network,
    ask,
    lesion_mask,
    lung_mask,
    towards,
)
from pipelines.engines.choice import EngineChoice
from pipelines.engines.torch import TorchEngine, best_precision
from pipelines.evaluation.metrics import dice
from pipelines.inference import Model, predict_stack, with_neighbours
from pipelines.lesions import without_faint
from pipelines.manifest import Domain, Part, Stack
from pipelines.preprocessing import dilate, extract_lungs, resize_above, window
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
from pipelines.training.sets import Mixture, in_grey, load_part, open_sets, require, told
from pipelines.training.synthetic import add_lesions
from pipelines.weights import open_bundle

HEALTHY_SHARE: Final = 0.3  # of the samples from healthy lungs, left without a lesion
LARGEST_RIM: Final = 2  # pixels of chest wall that a lung mask may bring along
FLAT_SHARE: Final = 0.15  # of the 8-bit samples, one slice repeated: 2-D sets are read so
ON_LESION_SHARE: Final = 0.7  # of the samples from marked stacks, placed on a lesion
LUNG_LEVEL: Final = (0.08, 0.3)  # window level of aerated lung that both domains are brought to

Patch = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]
"""Image in [0, 1], lung and lesion, all (z, y, x)."""


class LesionRecipe:
    """Samples patches of the extracted lungs; targets are lesions of any kind (J41).

    Stacks with lesion masks teach by them, healthy lungs in HU by lesions put into them. Lungs that
    nobody marked are found by the lung model in `models`.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        models: Path,
        *,
        say: Callable[[str], None] = print,
    ) -> None:
        """Read the stacks and say how many there are.

        Raises:
            PipelineError: they cannot be read, or there is nothing to learn from or to measure on.
        """
        self._loss = loss_named(config.loss)
        self._precision = config.precision
        self.flat = int(config.network["dimensions"]) == 2  # one slice at a time
        self.channels = int(config.network.get("in_channels", 1))  # it and its neighbours
        self.patch = (self.channels, *config.patch) if self.flat else config.patch
        z, y, x = (float(s) for s in config.preprocessing["spacing_mm"])
        self.spacing = (z, y, x)
        low, high = config.preprocessing["window_hu"]
        self.window_hu = (float(low), float(high))
        self.lung_margin_mm = float(config.preprocessing["lung_margin_mm"])
        self.decision = config.decision
        sets = open_sets(config.data, folder)
        model = Model.open(open_bundle(models / "lungs"), EngineChoice.TORCH)
        of = {part: [_with_lungs(s, model) for s in load_part(sets, part)] for part in Part}
        self.mixture = Mixture(
            filter(_teaches, map(_mended, of[Part.TRAIN])), config.data["shares"]
        )
        self.validation = _marked_volumes(of[Part.VALIDATION])
        self.test = _marked_volumes(of[Part.TEST])
        require(self.validation, "volumes with lesion masks", Part.VALIDATION)
        require(self.test, "volumes with lesion masks", Part.TEST)
        self.test_slices = [s for s in of[Part.TEST] if s.lesion is not None and len(s.image) == 1]
        used = {
            Part.TRAIN: sum(self.mixture.counts.values()),
            Part.VALIDATION: len(self.validation),
            Part.TEST: len(self.test) + len(self.test_slices),
        }
        say(told(self.mixture, {part: len(stacks) for part, stacks in of.items()}, used))

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        stack = self.mixture.pick(rng)
        make = self._from_display if stack.case.domain is Domain.DISPLAY else self._from_hu
        image, lung, lesion = make(rng, stack)
        image = towards(image, lung & ~lesion, float(rng.uniform(*LUNG_LEVEL)))
        rim = int(rng.integers(LARGEST_RIM + 1))
        image = vary_display(rng, image) * dilate(lung, (0, rim, rim))
        target = lesion & lung
        if not self.flat:
            return torch.from_numpy(image[None]), torch.from_numpy(target[None]).float()
        middle = self.channels // 2
        seen = with_neighbours(image, self.channels)[middle]
        return torch.from_numpy(seen), torch.from_numpy(target[middle : middle + 1]).float()

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
            "lesion_dice_pooled": 2 * both / total if total else 1.0,
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
        """Return the lesions (z, y, x) that `net` finds in a stack, given its own lung mask."""
        device = next(net.parameters()).device
        engine = TorchEngine(net, device, best_precision(device, self._precision))
        dimensions = 2 if self.flat else 3
        network = partial(predict_stack, engine, dimensions=dimensions, channels=self.channels)
        if stack.case.domain is Domain.HU:
            return self._mask_in_hu(network, stack)
        grey = in_grey(stack.image, stack.case.domain, self.window_hu)
        lung = _lung(stack)
        return lesion_mask(grey, lung, stack.spacing, self.spacing, network, self.decision)

    def _mask_in_hu(self, network: Network, stack: Stack) -> NDArray[np.bool_]:
        """Do as `pipelines.lesions.segment_lesions`, but keep the smallest regions too."""
        mask, lung = np.zeros(stack.image.shape, dtype=bool), _lung(stack)
        if not lung.any():
            return mask
        extraction = extract_lungs(
            stack.image,
            lung.view(np.uint8),
            stack.spacing,
            target=self.spacing,
            margin_mm=self.lung_margin_mm,
        )
        seen = window(extraction.hu, self.window_hu) * extraction.lung
        probability = ask(network, seen) * extraction.lung
        likely = without_faint(probability, self.decision)
        threshold = float(self.decision["threshold"])
        mask[extraction.box] = resize_above(likely, mask[extraction.box].shape, threshold)
        return mask

    def _from_display(self, rng: np.random.Generator, stack: Stack) -> Patch:
        """Return a patch of a marked 8-bit stack; a single slice is repeated."""
        lung, lesion = _masks(stack)
        z, y, x = _anchor(rng, stack)
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
        grey = in_grey(image, stack.case.domain, self.window_hu)
        return grey, inside > rng.uniform(0.1, 0.5), marked > 0.5

    def _from_hu(self, rng: np.random.Generator, stack: Stack) -> Patch:
        """Return a patch of a stack in HU, with its own lesions or some put into it.

        One of fewer slices than the patch is filled up with its last.
        """
        z, y, x = _anchor(rng, stack)
        depth = min(self.patch[0], len(stack.image))
        first = int(np.clip(z - rng.integers(depth), 0, len(stack.image) - depth))
        rows = slice(first, first + depth)
        pose = random_pose(rng, (y, x), self.spacing[1] / stack.spacing[1], zoom=1.2)
        shape = (self.patch[1], self.patch[2])
        hu = cut(stack.image[rows], pose, shape, fill=-1024.0) + np.float32(rng.normal(0, 30))
        lung = cut(_lung(stack)[rows], pose, shape, fill=0.0) > rng.uniform(0.1, 0.5)
        lesion = np.zeros(lung.shape, dtype=bool)
        if stack.lesion is not None:
            lesion = cut(stack.lesion[rows], pose, shape, fill=0.0) > 0.5
        elif rng.random() > HEALTHY_SHARE:
            hu, lesion = add_lesions(hu, lung, rng, self.spacing)
        image = window(hu, self.window_hu)
        if rng.random() < EQUALISED_SHARE:
            image = equalise(image, tile=EQUALISED_TILE, clip=float(rng.uniform(*EQUALISED_CLIP)))
        filled = np.minimum(np.arange(self.patch[0]), depth - 1)
        return image[filled], lung[filled], lesion[filled]


def _anchor(rng: np.random.Generator, stack: Stack) -> tuple[int, int, int]:
    """Return a random voxel of the lungs, mostly of a lesion, found without listing all."""
    mask = _lung(stack)
    if stack.lesion is not None and rng.random() < ON_LESION_SHARE and stack.lesion.any():
        mask = stack.lesion
    counts = mask.sum(axis=(1, 2))
    z = int(rng.choice(len(mask), p=counts / counts.sum()))
    y, x = np.nonzero(mask[z])
    pick = int(rng.integers(len(y)))
    return z, int(y[pick]), int(x[pick])


def _with_lungs(stack: Stack, model: Model) -> Stack:
    """Return the stack; where lesions are marked and lungs are not, the model finds the lungs."""
    if stack.lung is not None or stack.lesion is None:
        return stack
    grey = in_grey(stack.image, stack.case.domain, model.config.window_hu)
    lung = np.stack([lung_mask(plane, stack.spacing[2], model) for plane in grey])
    return dataclasses.replace(stack, lung=lung)


def _mended(stack: Stack) -> Stack:
    """Return the stack with what is marked as lesion in its lungs, for models miss dense ones.

    Only to learn from: in a test the hole or patch in the lungs would show the truth.
    """
    if stack.case.lung is not None or stack.lesion is None:
        return stack
    return dataclasses.replace(stack, lung=_lung(stack) | stack.lesion)


def _teaches(stack: Stack) -> bool:
    """Return whether there are lungs, and lesions are marked or can be put into them."""
    can = stack.lesion is not None or stack.case.domain is Domain.HU
    return can and stack.lung is not None and bool(stack.lung.any())


def _marked_volumes(stacks: Iterable[Stack]) -> list[Stack]:
    return [s for s in stacks if s.lesion is not None and len(s.image) > 1]


def _lung(stack: Stack) -> NDArray[np.bool_]:
    if stack.lung is None:
        raise ValueError(f"Stack {stack.case.id} has no lung mask.")
    return stack.lung


def _masks(stack: Stack) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if stack.lesion is None:
        raise ValueError(f"Stack {stack.case.id} has no lesion mask.")
    return _lung(stack), stack.lesion


def _middle(stack: Stack) -> Stack:
    """Return the middle half of a stack: enough to watch a training by."""
    quarter = len(stack.image) // 4
    rows = slice(quarter, len(stack.image) - quarter)
    lung, lesion = _masks(stack)
    return dataclasses.replace(stack, image=stack.image[rows], lung=lung[rows], lesion=lesion[rows])
