"""U-Net whose way down is EfficientNet-Lite0, so that it can begin with ImageNet weights.

The way up is Ronneberger's (2015, doi:10.1007/978-3-319-24574-4_28) with "same" padding, linear
upsampling and a batch norm behind each convolution; the skips are the last features of each size,
and the image itself at the top. In two dimensions, as what it begins with is.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from pipelines.errors import WeightsError
from pipelines.networks.efficientnet_lite import STAGES, EfficientNetLite0, EfficientNetLite0Config

SKIPS: Final = (0, 1, 2, 4)  # the stages whose output is a skip, at strides 2, 4, 8 and 16
UPWARD: Final = (128, 64, 48, 32, 16)  # channels of the way up, from stride 16 to the image


@dataclass(frozen=True)
class EfficientNetUNetConfig:
    """Three channels by default: a slice, the one before it and the one behind it."""

    dimensions: int = 2
    in_channels: int = 3
    out_channels: int = 1


class EfficientNetUNet(nn.Module):
    """Logits of the same grid as the image; each axis must be a multiple of 32."""

    def __init__(self, config: EfficientNetUNetConfig) -> None:
        super().__init__()
        if config.dimensions != 2:
            raise WeightsError("Network 'efficientnet_unet' has 2 dimensions alone.")
        encoder = EfficientNetLite0(EfficientNetLite0Config(2, config.in_channels))
        self.stem = encoder.stem
        blocks = iter(encoder.blocks)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(next(blocks) for _ in range(count))) for count, *_ in STAGES
        )
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        skips = [config.in_channels, *(STAGES[i][-1] for i in SKIPS)][::-1]
        below = [STAGES[-1][-1], *UPWARD]
        self.joins = nn.ModuleList(
            _join(below[i] + skip, UPWARD[i]) for i, skip in enumerate(skips)
        )
        self.last = nn.Conv2d(UPWARD[-1], config.out_channels, kernel_size=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)  # (n, in, y, x) -> (n, 32, y/2, x/2)
        skips = [image]
        for i, stage in enumerate(self.blocks):
            x = stage(x)  # (n, 16, y/2, x/2) to (n, 320, y/32, x/32)
            if i in SKIPS:
                skips.append(x)
        for join in self.joins:
            x = join(torch.cat([self.up(x), skips.pop()], dim=1))  # to (n, 16, y, x)
        logits: torch.Tensor = self.last(x)  # (n, out, y, x)
        return logits


def _join(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source in (in_channels, channels):
        layers += [
            nn.Conv2d(source, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
