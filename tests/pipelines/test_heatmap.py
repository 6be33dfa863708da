"""Heat maps of networks with random weights, against what the paper defines."""

import dataclasses
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import heatmap
from pipelines.analysis import Models, analyse
from pipelines.engines.choice import EngineChoice
from pipelines.findings import SecondOpinion
from pipelines.heatmap import (
    LAST_FEATURES,
    Explainer,
    Explainers,
    heat_maps,
    lesion_share,
    onto_slice,
    pneumonia_planes,
)
from pipelines.pneumonia import lung_span
from pipelines.preprocessing import resize, slice_input
from pipelines.screening import lung_slices
from pipelines.weights import Bundle, ModelConfig, Precision, open_bundle
from tests.support.phantom import small_chest
from tests.support.tiny_models import CONFIGS, SUBSETS, write_models, write_opinion_models

CLASSIFIERS = {
    "resnet50",
    "dpn92",
    "inception_v3",
    "attention_resnet56",
    "efficientnet_lite0",
    "densenet3d",
}


def bundle_of(
    architecture: str,
    dimensions: int = 2,
    channels: int = 2,
    preprocessing: Mapping[str, Any] = MappingProxyType({}),
) -> Bundle:
    torch.manual_seed(3)
    config = ModelConfig(
        name=architecture,
        version="0",
        purpose="screening",
        network={
            "architecture": architecture,
            "dimensions": dimensions,
            "in_channels": channels,
            "out_channels": 2,
        },
        preprocessing=preprocessing,
        decision={},
        precision=Precision.FP32,
    )
    return Bundle(config, "0" * 64, config.network_with_random_weights().state_dict())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_opinion_models(write_models(tmp_path / "weights"))


def test_every_classifier_has_a_last_feature_map():
    assert set(LAST_FEATURES) == CLASSIFIERS


@pytest.mark.parametrize("architecture", sorted(CLASSIFIERS))
def test_a_map_is_the_weighted_sum_of_the_features_where_it_is_positive(architecture: str):
    """All end in a mean and a linear layer, where Grad-CAM is CAM (section 3.1 of the paper)."""
    explainer = Explainer.open(bundle_of(architecture))
    images = np.random.default_rng(0).random((2, 2, 64, 64), dtype=np.float32)
    kept = []
    features = explainer.net.get_submodule(LAST_FEATURES[architecture])
    features.register_forward_hook(lambda _, __, out: kept.append(out.detach().clone()))
    linear = [m for m in explainer.net.modules() if isinstance(m, torch.nn.Linear)][-1]
    linear.weight.abs_()  # random weights alone may leave nothing above zero

    found = explainer.grad_cam(images, output=1)

    maps = kept[0]
    weights = linear.weight[1] / maps[0, 0].numel()
    expected = torch.einsum("c,ncyx->nyx", weights, maps).relu()
    assert found.max() > 0
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in explainer.net.parameters())


def test_a_map_lies_on_the_slice_where_the_classifier_saw_it():
    lung = np.zeros((120, 150), bool)
    lung[20:80, 30:130] = True
    columns = np.broadcast_to(np.arange(150, dtype=np.float32), lung.shape)
    rows = np.broadcast_to(np.arange(120, dtype=np.float32)[:, None], lung.shape)

    for places in (columns, rows):
        seen = slice_input(places, lung, lung, 64)[0]
        back = onto_slice(seen, lung)
        assert np.abs(back - places)[25:75, 35:125].max() < 2
        assert not back[~lung].any()


def test_the_screening_is_explained_on_the_slices_it_was_asked_about(folder: Path):
    chest = small_chest()
    explainers = Explainers(Explainer.open(open_bundle(folder / "screening")), None)

    (found,) = heat_maps(chest.volume, chest.lungs, chest.lesions, None, explainers)

    shown = np.flatnonzero(found.heat.any(axis=(1, 2)))
    assert found.heat.dtype == np.uint8
    assert found.heat.max() in (0, 255)
    assert set(shown) <= set(lung_slices(chest.lungs, chest.lesions))
    assert not found.heat[(chest.lungs == 0) & (chest.lesions == 0)].any()
    assert (found.purpose, found.file) == ("screening", "heatmap.nii.gz")


def test_the_second_opinion_is_explained_in_all_of_the_lungs():
    chest = small_chest()
    explainer = Explainer.open(
        bundle_of("densenet3d", dimensions=3, channels=1, preprocessing=SUBSETS)
    )
    screening = CONFIGS["screening"].preprocessing
    opinion = SecondOpinion({"a": 0.1, "b": 0.9}, "b", None, validated=False)
    first, stop = lung_span(chest.lungs)

    planes = pneumonia_planes(chest.volume, chest.lungs, 1, explainer)
    maps = heat_maps(
        chest.volume, chest.lungs, chest.lesions, opinion,
        Explainers(Explainer.open(bundle_of("resnet50", preprocessing=screening)), explainer),
    )  # fmt: skip

    assert [z for z, _ in planes()] == list(range(first, stop))
    assert all(plane.shape == chest.lungs.shape[1:] for _, plane in planes())
    assert [(m.purpose, m.answer) for m in maps][1:] == [("pneumonia", "b")]


def test_a_map_is_made_one_slice_at_a_time(monkeypatch: pytest.MonkeyPatch):
    chest = small_chest()
    explainer = Explainer.open(
        bundle_of("densenet3d", dimensions=3, channels=1, preprocessing=SUBSETS)
    )
    made: list[weakref.ref] = []
    most = 0

    def watched(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        nonlocal most
        out = resize(array, shape)
        made.append(weakref.ref(out))
        most = max(most, sum(plane() is not None for plane in made))
        return out

    planes = pneumonia_planes(chest.volume, chest.lungs, 1, explainer)
    monkeypatch.setattr(heatmap, "resize", watched)
    found = heatmap._heat_map("pneumonia", "b", planes, chest.lungs, chest.lesions)

    assert found.heat.max() == 255
    assert len(made) > 100
    assert most <= 2


def test_the_share_in_lesions_counts_the_heat_above_half_the_maximum():
    heat = np.array([[[255, 128, 127, 0]]], np.uint8)
    lesions = np.array([[[True, False, True, True]]])

    assert lesion_share(heat, lesions) == pytest.approx(255 / (255 + 128))
    assert lesion_share(np.zeros_like(heat), lesions) is None


def test_an_analysis_has_heat_maps_only_when_they_are_asked_for(folder: Path):
    models = Models.open(folder, EngineChoice.TORCH, second_opinion=True, heat_map=True)

    found = analyse(small_chest().volume, models)
    without = analyse(small_chest().volume, dataclasses.replace(models, explainers=None))

    assert [m.purpose for m in found.heat_maps] == ["screening", "pneumonia"]
    assert found.heat_maps[1].answer == found.second_opinion.most_likely
    assert without.heat_maps == ()
    assert found.probability == without.probability
