"""Training of the classifier: a 2-D ResNet-50 on the extracted lungs and lesion masks of slices.

The labelled sets have no masks, so the lung and lesion models make them first: the classifier
learns from what it will be given in the pipeline. That takes minutes and is kept beside the
checkpoints.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.display import lesion_probability, like_hu, lung_mask, towards
from pipelines.engines.choice import EngineChoice
from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import roc_auc, youden_threshold
from pipelines.inference import Model
from pipelines.lesions import label_regions
from pipelines.manifest import Case, Domain, Manifest, Part, Stack
from pipelines.preprocessing import slice_input
from pipelines.training.augmentation import cut, random_pose, vary_display
from pipelines.training.losses import loss_named
from pipelines.training.recipe import TrainingConfig
from pipelines.training.sets import open_sets
from pipelines.weights import open_bundle

SMALLEST_PIXELS: Final = 12
MIXUP: Final = 0.2  # of the beta distribution: mostly one slice with a little of another
PARTIAL_SHARE: Final = 0.4  # of the samples, asked about some of their regions only


class ScreeningRecipe:
    """Samples `(2, size, size)` images of labelled slices, each set and class equally often.

    The class then says nothing about the set, nor the set about the class. Samples are mixtures of
    two slices and their labels (mixup, Zhang et al. 2018, arXiv:1710.09412): the slices are few.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        work: Path,
        models: Path,
        *,
        say: Callable[[str], None],
    ) -> None:
        self._loss = loss_named(config.loss)
        self.size = int(config.preprocessing["size"])
        sets = open_sets(config.data, folder)
        learnt = set(config.data.get("train", config.data["manifests"]))
        share = float(config.data.get("share", 1.0))
        cases = [(manifest, case) for manifest in sets for case in manifest.cases]
        self.groups = [case.group for _, case in cases]
        self.covid = np.array([case.label == config.data["positive"] for _, case in cases])
        self.sets = np.array([manifest.name for manifest, _ in cases])
        self._part = np.array([str(case.part) for _, case in cases])
        self._learnt = np.isin(self.sets, sorted(learnt))
        self.images, self.regions = _prepared(cases, self.size, work.parent, models, say)
        early = first_share([f"{m.name} {c.group}" for m, c in cases], share, config.seed)
        train = self._rows(Part.TRAIN)[(self._learnt & early)[self._rows(Part.TRAIN)]]
        self._sources = sorted(learnt)
        self._cells = {
            (source, covid): train[(self.sets[train] == source) & (self.covid[train] == covid)]
            for source in self._sources
            for covid in (False, True)
        }
        self.train_cases = {label: int((self.covid[train] == label).sum()) for label in (0, 1)}

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        (image, covid), (other, other_covid) = self._slice(rng), self._slice(rng)
        share = float(rng.beta(MIXUP, MIXUP))
        return torch.lerp(other, image, share), torch.lerp(other_covid, covid, share)

    def _slice(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        covid = int(rng.random() < 0.5)
        source = str(rng.choice(self._sources))
        row = int(rng.choice(self._cells[source, bool(covid)]))
        image = self.images[row].astype(np.float32) / 255
        inside = image > 0
        grey = towards(image[None], inside[None], float(rng.uniform(0.08, 0.3)))
        grey = vary_display(rng, grey, saturate=True) * inside
        regions = self._some(rng, self.regions[row])
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
            test = whole
            test = test if name == "all" else test[self.sets[test] == name]
            scores, truth = np.array([scored[row] for row in test]), self.covid[test]
            figures[name] = {
                "slices": len(test),
                "auc": roc_auc(scores, truth),
                "sensitivity": float((scores[truth] >= threshold).mean()),
                "specificity": float((scores[~truth] < threshold).mean()),
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
        scores = []
        for part in np.array_split(rows, max(1, len(rows) // 32)):
            images = self.images[part].astype(np.float32) / 255
            grey = [like_hu(i, i > 0) for i in images]
            both = np.stack([np.stack(grey), self.regions[part] > 0], axis=1).astype(np.float32)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = net(torch.from_numpy(both).to(device))
            scores.append(torch.sigmoid(logits.float())[:, 0].cpu().numpy())
        return np.concatenate(scores).astype(np.float64)

    @staticmethod
    def _some(rng: np.random.Generator, regions: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the mask of all regions or of some: the pipeline asks about single ones too."""
        count = int(regions.max())
        if count < 2 or rng.random() > PARTIAL_SHARE:
            return (regions > 0).astype(np.float32)
        asked = rng.permutation(count)[: int(rng.integers(1, count))] + 1
        return np.isin(regions, asked).astype(np.float32)


def first_share(groups: list[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows belong to the first `share` of the groups in a seeded order.

    A smaller share is part of a larger one, as the sets of the paper's stages are (A-10).
    """
    names, of = np.unique(np.asarray(groups), return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(names)) / len(names)
    early: NDArray[np.bool_] = place[of] < share
    return early


def _prepared(
    cases: list[tuple[Manifest, Case]],
    size: int,
    cache: Path,
    models: Path,
    say: Callable[[str], None],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the lungs `(n, size, size)` in 0 to 255 and their numbered regions.

    They are kept under a digest of everything they were made from: slices, size and models.

    Raises:
        PipelineError: a case is no single 8-bit slice.
    """
    bundles = [open_bundle(models / purpose) for purpose in ("lungs", "lesions")]
    made_from = hashlib.sha256("".join(b.digest for b in bundles).encode())
    slices = [_slice(manifest, case) for manifest, case in cases]
    for stack in slices:
        made_from.update(f"{stack.case.id} {stack.spacing}".encode() + stack.image.tobytes())
    path = cache / f"prepared-{size}-{made_from.hexdigest()[:16]}.npz"
    if not path.exists():
        lungs, lesions = (Model.open(bundle, EngineChoice.AUTO) for bundle in bundles)
        images = np.zeros((len(slices), size, size), dtype=np.uint8)
        regions = np.zeros_like(images)
        for row, stack in enumerate(slices):
            images[row], regions[row] = _prepare(stack, size, lungs, lesions)
            if row % 100 == 0:
                say(f"masks of labelled slices: {row} of {len(slices)}")
        cache.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part.npz")
        np.savez_compressed(aside, images=images, regions=regions)
        aside.replace(path)
    data = np.load(path)
    return data["images"], data["regions"]


def _slice(manifest: Manifest, case: Case) -> Stack:
    stack = manifest.load(case)
    if len(stack.image) != 1 or case.domain is not Domain.DISPLAY:
        raise PipelineError(f"Case '{case.id}' of '{manifest.name}' is no single 8-bit slice.")
    return stack


def _prepare(
    stack: Stack, size: int, lungs: Model, lesions: Model
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    grey = np.divide(stack.image[0], 255, dtype=np.float32)
    lung = lung_mask(grey, stack.spacing[2], lungs)
    if not lung.any():
        return np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    found = lesion_probability(
        grey[None], lung[None], stack.spacing, lesions.config.spacing, lesions.probability
    )
    mask = found[0] > float(lesions.config.decision["threshold"])
    numbers = label_regions(mask[None], smallest=SMALLEST_PIXELS)[0]
    # Grey stays above zero inside the lungs, so that the lungs can be told from around them.
    shown = slice_input(np.maximum(grey, 1 / 255), lung, mask, size)
    layers = [
        slice_input(grey, lung, numbers == n, size)[1] > 0.5 for n in range(1, numbers.max() + 1)
    ]
    out = np.zeros((size, size), dtype=np.uint8)
    for number, layer in enumerate(layers[:255], start=1):
        out[layer] = number
    return np.clip(np.ceil(shown[0] * 255), 0, 255).astype(np.uint8), out
