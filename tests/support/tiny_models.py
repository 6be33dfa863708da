"""Networks that run on a CPU in milliseconds, as real bundles on disk.

Their weights are random: they prove plumbing, not medicine. The lung net's threshold below zero
calls every voxel lung, the lesion net's decides how much is lesion.
"""

from pathlib import Path

import torch

from pipelines.analysis import PURPOSES
from pipelines.weights import ModelConfig, Precision, write_bundle

FEATURES = [2, 2, 2, 2, 2, 2]
HU = [-1024, 350]

CONFIGS = {
    "lungs": ModelConfig(
        name="tiny lungs",
        version="0.1",
        purpose="lungs",
        network={"architecture": "unet", "dimensions": 2, "features": FEATURES},
        preprocessing={"spacing_mm": [8.0, 8.0, 8.0], "window_hu": HU},
        decision={"threshold": -1.0},
        precision=Precision.BF16,
    ),
    "lesions": ModelConfig(
        name="tiny lesions",
        version="0.1",
        purpose="lesions",
        network={"architecture": "unetplusplus", "dimensions": 3, "features": FEATURES},
        preprocessing={
            "spacing_mm": [8.0, 8.0, 8.0],
            "window_hu": HU,
            "lung_margin_mm": 0.0,
            "slab_slices": 16,
        },
        decision={"threshold": 0.5, "minimum_ml": 5.0},
        precision=Precision.BF16,
    ),
    "screening": ModelConfig(
        name="tiny screening",
        version="0.1",
        purpose="screening",
        network={"architecture": "resnet50", "dimensions": 2},
        preprocessing={"size": 32, "window_hu": HU},
        decision={"threshold": 0.5},
        precision=Precision.BF16,
    ),
}


def write_models(folder: Path) -> Path:
    """Write one bundle for each purpose below `folder`."""
    torch.manual_seed(0)
    for purpose in PURPOSES:
        config = CONFIGS[purpose]
        write_bundle(folder / purpose, config, config.network_with_random_weights())
    return folder
