"""DPN-92: a residual and a dense path through the same blocks (J42).

Chen et al. 2017, doi:10.48550/arXiv.1707.01629.
"""

from dataclasses import dataclass
from typing import Final

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import nn

STAGES: Final = ((3, 16), (4, 32), (20, 24), (3, 128))  # blocks and growth of the dense path
GROUPS: Final = 32


@dataclass(frozen=True)
class DPN92Config:
    """Two channels by default: the CT and the mask of the regions in question (J46)."""

    dimensions: int = 2
    in_channels: int = 2
    out_channels: int = 1


class DPN92(nn.Module):
    """One logit per image and output."""

    def __init__(self, config: DPN92Config) -> None:
        super().__init__()
        d = config.dimensions
        self.stem = nn.Sequential(
            Conv[Conv.CONV, d](config.in_channels, 64, 7, stride=2, padding=3, bias=False),
            Norm[Norm.BATCH, d](64),
            nn.ReLU(inplace=True),
            Pool[Pool.MAX, d](3, stride=2, padding=1),
        )
        channels, width, residual, stride = 64, 96, 256, 1
        self.blocks = nn.Sequential()
        for blocks, growth in STAGES:
            for index in range(blocks):
                block = DualPathBlock(
                    d, channels, width, residual, growth, projected=index == 0, stride=stride
                )
                self.blocks.append(block)
                channels, stride = block.out_channels, 1
            width, residual, stride = 2 * width, 2 * residual, 2
        self.last = nn.Sequential(Norm[Norm.BATCH, d](channels), nn.ReLU(inplace=True))
        self.linear = nn.Linear(channels, config.out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)  # (n, in, ...) -> (n, 64, .../4)
        x = self.last(self.blocks(x))  # (n, 2688, .../32)
        logits: torch.Tensor = self.linear(x.flatten(2).mean(2))  # (n, out)
        return logits


class DualPathBlock(nn.Module):
    """Adds to the first `residual` channels and puts `growth` new ones behind the others."""

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        width: int,
        residual: int,
        growth: int,
        *,
        projected: bool,
        stride: int,
    ) -> None:
        super().__init__()
        d, base = dimensions, residual + 2 * growth if projected else in_channels
        self.residual = residual
        self.out_channels = base + growth
        self.projection = (
            _convolution(d, in_channels, base, 1, stride=stride) if projected else nn.Identity()
        )
        self.bottleneck = nn.Sequential(
            _convolution(d, in_channels, width, 1),
            _convolution(d, width, width, 3, stride=stride, groups=GROUPS),
            _convolution(d, width, residual + growth, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = self.residual
        base = self.projection(x)  # (n, r + dense, ...)
        new = self.bottleneck(x)  # (n, r + growth, ...)
        return torch.cat((base[:, :r] + new[:, :r], base[:, r:], new[:, r:]), dim=1)


def _convolution(
    d: int, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        Norm[Norm.BATCH, d](in_channels),
        nn.ReLU(inplace=True),
        Conv[Conv.CONV, d](
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
    )
