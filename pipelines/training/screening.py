"""Training of the classifier: a 2-D network on the extracted lungs and lesion masks of slices.

The labelled sets have no masks, so the lung and lesion models make them first: the classifier
learns from what it will be given in the pipeline. That takes minutes and is kept.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.display import (
    lesion_mask,
    lung_mask,
    question,
    regions_in_question,
    towards,
)
from pipelines.engines.choice import EngineChoice
from pipelines.engines.torch import TorchEngine, best_precision
from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import roc_auc, youden_threshold
from pipelines.files import whole_file
from pipelines.inference import Model, predict_slices
from pipelines.manifest import Case, Domain, Manifest, Part, Stack
from pipelines.preprocessing import slice_input
from pipelines.training.augmentation import cut, random_pose, vary_display
from pipelines.training.losses import loss_named
from pipelines.training.recipe import TrainingConfig
from pipelines.training.sets import open_sets
from pipelines.weights import open_bundle

MIXUP: Final = 0.2  # of the beta distribution: mostly one slice with a little of another
OWN_FIGURES: Final = (
    "all",
    "test",
    "threshold",
    "train_negatives",
    "train_positives",
    "validation",
)
PARTIAL_SHARE: Final = 0.4  # of the samples, asked about some of their regions only


class ScreeningRecipe:
    """Samples `(2, size, size)` images of labelled slices, each set and class equally often.

    The class then says nothing about the set, nor the set about the class. Samples are mixtures of
    two slices and their labels (mixup, Zhang et al. 2018, arXiv:1710.09412): the slices are few.

    `data.train` names those of `data.manifests` that are learnt from, `data.positive` the label
    that is sought; slices without a label are left out. `images` (n, 2, size, size) is what the
    classifier is shown of each slice, `regions` (n, size, size) numbers the regions in it from 1.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        cache: Path,
        models: Path,
        *,
        say: Callable[[str], None],
    ) -> None:
        """Read the labels and prepare the slices, which are kept in `cache` for other trainings.

        Raises:
            PipelineError: a case is no single 8-bit slice, a set has no slice of a class to train
                on, or the validation part none.
        """
        self._loss = loss_named(config.loss)
        self.size = int(config.preprocessing["size"])
        self._precision = config.precision
        positive = str(config.data["positive"])
        names = [str(name) for name in config.data["manifests"]]
        rows = [
            (name, manifest, case)
            for name, manifest in zip(names, open_sets(config.data, folder), strict=True)
            for case in manifest.cases
            if case.label is not None
        ]
        cases = [(manifest, case) for _, manifest, case in rows]
        self.groups = [case.group for _, case in cases]
        self.covid = np.array([case.label == positive for _, case in cases])
        self.sets = np.array([name for name, _, _ in rows])
        self._part = np.array([str(case.part) for _, case in cases])
        self._sources = sorted(config.data.get("train", names))
        self._learnt = np.isin(self.sets, self._sources)
        train = self._rows(Part.TRAIN)
        share = float(config.data.get("share", 1.0))
        self._cells = {}
        for source, covid in product(self._sources, (True, False)):
            cell = train[(self.sets[train] == source) & (self.covid[train] == covid)]
            early = first_share([self.groups[row] for row in cell], share, config.seed)
            self._cells[source, covid] = cell[early]
        self.train_cases = {
            label: sum(len(rows) for (_, covid), rows in self._cells.items() if covid == label)
            for label in (0, 1)
        }
        self._check(positive)
        self.images, self.regions = _prepared(cases, self.size, cache, models, say)

    def _check(self, positive: str) -> None:
        """Refuse what would end a training at a sample or, hours later, spoil its report."""
        for name in np.unique(self.sets):
            if name in OWN_FIGURES:
                raise PipelineError(
                    f"A figure of the report is called '{name}': give that manifest another name."
                )
        said = {True: f"labelled '{positive}'", False: f"labelled otherwise than '{positive}'"}
        for (source, covid), found in self._cells.items():
            if not len(found):
                raise PipelineError(
                    f"'{source}' has no slice {said[covid]} to train on: see data.train, "
                    "data.positive and data.share."
                )
        parts = {"validation": self._known_sets(Part.VALIDATION), "test": self._rows(Part.TEST)}
        for (part, rows), (covid, so) in product(parts.items(), said.items()):
            if not (self.covid[rows] == covid).any():
                raise PipelineError(f"The {part} part has no slice {so}; it needs both kinds.")

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        (image, covid), (other, other_covid) = self._slice(rng), self._slice(rng)
        share = float(rng.beta(MIXUP, MIXUP))
        return torch.lerp(other, image, share), torch.lerp(other_covid, covid, share)

    def _slice(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        covid = int(rng.random() < 0.5)
        source = str(rng.choice(self._sources))
        row = int(rng.choice(self._cells[source, bool(covid)]))
        image, asked = self.images[row].astype(np.float32)
        inside = image > 0
        grey = towards(image[None], inside[None], float(rng.uniform(0.08, 0.3)))
        grey = vary_display(rng, grey, saturate=True) * inside
        regions = asked * self._some(rng, self.regions[row])
        pose = random_pose(
            rng, ((self.size - 1) / 2, (self.size - 1) / 2), 1.0, zoom=1.2, turn_deg=15
        )
        both = cut(np.stack([grey[0], regions]), pose, (self.size, self.size), fill=0.0)
        return torch.from_numpy(both), torch.tensor([float(covid)])

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._loss(logits, target)

    def validate(self, net: nn.Module) -> float:
        rows = self._known_sets(Part.VALIDATION)
        return roc_auc(self._scores(net, rows), self.covid[rows])

    def report(self, net: nn.Module) -> dict[str, Any]:
        rows = self._known_sets(Part.VALIDATION)
        threshold = youden_threshold(self._scores(net, rows), self.covid[rows])
        figures: dict[str, Any] = {
            "threshold": threshold,
            "train_negatives": self.train_cases[0],
            "train_positives": self.train_cases[1],
        }
        whole = self._rows(Part.TEST)
        scored = dict(zip(whole.tolist(), self._scores(net, whole).tolist(), strict=True))
        for name in ("all", *np.unique(self.sets)):
            test = whole if name == "all" else whole[self.sets[whole] == name]
            scores, truth = np.array([scored[row] for row in test]), self.covid[test]
            figures[name] = {
                "slices": len(test),
                "auc": roc_auc(scores, truth) if truth.any() and not truth.all() else None,
                "sensitivity": _share(scores[truth] >= threshold),
                "specificity": _share(scores[~truth] < threshold),
            }
        figures["test"] = [
            [str(self.sets[row]), self.groups[row], bool(self.covid[row]), round(scored[row], 5)]
            for row in whole.tolist()
        ]
        return figures

    def _known_sets(self, part: Part) -> NDArray[np.int64]:
        """Return the rows of a part in the sets that were learnt from."""
        rows = self._rows(part)
        return rows[self._learnt[rows]]

    def _rows(self, part: Part) -> NDArray[np.int64]:
        return np.flatnonzero(self._part == part)

    def _scores(self, net: nn.Module, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        device = next(net.parameters()).device
        engine = TorchEngine(net, device, best_precision(device, self._precision))
        images = self.images[rows].astype(np.float32)
        return predict_slices(engine, images)[:, 0].astype(np.float64)

    @staticmethod
    def _some(rng: np.random.Generator, regions: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return where all regions are or some: the pipeline asks about single ones too."""
        count = int(regions.max())
        if count < 2 or rng.random() > PARTIAL_SHARE:
            return regions > 0
        asked = rng.permutation(count)[: int(rng.integers(1, count))] + 1
        return np.isin(regions, asked)


def _share(called: NDArray[np.bool_]) -> float | None:
    """Return the share that is true; None of nothing."""
    return float(called.mean()) if len(called) else None


def first_share(groups: list[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows belong to the first `share` of the groups in a seeded order.

    A smaller share is part of a larger one, as the sets of the paper's stages are (A-10).
    """
    names, of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(names))
    early: NDArray[np.bool_] = place[of] < math.ceil(round(share * len(names), 9))
    return early


def _prepared(
    cases: list[tuple[Manifest, Case]],
    size: int,
    cache: Path,
    models: Path,
    say: Callable[[str], None],
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return what the classifier is shown `(n, 2, size, size)` and the numbers of the regions.

    Raises:
        PipelineError: a case is no single 8-bit slice.
    """
    slices = [_slice(manifest, case) for manifest, case in cases]
    images = np.zeros((len(slices), 2, size, size), dtype=np.float16)
    regions = np.zeros((len(slices), size, size), dtype=np.uint8)
    masks = _masks(slices, cache, models, say)
    for row, (stack, (lung, lesion)) in enumerate(zip(slices, masks, strict=True)):
        images[row], regions[row] = _shown(_grey(stack), lung, lesion, size)
    return images, regions


def _masks(
    slices: list[Stack], cache: Path, models: Path, say: Callable[[str], None]
) -> Iterator[NDArray[np.bool_]]:
    """Yield the lungs and the lesions of each slice, (2, y, x).

    They are kept under a digest of what they were made from: the slices and the models.
    """
    bundles = [open_bundle(models / purpose) for purpose in ("lungs", "lesions")]
    made_from = hashlib.sha256("".join(b.digest for b in bundles).encode())
    for stack in slices:
        made_from.update(f"{stack.case.id} {stack.spacing}".encode() + stack.image.tobytes())
    path = cache / f"masks-{made_from.hexdigest()[:16]}.npz"
    if not path.exists():
        lungs, lesions = (Model.open(bundle, EngineChoice.AUTO) for bundle in bundles)
        found = []
        for row, stack in enumerate(slices):
            found.append(_marked(stack, lungs, lesions))
            if row % 100 == 0:
                say(f"masks of labelled slices: {row} of {len(slices)}")
        with whole_file(path) as file:
            np.savez_compressed(file, *found)
    with np.load(path) as data:
        for row in range(len(slices)):
            yield data[f"arr_{row}"]


def _slice(manifest: Manifest, case: Case) -> Stack:
    stack = manifest.load(case)
    if len(stack.image) != 1 or case.domain is not Domain.DISPLAY:
        raise PipelineError(f"Case '{case.id}' of '{manifest.name}' is no single 8-bit slice.")
    return stack


def _grey(stack: Stack) -> NDArray[np.float32]:
    grey: NDArray[np.float32] = np.divide(stack.image[0], 255, dtype=np.float32)
    return grey


def _marked(stack: Stack, lungs: Model, lesions: Model) -> NDArray[np.bool_]:
    grey = _grey(stack)
    lung = lung_mask(grey, stack.spacing[2], lungs)
    (lesion,) = lesion_mask(
        grey[None],
        lung[None],
        stack.spacing,
        lesions.config.spacing,
        lesions.probability,
        lesions.config.decision,
    )
    return np.stack([lung, lesion])


def _shown(
    grey: NDArray[np.float32], lung: NDArray[np.bool_], lesion: NDArray[np.bool_], size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    regions = regions_in_question(lesion)
    shown = question(grey, lung, regions > 0, size)
    largest = np.zeros((size, size), dtype=np.float32)
    numbers = np.zeros((size, size), dtype=np.uint8)
    for number in range(1, min(int(regions.max()), 255) + 1):
        share = slice_input(grey, lung, regions == number, size)[1]
        numbers[share > largest] = number
        np.maximum(largest, share, out=largest)
    return shown, numbers
