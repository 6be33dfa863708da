"""What makes an engine acceptable.

Computing as PyTorch does in fp32, its masks agree at Dice 0.999; in the precision a model ships
with, what it finds is as true to within 0.002.
"""

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from structlog.testing import capture_logs

from pipelines.engines import openvino as engine_module
from pipelines.engines.choice import EngineChoice, open_engine
from pipelines.engines.openvino import UNUSED_DAYS, converted
from pipelines.engines.torch import TorchEngine
from pipelines.evaluation.metrics import dice
from pipelines.inference import Model
from pipelines.lesions import without_faint
from pipelines.lungs import segment_lungs
from pipelines.preprocessing import extract_lungs, resize, window
from pipelines.volume import CTVolume
from pipelines.weights import Bundle, Precision, open_bundle, shipped_weights
from tests.support.phantom import small_chest
from tests.support.tiny_models import write_models

ACCEPTED = 0.999
LESS_TRUE = 0.002
CPU = torch.device("cpu")

both_engines = pytest.mark.parametrize("choice", [EngineChoice.OPENVINO, EngineChoice.TORCH])


@pytest.fixture(scope="module")
def lesions() -> Bundle:
    return open_bundle(shipped_weights() / "lesions")


@pytest.fixture(scope="module")
def lung_image(lesions: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """A box with a lesion of the phantom's lungs, as the lesion net is given it, and the truth."""
    chest = small_chest()
    volume = chest.volume
    largest = int(np.bincount(chest.lesions.ravel())[1:].argmax()) + 1
    z = int(np.flatnonzero((chest.lesions == largest).any(axis=(1, 2))).mean())
    rows = slice(max(0, z - 8), z + 8)
    extraction = extract_lungs(
        volume.hu[rows],
        chest.lungs[rows],
        volume.spacing,
        target=lesions.config.spacing,
        margin_mm=float(lesions.config.preprocessing["lung_margin_mm"]),
    )
    image = window(extraction.hu, lesions.config.window_hu) * extraction.lung
    truth = (chest.lesions[rows][extraction.box] > 0).astype(np.float32)
    return image, resize(truth, image.shape) > 0.5


@pytest.fixture(scope="module")
def reference(lesions: Bundle, lung_image: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """What PyTorch finds in fp32."""
    image, _ = lung_image
    engines = (TorchEngine(one.network(), CPU, Precision.FP32) for one in lesions.members)
    found = lesions_by(Model(lesions, tuple(engines)), image)
    assert found.sum() > 500, "the shipped net finds the phantom's lesion"
    return found


def lesions_by(model: Model, image: np.ndarray) -> np.ndarray:
    decision = model.config.decision
    return without_faint(model.probability(image), decision) > decision["threshold"]


def test_the_lesions_in_fp32_agree_with_pytorch(lesions, lung_image, reference):
    exact = dataclasses.replace(
        lesions, config=dataclasses.replace(lesions.config, precision=Precision.FP32)
    )

    found = lesions_by(Model.open(exact, EngineChoice.OPENVINO), lung_image[0])

    assert dice(found, reference) >= ACCEPTED


@both_engines
def test_the_lesions_are_as_true_in_the_precision_that_ships(
    choice, lesions, lung_image, reference
):
    image, truth = lung_image

    model = Model.open(lesions, choice)
    if Precision.BF16 not in {engine.precision for engine in model.engines}:
        pytest.skip("this processor does not compute bf16: the shipped precision is fp32 here")

    found = lesions_by(model, image)

    assert dice(reference, truth) > 0.3
    assert dice(found, truth) >= dice(reference, truth) - LESS_TRUE


@both_engines
def test_the_lungs_agree_with_pytorch_in_fp32(choice):
    bundle = open_bundle(shipped_weights() / "lungs")
    whole = small_chest().volume
    volume = CTVolume.from_input(
        whole.hu[40:56], whole.affine[:, [2, 1, 0, 3]], series_uid="middle"
    )

    mask, reference = (
        segment_lungs(volume, Model(bundle, (engine,))) > 0
        for engine in (
            open_engine(bundle, choice),
            TorchEngine(bundle.network(), CPU, Precision.FP32),
        )
    )

    assert reference.any()
    assert dice(mask, reference) >= ACCEPTED


@both_engines
def test_a_slice_is_scored_as_by_pytorch_in_fp32(choice):
    bundle = open_bundle(shipped_weights() / "screening")
    images = np.random.default_rng(0).random((2, 2, 128, 128), dtype=np.float32)

    score = open_engine(bundle, choice).predict(images)
    torch_fp32 = TorchEngine(bundle.network(), CPU, Precision.FP32).predict(images)

    np.testing.assert_allclose(score, torch_fp32, atol=0.02)


@both_engines
@pytest.mark.parametrize("count", [1, 2, 5])
def test_slices_of_a_batch_come_back_in_order(choice, count):
    lungs = open_bundle(shipped_weights() / "lungs")
    config = dataclasses.replace(lungs.config, precision=Precision.FP32)
    engine = open_engine(dataclasses.replace(lungs, config=config), choice)
    images = np.random.default_rng(0).random((count, 1, 32, 48), dtype=np.float32)

    together = engine.predict(images)

    alone = np.concatenate([engine.predict(images[n : n + 1]) for n in range(count)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@both_engines
def test_no_engine_goes_below_the_precision_that_the_weights_allow(choice):
    lungs = open_bundle(shipped_weights() / "lungs")
    assert lungs.config.precision is Precision.BF16
    config = dataclasses.replace(lungs.config, precision=Precision.FP32)

    engine = open_engine(dataclasses.replace(lungs, config=config), choice)

    assert re.search(r"\bf(p)?32\b", engine.description)
    assert engine.precision is Precision.FP32


def test_auto_takes_openvino_where_there_is_no_gpu(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert open_engine(tiny, EngineChoice.AUTO).description.startswith("OpenVINO")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    """A network that is converted in a moment."""
    return open_bundle(write_models(tmp_path / "weights") / "lungs")


def kept(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_converted_network_is_kept_for_the_next_start(tiny, cache, monkeypatch):
    converted(tiny)
    assert [path.suffix for path in kept(cache)] == [".bin", ".sha256", ".xml"]

    monkeypatch.setattr(engine_module, "_convert", lambda _: pytest.fail("converted again"))
    converted(tiny)


def test_a_cache_that_cannot_be_written_costs_time_and_no_analysis(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))

    with capture_logs() as logs:
        model = converted(tiny)

    assert [line["event"] for line in logs] == ["openvino.not_kept"]
    assert model.outputs


def test_a_full_disk_costs_time_and_no_analysis(tiny, cache, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(openvino, "save_model", full)

    with capture_logs() as logs:
        model = converted(tiny)

    assert [line["event"] for line in logs] == ["openvino.not_kept"]
    assert model.outputs
    assert kept(cache) == []


@pytest.mark.parametrize("suffix", [".sha256", ".xml", ".bin"])
def test_what_cannot_be_read_from_the_cache_is_converted_again(tiny, cache, suffix):
    converted(tiny)
    (path,) = cache.rglob(f"*{suffix}")
    path.unlink()
    path.mkdir()

    assert converted(tiny).outputs


def test_a_kept_network_that_openvino_cannot_read_is_converted_again(tiny, cache):
    converted(tiny)
    (path,) = cache.rglob("*.xml")
    path.write_text("<net")
    path.with_suffix(".sha256").write_text(engine_module._sums(path))

    assert converted(tiny).outputs


def test_another_configuration_is_another_network_and_a_default_written_out_is_none(tiny, cache):
    def configured(**network: object) -> Bundle:
        config = dataclasses.replace(tiny.config, network={**tiny.config.network, **network})
        return dataclasses.replace(tiny, config=config)

    same, other = configured(in_channels=1), configured(features=[2, 2, 2, 2, 2, 4])

    assert engine_module._key(same) == engine_module._key(tiny)
    assert engine_module._key(other) != engine_module._key(tiny)


def test_other_code_of_a_network_is_another_network(tiny, tmp_path, monkeypatch):
    before = engine_module._key(tiny)
    changed = tmp_path / "unet.py"
    changed.write_text("# an update")

    monkeypatch.setattr(engine_module, "_sources", lambda: [changed])

    assert engine_module._key(tiny) != before
    assert engine_module._key(tiny) == engine_module._key(tiny)


def test_the_code_that_makes_a_graph_is_that_of_every_network():
    pipelines = Path(engine_module.__file__).parent.parent

    assert {*pipelines.glob("networks/*.py")} < {*engine_module._sources()}


def test_networks_that_nobody_used_for_long_leave_the_cache(tiny, cache):
    converted(tiny)
    folder = kept(cache)[0].parent
    old = folder / "0123-2026.1.xml"
    old.touch()
    long_ago = time.time() - (UNUSED_DAYS + 1) * 86_400
    for path in kept(cache):
        os.utime(path, (long_ago, long_ago))

    converted(tiny)
    converted(dataclasses.replace(tiny, digest="another"))

    assert old not in kept(cache)
    assert len(kept(cache)) == 6


def test_a_network_is_converted_with_the_channels_it_has_by_default(tmp_path, cache):
    bundle = open_bundle(write_models(tmp_path) / "screening")
    assert "in_channels" not in bundle.config.network

    image = np.zeros((1, 2, 32, 32), dtype=np.float32)

    assert open_engine(bundle, EngineChoice.OPENVINO).predict(image).shape == (1, 1)


def test_a_converted_network_that_was_cut_short_is_made_again(tiny, cache):
    converted(tiny)
    (binary,) = cache.rglob("*.bin")
    whole = binary.read_bytes()
    binary.write_bytes(whole[:100])

    converted(tiny)

    assert binary.read_bytes() == whole


def test_converting_reports_to_nobody():
    """OpenVINO's converter has a telemetry of its own; see that it got the empty stand-in."""
    script = (
        "import sys; from pathlib import Path; from pipelines.engines import openvino as engine;"
        "from pipelines.weights import open_bundle, shipped_weights;"
        "engine._convert(open_bundle(shipped_weights() / 'lungs'));"
        "from openvino.tools.ovc import telemetry_utils as used;"
        "print(used.tm.__name__)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.split()[-1] == "openvino.tools.ovc.telemetry_stub"
