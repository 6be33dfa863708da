import pytest
import torch

from pipelines.networks.library import ARCHITECTURES, build

INPUTS = {
    ("fcn8s", 2): (1, 1, 32, 48),
    ("fcn8s", 3): (1, 1, 16, 32, 32),
    ("unet", 2): (1, 1, 32, 48),
    ("unet", 3): (1, 1, 16, 32, 32),
    ("vnet", 2): (1, 1, 32, 48),
    ("vnet", 3): (1, 1, 16, 32, 32),
    ("unetplusplus", 2): (1, 1, 32, 48),
    ("unetplusplus", 3): (1, 1, 16, 32, 32),
    ("resnet50", 2): (1, 2, 64, 64),
    ("resnet50", 3): (1, 2, 32, 32, 32),
}
CLASSIFIERS = {"resnet50", "attention_resnet56", "densenet3d", "dpn92", "inception_v3"}
"""All but ResNet-50 are tried in test_classification_networks.py."""
SMALL = {"fcn8s": {"width": 4, "fc": 8}, "vnet": {"width": 2}}


def test_every_architecture_is_tried_in_two_and_three_dimensions():
    assert {name for name, _ in INPUTS} | CLASSIFIERS == set(ARCHITECTURES)


@pytest.mark.parametrize(("name", "dimensions"), INPUTS)
def test_a_network_answers_in_the_shape_of_its_task(name: str, dimensions: int):
    shape = INPUTS[name, dimensions]
    net = build(name, {"dimensions": dimensions, **SMALL.get(name, {})}).eval()

    with torch.inference_mode():
        out = net(torch.rand(shape))

    assert out.shape == ((1, 1) if name == "resnet50" else (1, 1, *shape[2:]))


def test_resnet_50_has_its_published_number_of_parameters():
    net = build("resnet50", {"dimensions": 2, "in_channels": 3, "out_channels": 1000})

    # He et al. 2016, as every implementation of the original counts it.
    assert sum(p.numel() for p in net.parameters()) == 25_557_032


def test_unet_plus_plus_supervises_all_four_depths_in_training():
    net = build("unetplusplus", {"features": [2, 2, 2, 2, 2, 2]}).train()

    assert net(torch.rand(1, 1, 32, 32, 32)).shape == (4, 1, 1, 32, 32, 32)
