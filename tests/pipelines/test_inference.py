from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.engines import openvino
from pipelines.engines.torch import TorchEngine
from pipelines.errors import InferenceError
from pipelines.inference import (
    NETWORK_BYTES,
    Model,
    predict_slices,
    predict_volume,
    tiles,
    with_neighbours,
)
from pipelines.weights import Bundle, Precision
from tests.support.tiny_models import CONFIGS


class Doubling:
    """An engine that shows what it was given."""

    description = "doubling"
    precision = Precision.FP32
    bytes_a_voxel = 1_000

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


def test_boxes_join_without_a_gap_or_an_overlap():
    engine = Doubling()
    image = np.random.default_rng(0).random((100, 40, 70), dtype=np.float32)

    out = predict_volume(engine, image, one_pass_voxels=200_000)

    assert len(engine.shapes) > 1
    assert max(np.prod(shape) for shape in engine.shapes) <= 200_000
    np.testing.assert_array_equal(out, image * 2)


def test_a_box_without_lung_costs_nothing():
    engine = Doubling()
    image = np.zeros((96, 48, 48), dtype=np.float32)
    image[10, 20, 20] = 1

    out = predict_volume(engine, image, one_pass_voxels=48 * 48 * 48)

    assert len(engine.shapes) == 1
    np.testing.assert_array_equal(out, image * 2)


@pytest.mark.parametrize(
    "shape", [(112, 224, 304), (128, 272, 336), (112, 352, 400), (144, 352, 352), (112, 448, 448)]
)
@pytest.mark.parametrize(("precision", "twice"), [(Precision.BF16, 0.35), (Precision.FP32, 0.75)])
def test_boxes_of_real_lungs_fit_in_memory_and_compute_little_twice(
    shape: tuple[int, ...], precision: Precision, twice: float
):
    largest = NETWORK_BYTES // openvino.BYTES_A_VOXEL[precision]
    boxes = [around for _, around in tiles(shape, largest)]
    voxels = [np.prod([side.stop - side.start for side in box]) for box in boxes]

    assert max(voxels) <= largest
    assert sum(voxels) <= (1 + twice) * np.prod(shape)


@pytest.mark.parametrize(("largest", "halo"), [(4_400_000, 32), (2_300_000, 16)])
def test_boxes_overlap_by_more_where_that_costs_little(largest: int, halo: int):
    boxes = list(tiles((112, 224, 272), largest))

    reach = {c.start - a.start for core, around in boxes for c, a in zip(core, around, strict=True)}

    assert reach == {0, halo}


def test_how_much_goes_through_at_once_is_a_matter_of_the_engine():
    image = np.ones((32, 32, 64), dtype=np.float32)
    hungry, frugal = Doubling(), Doubling()
    hungry.bytes_a_voxel = NETWORK_BYTES // 32**3

    predict_volume(hungry, image)
    predict_volume(frugal, image)

    assert len(hungry.shapes) > 1
    assert len(frugal.shapes) == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_no_healthy_lung(wrong: float):
    image = np.ones((32, 32, 32), dtype=np.float32)
    image[3, 4, 5] = wrong

    with pytest.raises(InferenceError, match="Try the other engine"):
        predict_volume(Doubling(), image)
    with pytest.raises(InferenceError, match="Try the other engine"):
        predict_slices(Doubling(), image[:, None])


def test_a_convolution_reaches_across_boxes_as_in_one_pass():
    net = torch.nn.Conv3d(1, 1, 9, padding=4)
    engine = TorchEngine(net, torch.device("cpu"), Precision.FP32)
    image = np.random.default_rng(0).random((96, 48, 48), dtype=np.float32)

    whole = predict_volume(engine, image)
    boxes = predict_volume(engine, image, one_pass_voxels=48 * 32 * 32)

    np.testing.assert_allclose(boxes, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("dimensions", "shapes"),
    [
        (3, [(1, 1, 48, 80, 64)]),
        (2, [(16, 1, 64, 32), (16, 1, 64, 32), (8, 1, 64, 32)]),
    ],
)
def test_a_model_is_given_a_stack_as_it_learnt_to_see(dimensions, shapes):
    engine = Doubling()
    network = {"architecture": "unetplusplus", "dimensions": dimensions}
    config = replace(CONFIGS["lesions"], network=network)
    image = np.random.default_rng(0).random((40, 33, 31), dtype=np.float32)

    out = Model(Bundle(config, "0" * 64, {}), (engine,)).probability(image)

    assert engine.shapes == shapes
    np.testing.assert_array_equal(out, image * 2)


@pytest.mark.parametrize(
    ("channels", "seen"),
    [
        (1, [[0], [1], [2], [3]]),
        (3, [[0, 0, 1], [1, 0, 2], [2, 1, 3], [3, 2, 3]]),
        (5, [[0, 0, 1, 0, 2], [1, 0, 2, 0, 3], [2, 1, 3, 0, 3], [3, 2, 3, 1, 3]]),
    ],
)
def test_a_slice_comes_with_those_around_it(channels, seen):
    stack = np.arange(4, dtype=np.float32)[:, None, None]

    assert with_neighbours(stack, channels)[:, :, 0, 0].tolist() == seen


def test_slices_go_through_in_batches_and_come_back_in_order():
    engine = Doubling()
    images = np.arange(40, dtype=np.float32).reshape(40, 1, 1, 1)

    assert predict_slices(engine, images).ravel().tolist() == (images * 2).ravel().tolist()
    assert [shape[0] for shape in engine.shapes] == [16, 16, 8]
