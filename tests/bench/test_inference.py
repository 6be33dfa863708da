"""The measuring itself: what it measures is what it says."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.inference import Recorded, SlidingWindow, gflop, medians, peak_gib
from pipelines.engines.torch import TorchEngine
from pipelines.inference import Model
from pipelines.weights import Bundle, Precision
from tests.support.tiny_models import CONFIGS

CPU = torch.device("cpu")
LESIONS = Bundle(CONFIGS["lesions"], "0" * 64, {})


def test_the_peak_is_of_this_process_not_of_the_one_that_started_it():
    held = np.ones(300 * 2**20, dtype=np.uint8)
    command = [sys.executable, "-c", "from bench.inference import peak_gib; print(peak_gib())"]

    child = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak_gib() > child + 0.2
    assert held.all()


def test_a_sliding_window_says_of_a_voxel_what_the_network_says():
    net = torch.nn.Conv3d(1, 1, kernel_size=1)
    engine = TorchEngine(net, CPU, Precision.FP32)
    image = np.random.default_rng(0).random((20, 300, 40), dtype=np.float32)

    found = SlidingWindow(LESIONS, (engine,)).probability(image)

    one_pass = engine.predict(image[None, None])[0, 0]
    np.testing.assert_allclose(found, one_pass, atol=1e-6)


def test_what_a_run_needed_is_recorded_and_counted():
    bundle = Bundle(
        LESIONS.config, "0" * 64, LESIONS.config.network_with_random_weights().state_dict()
    )
    recorded = Recorded(TorchEngine(bundle.network(), CPU, Precision.FP32))

    Model(bundle, (recorded,)).probability(np.zeros((40, 32, 48), np.float32))
    for _ in range(2):
        Model(bundle, (recorded,)).probability(np.ones((40, 32, 48), np.float32))

    assert recorded.shapes == [(1, 1, 48, 64, 80)] * 2
    one = gflop(bundle, recorded.shapes[:1])
    assert gflop(bundle, recorded.shapes) == pytest.approx(2 * one)
    assert one > 0


def test_medians_are_taken_figure_by_figure():
    runs = [{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 4.0}, {"a": 2.0, "b": 9.0}]

    assert medians(runs) == {"a": 2.0, "b": 5.0}
