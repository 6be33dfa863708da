"""Networks that run on a CPU in milliseconds, as real bundles on disk.

Their weights are random: they prove plumbing, not medicine. The lung net's threshold of zero
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
        decision={"threshold": 0.0},
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
        },
        decision={"threshold": 0.5, "peak": 0.5, "minimum_ml": 5.0},
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


SUBSETS = {
    "subsets": 5,
    "slices": 8,
    "size": 16,
    "clip_hu": [-1200, 600],
    "mean_hu": -600.0,
    "std_hu": 490.0,
}
OPINION_CONFIGS = {
    "pneumonia": ModelConfig(
        name="tiny pneumonia",
        version="0.1",
        purpose="pneumonia",
        network={"architecture": "densenet3d", "dimensions": 3},
        preprocessing=SUBSETS,
        decision={
            "classes": ["healthy", "COVID-19", "other viral", "bacterial"],
            "labels": {"healthy": "healthy", "covid": "COVID-19", "pneumonia": "bacterial"},
            "graded": "COVID-19",
            "validated": False,
        },
        precision=Precision.BF16,
    ),
    "severity": ModelConfig(
        name="tiny severity",
        version="0.1",
        purpose="severity",
        network={"architecture": "densenet3d", "dimensions": 3, "out_channels": 3},
        preprocessing=SUBSETS,
        decision={"classes": ["I", "II", "III"], "validated": False},
        precision=Precision.BF16,
    ),
}


def write_opinion_models(folder: Path) -> Path:
    """Write the bundles of the second opinion below `folder`."""
    torch.manual_seed(1)
    for purpose, config in OPINION_CONFIGS.items():
        write_bundle(folder / purpose, config, config.network_with_random_weights())
    return folder


def write_models(folder: Path) -> Path:
    """Write one bundle for each purpose below `folder`."""
    torch.manual_seed(0)
    for purpose in PURPOSES:
        config = CONFIGS[purpose]
        write_bundle(folder / purpose, config, config.network_with_random_weights())
    return folder
