"""The recipe of the second opinion, on volumes whose classes differ plainly."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.engines.torch import best_precision
from pipelines.errors import PipelineError
from pipelines.training.losses import weighted_cross_entropy
from pipelines.training.pneumonia import PneumoniaRecipe
from pipelines.training.recipe import Optimiser, TrainingConfig
from pipelines.training.run import run
from pipelines.weights import Precision, open_bundle, shipped_weights
from tests.support.tiny_models import OPINION_CONFIGS, SUBSETS, write_models

LUNG_HU = {"well": -850, "ill": -400}


def config(**changes: object) -> TrainingConfig:
    tiny = OPINION_CONFIGS["pneumonia"]
    settings = TrainingConfig(
        name="tiny",
        version="0",
        purpose="pneumonia",
        network={**tiny.network, "out_channels": 2},
        preprocessing=SUBSETS,
        decision={
            "classes": ["healthy", "COVID-19"],
            "labels": {"well": "healthy", "ill": "COVID-19"},
            "graded": "COVID-19",
            "validated": False,
        },
        precision=Precision.BF16,
        data={
            "manifests": ["made"],
            "class_weights": {"COVID-19": 0.6, "healthy": 0.4},
        },
        seed=1,
        steps=12,
        batch=4,
        learning_rate=0.01,
        weight_decay=1e-4,
        validate_every=12,
        patch=(8, 16, 16),
        loss="weighted cross-entropy",
        optimiser=Optimiser.SGD,
    )
    return dataclasses.replace(settings, **changes)


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    folder = tmp_path / "sets"
    folder.mkdir()
    rng = np.random.default_rng(0)
    cases = []
    for part in ("train", "train", "validation", "test"):
        for label in ("well", "ill", "odd"):
            hu = rng.normal(40, 20, (14, 32, 32)).astype(np.int16)
            lung = np.zeros(hu.shape, bool)
            lung[2:12, 6:26, 4:28] = True
            hu[lung] = (LUNG_HU.get(label, 0) + rng.normal(0, 50, int(lung.sum()))).astype(np.int16)
            name = f"{label}{len(cases)}"
            np.savez_compressed(folder / f"{name}.npz", image=hu, lung=lung)
            cases.append(
                {
                    "id": name, "group": name, "domain": "hu", "image": f"{name}.npz#image",
                    "lung": f"{name}.npz#lung", "spacing_mm": [5.0, 4.0, 4.0], "label": label,
                    "label_source": "made", "part": part,
                }
            )  # fmt: skip
    top = {"name": "made", "source": "made", "licence": "none", "cases": cases}
    (folder / "made.json").write_text(json.dumps(top))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path / "models")


def recipe(settings: TrainingConfig, sets: Path, models: Path) -> PneumoniaRecipe:
    return PneumoniaRecipe(settings, sets, sets.parent / "cache", models, say=lambda _: None)


def test_a_training_learns_a_plain_difference_and_writes_its_model(sets, models, tmp_path):
    out = tmp_path / "pneumonia"

    run(config(), sets, tmp_path / "work", out, models=models, say=lambda _: None)

    figures = json.loads((out / "metrics.json").read_text())
    assert figures["validation"] == 1.0
    assert figures["cases"] == 2
    assert figures["accuracy"] == 1.0
    assert figures["auc"] == {"healthy": 1.0, "COVID-19": 1.0}
    assert figures["confusion"] == {"healthy": [1, 0], "COVID-19": [0, 1]}
    assert open_bundle(out).config.decision["classes"] == ["healthy", "COVID-19"]


def test_a_sample_is_one_subset_of_the_lungs_of_a_labelled_volume(sets, models):
    made = recipe(config(), sets, models)

    drawn = [made.sample(np.random.default_rng(seed)) for seed in range(20)]

    assert {tuple(image.shape) for image, _ in drawn} == {(1, 8, 16, 16)}
    assert {int(number) for _, number in drawn} == {0, 1}
    for image, number in drawn:
        dark = float(image[0, :, 8, 8].mean()) < (-600 + 600) / 490
        assert dark == (int(number) == 0)


def test_volumes_are_shrunk_once_for_all_trainings(sets, models):
    recipe(config(), sets, models)
    kept = volumes(sets)
    settings, manifest = config(), sets / "made.json"
    another_fold = {**settings.data, "fold": {"number": 1, "count": 2, "seed": 1}}

    manifest.write_text(manifest.read_text() + "\n")
    recipe(dataclasses.replace(settings, data=another_fold), sets, models)

    assert len(kept) == 8
    assert volumes(sets) == kept
    assert not (sets.parent / "work").exists()


def test_a_volume_whose_file_has_changed_is_shrunk_again(sets, models):
    recipe(config(), sets, models)
    kept = volumes(sets)
    with np.load(sets / "well0.npz") as arrays:
        changed = {"image": arrays["image"] + 1, "lung": arrays["lung"]}
    np.savez_compressed(sets / "well0.npz", **changed)

    recipe(config(), sets, models)

    assert len(volumes(sets)) == len(kept) + 1
    assert kept.items() <= volumes(sets).items()


def volumes(sets: Path) -> dict[Path, int]:
    """What is kept, and when it was written."""
    return {p: p.stat().st_mtime_ns for p in (sets.parent / "cache" / "volumes").iterdir()}


class Says:
    """A network that always gives the same logits."""

    def __init__(self, *logits: float) -> None:
        self.logits = torch.tensor([logits])

    def parameters(self):
        yield self.logits

    def __call__(self, _: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_where_classes_are_absent_the_accuracy_is_what_counts(sets, models):
    rows = json.loads((sets / "made.json").read_text())
    for case in rows["cases"]:
        if case["part"] == "validation" and case["label"] == "ill":
            case["part"] = "test"
    (sets / "made.json").write_text(json.dumps(rows))
    made = recipe(config(), sets, models)

    assert made.validate(Says(1.0, 0.0)) == 1.0
    assert made.validate(Says(0.0, 1.0)) == 0.0
    assert made.report(Says(0.0, 1.0))["auc"] == {"healthy": 0.5, "COVID-19": 0.5}


class Convolves(torch.nn.Module):
    """A network that keeps what it was computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = self.layer(images)
        self.computed_in = out.dtype
        return out.mean(dim=(2, 3, 4))


@pytest.mark.parametrize("precision", Precision)
def test_cases_are_measured_in_the_precision_the_model_will_have(sets, models, precision):
    net = Convolves()

    with torch.inference_mode():
        recipe(config(precision=precision), sets, models).validate(net)

    low = best_precision(torch.device("cpu"), precision) is Precision.BF16
    assert net.computed_in is (torch.bfloat16 if low else torch.float32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": "dice"}, "trained with 'weighted cross-entropy' alone"),
        ({"data": {"class_weights": {"healthy": 1.0}}}, "must name the classes healthy, COVID-19"),
        ({"labels": {"other": "healthy"}}, "No case of the train part has a label"),
        ({"labels": {"well": "hale"}}, "must name the classes healthy, COVID-19"),
        ({"preprocessing": {**SUBSETS, "slices": 16}}, "lie in 10 slices; 16 are needed"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_sentence(sets, models, changes, said):
    settings = config()
    if "data" in changes:
        changes = {"data": {**settings.data, **changes["data"]}}
    if "labels" in changes:
        changes = {"decision": {**settings.decision, **changes}}

    with pytest.raises(PipelineError, match=said):
        recipe(dataclasses.replace(settings, **changes), sets, models)


def test_a_class_of_twice_the_weight_counts_twice():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    target = torch.tensor([0, 1])
    right, wrong = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))

    loss = weighted_cross_entropy([1.0, 2.0])(logits, target)

    assert float(loss) == pytest.approx((right + 2 * wrong) / 3)


@pytest.mark.parametrize("purpose", ["pneumonia", "severity"])
def test_the_training_files_name_networks_of_as_many_outputs_as_classes(purpose: str):
    loaded = TrainingConfig.load(shipped_weights() / purpose / "training.toml")

    assert loaded.purpose == purpose
    assert set(loaded.data["class_weights"]) == set(loaded.decision["classes"])
    assert set(loaded.decision["labels"].values()) == set(loaded.decision["classes"])
    assert loaded.network.get("out_channels", 4) == len(loaded.decision["classes"])
