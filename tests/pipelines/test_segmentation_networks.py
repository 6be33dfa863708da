"""What makes each segmenter of the library the network of its paper, and fit for both engines."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets.vnet import VNet as MonaiVNet
from torch import nn
from torch.nn import functional

from pipelines.engines.openvino import OpenVinoEngine, _convert
from pipelines.errors import WeightsError
from pipelines.networks.library import build
from pipelines.weights import Bundle, ModelConfig, Precision, open_bundle, shipped_weights

TINY: Mapping[str, Mapping[str, Any]] = {
    "fcn8s": {"width": 4, "fc": 8},
    "unet": {"features": [4, 4, 4, 4, 4, 4]},
    "unetplusplus": {"features": [4, 4, 4, 4, 4, 4]},
    "vnet": {"width": 2},
}
FLAT = "efficientnet_unet"  # in two dimensions alone, and for multiples of 32
# Multiples of 16, as volumes are; the odd ones do not halve evenly down to stride 32.
SIZES = {2: (48, 80), 3: (16, 48, 32)}

every_segmenter = pytest.mark.parametrize("name", TINY)
both_dimensions = pytest.mark.parametrize("dimensions", SIZES)
every_depth = pytest.mark.parametrize("depth", [1, 2, 3, 4])


def tiny(name: str, dimensions: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(name, {"dimensions": dimensions, **TINY[name], **options})


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@every_segmenter
@both_dimensions
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_the_grid_of_the_image(name: str, dimensions: int, channels: int) -> None:
    net = tiny(name, dimensions, in_channels=channels, out_channels=2).eval()

    with torch.inference_mode():
        out = net(torch.rand(2, channels, *SIZES[dimensions]))

    assert out.shape == (2, 2, *SIZES[dimensions])


@every_segmenter
@both_dimensions
def test_training_reaches_every_parameter(name: str, dimensions: int) -> None:
    assert idle(tiny(name, dimensions), torch.rand(2, 1, *SIZES[dimensions])) == []


@every_depth
def test_training_reaches_every_parameter_of_a_pruned_u_net_plus_plus(depth: int) -> None:
    assert idle(tiny("unetplusplus", 2, depth=depth), torch.rand(2, 1, *SIZES[2])) == []


def idle(net: nn.Module, image: torch.Tensor) -> list[str]:
    """Return the parameters that do not learn."""
    (net.train()(image) - image).square().mean().backward()
    return [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(("name", "dimensions"), [("fcn8s", 2), ("vnet", 3), ("unetplusplus", 3)])
def test_openvino_computes_what_pytorch_does_at_any_size(name: str, dimensions: int) -> None:
    options = {"dimensions": dimensions, "in_channels": 2}
    net = tiny(name, **options)
    images = torch.rand(2, 2, *SIZES[dimensions])
    adapt(net, images)
    bundle = bundle_of(net, name, {**options, **TINY[name]})

    engine = OpenVinoEngine(_convert(bundle), Precision.FP32)
    computed = engine.predict(images.numpy())

    with torch.inference_mode():
        expected = torch.sigmoid(net(images)).numpy()
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-3 * np.ptp(expected))


def test_openvino_computes_what_pytorch_does_for_slices_with_neighbours() -> None:
    net = build(FLAT, {})
    adapt(net, torch.rand(4, 3, 64, 96))
    engine = OpenVinoEngine(_convert(bundle_of(net, FLAT, {})), Precision.FP32)

    for size in ((64, 96), (32, 160)):
        images = torch.rand(2, 3, *size)
        with torch.inference_mode():
            expected = torch.sigmoid(net(images)).numpy()
        assert expected.shape == (2, 1, *size)
        computed = engine.predict(images.numpy())
        np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-3 * np.ptp(expected))


def test_training_reaches_every_parameter_of_a_unet_on_efficientnet() -> None:
    assert idle(build(FLAT, {"in_channels": 1}), torch.rand(2, 1, 64, 96)) == []


def test_a_unet_on_efficientnet_has_two_dimensions_alone() -> None:
    with pytest.raises(WeightsError, match="2 dimensions alone"):
        build(FLAT, {"dimensions": 3})


def adapt(net: nn.Module, images: torch.Tensor) -> None:
    """Let the batch norms take over these images' statistics; without them, answers are flat."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    net.eval()


def bundle_of(net: nn.Module, name: str, options: Mapping[str, Any]) -> Bundle:
    config = ModelConfig(
        name=name,
        version="0.1",
        purpose="lesions",
        network={"architecture": name, **options},
        preprocessing={},
        decision={},
        precision=Precision.FP32,
    )
    return Bundle(config=config, digest="", tensors=net.state_dict())


def test_fcn_8s_has_the_papers_parameters_but_for_its_batch_norm() -> None:
    with torch.device("meta"):
        net = build("fcn8s", {"in_channels": 3, "out_channels": 21})
    scales = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.BatchNorm2d))

    # Long et al. 2015, table 1: 134 M. Layer by layer: VGG-16's convolutions 14,714,688;
    # fc6 102,764,544; fc7 16,781,312; scores 86,037 + 10,773 + 5,397; upsamplings 2 x 7,056 +
    # 112,896. A batch norm's shift stands for its convolution's bias, its scale comes on top.
    assert parameters(net) - scales == 134_489_759
    assert parameters(net) == 134_493_983


@both_dimensions
@pytest.mark.parametrize("size", [16, 37])
def test_fcn_8s_takes_an_image_of_any_size(dimensions: int, size: int) -> None:
    image = torch.rand(1, 1, *[size] * dimensions)

    with torch.inference_mode():
        out = tiny("fcn8s", dimensions).eval()(image)

    assert out.shape == image.shape


@both_dimensions
@pytest.mark.parametrize(
    ("layer", "factor"), [("up_from_fc7", 2), ("up_from_pool4", 2), ("up_from_pool3", 8)]
)
def test_fcn_8s_starts_with_linear_interpolation(dimensions: int, layer: str, factor: int) -> None:
    up = tiny("fcn8s", dimensions, out_channels=2).get_submodule(layer)
    scores = torch.rand(1, 2, *[5] * dimensions)
    mode = "bilinear" if dimensions == 2 else "trilinear"

    out = up(scores)

    # At the border the transposed convolution sees zeros where interpolation sees the edge.
    inside = (slice(None),) * 2 + (slice(factor, -factor),) * dimensions
    expected = functional.interpolate(scores, scale_factor=factor, mode=mode)
    torch.testing.assert_close(out[inside], expected[inside])


def test_v_net_has_the_parameters_of_monais_but_for_the_papers_stages() -> None:
    with torch.device("meta"):
        net = build("vnet", {})
        monai = MonaiVNet(spatial_dims=3, in_channels=1, out_channels=1, act="prelu")

    # Milletari et al. 2016, figure 2, has six convolutions more than MONAI (which follows the
    # authors' first code), here with these channels. MONAI in turn has a second PReLU at the end
    # of eight stages, a bias before four batch norms, and a 5x5x5 convolution with norm and PReLU
    # before the 1x1x1 that answers: 32 channels to one there, 32 to one at once here.
    more = sum(125 * c * c + 3 * c for c in (32, 64, 256, 256, 128, 64))
    second_prelu = 2 * (32 + 64 + 128 + 256)
    biases = 128 + 64 + 32 + 16
    answer = (125 * 32 + 2 + 1 + 2) - (32 + 1)
    assert parameters(monai) == 45_597_509
    assert parameters(net) == 45_597_509 + more - second_prelu - biases - answer == 65_178_737


def test_u_net_has_the_papers_parameters_but_for_its_norms_and_last_up_convolution() -> None:
    features = [64, 128, 256, 512, 1024, 64]
    with torch.device("meta"):
        net = build("unet", {"dimensions": 2, "out_channels": 2, "features": features})

    # Ronneberger et al. 2015, figure 1, layer by layer: 31,030,658, two classes. MONAI's has batch
    # norm after its 18 convolutions (5,888 channels), and its last up-convolution keeps all 128
    # channels, where the paper's halves them, so the convolution behind it takes 192, not 128.
    norms = 2 * 5_888
    last_up = (4 * 128 * 128 + 128) - (4 * 128 * 64 + 64)
    behind_it = 9 * (192 - 128) * 64
    assert parameters(net) == 31_030_658 + norms + last_up + behind_it == 31_112_130


@both_dimensions
def test_u_net_plus_plus_of_full_depth_is_monais(dimensions: int) -> None:
    net = tiny("unetplusplus", dimensions)
    image = torch.rand(2, 1, *SIZES[dimensions])

    with torch.inference_mode():
        assert torch.equal(net.train()(image), torch.stack(net.get_submodule("net")(image)))
        assert torch.equal(net.eval()(image), net.get_submodule("net")(image)[-1])


@every_depth
@both_dimensions
def test_a_pruned_u_net_plus_plus_answers_with_the_full_ones_output_of_that_depth(
    depth: int, dimensions: int
) -> None:
    full = tiny("unetplusplus", dimensions).eval()
    pruned = tiny("unetplusplus", dimensions, depth=depth).eval()
    pruned.load_state_dict(full.state_dict())
    image = torch.rand(1, 1, *SIZES[dimensions])

    with torch.inference_mode():
        assert torch.equal(pruned(image), full.get_submodule("net")(image)[depth - 1])


@every_depth
def test_a_pruned_u_net_plus_plus_trains_the_outputs_down_to_its_depth(depth: int) -> None:
    full = tiny("unetplusplus", 2).train()
    pruned = tiny("unetplusplus", 2, depth=depth).train()
    pruned.load_state_dict(full.state_dict())
    image = torch.rand(2, 1, *SIZES[2])

    with torch.inference_mode():
        assert torch.equal(pruned(image), full(image)[:depth])


# Two for each node, one more to upsample into each that is not the encoder's, and the last.
@pytest.mark.parametrize(("depth", "convolutions"), [(1, 8), (2, 16), (3, 27), (4, 41)])
def test_a_pruned_u_net_plus_plus_computes_only_the_nodes_it_needs(
    depth: int, convolutions: int
) -> None:
    net = tiny("unetplusplus", 2, depth=depth).eval()
    calls: Counter[nn.Module] = Counter()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda module, *_: calls.update([module]))

    with torch.inference_mode():
        net(torch.rand(1, 1, *SIZES[2]))

    assert set(calls.values()) == {1}
    assert len(calls) == convolutions


@every_depth
def test_the_shipped_lesion_weights_serve_every_depth(depth: int) -> None:
    bundle, _ = open_bundle(shipped_weights() / "lesions").members
    config = dataclasses.replace(bundle.config, network={**bundle.config.network, "depth": depth})
    image = torch.rand(1, 1, *SIZES[3])

    with torch.inference_mode():
        pruned = dataclasses.replace(bundle, config=config).network()(image)
        full = bundle.network().get_submodule("net")(image)

    assert torch.equal(pruned, full[depth - 1])


def test_pruning_leaves_out_nothing_but_what_is_deeper() -> None:
    pruned = tiny("unetplusplus", 2, depth=2)
    weights = tiny("unetplusplus", 2).state_dict()

    with pytest.raises(RuntimeError, match=r"Unexpected key.*net\.conv_5_0\.weight"):
        pruned.load_state_dict({**weights, "net.conv_5_0.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*net\.conv_1_0"):
        pruned.load_state_dict({k: w for k, w in weights.items() if "conv_1_0" not in k})


def test_a_depth_that_the_network_does_not_have_is_refused() -> None:
    with pytest.raises(WeightsError, match="depths 1 to 4, not 5"):
        build("unetplusplus", {"depth": 5})
