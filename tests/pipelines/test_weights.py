import dataclasses
import hashlib
import json
import subprocess
import sys
from math import nan
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.errors import WeightsError
from pipelines.networks.library import ARCHITECTURES, build, configuration
from pipelines.weights import open_bundle, write_bundle
from tests.support.tiny_models import CONFIGS, OPINION_CONFIGS, write_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path) / "lungs"


def test_a_bundle_gives_back_its_network_to_half_precision(tmp_path: Path):
    net = CONFIGS["lungs"].network_with_random_weights()
    write_bundle(tmp_path, CONFIGS["lungs"], net)

    bundle = open_bundle(tmp_path)

    assert bundle.config == CONFIGS["lungs"]
    back, written = bundle.network().state_dict(), net.state_dict()
    assert list(back) == list(written)
    for key, tensor in written.items():
        rounded = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(back[key], rounded)


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


ALL_CONFIGS = {**CONFIGS, **OPINION_CONFIGS}


def forge(folder: Path, purpose: str, changes: dict) -> None:
    """Write a bundle whose checksums are right and whose settings nobody has checked."""
    config = ALL_CONFIGS[purpose]
    write_bundle(folder, config, config.network_with_random_weights())
    text = json.dumps({**vars(config), **changes})
    (folder / "config.json").write_text(text)
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    sums[0] = f"{hashlib.sha256(text.encode()).hexdigest()}  config.json"
    (folder / "SHA256SUMS").write_text("\n".join(sums))


def lesions(table: str, **changes: object) -> dict:
    return {table: {**getattr(CONFIGS["lesions"], table), **changes}}


@pytest.mark.parametrize(
    ("purpose", "changes", "told"),
    [
        ("lesions", {"decision": {"threshold": 0.5, "minimum_ml": 0.1}}, "lacks decision.peak"),
        ("lesions", {"preprocessing": {}}, "lacks preprocessing.lung_margin_mm, preprocessing.sp"),
        ("lesions", {"preprocessing": [1]}, r"preprocessing must be a table, not \[1\]"),
        ("lesions", lesions("preprocessing", slab_slices=16), "has preprocessing.slab_slices, whi"),
        ("lesions", lesions("decision", peak=92), "decision.peak must be a number from 0 to 1, no"),
        (
            "lesions",
            lesions("decision", peak=0.4),
            "threshold 0.5 above decision.peak 0.4",
        ),
        ("lesions", lesions("decision", threshold=nan), "decision.threshold must be .*, not nan"),
        ("lesions", lesions("decision", minimum_ml=-1), "decision.minimum_ml must be a number fr"),
        ("lesions", lesions("preprocessing", spacing_mm=[nan, 1, 1]), r"spacing_mm must be three"),
        ("lesions", lesions("preprocessing", spacing_mm=[0.0, 1, 1]), r"spacing_mm must be three"),
        ("lesions", lesions("preprocessing", window_hu=[350, -1024]), "the lower one first, not"),
        ("lesions", {"purpose": "bones"}, "a model for 'bones'; this release knows lungs, lesion"),
        ("lesions", {"name": ""}, "name must be text of one line, without slashes"),
        ("lesions", {"name": "../../x"}, r"name must be text .*, not '\.\./\.\./x'"),
        ("lesions", {"version": 1}, "version must be text of one line, .*, not 1"),
        ("lungs", {"network": {"architecture": "unet", "dimensions": 3}}, "must be 2, not 3"),
        ("lungs", {"network": {"architecture": "resnet50", "dimensions": 2}}, "it classifies"),
        ("screening", {"network": {"architecture": "unet"}}, "'unet' cannot do: it segments"),
        (
            "screening",
            {"network": {"architecture": "resnet50", "dimensions": 2, "in_channels": 1}},
            "network.in_channels must be 2, not 1",
        ),
        (
            "lesions",
            {"network": {"architecture": "unet", "dimensions": 3, "in_channels": 3}},
            "network.in_channels must be 1, not 3",
        ),
        (
            "lungs",
            {"network": {"architecture": "unet", "dimensions": 2, "out_channels": 3}},
            "has 3 outputs, and 1 are needed",
        ),
        (
            "severity",
            {"decision": {"classes": ["I", "II"], "validated": False}},
            "has 3 outputs, and 2 are needed",
        ),
        (
            "pneumonia",
            {"decision": {**OPINION_CONFIGS["pneumonia"].decision, "graded": "COVID"}},
            "names COVID in .decision., which is none of its classes healthy, COVID-19",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_study(
    tmp_path: Path, purpose: str, changes: dict, told: str
):
    forge(tmp_path / "forged", purpose, changes)
    config = dataclasses.replace(ALL_CONFIGS[purpose], **changes)

    with pytest.raises(WeightsError, match=told):
        open_bundle(tmp_path / "forged")
    with pytest.raises(WeightsError, match=told):
        write_bundle(tmp_path / "never", config, nn.Identity())
    assert not (tmp_path / "never").exists()


def test_a_flat_network_for_lesions_may_see_the_slices_beside_its_own():
    network = {"architecture": "efficientnet_unet", "dimensions": 2, "in_channels": 3}

    dataclasses.replace(CONFIGS["lesions"], network=network).check()


def test_another_threshold_is_another_model(tmp_path: Path):
    torch.manual_seed(0)
    config = CONFIGS["lungs"]
    net = config.network_with_random_weights()
    other = dataclasses.replace(config, decision={"threshold": 0.25})
    for name, each in (("one", config), ("same", config), ("other", other)):
        write_bundle(tmp_path / name, each, net)

    one, same, changed = (open_bundle(tmp_path / n).digest for n in ("one", "same", "other"))

    assert one == same != changed


FULL_DISK = """
import dataclasses, resource, signal, sys, torch
from pathlib import Path
from pipelines.weights import write_bundle
from tests.support.tiny_models import CONFIGS
torch.manual_seed(99)
config = CONFIGS["lungs"]
net = config.network_with_random_weights()
large = dataclasses.replace(config, name="n" * 10_000_000)  # of its files only one has no room
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, resource.RLIM_INFINITY))
write_bundle(Path(sys.argv[1]), large, net)
"""


def test_a_full_disk_leaves_the_older_model_whole(folder: Path):
    older = open_bundle(folder).digest

    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, folder], capture_output=True, text=True, check=False
    )

    assert "File too large" in done.stderr
    assert open_bundle(folder).digest == older
    assert {path.name for path in folder.iterdir()} == {
        "SHA256SUMS",
        "config.json",
        "weights.safetensors",
    }


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


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dimensions": 4}, "2 or 3 dimensions, not 4"),
        ({"dimensions": "two"}, "dimensions like 3, not 'two'"),
        ({"dimensions": 2.0}, "dimensions like 3, not 2.0"),
        ({"features": [4, 4]}, r"features like \(16, .*\), not \(4, 4\)"),
        ({"features": [4, 4, 4, 4, 4, 0]}, "features like"),
        ({"features": 4}, "features like"),
        ({"in_channels": True}, "in_channels like 1, not True"),
        ({"out_channels": None}, "out_channels like 1, not None"),
        ({"depth": 0}, "depth like 4, not 0"),
        ({"depth": 5}, "depths 1 to 4, not 5"),
    ],
)
def test_an_option_that_is_not_of_its_kind_is_refused_in_a_sentence(options: dict, told: str):
    with pytest.raises(WeightsError, match=told):
        build("unetplusplus", options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_option_of_every_network_has_a_default_and_is_checked(name: str):
    for option, default in vars(configuration(name, {})).items():
        assert getattr(configuration(name, {option: default}), option) == default
        for wrong in (None, "1", -1, 1.5, [], [1]):
            with pytest.raises(WeightsError, match=option):
                configuration(name, {option: wrong})


def test_a_network_has_the_dimensions_of_its_default(folder: Path):
    config = dataclasses.replace(CONFIGS["lungs"], network={"architecture": "unet"})

    assert config.dimensions == 2


def test_a_model_without_an_architecture_is_told_the_known_ones():
    config = dataclasses.replace(CONFIGS["lungs"], network={"dimensions": 2})

    with pytest.raises(WeightsError, match="Unknown network ''; this release has"):
        config.network_with_random_weights()


def test_an_unknown_option_of_a_network_is_refused():
    with pytest.raises(WeightsError, match=r"no option \['depth'\]"):
        build("unet", {"depth": 3})
