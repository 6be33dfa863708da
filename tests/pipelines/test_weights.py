import json
from pathlib import Path

import pytest
import torch

from pipelines.errors import WeightsError
from pipelines.networks.library import build
from pipelines.weights import open_bundle
from tests.support.tiny_models import CONFIGS, write_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path) / "lungs"


def test_a_bundle_gives_back_its_network_to_half_precision(folder: Path):
    torch.manual_seed(0)
    image = torch.rand(1, 1, 32, 32)

    with torch.inference_mode():
        first = open_bundle(folder).network()(image)
        second = open_bundle(folder).network()(image)

    assert torch.equal(first, second)
    assert open_bundle(folder).config == CONFIGS["lungs"]


def test_one_changed_byte_of_the_weights_is_refused(folder: Path):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(WeightsError, match="damaged: install the model again"):
        open_bundle(folder)


def test_a_changed_threshold_is_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["decision"]["threshold"] = 0.9
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        open_bundle(folder)


def test_a_folder_without_checksums_is_no_model(tmp_path: Path):
    with pytest.raises(WeightsError, match="holds no model"):
        open_bundle(tmp_path)


def test_checksums_cannot_name_a_file_elsewhere(folder: Path):
    (folder / "SHA256SUMS").write_text("0" * 64 + "  ../../secret\n")

    with pytest.raises(WeightsError, match="not a list of checksums"):
        open_bundle(folder)


def test_an_unknown_network_is_named_with_the_known_ones():
    with pytest.raises(
        WeightsError, match=r"'unet3000'; this release has attention_resnet56, .*unet, "
    ):
        build("unet3000", {})


def test_an_unknown_option_of_a_network_is_refused():
    with pytest.raises(WeightsError, match=r"no option \['depth'\]"):
        build("unet", {"depth": 3})
