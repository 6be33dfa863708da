"""FCN-8s: VGG-16 without its classifier, scored at strides 8, 16 and 32 (J36).

Long et al. 2015, doi:10.1109/CVPR.2015.7298965. Unlike there, training starts from random weights,
hence the batch norm after each convolution of the trunk; convolutions keep the size ("same"
padding), where the paper pads the image by 100 pixels; and all three upsamplings learn.
"""

from dataclasses import dataclass
from typing import Final

import torch
from monai.networks.layers.factories import Conv, Norm, Pad, Pool
from torch import nn

# Convolutions of each level of the trunk, and its channels as a multiple of the width.
TRUNK: Final = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


@dataclass(frozen=True)
class FCN8sConfig:
    """`width`: channels of the first level; `fc`: channels of fc6 and fc7. Both as in the paper."""

    dimensions: int = 2
    in_channels: int = 1
    out_channels: int = 1
    width: int = 64
    fc: int = 4096


class FCN8s(nn.Module):
    """Logits of the same grid as the image, which may have any size."""

    def __init__(self, config: FCN8sConfig) -> None:
        super().__init__()
        conv, out = Conv["conv", config.dimensions], config.out_channels
        channels = [config.in_channels, *(config.width * multiple for _, multiple in TRUNK)]
        levels = [
            _level(config.dimensions, channels[i], channels[i + 1], convolutions)
            for i, (convolutions, _) in enumerate(TRUNK)
        ]
        self.to_pool3 = nn.Sequential(*levels[:3])
        self.to_pool4 = levels[3]
        self.to_pool5 = levels[4]
        self.to_fc7 = nn.Sequential(
            conv(channels[5], config.fc, kernel_size=7, padding=3),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            conv(config.fc, config.fc, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Dropout(),
        )
        self.score_pool3 = conv(channels[3], out, kernel_size=1)
        self.score_pool4 = conv(channels[4], out, kernel_size=1)
        self.score_fc7 = conv(config.fc, out, kernel_size=1)
        self.up_from_fc7 = _upsampling(config.dimensions, out, 2)
        self.up_from_pool4 = _upsampling(config.dimensions, out, 2)
        self.up_from_pool3 = _upsampling(config.dimensions, out, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pool3 = self.to_pool3(image)  # (n, in, ...) -> (n, 4w, .../8)
        pool4 = self.to_pool4(pool3)  # (n, 8w, .../16)
        fc7 = self.to_fc7(self.to_pool5(pool4))  # (n, fc, .../32)
        scores = self.score_fc7(fc7)  # (n, out, .../32)
        scores = self.score_pool4(pool4) + _cropped(self.up_from_fc7(scores), pool4)
        scores = self.score_pool3(pool3) + _cropped(self.up_from_pool4(scores), pool3)
        return _cropped(self.up_from_pool3(scores), image)  # (n, out, .../8) -> (n, out, ...)


def _level(dimensions: int, in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (in_channels, *[channels] * (convolutions - 1)):
        layers += [
            Conv["conv", dimensions](source, channels, kernel_size=3, padding=1, bias=False),
            Norm["batch", dimensions](channels),
            nn.ReLU(inplace=True),
        ]
    # Behind a ReLU a zero changes no maximum: this is `ceil_mode`, which OpenVINO refuses for an
    # axis of one, such as a slab of 16 slices comes down to.
    one_more = Pad["constantpad", dimensions]((0, 1) * dimensions, 0.0)
    return nn.Sequential(*layers, one_more, Pool["max", dimensions](kernel_size=2))


def _upsampling(dimensions: int, channels: int, factor: int) -> nn.Module:
    """Return a transposed convolution that starts as linear interpolation of each channel."""
    ramp = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    kernel = ramp
    for _ in range(dimensions - 1):
        kernel = kernel[..., None] * ramp
    up: nn.ConvTranspose2d | nn.ConvTranspose3d = Conv["convtrans", dimensions](
        channels, channels, kernel_size=2 * factor, stride=factor, padding=factor // 2, bias=False
    )
    with torch.no_grad():
        up.weight.zero_()
        up.weight[range(channels), range(channels)] = kernel
    return up


def _cropped(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cut off what a pooling that rounds sizes up has added at the ends."""
    kept = [slice(None), slice(None), *(slice(size) for size in target.shape[2:])]
    return scores[tuple(kept)]
