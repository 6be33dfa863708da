"""Several networks as one model: the mean of what they say alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.cli import average
from pipelines.engines.choice import EngineChoice
from pipelines.engines.torch import best_precision
from pipelines.errors import PipelineError
from pipelines.inference import Model
from pipelines.training.ensemble import write_ensemble
from pipelines.weights import ENSEMBLE, Precision, WeightsError, open_bundle, write_bundle
from tests.support.tiny_models import CONFIGS

VOLUME = CONFIGS["lesions"]
SLICES = dataclasses.replace(
    VOLUME, network={"architecture": "efficientnet_unet", "dimensions": 2, "in_channels": 3}
)
EXACT = {**VOLUME.network, "precision": "fp32"}
SETTINGS = """
name = "both"
version = "3.0.0"
members = ["volume", "slices"]
decision = { threshold = 0.25, peak = 0.75, minimum_ml = 0.2 }
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for name, config in {"volume": VOLUME, "slices": SLICES}.items():
        write_bundle(tmp_path / name, config, config.network_with_random_weights())
    path = tmp_path / "ensemble.toml"
    path.write_text(SETTINGS)
    return path


def image() -> np.ndarray:
    return np.random.default_rng(0).random((20, 40, 33), dtype=np.float32)


@pytest.mark.parametrize("choice", [EngineChoice.TORCH, EngineChoice.OPENVINO])
def test_it_says_the_mean_of_what_its_networks_say_alone(settings: Path, choice: EngineChoice):
    result = CliRunner().invoke(average, [str(settings)])

    assert result.exit_code == 0, result.output
    assert "appliance evaluate" in result.output
    together = Model.open(open_bundle(settings.parent), choice).probability(image())
    alone = [
        Model.open(open_bundle(settings.parent / name), choice).probability(image())
        for name in ("volume", "slices")
    ]
    assert np.abs(alone[0] - alone[1]).max() > 0.05
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


def test_it_is_one_model_with_a_decision_of_its_own(settings: Path):
    write_ensemble(settings, settings.parent)

    bundle = open_bundle(settings.parent)

    assert (bundle.config.name, bundle.config.version) == ("both", "3.0.0")
    assert bundle.config.decision["threshold"] == 0.25
    assert bundle.config.network["architecture"] == ENSEMBLE
    assert bundle.reference.digest == bundle.digest
    assert len({bundle.digest, *(member.digest for member in bundle.members)}) == 3


def test_networks_of_one_kind_are_kept_apart(settings: Path):
    torch.manual_seed(1)
    write_bundle(settings.parent / "slices", VOLUME, VOLUME.network_with_random_weights())
    write_ensemble(settings, settings.parent)

    model = Model.open(open_bundle(settings.parent), EngineChoice.OPENVINO)

    said = [engine.predict(image()[None, None, :16, :32, :32]) for engine in model.engines]
    assert np.abs(said[0] - said[1]).max() > 0.01


def test_each_network_is_computed_in_its_own_precision(settings: Path):
    exact = dataclasses.replace(SLICES, precision=Precision.FP32)
    write_bundle(settings.parent / "slices", exact, exact.network_with_random_weights())
    write_ensemble(settings, settings.parent)

    bundle = open_bundle(settings.parent)

    allowed = [member.precision for member in bundle.config.members]
    assert allowed == [Precision.BF16, Precision.FP32]
    volume, slices = Model.open(bundle, EngineChoice.TORCH).engines
    assert volume.precision is best_precision(torch.device("cpu"), Precision.BF16)
    assert slices.precision is Precision.FP32


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "both"\n', "", r"missing keys \['name'\]"),
        ("version", 'colour = "red"\nversion', r"unknown keys \['colour'\]"),
        (
            '["volume", "slices"]',
            '["volume", "volume"]',
            "members must be a list of two or more diff",
        ),
        ('["volume", "slices"]', '["volume"]', "members must be a list of two or more different"),
        ('["volume", "slices"]', '"volume"', "members must be a list of two or more different"),
        ('["volume", "slices"]', "[1, 2]", "members must be a list of two or more different"),
        ('"slices"', '"../slices"', "members must be a list of two or more different folders"),
        ('"slices"', '"absent"', "absent holds no model"),
        ("peak = 0.75", "peak = 0.1", "threshold 0.25 above decision.peak 0.1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: Path, old: str, new: str, told: str):
    settings.write_text(SETTINGS.replace(old, new))

    with pytest.raises(PipelineError, match=told):
        write_ensemble(settings, settings.parent)

    assert not (settings.parent / "config.json").exists()


def test_networks_that_see_a_volume_differently_are_not_averaged(settings: Path):
    coarse = {**VOLUME.preprocessing, "spacing_mm": [5.0, 2.0, 2.0]}
    other = dataclasses.replace(SLICES, preprocessing=coarse)
    write_bundle(settings.parent / "slices", other, other.network_with_random_weights())

    with pytest.raises(PipelineError, match="'slices' has another preprocessing than 'volume'"):
        write_ensemble(settings, settings.parent)


@pytest.mark.parametrize(
    ("purpose", "members", "told"),
    [
        ("lungs", [CONFIGS["lungs"].network] * 2, "is for lungs, which takes one network"),
        ("lesions", [VOLUME.network], "network.members must be a list of two or more"),
        ("lesions", None, "network.members must be a list of two or more"),
        ("lesions", [VOLUME.network, "unet"], "network.members must be a list of two or more"),
        ("lesions", [EXACT, {"architecture": ENSEMBLE}], "an ensemble within an ensemble"),
        ("lesions", [EXACT, VOLUME.network], "each of network.members needs its precision, one of"),
        ("lesions", [EXACT, {"architecture": "resnet50", "precision": "fp32"}], "it classifies"),
        ("lesions", [EXACT, {"precision": "fp32"}], "Unknown network ''"),
    ],
)
def test_a_bundle_that_is_no_ensemble_is_refused(purpose: str, members: object, told: str):
    network = {"architecture": ENSEMBLE, "members": members}

    with pytest.raises(WeightsError, match=told):
        dataclasses.replace(CONFIGS[purpose], network=network).check()
