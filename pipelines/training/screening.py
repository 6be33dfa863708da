"""Training of the classifier: a 2-D ResNet-50 on the extracted lungs and lesion masks of slices.

The labelled sets have no masks, so the lung and lesion models make them first: the classifier
learns from what it will be given in the pipeline. That takes minutes and is kept beside the
checkpoints.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.engines.choice import EngineChoice
from pipelines.inference import Model, predict_volume
from pipelines.lesions import label_regions
from pipelines.preprocessing import (
    MULTIPLE,
    bounding_box,
    pad_to_multiple,
    slice_input,
)
from pipelines.training.augmentation import cut, random_pose, towards, vary_display
from pipelines.training.datasets import LabelledSlice, sars_slices, ucsd_slices
from pipelines.training.losses import classification_loss
from pipelines.training.lung_masks import at, lung_mask
from pipelines.training.metrics import roc_auc, youden_threshold
from pipelines.training.recipe import TrainingConfig
from pipelines.weights import open_bundle, shipped_weights

CHEST_MM: Final = 350.0  # what the width of a slice without spacing is taken for
# The lesion net reads a single slice as a stack of equal ones, in plane at the sets' own sharpness.
LESION_PIXEL_MM: Final = 1.4
LUNG_LEVEL: Final = 0.15  # of aerated lung in windowed HU; the 8-bit slices are brought there
SMALLEST_PIXELS: Final = 12
MIXUP: Final = 0.2  # of the beta distribution: mostly one slice with a little of another
PARTIAL_SHARE: Final = 0.4  # of the samples, asked about some of their regions only


@dataclass(frozen=True)
class Split:
    """Rows of the prepared arrays."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


class ScreeningRecipe:
    """Samples `(2, size, size)` images of labelled slices, each set and class equally often.

    The class then says nothing about the set, nor the set about the class. Samples are mixtures of
    two slices and their labels (mixup, Zhang et al. 2018, arXiv:1710.09412): the slices are few.
    """

    def __init__(
        self, config: TrainingConfig, root: Path, work: Path, *, say: Callable[[str], None]
    ) -> None:
        self.size = int(config.preprocessing["size"])
        slices = [*ucsd_slices(root), *sars_slices(root)]
        self.covid = np.array([s.covid for s in slices])
        self.sets = np.array([s.source for s in slices])
        self.split = split_by_group(slices, config.seed)
        self.images, self.regions = _prepared(slices, self.size, work, say)
        train = self.split.train
        self._sources = [str(source) for source in np.unique(self.sets)]
        self._cells = {
            (source, covid): train[(self.sets[train] == source) & (self.covid[train] == covid)]
            for source in self._sources
            for covid in (False, True)
        }

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
        return classification_loss(logits, target)

    def validate(self, net: nn.Module) -> float:
        rows = self.split.validation
        return roc_auc(self._scores(net, rows), self.covid[rows])

    def report(self, net: nn.Module) -> dict[str, Any]:
        rows = self.split.validation
        threshold = youden_threshold(self._scores(net, rows), self.covid[rows])
        figures: dict[str, Any] = {"threshold": threshold}
        for name in ("all", "ucsd", "sars"):
            test = self.split.test
            test = test if name == "all" else test[self.sets[test] == name]
            scores, truth = self._scores(net, test), self.covid[test]
            figures[name] = {
                "slices": len(test),
                "auc": roc_auc(scores, truth),
                "sensitivity": float((scores[truth] >= threshold).mean()),
                "specificity": float((scores[~truth] < threshold).mean()),
            }
        return figures

    def _scores(self, net: nn.Module, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        device = next(net.parameters()).device
        scores = []
        for part in np.array_split(rows, max(1, len(rows) // 32)):
            images = self.images[part].astype(np.float32) / 255
            grey = [towards(i[None], i[None] > 0, LUNG_LEVEL)[0] for i in images]
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


def split_by_group(slices: list[LabelledSlice], seed: int) -> Split:
    """Return train, validation and test rows, 70 : 10 : 20 of the groups of each set and class."""
    rng = np.random.default_rng(seed)
    place: dict[tuple[str, str], float] = {}
    for kind in sorted({(s.source, s.covid) for s in slices}):
        groups = sorted({s.group for s in slices if (s.source, s.covid) == kind})
        for rank, index in enumerate(rng.permutation(len(groups))):
            place[kind[0], groups[index]] = rank / len(groups)
    places = np.array([place[s.source, s.group] for s in slices])
    return Split(
        train=np.flatnonzero(places >= 0.3),
        validation=np.flatnonzero((places >= 0.2) & (places < 0.3)),
        test=np.flatnonzero(places < 0.2),
    )


def _prepared(
    slices: list[LabelledSlice], size: int, work: Path, say: Callable[[str], None]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the lungs `(n, size, size)` in 0 to 255 and their numbered regions.

    They are kept under a digest of everything they were made from: slices, size and models.
    """
    bundles = [open_bundle(shipped_weights() / purpose) for purpose in ("lungs", "lesions")]
    made_from = hashlib.sha256("".join(b.digest for b in bundles).encode())
    for labelled in slices:
        made_from.update(f"{labelled.source}/{labelled.group}".encode() + labelled.image.tobytes())
    path = work / f"prepared-{size}-{made_from.hexdigest()[:16]}.npz"
    if not path.exists():
        lungs, lesions = (Model.open(bundle, EngineChoice.AUTO) for bundle in bundles)
        images = np.zeros((len(slices), size, size), dtype=np.uint8)
        regions = np.zeros_like(images)
        for row, labelled in enumerate(slices):
            images[row], regions[row] = _prepare(labelled.image, size, lungs, lesions)
            if row % 100 == 0:
                say(f"masks of labelled slices: {row} of {len(slices)}")
        work.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part.npz")
        np.savez_compressed(aside, images=images, regions=regions)
        aside.replace(path)
    data = np.load(path)
    return data["images"], data["regions"]


def _prepare(
    image: NDArray[np.uint8], size: int, lungs: Model, lesions: Model
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixel_mm = CHEST_MM / image.shape[1]
    grey = np.divide(image, 255, dtype=np.float32)
    lung = lung_mask(grey, pixel_mm, lungs)
    if not lung.any():
        return np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    inside = towards(grey[None], lung[None], LUNG_LEVEL)[0] * lung
    box = bounding_box(lung[None])[1:]
    found = at(inside[box], pixel_mm, LESION_PIXEL_MM, lambda i: _flat_lesions(i, lesions)) > 0.5
    mask = np.zeros(lung.shape, dtype=bool)
    mask[box] = found
    numbers = label_regions((mask & lung)[None], smallest=SMALLEST_PIXELS)[0]
    # Grey stays above zero inside the lungs, so that the lungs can be told from around them.
    shown = slice_input(np.maximum(grey, 1 / 255), lung, mask & lung, size)
    layers = [
        slice_input(grey, lung, numbers == n, size)[1] > 0.5 for n in range(1, numbers.max() + 1)
    ]
    out = np.zeros((size, size), dtype=np.uint8)
    for number, layer in enumerate(layers[:255], start=1):
        out[layer] = number
    return np.clip(np.ceil(shown[0] * 255), 0, 255).astype(np.uint8), out


def _flat_lesions(image: NDArray[np.float32], model: Model) -> NDArray[np.float32]:
    stack = pad_to_multiple(np.repeat(image[None], MULTIPLE, axis=0))
    out = predict_volume(model.engine, stack)
    height, width = image.shape
    return out[MULTIPLE // 2, :height, :width]
