"""What holds for the library as a whole; each network is tried in one of the two files beside."""

import pytest
import torch
from torch import nn

from pipelines.networks.library import ARCHITECTURES, build
from tests.pipelines.test_classification_networks import NETWORKS
from tests.pipelines.test_segmentation_networks import FLAT, TINY


def test_every_architecture_is_tried_as_a_segmenter_or_as_a_classifier():
    assert sorted([*TINY, FLAT, *NETWORKS]) == sorted(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "beside", "layers"),
    [
        ("resnet50", ["downsample"], 50),  # He et al. 2016, table 1
        ("dpn92", ["projection"], 92),  # Chen et al. 2017, table 1
        ("attention_resnet56", ["projection", "mask"], 56),  # Wang et al. 2017, 36 m + 20 of trunk
        ("fcn8s", ["score_pool", "up_from"], 16),  # VGG-16, its last layer by the scores
        ("unet", [], 23),  # Ronneberger et al. 2015, section 2
    ],
)
def test_a_network_has_the_layers_that_its_paper_counts(name: str, beside: list[str], layers: int):
    with torch.device("meta"):
        net = build(name, {"dimensions": 2})

    counted = [
        key
        for key, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        and not any(part in key for part in beside)
    ]

    assert len(counted) == layers
