import csv
import itertools
import json
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import multiprocessing, nn
from torch._dynamo.utils import counters

from pipelines.display import towards
from pipelines.errors import PipelineError
from pipelines.training.augmentation import Pose, cut, equalise, random_pose, vary_display
from pipelines.training.loop import (
    CHECKPOINT,
    CURVE,
    Process,
    learning_rate,
    learns_in_bf16,
    train,
)
from pipelines.training.losses import LOSSES, loss_named
from pipelines.training.recipe import Optimiser, Schedule, TrainingConfig, read_toml
from pipelines.training.run import run
from pipelines.training.synthetic import add_lesions
from pipelines.weights import open_bundle, shipped_weights
from tests.support.data_sets import write_sets
from tests.support.toy_training import CPU, Toy, config, network, train_as_one_of_two

SETTINGS = [
    {},
    {"optimiser": Optimiser.ADAM, "schedule": Schedule.INVERSE, "decay": 5e-4},
    {"optimiser": Optimiser.SGD, "average": 0.9, "loss": "dice"},
    {"patience": 5},
    {"compiled": True},
]


@pytest.mark.parametrize(
    ("settings", "dimensions"),
    [*((settings, 2) for settings in SETTINGS), *((settings, 3) for settings in SETTINGS[:3])],
)
def test_a_training_killed_and_resumed_equals_the_uninterrupted_one(
    tmp_path, monkeypatch, settings, dimensions
):
    settings = config(**settings)
    clock = SimpleNamespace(monotonic=itertools.count().__next__)  # read once a step
    monkeypatch.setattr("pipelines.training.loop.time", clock)
    monkeypatch.setattr("pipelines.training.loop.CHECKPOINT_EVERY_S", 1.5)
    whole, killed, again = (network(dimensions=dimensions) for _ in range(3))
    toy = partial(Toy, dimensions=dimensions)

    train(settings, toy(), whole, tmp_path / "whole", device=CPU)
    with pytest.raises(KeyboardInterrupt):
        train(settings, toy(stop_at=7), killed, tmp_path / "killed", device=CPU)
    assert _progress(tmp_path / "killed")["step"] == 2, "step 3 is done again"
    train(settings, toy(), again, tmp_path / "killed", device=CPU)

    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert _curve(tmp_path / "whole") == _curve(tmp_path / "killed")


def test_a_validation_leaves_a_checkpoint_and_a_training_says_where_it_begins(tmp_path):
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(config(), Toy(stop_at=11), network(), tmp_path, device=CPU, say=said.append)
    train(config(), Toy(), network(), tmp_path, device=CPU, say=said.append)

    assert said[0] == f"No checkpoint in {tmp_path}: toy starts from the beginning."
    assert "Resuming toy at step 4 of 8." in said


def test_a_loss_that_is_no_number_ends_in_one_sentence_and_keeps_the_last_state(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("pipelines.training.loop.CHECKPOINT_EVERY_S", 0.0)

    with pytest.raises(PipelineError, match="at step 3 is nan"):
        train(config(), Toy(nan_at=3), network(), tmp_path, device=CPU)

    assert _progress(tmp_path)["step"] == 3
    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        assert all(torch.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.CHECKPOINT_EVERY_S", 0.0)
    net = network()

    with pytest.raises(PipelineError, match=r"at step 3 is \d\.\d+, its gradient nan"):
        train(config(), Toy(steep_at=3), net, tmp_path, device=CPU)

    assert _progress(tmp_path)["step"] == 3
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def test_a_training_that_gets_no_better_ends_with_its_best_weights(tmp_path):
    tired = config(steps=100, validate_every=2, patience=2)
    scores = (0.1, 0.9, 0.3, 0.2, 0.99)
    net, best = network(), network()

    train(tired, Toy(scores=scores), net, tmp_path, device=CPU)

    assert [row[2] for row in _curve(tmp_path)[1:]] == ["0.10000", "0.90000", "0.30000", "0.20000"]
    train(
        config(steps=100, validate_every=4, patience=1),
        Toy(scores=(1.0, 0.0)),
        best,
        tmp_path / "b",
        device=CPU,
    )
    for key, tensor in best.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[key]), key


def test_a_training_that_has_ended_early_is_not_continued(tmp_path):
    tired = config(steps=100, validate_every=2, patience=1)
    train(tired, Toy(scores=(0.9, 0.1)), network(), tmp_path, device=CPU)

    train(tired, Toy(stop_at=0), network(), tmp_path, device=CPU)

    assert len(_curve(tmp_path)) == 3


def test_the_average_of_the_weights_is_what_is_kept(tmp_path):
    last, averaged = network(), network()

    train(config(), Toy(), last, tmp_path / "last", device=CPU)
    train(config(average=0.9), Toy(), averaged, tmp_path / "averaged", device=CPU)

    start = network().state_dict()["0.weight"]
    assert torch.dist(start, averaged.state_dict()["0.weight"]) < torch.dist(
        start, last.state_dict()["0.weight"]
    )


def test_the_average_of_a_short_training_forgets_its_beginning(tmp_path):
    last, averaged = network(), network()

    train(config(), Toy(), last, tmp_path / "last", device=CPU)
    train(config(average=0.999), Toy(), averaged, tmp_path / "averaged", device=CPU)

    start, end, kept = (net.state_dict()["0.weight"] for net in (network(), last, averaged))
    assert torch.dist(kept, end) < torch.dist(start, end) / 2


def test_a_damaged_checkpoint_is_told(tmp_path):
    train(config(), Toy(), network(), tmp_path, device=CPU)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(PipelineError, match=r"checkpoint.* is damaged .*remove it"):
        train(config(), Toy(), network(), tmp_path, device=CPU)


def test_a_compiled_training_learns_what_an_eager_one_learns(tmp_path):
    eager, compiled = network(norm=False), network(norm=False)  # dropout draws otherwise

    train(config(), Toy(), eager, tmp_path / "eager", device=CPU)
    before = counters["stats"]["unique_graphs"]
    train(config(compiled=True), Toy(), compiled, tmp_path / "compiled", device=CPU)

    assert counters["stats"]["unique_graphs"] > before
    for key, tensor in eager.state_dict().items():
        torch.testing.assert_close(tensor, compiled.state_dict()[key], atol=2e-3, rtol=0)


def test_a_compiled_training_without_a_compiler_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(PipelineError, match=r"needs a C\+\+ compiler \('no-such-compiler'; name"):
        train(config(compiled=True), Toy(), network(), tmp_path, device=CPU)


def test_a_compiled_training_without_pythons_headers_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))

    with pytest.raises(PipelineError, match=r"needs Python's headers .* package python3-dev"):
        train(config(compiled=True), Toy(), network(), tmp_path, device=CPU)


def test_a_compiled_training_may_go_on_without_a_compiler(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(config(compiled=True), Toy(stop_at=11), network(), tmp_path, device=CPU)

    train(config(), Toy(), network(), tmp_path, device=CPU)

    assert _progress(tmp_path)["step"] == 8


@pytest.mark.parametrize("compiled", [False, True])
def test_two_processes_that_share_a_batch_learn_what_one_learns(tmp_path, compiled):
    alone = network(norm=False)
    train(config(), Toy(), alone, tmp_path / "alone", device=CPU)

    meeting = f"file://{tmp_path}/meeting"
    multiprocessing.spawn(
        train_as_one_of_two, (meeting, tmp_path / "two", config(compiled=compiled)), nprocs=2
    )

    together = network(norm=False)
    train(config(), Toy(), together, tmp_path / "two", device=CPU)  # has ended: only loads
    for key, tensor in alone.state_dict().items():
        torch.testing.assert_close(tensor, together.state_dict()[key], atol=2e-3, rtol=0)


def test_a_batch_that_does_not_split_over_the_processes_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="A batch of 2 does not split over 3"):
        train(config(), Toy(), network(), tmp_path, device=CPU, process=Process(0, 3))


@pytest.mark.parametrize("name", ["dice", "dice and cross-entropy"])
def test_nested_outputs_count_equally_in_a_loss(name: str):
    target = (torch.rand(2, 1, 8, 8) > 0.5).float()
    one, other = torch.randn(2, 2, 1, 8, 8)

    both = LOSSES[name](torch.stack([one, other]), target)

    assert both == pytest.approx(
        float((LOSSES[name](one, target) + LOSSES[name](other, target)) / 2)
    )


def test_an_unknown_loss_is_refused_with_those_known():
    with pytest.raises(PipelineError, match="Unknown loss 'focal'; known are dice and cross-"):
        loss_named("focal")


def test_the_inverse_schedule_halves_the_rate_after_one_over_the_decay():
    settings = config(schedule=Schedule.INVERSE, decay=5e-4)

    assert learning_rate(settings, 0) == 0.01
    assert learning_rate(settings, 2000) == pytest.approx(0.005)


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path):
    train(config(steps=2), Toy(), network(), tmp_path, device=CPU)

    with pytest.raises(PipelineError, match="made with other settings"):
        train(config(steps=3), Toy(), network(), tmp_path, device=CPU)


def test_a_finished_training_is_not_measured_on_other_data(tmp_path):
    sets, settings = write_sets(tmp_path / "sets"), lungs()
    moved = shutil.copytree(sets, tmp_path / "moved")
    run(settings, sets, tmp_path / "work", tmp_path / "out", say=[].append)
    run(settings, moved, tmp_path / "work", tmp_path / "out", say=[].append)  # the same elsewhere
    manifest = sets / "lungs.json"
    raw = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**raw, "cases": raw["cases"][::-1]}))
    with np.load(moved / "chest.npz") as arrays:
        np.savez_compressed(moved / "chest.npz", **{**arrays, "slice_hu": arrays["slice_hu"] + 1})

    for other in (sets, moved):
        with pytest.raises(PipelineError, match="made with other settings, data or models"):
            run(settings, other, tmp_path / "work", tmp_path / "out", say=[].append)


def test_a_curve_that_could_not_be_written_is_written_by_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.CHECKPOINT_EVERY_S", 0.0)
    (tmp_path / CURVE).mkdir()
    with pytest.raises(IsADirectoryError):
        train(config(), Toy(), network(), tmp_path, device=CPU)
    (tmp_path / CURVE).rmdir()

    train(config(), Toy(), network(), tmp_path, device=CPU)

    assert [row[0] for row in _curve(tmp_path)] == ["step", "4", "8"]


def test_several_processes_make_one_model_and_tell_their_fault_in_one_sentence(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    sets, settings = write_sets(tmp_path / "sets"), lungs()

    run(settings, sets, tmp_path / "work", tmp_path / "out")

    assert open_bundle(tmp_path / "out").config.name == "toy"
    (sets / "lungs.json").write_text("{")
    with pytest.raises(PipelineError, match=r"lungs\.json cannot be read as a manifest"):
        run(settings, sets, tmp_path / "work", tmp_path / "out")


def test_a_first_checkpoint_that_does_not_fit_is_not_said_to_be_kept(tmp_path, monkeypatch):
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.training.loop.save", full)

    with pytest.raises(PipelineError, match=r"No space left on device\. There is none from before"):
        train(config(), Toy(), network(), tmp_path, device=CPU)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from pipelines.errors import PipelineError
from pipelines.training import loop
from tests.support.toy_training import CPU, Toy, config, network
loop.CHECKPOINT_EVERY_S = 0.0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
class Filling(Toy):
    def validate(self, net):
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
        return 0.5
try:
    loop.train(config(), Filling(), network(), Path(sys.argv[1]), device=CPU)
except PipelineError as error:
    print(error)
"""


def test_a_full_disk_ends_in_one_sentence_and_leaves_the_last_good_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True
    )

    assert "checkpoint.safetensors cannot be written" in done.stdout
    assert "The last good one is kept; make room and start again." in done.stdout
    assert _progress(tmp_path)["step"] == 3
    assert not (tmp_path / f"{CHECKPOINT}.part").exists()


def test_a_training_file_that_lacks_what_its_data_need_says_what(tmp_path):
    sets = write_sets(tmp_path)

    with pytest.raises(PipelineError, match="training file of toy lacks 'shares' in"):
        run(lungs(data={"manifests": ["lungs"]}), sets, tmp_path, tmp_path)
    with pytest.raises(PipelineError, match=r"'toy' lacks preprocessing.window_hu"):
        run(lungs(preprocessing={"spacing_mm": [1, 1, 1]}), sets, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../../x"}, r"name must be text of one line, .*, not '\.\./\.\./x'"),
        ({"version": 1}, "version must be text of one line, .*, not 1"),
        ({"decision": {"threshold": 5}}, "decision.threshold must be a number from 0 to 1, not 5"),
        ({"network": {"architecture": "dpn92", "dimensions": 2}}, "'dpn92' cannot do: it classi"),
    ],
)
def test_a_model_that_could_not_be_opened_is_not_trained(tmp_path, changes, said):
    with pytest.raises(PipelineError, match=said):
        run(lungs(**changes), tmp_path, tmp_path / "work", tmp_path / "out")


def test_an_unknown_network_ends_a_training_before_it_begins(tmp_path):
    sets = write_sets(tmp_path / "sets")
    settings = lungs(network={"architecture": "unet9", "dimensions": 2})

    with pytest.raises(PipelineError, match="Unknown network 'unet9'; this release has"):
        run(settings, sets, tmp_path / "work", tmp_path / "out")


def lungs(**changes: object) -> TrainingConfig:
    """A tiny training of a lung net, two steps long."""
    network = {"architecture": "unet", "dimensions": 2, "features": [2] * 6}
    given = {
        "purpose": "lungs",
        "network": network,
        "preprocessing": {"spacing_mm": [8, 8, 8], "window_hu": [-1024, 350]},
        "decision": {"threshold": 0.5},
        "data": {"manifests": ["lungs"], "shares": {"lung slices": 1.0, "lung volumes": 0.0}},
        "patch": (32, 32),
        "steps": 2,
    }
    return config(**{**given, **changes})


def test_the_learning_rate_warms_up_and_ends_near_zero():
    rates = [learning_rate(config(steps=100), step) for step in range(100)]

    assert rates[0] < rates[4] == max(rates)
    assert rates[-1] < 0.001 * max(rates)


@pytest.mark.parametrize("purpose", ["lungs", "screening"])
def test_the_shipped_training_files_make_models_like_the_shipped(purpose: str):
    loaded = TrainingConfig.load(shipped_weights() / purpose / "training.toml")
    shipped = open_bundle(shipped_weights() / purpose).config

    for key in ("name", "version", "purpose", "network", "preprocessing", "precision"):
        assert getattr(loaded, key) == getattr(shipped, key), key


def test_the_shipped_ensemble_is_what_its_settings_make_of_its_members():
    folder = shipped_weights() / "lesions"
    settings = read_toml(folder / "ensemble.toml")
    trained = [TrainingConfig.load(folder / m / "training.toml") for m in settings["members"]]
    shipped = open_bundle(folder).config

    for key in ("name", "version", "decision"):
        assert settings[key] == getattr(shipped, key), key
    for one, member in zip(trained, shipped.members, strict=True):
        for key in ("purpose", "network", "preprocessing", "precision"):
            assert getattr(one, key) == getattr(member, key), key


@pytest.mark.parametrize(
    ("profile", "spacing", "window"),
    [("paper", [2.5, 1.0, 1.0], [-150, 350]), ("default", [2.5, 2.0, 2.0], [-1024, 350])],
)
def test_a_profile_stands_for_its_preprocessing(tmp_path, profile, spacing, window):
    path = tmp_path / "training.toml"
    shipped = (shipped_weights() / "lungs" / "training.toml").read_text()
    path.write_text(shipped.replace('profile = "default"', f'profile = "{profile}"\nmore = 1'))

    preprocessing = TrainingConfig.load(path).preprocessing

    assert preprocessing == {"spacing_mm": spacing, "window_hu": window, "more": 1}


def test_an_unknown_profile_is_refused_with_those_known(tmp_path):
    path = tmp_path / "training.toml"
    shipped = (shipped_weights() / "lungs" / "training.toml").read_text()
    path.write_text(shipped.replace('profile = "default"', 'profile = "papre"'))

    with pytest.raises(PipelineError, match=r"no profile 'papre' for lungs, but \['paper', 'def"):
        TrainingConfig.load(path)


def test_a_training_file_with_a_wrong_key_names_it(tmp_path: Path):
    path = tmp_path / "training.toml"
    path.write_text('name = "x"\nspeed = 3\n')

    with pytest.raises(PipelineError, match=r"unknown keys \['speed'\]"):
        TrainingConfig.load(path)


def test_a_training_file_with_an_unknown_optimiser_names_those_known(tmp_path: Path):
    path = tmp_path / "training.toml"
    shipped = (shipped_weights() / "lungs" / "training.toml").read_text()
    path.write_text(shipped.replace("[training]", '[training]\noptimiser = "adamax"'))

    with pytest.raises(PipelineError, match="optimiser is one of adam, adamw, sgd"):
        TrainingConfig.load(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch = 12", "batch = 0", "batch must be a whole number above 0, not 0"),
        ("patch = [176, 176]", "patch = 176", "patch must be a list of whole numbers above 0"),
        ("patch = [176, 176]", "patch = [64]", "patch must be 2 numbers, as the network has 2 dim"),
        ("patch = [176, 176]", "patch = [9, 9, 9]", "patch must be 2 numbers, .*, not 3"),
        ("seed = 1", "seed = -7", "seed must be a whole number from 0 to 4294967295, not -7"),
        ("seed = 1", "seed = 7.5", "seed must be a whole number from 0 to .*, not 7.5"),
        ("batch = 12", "batch = true", "batch must be a whole number above 0, not True"),
        ("= 2e-3", "= nan", "learning_rate must be a number above 0, not nan"),
        ("= 2e-3", "= inf", "learning_rate must be a number above 0, not inf"),
        ("= 2e-3", "= -1e-3", "learning_rate must be a number above 0, not -0.001"),
        ("= 2e-3", '= "fast"', "learning_rate must be a number above 0, not 'fast'"),
        ("weight_decay = 1e-4", "weight_decay = nan", "weight_decay must be a number from 0, not"),
        ("weight_decay = 1e-4", "weight_decay = -1", "weight_decay must be a number from 0, not"),
        ("seed = 1", "seed = 1\naverage = 2.0", "average must be a number from 0 to below 1, not"),
        ("seed = 1", "seed = 1\nmomentum = nan", "momentum must be a number from 0 to below 1"),
        ("seed = 1", "seed = 1\npatience = -1", "patience must be a whole number from 0"),
        ("seed = 1", "seed = 1\ncompiled = 1", "compiled must be true or false, not 1"),
        ("manifests = [", "manifests = [] # ", r"\[data\] must name its manifests"),
    ],
)
def test_a_training_file_with_a_value_that_cannot_be_is_refused(tmp_path, old, new, said):
    path = tmp_path / "training.toml"
    shipped = (shipped_weights() / "lungs" / "training.toml").read_text()
    assert old in shipped
    path.write_text(shipped.replace(old, new))

    with pytest.raises(PipelineError, match=said):
        TrainingConfig.load(path)


def test_a_training_file_that_is_no_toml_is_said_to_be(tmp_path: Path):
    path = tmp_path / "training.toml"
    path.write_text("name = ")

    with pytest.raises(PipelineError, match="Cannot read the training file"):
        TrainingConfig.load(path)


@pytest.mark.parametrize("seed", range(4))  # flipped and not
def test_the_same_pose_cuts_image_and_mask_alike(seed: int):
    mask = np.zeros((2, 64, 64), dtype=bool)
    mask[:, 20:44, 10:30] = True
    places = np.stack(np.mgrid[:64, :64]).astype(np.int16)  # an image that says where a voxel lies
    pose = random_pose(np.random.default_rng(seed), (32.0, 20.0), 1.3)

    inside = cut(mask, pose, (40, 30), fill=0.0)[0] > 0.5
    y, x = cut(places, pose, (40, 30), fill=-1024.0)

    marked = (y > 19.5) & (y < 43.5) & (x > 9.5) & (x < 29.5)
    assert (inside != marked).sum() <= 8, "two pixels at each corner, which is rounded"
    assert 100 < inside.sum() < inside.size - 100
    offset = np.stack(np.mgrid[:40, :30])[::-1] - np.array([14.5, 19.5])[:, None, None]
    across, down = np.einsum("ij,jyx->iyx", pose.matrix, offset) + np.array([[[20.0]], [[32.0]]])
    within = (down > 0) & (down < 63) & (across > 0) & (across < 63)
    np.testing.assert_allclose(y[within], down[within], atol=0.01)
    np.testing.assert_allclose(x[within], across[within], atol=0.01)


def test_the_identity_pose_cuts_what_is_there():
    stack = np.random.default_rng(0).random((2, 16, 16), dtype=np.float32)

    out = cut(stack, Pose((7.5, 7.5), np.eye(2)), (16, 16), fill=0.0)

    np.testing.assert_allclose(out, stack, atol=1e-5)


def test_intensities_stay_between_black_and_white():
    image = np.random.default_rng(0).random((2, 16, 16), dtype=np.float32)

    for seed in range(20):
        varied = vary_display(np.random.default_rng(seed), image, saturate=True)
        assert varied.dtype == np.float32
        assert 0 <= varied.min() <= varied.max() <= 1


def test_equalising_spreads_the_greys_of_a_flat_slice_and_keeps_their_order():
    rng = np.random.default_rng(0)
    image = (0.4 + 0.05 * rng.random((2, 64, 64))).astype(np.float32)

    out = equalise(image, tile=64, clip=4.0)

    assert out.shape == image.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert out.std() > 2 * image.std()
    order = np.argsort(image[0].ravel())
    assert (np.diff(out[0].ravel()[order]) >= -1e-6).all()


def test_equalising_with_the_lowest_clip_changes_little():
    image = np.random.default_rng(0).random((1, 64, 64), dtype=np.float32)

    assert np.abs(equalise(image, tile=32, clip=1.0) - image).max() < 0.05


def test_equalised_lungs_are_brought_to_the_level_of_windowed_hu():
    image = np.full((1, 4, 4), 0.3, dtype=np.float32)
    image[0, 0, 0] = 1.0
    lung = image < 0.9

    level = towards(image, lung, 0.15)

    assert np.median(level[lung]) == pytest.approx(0.15)
    assert level[0, 0, 0] == 1.0


def test_synthetic_lesions_lie_in_the_lung_and_are_denser_than_it():
    lung = np.zeros((16, 64, 64), dtype=bool)
    lung[:, 8:56, 8:56] = True
    hu = np.where(lung, -850, 40).astype(np.float32)

    for seed in range(8):
        changed, mask = add_lesions(hu, lung, np.random.default_rng(seed), (2.5, 1.0, 1.0))
        assert not (mask & ~lung).any()
        assert (changed[~lung] == hu[~lung]).all()
        assert mask.any()
        assert changed[mask].mean() > hu[mask].mean() + 50


def _progress(folder: Path) -> dict[str, Any]:
    with safe_open(folder / CHECKPOINT, framework="pt") as file:
        return json.loads(file.metadata()["progress"])


def _curve(folder: Path) -> list[list[str]]:
    with (folder / CURVE).open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(("kernel", "depth"), [(3, 2), (5, 3)])
def test_gradients_of_flat_volumes_are_those_of_fp32(kernel: int, depth: int):
    torch.manual_seed(0)
    convolution = nn.Conv3d(128, 32, kernel, padding=kernel // 2)
    image, weights = torch.randn(2, 128, depth, 5, 5), torch.randn(2, 32, depth, 5, 5)
    gradients = []
    for low in (learns_in_bf16(CPU, 3), False):
        left_behind = [torch.full((200_000,), 1e33) for _ in range(30)]
        del left_behind  # for whoever does not write all that it returns
        convolution.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            (convolution(image) * weights).sum().backward()
        gradients.append(convolution.weight.grad.clone())

    ours, true = gradients
    assert (ours - true).abs().max() < 0.05 * true.abs().max()
