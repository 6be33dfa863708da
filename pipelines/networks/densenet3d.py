"""The 3D-DenseNet of UCADI, which tells kinds of pneumonia apart (U17) and grades them (U19).

Xu et al. 2020, doi:10.1101/2020.05.10.20096073; layers as in the authors' release. DropBlock is
Ghiasi et al. 2018, doi:10.48550/arXiv.1810.12890, with gamma = p / size^d as they used it: after
the first layer at a constant p, before the average at one that grows. Unlike theirs, it grows with
the steps of training only, and is off when the network is evaluated.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Final

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH: Final = 32  # channels of the first layer
GROWTH: Final = 32
BOTTLENECK: Final = 4 * GROWTH
STAGES: Final = 3  # of two dense blocks each
SLOPE: Final = 0.1
BLOCK_SIZE: Final = 5  # voxels
EARLY_P: Final = 0.1
LATE_P: Final = 0.5
LATE_P_STEPS: Final = 5_000
MOMENTUM: Final = 0.1  # of batch norm


@dataclass(frozen=True)
class DenseNet3DConfig:
    """The four classes by default; the grades of severity are the same network with three.

    `checkpointing`: compute dense blocks again in the backward pass instead of keeping them.
    """

    dimensions: int = 3
    in_channels: int = 1
    out_channels: int = 4
    checkpointing: bool = False


class DenseNet3D(nn.Module):
    """One logit per image and class."""

    training_steps: torch.Tensor

    def __init__(self, config: DenseNet3DConfig) -> None:
        super().__init__()
        d = config.dimensions
        self.register_buffer("training_steps", torch.zeros((), dtype=torch.long))
        self.first = nn.Sequential(
            Conv[Conv.CONV, d](config.in_channels, WIDTH, 3, padding=1),
            Norm[Norm.BATCH, d](WIDTH),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        self.stages = nn.Sequential()
        channels = WIDTH
        for stage in range(STAGES):
            if stage:
                self.stages.append(_transmit(d, channels))
                channels //= 2
            for _ in range(2):
                self.stages.append(DenseBlock(d, channels, checkpointing=config.checkpointing))
                channels += GROWTH
        self.last = nn.Sequential(Norm[Norm.BATCH, d](channels), nn.LeakyReLU(SLOPE, inplace=True))
        self.linear = nn.Linear(channels, config.out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image)  # (n, in, ...) -> (n, 32, ...)
        if self.training:
            x = drop_blocks(x, EARLY_P)
        x = self.last(self.stages(x))  # (n, 120, .../4)
        if self.training:
            x = drop_blocks(x, self.late_p())
            self.training_steps += 1
        logits: torch.Tensor = self.linear(x.flatten(2).mean(2))  # (n, out)
        return logits

    def late_p(self) -> torch.Tensor:
        """Return the share of the last features to drop in the next step of training."""
        return LATE_P * (self.training_steps / LATE_P_STEPS).clamp(max=1)


class DenseBlock(nn.Module):
    """Puts 32 new channels behind those it was given."""

    def __init__(self, dimensions: int, in_channels: int, *, checkpointing: bool) -> None:
        super().__init__()
        d = dimensions
        self.checkpointing = checkpointing
        # A checkpointed block sees each batch twice; two steps of this momentum make one of 0.1.
        momentum = 1 - sqrt(1 - MOMENTUM) if checkpointing else MOMENTUM
        self.layers = nn.Sequential(
            Norm[Norm.BATCH, d](in_channels, momentum=momentum),
            nn.LeakyReLU(SLOPE, inplace=True),
            Conv[Conv.CONV, d](in_channels, BOTTLENECK, 1),
            Norm[Norm.BATCH, d](BOTTLENECK, momentum=momentum),
            nn.LeakyReLU(SLOPE, inplace=True),
            Conv[Conv.CONV, d](BOTTLENECK, GROWTH, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training:
            new = checkpoint(self.layers, x, use_reentrant=False)
        else:
            new = self.layers(x)  # (n, c, ...) -> (n, 32, ...)
        return torch.cat((x, new), dim=1)  # (n, c + 32, ...)


def drop_blocks(x: torch.Tensor, p: torch.Tensor | float) -> torch.Tensor:
    """Return `x` without about a share `p` of its voxels, in blocks, the rest scaled up."""
    seeds = torch.rand(len(x), 1, *x.shape[2:], device=x.device) < p / BLOCK_SIZE ** (x.ndim - 2)
    grow = functional.max_pool3d if x.ndim == 5 else functional.max_pool2d
    keep = 1 - grow(seeds.float(), BLOCK_SIZE, stride=1, padding=BLOCK_SIZE // 2)  # (n, 1, ...)
    scale = keep.numel() / keep.sum().clamp(min=1)
    return x * (keep * scale).to(x.dtype)


def _transmit(d: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        Norm[Norm.BATCH, d](channels),
        nn.LeakyReLU(SLOPE, inplace=True),
        Conv[Conv.CONV, d](channels, channels // 2, 1),
        Pool[Pool.AVG, d](2),
    )
