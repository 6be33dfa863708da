"""Training of the second opinion's networks: kinds of pneumonia, and grades of severity (U9-U21).

A sample is one random subset of the slices of a volume, nothing is augmented (U16), and a case is
judged by the subsets by which the pipeline judges it. Volumes are shrunk once, which takes a second
or two each, and kept.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.engines.choice import EngineChoice
from pipelines.engines.torch import best_precision
from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import roc_auc
from pipelines.evaluation.reading import as_volume
from pipelines.files import whole_file
from pipelines.inference import Model
from pipelines.lungs import segment_lungs
from pipelines.manifest import Case, Domain, Manifest, Part, Stack, content_of, paths_of
from pipelines.pneumonia import (
    InputSettings,
    fixed_subsets,
    lung_span,
    network_input,
    shrink,
    subset_rows,
)
from pipelines.training.losses import WEIGHTED_CROSS_ENTROPY, weighted_cross_entropy
from pipelines.training.recipe import TrainingConfig
from pipelines.training.sets import open_sets
from pipelines.weights import Bundle, Precision, open_bundle

REPORT_EVERY: Final = 20  # cases


class PneumoniaRecipe:
    """Samples `(1, slices, size, size)` z-scores and class numbers.

    `decision.classes` names the outputs, `decision.labels` says which label of the manifests is
    which of them (cases of other labels are left out), `data.class_weights` how much each counts.
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
        """Read the labels and shrink the volumes, which are kept in `cache` for other trainings.

        Raises:
            PipelineError: the settings contradict each other, or a volume cannot be used.
        """
        self.classes = tuple(str(name) for name in config.decision["classes"])
        self.settings = InputSettings.of(config.preprocessing)
        self._precision = config.precision
        self._loss = weighted_cross_entropy(_class_weights(config, self.classes))
        labels = config.decision["labels"]
        number = {label: self.classes.index(name) for label, name in labels.items()}
        cases = [
            (manifest, case)
            for manifest in open_sets(config.data, folder)
            for case in manifest.cases
            if case.label in number
        ]
        self.truth = np.array([number[str(case.label)] for _, case in cases])
        self._names = [(manifest.name, case.group) for manifest, case in cases]
        self._rows = {
            part: np.array([row for row, (_, c) in enumerate(cases) if c.part is part], dtype=int)
            for part in Part
        }
        for part in (Part.TRAIN, Part.VALIDATION):
            if not len(self._rows[part]):
                raise PipelineError(f"No case of the {part} part has a label of decision.labels.")
        lungs = open_bundle(models / "lungs")
        self._volumes = _prepared(cases, self.settings, cache, lungs, say)

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        row = int(rng.choice(self._rows[Part.TRAIN]))
        volume = self._volume(row)
        rows = subset_rows(rng.uniform(), len(volume), self.settings)
        image = network_input(volume[rows], self.settings)
        return torch.from_numpy(image), torch.tensor(self.truth[row])

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._loss(logits, target)

    def validate(self, net: nn.Module) -> float:
        """Return the mean area under the curve of each class against the rest.

        Classes that are absent do not count (U32); where none is left, the accuracy is returned.
        """
        rows = self._rows[Part.VALIDATION]
        scores = self._scores(net, rows)
        areas = [area for area in self._areas(scores, rows).values() if area is not None]
        return float(np.mean(areas)) if areas else self._accuracy(scores, rows)

    def report(self, net: nn.Module) -> dict[str, Any]:
        """Measure on the test part; keep what every case of it and of the validation scored."""
        rows = self._rows[Part.TEST]
        scores = self._scores(net, rows)
        found = scores.argmax(axis=1)
        confusion = np.zeros((len(self.classes), len(self.classes)), dtype=int)
        np.add.at(confusion, (self.truth[rows], found), 1)
        watched = self._rows[Part.VALIDATION]
        return {
            "cases": len(rows),
            "accuracy": self._accuracy(scores, rows) if len(rows) else None,
            "auc": self._areas(scores, rows),
            "confusion": dict(zip(self.classes, confusion.tolist(), strict=True)),
            "scored": [
                [
                    str(part),
                    *self._names[row],
                    self.classes[self.truth[row]],
                    each.round(5).tolist(),
                ]
                for part, places, answers in (
                    (Part.VALIDATION, watched, self._scores(net, watched)),
                    (Part.TEST, rows, scores),
                )
                for row, each in zip(places, answers, strict=True)
            ],
        }

    def _areas(
        self, scores: NDArray[np.float64], rows: NDArray[np.int64]
    ) -> dict[str, float | None]:
        """Return the area of each class against the rest, None where one of the two is absent."""
        areas: dict[str, float | None] = {}
        for number, name in enumerate(self.classes):
            positive = self.truth[rows] == number
            both = positive.any() and not positive.all()
            areas[name] = roc_auc(scores[:, number], positive) if both else None
        return areas

    def _accuracy(self, scores: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
        return float((scores.argmax(axis=1) == self.truth[rows]).mean())

    def _scores(self, net: nn.Module, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the probabilities (cases, classes)."""
        device = next(net.parameters()).device
        low = best_precision(device, self._precision) is Precision.BF16
        scores = []
        for row in rows:
            volume = self._volume(int(row))
            answers = []
            for subset in fixed_subsets(len(volume), self.settings):
                image = torch.from_numpy(network_input(volume[subset], self.settings))[None]
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                    logits = net(image.to(device))
                answers.append(torch.softmax(logits.float(), dim=1)[0].cpu().numpy())
            scores.append(np.mean(answers, axis=0))
        return np.array(scores, dtype=np.float64).reshape(len(rows), len(self.classes))

    def _volume(self, row: int) -> NDArray[np.int16]:
        volume: NDArray[np.int16] = np.load(self._volumes[row], mmap_mode="r")
        return volume


def _class_weights(config: TrainingConfig, classes: tuple[str, ...]) -> list[float]:
    if config.loss != WEIGHTED_CROSS_ENTROPY:
        raise PipelineError(f"'{config.purpose}' is trained with '{WEIGHTED_CROSS_ENTROPY}' alone.")
    weights = config.data["class_weights"]
    named = {*weights, *config.decision["labels"].values()}
    if set(weights) != set(classes) or named != set(classes):
        raise PipelineError(
            f"decision.labels and data.class_weights must name the classes {', '.join(classes)}."
        )
    return [float(weights[name]) for name in classes]


def _prepared(
    cases: list[tuple[Manifest, Case]],
    settings: InputSettings,
    cache: Path,
    lungs: Bundle,
    say: Callable[[str], None],
) -> list[Path]:
    """Return a file for each case with the slices of its lungs, shrunk: int16 (n, size, size).

    They are kept under a digest of what they were made from: the case's files, the settings and the
    lung model, which is run where a case has no lung mask.
    """
    paths, model = [], None
    content = functools.cache(content_of)  # a file may hold many cases
    for place, (manifest, case) in enumerate(cases):
        named = (*paths_of(case.image), *paths_of(case.lung))
        contents = [content(manifest.root / path) for path in named]
        read_as = f"{case.domain} {case.image} {case.lung} {case.spacing_mm}"
        made_from = f"{contents} {read_as} {settings} {lungs.digest}"
        path = cache / "volumes" / f"{hashlib.sha256(made_from.encode()).hexdigest()[:32]}.npy"
        paths.append(path)
        if path.exists():
            continue
        if model is None and case.lung is None:
            model = Model.open(lungs, EngineChoice.AUTO)
        with whole_file(path) as file:
            np.save(file, _lung_slices(manifest.load(case), settings, model))
        if place % REPORT_EVERY == 0:
            say(f"volumes: {place} of {len(cases)}")
    return paths


def _lung_slices(stack: Stack, settings: InputSettings, model: Model | None) -> NDArray[np.int16]:
    if stack.case.domain is not Domain.HU:
        raise PipelineError(f"Case '{stack.case.id}' has no HU.")
    if stack.lung is not None:
        lungs = stack.lung.view(np.uint8)
    else:
        assert model is not None
        lungs = segment_lungs(as_volume(stack), model)
    first, stop = lung_span(lungs)
    if stop - first < settings.slices:
        raise PipelineError(
            f"The lungs of case '{stack.case.id}' lie in {stop - first} slices; "
            f"{settings.slices} are needed."
        )
    return shrink(stack.image[first:stop], settings)
