import numpy as np
import pytest
import torch
from torch import nn

from pipelines.engines.openvino import OpenVinoEngine, _convert
from pipelines.networks.densenet3d import DenseNet3D, DenseNet3DConfig, drop_blocks
from pipelines.networks.library import build, configuration
from pipelines.weights import Precision
from tests.pipelines.test_segmentation_networks import adapt, bundle_of

NETWORKS = (
    "resnet50",
    "dpn92",
    "inception_v3",
    "attention_resnet56",
    "efficientnet_lite0",
    "densenet3d",
)
INPUTS = {2: (64, 64), 3: (16, 64, 64)}

every_network = pytest.mark.parametrize("name", NETWORKS)
both_dimensions = pytest.mark.parametrize("dimensions", INPUTS)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("dpn92", 37_668_392),
        ("inception_v3", 23_834_568),
        ("resnet50", 25_557_032),
        ("efficientnet_lite0", 4_652_008),
    ],
)
def test_a_network_has_its_published_number_of_parameters(name: str, published: int) -> None:
    net = build(name, {"dimensions": 2, "in_channels": 3, "out_channels": 1000})

    assert count(net) == published


def test_attention_56_has_31_810_728_parameters_where_the_paper_says_31_9_million() -> None:
    net = build("attention_resnet56", {"dimensions": 2, "in_channels": 3, "out_channels": 1000})

    assert count(net) == 31_810_728
    assert count(net) == pytest.approx(31.9e6, rel=0.01)


def test_densenet_has_the_layers_and_parameters_of_ucadi() -> None:
    net = DenseNet3D(DenseNet3DConfig())

    assert sum(isinstance(module, nn.Conv3d) for module in net.modules()) == 14 + 1
    assert count(net) == 726_972


def test_severity_takes_the_same_densenet_with_three_outputs() -> None:
    net = DenseNet3D(DenseNet3DConfig(out_channels=3))

    assert count(net) == 726_972 - (120 + 1)


@every_network
@pytest.mark.parametrize(("dimensions", "channels"), [(2, 1), (2, 3), (3, 2)])
def test_a_network_takes_small_images(name: str, dimensions: int, channels: int) -> None:
    options = {"dimensions": dimensions, "in_channels": channels, "out_channels": 4}
    net = build(name, options).eval()

    with torch.inference_mode():
        out = net(torch.rand(1, channels, *INPUTS[dimensions]))

    assert out.shape == (1, 4)


@every_network
def test_a_network_takes_odd_sides(name: str) -> None:
    net = build(name, {"dimensions": 2}).eval()

    with torch.inference_mode():
        out = net(torch.rand(1, default_channels(name), 37, 45))

    assert out.isfinite().all()


@pytest.mark.parametrize(("name", "dimensions"), [*((n, 2) for n in NETWORKS), ("densenet3d", 3)])
def test_every_parameter_learns(name: str, dimensions: int) -> None:
    torch.manual_seed(0)
    net = build(name, {"dimensions": dimensions}).train()

    net(torch.rand(2, default_channels(name), *INPUTS[dimensions])).square().sum().backward()

    still = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@every_network
def test_an_image_is_judged_by_itself(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, {"dimensions": 2}).eval()
    batch = torch.rand(2, default_channels(name), *INPUTS[2])

    with torch.inference_mode():
        alone, among_others = net(batch[:1]), net(batch)[:1]

    torch.testing.assert_close(alone, among_others, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["dpn92", "inception_v3", "attention_resnet56"])
def test_openvino_computes_what_pytorch_does(name: str) -> None:
    torch.manual_seed(0)
    options = {"dimensions": 2, "in_channels": 2, "out_channels": 3}
    net = build(name, options)
    images = torch.rand(4, 2, 48, 80)
    adapt(net, images)

    computed = OpenVinoEngine(_convert(bundle_of(net, name, options)), Precision.FP32).predict(
        images.numpy()
    )

    with torch.inference_mode():
        expected = net(images).softmax(1).numpy()
    assert np.ptp(expected, axis=0).min() > 0.01, "the images differ"
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-3)


def test_densenet_drops_more_and_more_of_its_last_features() -> None:
    net = DenseNet3D(DenseNet3DConfig())

    shares = []
    for steps in (0, 2_500, 5_000, 9_000):
        net.training_steps.fill_(steps)
        shares.append(float(net.late_p()))

    assert shares == pytest.approx([0, 0.25, 0.5, 0.5])


def test_densenet_counts_its_steps_of_training_and_keeps_the_count_with_its_weights() -> None:
    net = DenseNet3D(DenseNet3DConfig())
    image = torch.rand(1, 1, 8, 8, 8)

    net.train()(image)
    net(image)
    net.eval()(image)
    resumed = DenseNet3D(DenseNet3DConfig())
    resumed.load_state_dict(net.state_dict())

    assert resumed.training_steps == 2


@both_dimensions
def test_blocks_are_dropped_from_all_channels_and_the_rest_is_scaled_up(dimensions: int) -> None:
    torch.manual_seed(0)
    x = torch.ones(4, 3, *INPUTS[dimensions])

    dropped = drop_blocks(x, 0.2)

    holes = dropped == 0
    assert 0.1 < holes.float().mean() < 0.2  # blocks overlap and hang over the edge
    assert (holes == holes[:, :1]).all()
    assert dropped.mean() == pytest.approx(1, rel=1e-4)
    assert torch.equal(drop_blocks(x, 0.0), x)
    assert drop_blocks(x, 1e6).isfinite().all()


def test_checkpointing_changes_nothing_that_densenet_learns() -> None:
    image = torch.rand(2, 1, 8, 8, 8)
    learnt = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = DenseNet3D(DenseNet3DConfig(checkpointing=checkpointing)).train()
        net(image).square().sum().backward()
        gradients = {key: p.grad for key, p in net.named_parameters() if p.grad is not None}
        running = {key: b for key, b in net.named_buffers() if "running" in key}
        learnt.append(gradients | running)

    torch.testing.assert_close(*learnt)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def default_channels(name: str) -> int:
    channels: int = configuration(name, {}).in_channels
    return channels
