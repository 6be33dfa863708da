"""COVID-likeness of each lesion region and of the case: a 2-D network on axial slices.

J46 and J47 as A-5 reads them, in two dimensions for want of labelled volumes: the network sees the
extracted lungs of a slice and, as a second channel, the mask of the regions asked about. A region's
score is the mean over its largest slices; the whole lung's asks about all regions at once. The case
is the mean of the whole lung's score and of the regions' mean by volume: the paper's maximum would
let one vessel taken for a lesion make a healthy patient positive.
"""

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.findings import Lesion
from pipelines.inference import Model, predict_slices
from pipelines.preprocessing import slice_input, window
from pipelines.volume import CTVolume
from pipelines.weights import ModelConfig

REGION_SLICES: Final = 3
LUNG_SLICES: Final = 9


@dataclass(frozen=True)
class Screening:
    """The case's probability and the regions with theirs."""

    probability: float
    positive: bool
    threshold: float
    lesions: tuple[Lesion, ...]


def screen(
    volume: CTVolume,
    lungs: NDArray[np.uint8],
    labels: NDArray[np.uint16],
    lesions: tuple[Lesion, ...],
    model: Model,
) -> Screening:
    """Return the scores of the regions and of the case; arrays are (z, y, x) on one grid."""
    questions = [(z, lesion.id) for lesion in lesions for z in _region_slices(labels, lesion)]
    whole = [(z, 0) for z in lung_slices(lungs, labels)]
    images = np.stack(
        [
            question(volume, lungs, labels, z, number, model.config)
            for z, number in questions + whole
        ]
    )
    scores = predict_slices(model.engine, images)[:, 0]
    asked = np.array([number for _, number in questions])
    by_region = [float(scores[: len(questions)][asked == lesion.id].mean()) for lesion in lesions]
    probability = combine(
        float(scores[len(questions) :].mean()), by_region, [lesion.volume_ml for lesion in lesions]
    )
    threshold = float(model.config.decision["threshold"])
    return Screening(
        probability=probability,
        positive=probability >= threshold,
        threshold=threshold,
        lesions=tuple(
            dataclasses.replace(lesion, probability=score)
            for lesion, score in zip(lesions, by_region, strict=True)
        ),
    )


def combine(whole_lung: float, regions: list[float], volumes_ml: list[float]) -> float:
    """Return the case's score; without a region the whole lung's stands alone."""
    if not regions:
        return whole_lung
    return 0.5 * whole_lung + 0.5 * float(np.average(regions, weights=volumes_ml))


def _region_slices(labels: NDArray[np.uint16], lesion: Lesion) -> list[int]:
    (z0, y0, x0), (z1, y1, x1) = lesion.bbox
    areas = [np.count_nonzero(plane == lesion.id) for plane in labels[z0:z1, y0:y1, x0:x1]]
    return [z0 + int(i) for i in np.argsort(areas)[::-1][:REGION_SLICES] if areas[i]]


def lung_slices(lungs: NDArray[np.uint8], labels: NDArray[np.uint16]) -> list[int]:
    """Return the slices with most lesion; where there is none, slices spread over the lungs."""
    areas = [np.count_nonzero(plane) for plane in labels]
    if any(areas):
        return [int(i) for i in np.argsort(areas)[::-1][:LUNG_SLICES] if areas[i]]
    inside = np.flatnonzero([plane.any() for plane in lungs])
    inner = inside[len(inside) // 5 : -(len(inside) // 5) or None]
    spread = np.linspace(0, len(inner) - 1, min(LUNG_SLICES, len(inner))).round()
    return [int(inner[int(i)]) for i in spread]


def question(
    volume: CTVolume,
    lungs: NDArray[np.uint8],
    labels: NDArray[np.uint16],
    z: int,
    number: int,
    config: ModelConfig,
) -> NDArray[np.float32]:
    """Return what the classifier sees of slice `z`: `(2, size, size)`.

    It is asked about the region `number`, or about all of them if that is 0.
    """
    regions = labels[z] == number if number else labels[z] > 0
    image = window(volume.hu[z], config.window_hu)
    size = int(config.preprocessing["size"])
    return slice_input(image, in_question(lungs[z], labels[z]), regions, size)


def in_question(lung: NDArray[np.uint8], labels: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Return what of a slice the classifier is shown: the lungs and what was found at their rim."""
    return (lung > 0) | (labels > 0)
