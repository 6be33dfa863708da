"""Inception-v3 without its auxiliary head (J43).

Szegedy et al. 2016, doi:10.1109/CVPR.2016.308; where the paper leaves widths open, those of the
authors' release. Three things differ. The release's dropout before the classifier is left out.
Every convolution and pooling is padded, as in the paper only some are: 16 slices would else vanish
before the last module. And in three dimensions a pair of 1xn and nx1 kernels becomes three, one
along each axis; where the pair stands side by side, the module is wider by the third.
"""

from dataclasses import dataclass

import torch
from monai.networks.layers.factories import Conv, Norm, Pad, Pool
from torch import nn


@dataclass(frozen=True)
class InceptionV3Config:
    """Two channels by default: the CT and the mask of the regions in question (J46)."""

    dimensions: int = 2
    in_channels: int = 2
    out_channels: int = 1


class InceptionV3(nn.Module):
    """One logit per image and output."""

    def __init__(self, config: InceptionV3Config) -> None:
        super().__init__()
        d = config.dimensions
        last = 320 + 2 * d * 384 + 192
        self.stem = nn.Sequential(
            _convolution(d, config.in_channels, 32, 3, stride=2),
            _convolution(d, 32, 32, 3),
            _convolution(d, 32, 64, 3),
            Pool[Pool.MAX, d](3, stride=2, padding=1),
            _convolution(d, 64, 80, 1),
            _convolution(d, 80, 192, 3),
            Pool[Pool.MAX, d](3, stride=2, padding=1),
        )
        self.modules_35 = nn.Sequential(
            *[_fine(d, *io) for io in ((192, 32), (256, 64), (288, 64))]
        )
        self.modules_17 = nn.Sequential(
            _reduction_to_17(d), *[_middle(d, width) for width in (128, 160, 160, 192)]
        )
        self.modules_8 = nn.Sequential(_reduction_to_8(d), _coarse(d, 1280), _coarse(d, last))
        self.linear = nn.Linear(last, config.out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)  # (n, in, ...) -> (n, 192, .../8)
        x = self.modules_35(x)  # (n, 288, .../8)
        x = self.modules_17(x)  # (n, 768, .../16)
        x = self.modules_8(x)  # (n, 2048 or, in 3-D, 2816, .../32)
        logits: torch.Tensor = self.linear(x.flatten(2).mean(2))  # (n, out)
        return logits


class Branches(nn.ModuleList):
    """The outputs of all branches, one behind the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


def _fine(d: int, channels: int, pooled: int) -> nn.Module:
    return Branches(
        [
            _convolution(d, channels, 64, 1),
            nn.Sequential(_convolution(d, channels, 48, 1), _convolution(d, 48, 64, 5)),
            nn.Sequential(
                _convolution(d, channels, 64, 1),
                _convolution(d, 64, 96, 3),
                _convolution(d, 96, 96, 3),
            ),
            _pooled(d, channels, pooled),
        ]
    )


def _reduction_to_17(d: int) -> nn.Module:
    return Branches(
        [
            _convolution(d, 288, 384, 3, stride=2),
            nn.Sequential(
                _convolution(d, 288, 64, 1),
                _convolution(d, 64, 96, 3),
                _convolution(d, 96, 96, 3, stride=2),
            ),
            Pool[Pool.MAX, d](3, stride=2, padding=1),
        ]
    )


def _middle(d: int, width: int) -> nn.Module:
    return Branches(
        [
            _convolution(d, 768, 192, 1),
            nn.Sequential(_convolution(d, 768, width, 1), *_in_turn(d, width, 192)),
            nn.Sequential(
                _convolution(d, 768, width, 1), *_in_turn(d, width, width), *_in_turn(d, width, 192)
            ),
            _pooled(d, 768, 192),
        ]
    )


def _reduction_to_8(d: int) -> nn.Module:
    return Branches(
        [
            nn.Sequential(_convolution(d, 768, 192, 1), _convolution(d, 192, 320, 3, stride=2)),
            nn.Sequential(
                _convolution(d, 768, 192, 1),
                *_in_turn(d, 192, 192),
                _convolution(d, 192, 192, 3, stride=2),
            ),
            Pool[Pool.MAX, d](3, stride=2, padding=1),
        ]
    )


def _coarse(d: int, channels: int) -> nn.Module:
    return Branches(
        [
            _convolution(d, channels, 320, 1),
            nn.Sequential(_convolution(d, channels, 384, 1), _side_by_side(d)),
            nn.Sequential(
                _convolution(d, channels, 448, 1), _convolution(d, 448, 384, 3), _side_by_side(d)
            ),
            _pooled(d, channels, 192),
        ]
    )


def _in_turn(d: int, in_channels: int, out_channels: int) -> list[nn.Module]:
    widths = [in_channels] * d + [out_channels]
    return [_convolution(d, widths[i], widths[i + 1], *_along(d, d - 1 - i, 7)) for i in range(d)]


def _side_by_side(d: int) -> nn.Module:
    return Branches([_convolution(d, 384, 384, *_along(d, d - 1 - i, 3)) for i in range(d)])


def _along(d: int, axis: int, length: int) -> list[int]:
    return [length if i == axis else 1 for i in range(d)]


def _pooled(d: int, in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        Pad[Pad.CONSTANTPAD, d](1, 0.0),  # apart: AvgPool3d refuses two slices, padded or not
        Pool[Pool.AVG, d](3, stride=1),
        _convolution(d, in_channels, out_channels, 1),
    )


def _convolution(
    d: int, in_channels: int, out_channels: int, *kernel: int, stride: int = 1
) -> nn.Module:
    sides = kernel if len(kernel) == d else kernel * d
    padding = tuple(side // 2 for side in sides)
    return nn.Sequential(
        Conv[Conv.CONV, d](
            in_channels, out_channels, sides, stride=stride, padding=padding, bias=False
        ),
        Norm[Norm.BATCH, d](out_channels, eps=1e-3),
        nn.ReLU(inplace=True),
    )
