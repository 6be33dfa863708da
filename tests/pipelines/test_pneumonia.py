"""The second opinion, with networks of random weights: plumbing, not medicine."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipelines.analysis import NO_OPINION, Models, analyse
from pipelines.engines.choice import EngineChoice
from pipelines.errors import WeightsError
from pipelines.findings import Analysis
from pipelines.inference import Model
from pipelines.pneumonia import (
    InputSettings,
    OpinionModels,
    class_probabilities,
    fixed_subsets,
    lung_span,
    network_input,
    second_opinion,
    shrink,
)
from pipelines.weights import open_bundle
from tests.support.phantom import small_chest
from tests.support.tiny_models import (
    OPINION_CONFIGS,
    SUBSETS,
    write_models,
    write_opinion_models,
)

SETTINGS = InputSettings.of(SUBSETS)


class Answers:
    """An engine that gives one answer after the other and keeps what it was asked."""

    description = "answers"

    def __init__(self, *answers: list[float]) -> None:
        self.answers = answers
        self.asked: list[np.ndarray] = []

    def predict(self, batch: np.ndarray) -> np.ndarray:
        answer = self.answers[len(self.asked) % len(self.answers)]
        self.asked.append(batch)
        return np.array([answer], dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_opinion_models(tmp_path / "weights")


def model(folder: Path, purpose: str, engine: Answers, **decision: object) -> Model:
    bundle = open_bundle(folder / purpose)
    config = dataclasses.replace(bundle.config, decision={**bundle.config.decision, **decision})
    return Model(dataclasses.replace(bundle, config=config), (engine,))


def opinion(pneumonia: Model, severity: Model | None):
    chest = small_chest()
    return second_opinion(chest.volume, chest.lungs, OpinionModels(pneumonia, severity))


@pytest.mark.parametrize("length", [8, 9, 37, 400])
def test_a_subset_spans_the_lungs_evenly(length: int):
    for rows in fixed_subsets(length, SETTINGS):
        steps = np.diff(rows)
        assert rows.min() >= 0
        assert rows.max() < length
        assert rows[0] < length / 8
        assert rows[-1] >= length * 7 / 8 - 1
        assert steps.max() - steps.min() <= 1
        assert steps.min() >= 1


def test_subsets_start_elsewhere_and_are_the_same_every_time():
    first, again = (fixed_subsets(400, SETTINGS) for _ in range(2))

    assert len({int(rows[0]) for rows in first}) == SETTINGS.subsets
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_slices_are_clipped_shrunk_and_scored_with_the_models_constants():
    hu = np.full((8, 64, 64), 3000, np.int16)
    hu[:, :32] = -2000
    hu[:, :, 32:] = -600

    small = shrink(hu, SETTINGS)
    scores = network_input(small, SETTINGS)

    assert small.shape == (8, 16, 16)
    assert sorted(np.unique(small[:, [0, 0, 15], [0, 15, 0]])) == [-1200, -600, 600]
    assert scores.shape == (1, 8, 16, 16)
    assert scores.dtype == np.float32
    assert scores[0, 0, 0, 15] == 0.0
    assert scores[0, 0, 15, 0] == pytest.approx(1200 / 490)


def test_the_answer_is_the_mean_of_the_five_subsets(folder: Path):
    engine = Answers([0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1])

    found = opinion(model(folder, "pneumonia", engine), None)

    assert len(engine.asked) == 5
    assert {batch.shape for batch in engine.asked} == {(1, 1, 8, 16, 16)}
    assert not (engine.asked[0] == engine.asked[1]).all()
    assert found.probabilities == {
        "healthy": pytest.approx((3 * 0.7 + 2 * 0.2) / 5),
        "COVID-19": pytest.approx((3 * 0.1 + 2 * 0.5) / 5),
        "other viral": pytest.approx((3 * 0.1 + 2 * 0.2) / 5),
        "bacterial": pytest.approx(0.1),
    }
    assert (found.most_likely, found.severity, found.validated) == ("healthy", None, False)


def test_only_the_class_that_has_grades_is_graded(folder: Path):
    grading = Answers([0.1, 0.2, 0.7])
    covid = model(folder, "pneumonia", Answers([0.1, 0.7, 0.1, 0.1]))
    bacterial = model(folder, "pneumonia", Answers([0.1, 0.1, 0.1, 0.7]))
    severity = model(folder, "severity", grading)

    assert opinion(bacterial, severity).severity is None
    assert grading.asked == []
    assert opinion(covid, severity).severity == "III"
    assert opinion(covid, None).severity is None


def test_an_opinion_is_validated_only_if_every_model_that_was_asked_is(folder: Path):
    covid = model(folder, "pneumonia", Answers([0.1, 0.7, 0.1, 0.1]), validated=True)
    severity = model(folder, "severity", Answers([1.0, 0.0, 0.0]))

    assert opinion(covid, None).validated
    assert not opinion(covid, severity).validated


def test_lungs_in_too_few_slices_get_no_opinion(folder: Path):
    chest = small_chest()
    lungs = chest.lungs.copy()
    first, _ = lung_span(lungs)
    lungs[first + 7 :] = 0
    kind = model(folder, "pneumonia", Answers([1.0, 0.0, 0.0, 0.0]))

    assert second_opinion(chest.volume, lungs, OpinionModels(kind, None)) is None
    assert lung_span(np.zeros_like(lungs)) == (0, 0)


def test_both_engines_give_classes_that_add_up_and_agree(folder: Path):
    chest = small_chest()
    bundle = open_bundle(folder / "pneumonia")

    found, expected = (
        class_probabilities(chest.volume, chest.lungs, Model.open(bundle, choice))
        for choice in (EngineChoice.OPENVINO, EngineChoice.TORCH)
    )

    assert sum(found.values()) == pytest.approx(1)
    assert sum(expected.values()) == pytest.approx(1)
    assert np.ptp(list(expected.values())) > 0.1, "the classes differ"
    assert found == pytest.approx(expected, abs=0.03)


def test_the_analysis_has_the_same_opinion_every_time(tmp_path: Path, folder: Path):
    write_models(folder)
    models = Models.open(folder, EngineChoice.TORCH, second_opinion=True)

    found: list[Analysis] = [analyse(small_chest().volume, models) for _ in range(2)]

    assert found[0].second_opinion is not None
    assert found[0].second_opinion == found[1].second_opinion


def test_an_analysis_without_an_opinion_says_why(folder: Path):
    write_models(folder)
    models = Models.open(folder, EngineChoice.TORCH, second_opinion=True)
    settings = {**SUBSETS, "slices": 200}
    config = dataclasses.replace(models.opinion.pneumonia.config, preprocessing=settings)
    bundle = dataclasses.replace(models.opinion.pneumonia.bundle, config=config)
    kind = Model(bundle, (models.opinion.pneumonia.engine,))
    models = dataclasses.replace(models, opinion=OpinionModels(kind, None))

    found = analyse(small_chest().volume, models)

    assert found.second_opinion is None
    assert NO_OPINION in found.warnings
    assert {model.purpose for model in found.models} == {"lungs", "lesions", "screening"}


def test_the_grading_model_may_be_missing(folder: Path):
    write_models(folder)
    (folder / "severity" / "SHA256SUMS").unlink()

    models = Models.open(folder, EngineChoice.TORCH, second_opinion=True)

    assert models.opinion.severity is None
    assert [m.config.purpose for m in models.each][3:] == ["pneumonia"]


def test_a_damaged_grading_model_is_refused(folder: Path):
    write_models(folder)
    (folder / "severity" / "config.json").write_text("{}")

    with pytest.raises(WeightsError, match="damaged"):
        Models.open(folder, EngineChoice.TORCH, second_opinion=True)


def test_a_network_of_one_output_still_ends_in_a_sigmoid():
    one = dataclasses.replace(
        OPINION_CONFIGS["pneumonia"],
        network={"architecture": "densenet3d", "dimensions": 3, "out_channels": 1},
    )

    assert type(one.activation()).__name__ == "Sigmoid"
    assert type(OPINION_CONFIGS["pneumonia"].activation()).__name__ == "Softmax"
