"""Residual attention network, Attention-56, in two or three dimensions (J45, A-22).

Wang et al. 2017, doi:10.48550/arXiv.1704.06904, table 2 and figure 2 with p = 1, t = 2, r = 1: a
ResNet-50's bottleneck units in pre-activation form, an attention module at each of three scales.
"""

from dataclasses import dataclass
from typing import Final

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import nn
from torch.nn import functional

STAGES: Final = ((256, 3), (512, 2), (1024, 1))  # channels; times the mask branch goes down and up
LAST: Final = 2048


@dataclass(frozen=True)
class AttentionResNet56Config:
    """Two channels by default: the CT and the mask of the regions in question (J46)."""

    dimensions: int = 2
    in_channels: int = 2
    out_channels: int = 1


class AttentionResNet56(nn.Module):
    """One logit per image and output."""

    def __init__(self, config: AttentionResNet56Config) -> None:
        super().__init__()
        d = config.dimensions
        self.stem = nn.Sequential(
            Conv[Conv.CONV, d](config.in_channels, 64, 7, stride=2, padding=3, bias=False),
            Norm[Norm.BATCH, d](64),
            nn.ReLU(inplace=True),
            Pool[Pool.MAX, d](3, stride=2, padding=1),
        )
        self.stages = nn.Sequential()
        channels, stride = 64, 1
        for out_channels, levels in STAGES:
            self.stages.append(Unit(d, channels, out_channels, stride=stride))
            self.stages.append(Attention(d, out_channels, levels))
            channels, stride = out_channels, 2
        self.last = nn.Sequential(
            Unit(d, channels, LAST, stride=2),
            Unit(d, LAST, LAST),
            Unit(d, LAST, LAST),
            Norm[Norm.BATCH, d](LAST),
            nn.ReLU(inplace=True),
        )
        self.linear = nn.Linear(LAST, config.out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)  # (n, in, ...) -> (n, 64, .../4)
        x = self.stages(x)  # (n, 1024, .../16)
        x = self.last(x)  # (n, 2048, .../32)
        logits: torch.Tensor = self.linear(x.flatten(2).mean(2))  # (n, out)
        return logits


class Unit(nn.Module):
    """A bottleneck in pre-activation form (He et al. 2016, doi:10.1007/978-3-319-46493-0_38)."""

    def __init__(
        self, dimensions: int, in_channels: int, out_channels: int, *, stride: int = 1
    ) -> None:
        super().__init__()
        d, width = dimensions, out_channels // 4
        conv, norm = Conv[Conv.CONV, d], Norm[Norm.BATCH, d]
        self.activation = nn.Sequential(norm(in_channels), nn.ReLU(inplace=True))
        self.bottleneck = nn.Sequential(
            conv(in_channels, width, 1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            conv(width, width, 3, stride=stride, padding=1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            conv(width, out_channels, 1, bias=False),
        )
        self.projection = (
            None
            if in_channels == out_channels
            else conv(in_channels, out_channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.activation(x)  # (n, in, ...)
        shortcut = x if self.projection is None else self.projection(active)
        out: torch.Tensor = shortcut + self.bottleneck(active)  # (n, out, .../stride)
        return out


class Attention(nn.Module):
    """A trunk of two units, its values times one to two as the mask branch has it."""

    def __init__(self, dimensions: int, channels: int, levels: int) -> None:
        super().__init__()
        d, c = dimensions, channels
        self.before = Unit(d, c, c)
        self.trunk = nn.Sequential(Unit(d, c, c), Unit(d, c, c))
        self.mask = nn.Sequential(DownUp(d, c, levels), _pointwise(d, c), _pointwise(d, c))
        self.after = Unit(d, c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)  # (n, c, ...), as everything here
        mask = self.mask(x).sigmoid()
        out: torch.Tensor = self.after((1 + mask) * self.trunk(x))
        return out


class DownUp(nn.Module):
    """Halves the grid, looks further down where levels are left, and comes back to the grid."""

    def __init__(self, dimensions: int, channels: int, levels: int) -> None:
        super().__init__()
        d, c = dimensions, channels
        self.mode = "bilinear" if d == 2 else "trilinear"
        self.down = nn.Sequential(Pool[Pool.MAX, d](3, stride=2, padding=1), Unit(d, c, c))
        self.deeper = Deeper(d, c, levels - 1) if levels > 1 else nn.Identity()
        self.up = Unit(d, c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.up(self.deeper(self.down(x)))  # (n, c, .../2, rounded up)
        return functional.interpolate(low, size=x.shape[2:], mode=self.mode)  # (n, c, ...)


class Deeper(nn.Module):
    """A further level and the skip that goes past it."""

    def __init__(self, dimensions: int, channels: int, levels: int) -> None:
        super().__init__()
        self.level = DownUp(dimensions, channels, levels)
        self.skip = Unit(dimensions, channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.level(x) + self.skip(x)  # (n, c, ...)
        return out


def _pointwise(d: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        Norm[Norm.BATCH, d](channels),
        nn.ReLU(inplace=True),
        Conv[Conv.CONV, d](channels, channels, 1, bias=False),
    )
