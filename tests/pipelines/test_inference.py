import numpy as np
import torch

from pipelines.engines.torch import Precision, TorchEngine
from pipelines.inference import predict_slices, predict_volume
from pipelines.networks.library import build


class Doubling:
    """An engine that shows what it was given."""

    description = "doubling"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.shapes.append(batch.shape)
        return batch * 2


def test_a_volume_that_fits_goes_through_in_one_padded_pass():
    engine = Doubling()
    image = np.random.default_rng(0).random((20, 33, 31), dtype=np.float32)

    out = predict_volume(engine, image)

    assert engine.shapes == [(1, 1, 32, 48, 32)]
    np.testing.assert_array_equal(out, image * 2)


def test_slabs_join_without_a_gap_or_an_overlap():
    engine = Doubling()
    image = np.random.default_rng(0).random((100, 16, 16), dtype=np.float32)

    out = predict_volume(engine, image, one_pass_voxels=48 * 256)

    assert len(engine.shapes) > 1
    assert max(shape[2] for shape in engine.shapes) <= 48
    np.testing.assert_array_equal(out, image * 2)


def test_a_convolution_reaches_across_slabs_as_in_one_pass():
    net = torch.nn.Conv3d(1, 1, 9, padding=4)
    engine = TorchEngine(net, torch.device("cpu"), Precision.FP32)
    image = np.random.default_rng(0).random((96, 16, 16), dtype=np.float32)

    whole = predict_volume(engine, image)
    slabs = predict_volume(engine, image, one_pass_voxels=48 * 256)

    np.testing.assert_allclose(slabs, whole, atol=1e-6)


def test_slices_go_through_in_batches_and_come_back_in_order():
    engine = Doubling()
    images = np.arange(40, dtype=np.float32).reshape(40, 1, 1, 1)

    assert predict_slices(engine, images).ravel().tolist() == (images * 2).ravel().tolist()
    assert [shape[0] for shape in engine.shapes] == [16, 16, 8]


def test_batch_norm_makes_a_patch_agree_with_the_whole():
    torch.manual_seed(0)
    net = build("unetplusplus", {"features": [4, 4, 4, 4, 4, 4]}).eval()
    engine = TorchEngine(net, torch.device("cpu"), Precision.FP32)
    image = np.random.default_rng(0).random((96, 32, 32), dtype=np.float32)

    whole = predict_volume(engine, image)
    slabs = predict_volume(engine, image, one_pass_voxels=64 * 32 * 32)

    assert np.abs(whole - slabs).max() < 0.02
