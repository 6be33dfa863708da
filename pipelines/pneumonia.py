"""A second opinion on the kind of pneumonia: UCADI's 3-D DenseNet, and its grade of severity.

Xu et al. 2020, doi:10.1101/2020.05.10.20096073 (U11-U14, U18, U19). The network is shown five times
16 slices that span the lungs, each time from another start; its answer is the mean of the five. A
case of the class that has grades is graded by a second network of the same architecture (A-U5).

Classes, grades and every constant of the input stand in the models' configurations; the same
functions prepare the input in training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.findings import SecondOpinion
from pipelines.inference import Model
from pipelines.preprocessing import resize
from pipelines.volume import CTVolume

SEED: Final = 0  # of the starts: the same series always gets the same answer (A-U3)


@dataclass(frozen=True)
class InputSettings:
    """How slices become the network's input: `preprocessing` in its configuration.

    Attributes:
        subsets: How often a case is sampled for its answer.
        slices: In each subset.
        size: Pixels a side.
        clip_hu: Lowest and highest HU; what lies beyond is cut off.
        mean_hu: Of the training data after clipping, with `std_hu` the z-score's constants (A-U4).
        std_hu: Likewise.
    """

    subsets: int
    slices: int
    size: int
    clip_hu: tuple[float, float]
    mean_hu: float
    std_hu: float

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> "InputSettings":
        """Return the settings that stand in a configuration."""
        low, high = preprocessing["clip_hu"]
        return cls(
            subsets=int(preprocessing["subsets"]),
            slices=int(preprocessing["slices"]),
            size=int(preprocessing["size"]),
            clip_hu=(float(low), float(high)),
            mean_hu=float(preprocessing["mean_hu"]),
            std_hu=float(preprocessing["std_hu"]),
        )


@dataclass(frozen=True)
class OpinionModels:
    """The network that tells kinds of pneumonia apart, and the one that grades, if it is there."""

    pneumonia: Model
    severity: Model | None

    @property
    def each(self) -> tuple[Model, ...]:
        """Those that are there."""
        return (self.pneumonia,) if self.severity is None else (self.pneumonia, self.severity)


def second_opinion(
    volume: CTVolume, lungs: NDArray[np.uint8], models: OpinionModels
) -> SecondOpinion | None:
    """Return the opinion on a case; None where the lungs lie in too few slices for one (U15).

    `lungs` is the lung mask on the volume's grid.
    """
    kind = class_probabilities(volume, lungs, models.pneumonia)
    if kind is None:
        return None
    most_likely, asked, grades = _best(kind), [models.pneumonia], None
    if models.severity is not None and most_likely == models.pneumonia.config.decision["graded"]:
        asked.append(models.severity)
        grades = class_probabilities(volume, lungs, models.severity)
    return SecondOpinion(
        probabilities=kind,
        most_likely=most_likely,
        severity=None if grades is None else _best(grades),
        validated=all(bool(model.config.decision["validated"]) for model in asked),
    )


def class_probabilities(
    volume: CTVolume, lungs: NDArray[np.uint8], model: Model
) -> dict[str, float] | None:
    """Return the mean probability of each class over the subsets, None for too few slices."""
    settings = InputSettings.of(model.config.preprocessing)
    first, stop = lung_span(lungs)
    if stop - first < settings.slices:
        return None
    answers = []  # one at a time: five at once take five times the memory
    for rows in fixed_subsets(stop - first, settings):
        image = network_input(shrink(volume.hu[first + rows], settings), settings)
        answers.append(model.engine.predict(image[None])[0])
    mean = np.mean(answers, axis=0, dtype=np.float64)
    mean /= mean.sum()
    return dict(zip(_classes(model), mean.tolist(), strict=True))


def lung_span(lungs: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the first slice that shows lung and the one after the last; (0, 0) for none."""
    inside = np.flatnonzero((lungs > 0).any(axis=(1, 2)))
    return (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)


def fixed_subsets(length: int, settings: InputSettings) -> list[NDArray[np.intp]]:
    """Return the subsets by which a case is judged, as slices counted from the lungs' first."""
    rng = np.random.default_rng(SEED)
    return [subset_rows(rng.uniform(), length, settings) for _ in range(settings.subsets)]


def subset_rows(start: float, length: int, settings: InputSettings) -> NDArray[np.intp]:
    """Return one subset, evenly spread over `length` slices; `start` in [0, 1) moves all of it."""
    step = length / settings.slices
    return ((np.arange(settings.slices) + start) * step).astype(np.intp)


def shrink(hu: NDArray[np.int16], settings: InputSettings) -> NDArray[np.int16]:
    """Return slices (n, y, x) clipped and at the network's size: (n, size, size), HU."""
    clipped = np.clip(hu, *settings.clip_hu)
    small = resize(clipped, (len(hu), settings.size, settings.size))
    return np.rint(small).astype(np.int16)


def network_input(shrunk: NDArray[np.int16], settings: InputSettings) -> NDArray[np.float32]:
    """Return a subset that was shrunk as z-scores with a channel: (1, slices, size, size)."""
    scores = (shrunk.astype(np.float32) - settings.mean_hu) / settings.std_hu
    out: NDArray[np.float32] = scores[None].astype(np.float32, copy=False)
    return out


def _classes(model: Model) -> tuple[str, ...]:
    return tuple(str(name) for name in model.config.decision["classes"])


def _best(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=lambda name: probabilities[name])
