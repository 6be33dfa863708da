import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipelines.findings import Lesion
from pipelines.inference import Model
from pipelines.lesions import measure_lesions
from pipelines.screening import LUNG_SLICES, REGION_SLICES, combine, question, screen
from pipelines.weights import open_bundle
from tests.support.phantom import small_chest
from tests.support.tiny_models import write_models


class Recorder:
    """An engine that answers 0.25 and keeps what it was asked."""

    description = "recorder"

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.asked.extend(batch)
        return np.full((len(batch), 1), 0.25, dtype=np.float32)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def model(tmp_path: Path, recorder: Recorder) -> Model:
    bundle = open_bundle(write_models(tmp_path) / "screening")
    return Model(bundle, (recorder,))


def lesions() -> tuple[Lesion, ...]:
    chest = small_chest()
    return measure_lesions(chest.volume, chest.lesions, chest.lungs)


def test_every_region_is_scored_on_its_largest_slices(model, recorder):
    chest, found = small_chest(), lesions()

    result = screen(chest.volume, chest.lungs, chest.lesions, found, model)

    assert [lesion.probability for lesion in result.lesions] == [0.25] * len(found)
    deep = [min(REGION_SLICES, lesion.last_slice - lesion.first_slice + 1) for lesion in found]
    assert len(recorder.asked) == sum(deep) + LUNG_SLICES


def test_without_a_lesion_the_whole_lung_is_asked_about(model, recorder):
    chest = small_chest()

    result = screen(chest.volume, chest.lungs, np.zeros_like(chest.lesions), (), model)

    assert len(recorder.asked) == LUNG_SLICES
    assert all(image[1].max() == 0 and image[0].max() > 0 for image in recorder.asked)
    assert result.lesions == ()


def test_the_threshold_belongs_to_the_positives(tmp_path, model):
    chest = small_chest()
    config = model.bundle.config
    at_score = dataclasses.replace(config, decision={"threshold": 0.25})
    bundle = dataclasses.replace(model.bundle, config=at_score)

    result = screen(
        chest.volume, chest.lungs, chest.lesions, lesions(), Model(bundle, (model.engine,))
    )

    assert result.positive
    assert result.threshold == 0.25


def test_the_case_weighs_its_regions_by_volume():
    assert combine(0.2, [], []) == 0.2
    assert combine(0.2, [1.0, 0.0], [3.0, 1.0]) == pytest.approx(0.5 * 0.2 + 0.5 * 0.75)


class Growing:
    """An engine that calls each slice more likely the more of it is asked about."""

    description = "growing"

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return batch[:, 1].mean(axis=(1, 2))[:, None]


def test_every_region_has_the_mean_of_its_slices_and_the_case_that_of_all(model):
    chest, found = small_chest(), lesions()

    result = screen(
        chest.volume, chest.lungs, chest.lesions, found, Model(model.bundle, (Growing(),))
    )

    def share(z: int, number: int) -> float:
        asked = question(chest.volume, chest.lungs, chest.lesions, z, number, model.config)
        return float(asked[1].mean())

    def largest(areas: np.ndarray, count: int) -> np.ndarray:
        slices = np.argsort(areas)[::-1][:count]
        return slices[areas[slices] > 0]

    expected = [
        np.mean([share(z, lesion.id) for z in largest(areas, REGION_SLICES)])
        for lesion in found
        for areas in [(chest.lesions == lesion.id).sum(axis=(1, 2))]
    ]
    whole = [share(z, 0) for z in largest((chest.lesions > 0).sum(axis=(1, 2)), LUNG_SLICES)]
    assert [lesion.probability for lesion in result.lesions] == pytest.approx(expected, abs=1e-6)
    volumes = [lesion.volume_ml for lesion in found]
    assert result.probability == pytest.approx(combine(np.mean(whole), expected, volumes), abs=1e-6)
