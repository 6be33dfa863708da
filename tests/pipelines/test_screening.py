import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipelines.engines.choice import EngineChoice
from pipelines.findings import Lesion
from pipelines.inference import Model
from pipelines.lesions import measure_lesions
from pipelines.screening import LUNG_SLICES, REGION_SLICES, combine, screen
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
    return Model(bundle, recorder)


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
        chest.volume, chest.lungs, chest.lesions, lesions(), Model(bundle, model.engine)
    )

    assert result.positive
    assert result.threshold == 0.25


def test_the_case_weighs_its_regions_by_volume():
    assert combine(0.2, [], []) == 0.2
    assert combine(0.2, [1.0, 0.0], [3.0, 1.0]) == pytest.approx(0.5 * 0.2 + 0.5 * 0.75)


def test_an_untrained_network_still_gives_probabilities(tmp_path):
    chest = small_chest()
    bundle = open_bundle(write_models(tmp_path) / "screening")
    model = Model.open(bundle, EngineChoice.TORCH)

    result = screen(chest.volume, chest.lungs, chest.lesions, lesions(), model)

    assert 0 <= result.probability <= 1
