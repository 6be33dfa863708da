import csv
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipelines.errors import PipelineError
from pipelines.training import loop
from pipelines.training.augmentation import Pose, cut, random_pose, towards, vary_display
from pipelines.training.datasets import LabelledSlice
from pipelines.training.loop import CHECKPOINT, CURVE, learning_rate, train
from pipelines.training.losses import segmentation_loss
from pipelines.training.metrics import dice, roc_auc, youden_threshold
from pipelines.training.recipe import TrainingConfig
from pipelines.training.screening import split_by_group
from pipelines.training.synthetic import add_lesions
from pipelines.weights import Precision, open_bundle, shipped_weights

CPU = torch.device("cpu")


def config(steps: int = 8, learning_rate: float = 0.01) -> TrainingConfig:
    return TrainingConfig(
        name="toy",
        version="0",
        purpose="toy",
        network={"dimensions": 2},
        preprocessing={},
        decision={},
        precision=Precision.FP32,
        data={},
        seed=4,
        steps=steps,
        batch=2,
        learning_rate=learning_rate,
        weight_decay=0.0,
        validate_every=4,
        patch=(8, 8),
    )


class Toy:
    """Learns to copy its input; `stop_at` kills the process's training like a power cut would."""

    def __init__(self, *, stop_at: int | None = None, nan_at: int | None = None) -> None:
        self.left = stop_at
        self.good_losses = nan_at

    def sample(self, rng):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        image = torch.from_numpy(rng.random((1, 8, 8), dtype=np.float32))
        return image, (image > 0.5).float()

    def loss(self, logits, target):
        loss = segmentation_loss(logits, target)
        if self.good_losses is not None:
            self.good_losses -= 1
            if self.good_losses < 0:
                return loss * float("nan")
        return loss

    def validate(self, net):
        return 0.5

    def report(self, net):
        return {}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


def test_a_training_killed_and_resumed_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.CHECKPOINT_EVERY_S", 0.0)
    whole, resumed = network(), network()

    train(config(), Toy(), whole, tmp_path / "whole", device=CPU)
    with pytest.raises(KeyboardInterrupt):
        train(config(), Toy(stop_at=11), resumed, tmp_path / "killed", device=CPU)
    again = network()
    train(config(), Toy(), again, tmp_path / "killed", device=CPU)

    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert _curve(tmp_path / "whole") == _curve(tmp_path / "killed")


def test_a_loss_that_is_no_number_ends_in_one_sentence_and_keeps_the_last_state(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("pipelines.training.loop.CHECKPOINT_EVERY_S", 0.0)

    with pytest.raises(PipelineError, match="at step 3 is nan"):
        train(config(), Toy(nan_at=3), network(), tmp_path, device=CPU)

    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        assert file.metadata()["step"] == "3"
        assert all(torch.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path):
    train(config(steps=2), Toy(), network(), tmp_path, device=CPU)

    with pytest.raises(PipelineError, match="made with other settings"):
        train(config(steps=3), Toy(), network(), tmp_path, device=CPU)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    save = loop.save_file
    saved = []

    def full_after_two(tensors, path, metadata) -> None:
        if len(saved) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        saved.append(save(tensors, path, metadata))

    monkeypatch.setattr(loop, "save_file", full_after_two)

    with pytest.raises(OSError, match="No space left"):
        train(config(), Toy(), network(), tmp_path, device=CPU)

    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        assert file.metadata()["step"] == "2"


def test_the_youden_point_parts_two_classes_that_can_be_parted():
    scores = np.array([0.1, 0.2, 0.6, 0.7])

    assert youden_threshold(scores, scores > 0.5) == 0.6


def test_groups_are_split_whole_and_both_classes_go_everywhere():
    slices = [
        LabelledSlice("set", f"{covid}/paper-{n // 3}", np.zeros((2, 2), np.uint8), covid)
        for covid in (True, False)
        for n in range(90)
    ]

    split = split_by_group(slices, seed=0)

    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts)) == list(range(180))
    groups = [{slices[row].group for row in part} for part in parts]
    assert sum(len(group) for group in groups) == len(set.union(*groups))
    assert all({slices[row].covid for row in part} == {True, False} for part in parts)
    assert [round(len(part) / 180, 1) for part in parts] == [0.7, 0.1, 0.2]


def test_the_learning_rate_warms_up_and_ends_near_zero():
    rates = [learning_rate(config(steps=100), step) for step in range(100)]

    assert rates[0] < rates[4] == max(rates)
    assert rates[-1] < 0.001 * max(rates)


@pytest.mark.parametrize("purpose", ["lungs", "lesions", "screening"])
def test_the_shipped_training_files_make_models_like_the_shipped(purpose: str):
    loaded = TrainingConfig.load(shipped_weights() / purpose / "training.toml")
    shipped = open_bundle(shipped_weights() / purpose).config

    for key in ("name", "version", "purpose", "network", "preprocessing", "precision"):
        assert getattr(loaded, key) == getattr(shipped, key), key


def test_a_training_file_with_a_wrong_key_names_it(tmp_path: Path):
    path = tmp_path / "training.toml"
    path.write_text('name = "x"\nspeed = 3\n')

    with pytest.raises(PipelineError, match=r"unknown keys \['speed'\]"):
        TrainingConfig.load(path)


def test_a_training_file_that_is_no_toml_is_said_to_be(tmp_path: Path):
    path = tmp_path / "training.toml"
    path.write_text("name = ")

    with pytest.raises(PipelineError, match="Cannot read the training file"):
        TrainingConfig.load(path)
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(path.read_text())


def test_dice_is_twice_the_overlap_over_both():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True

    assert dice(a, b) == 0.5
    assert dice(a & ~a, b & ~b) == 1.0


def test_auc_counts_pairs_and_halves_ties():
    scores = np.array([0.9, 0.5, 0.5, 0.1])
    positive = np.array([True, True, False, False])

    assert roc_auc(scores, positive) == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="both classes"):
        roc_auc(scores, positive | True)


def test_the_same_pose_cuts_image_and_mask_alike():
    rng = np.random.default_rng(0)
    mask = np.zeros((3, 64, 64), dtype=bool)
    mask[:, 20:44, 10:30] = True
    pose = random_pose(rng, (32.0, 20.0), 1.0)

    from_mask = cut(mask, pose, (48, 48), fill=0.0) > 0.5
    from_image = cut(mask.astype(np.float32) * 100, pose, (48, 48), fill=0.0) > 50

    assert from_mask.any()
    assert (from_mask == from_image).all()


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
        if mask.any():
            assert changed[mask].mean() > hu[mask].mean() + 50


def _curve(folder: Path) -> list[list[str]]:
    with (folder / CURVE).open(newline="") as file:
        return list(csv.reader(file))
