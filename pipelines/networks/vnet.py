"""V-Net: residual stages of 5x5x5 convolutions, down and up by strided ones (J38).

Milletari et al. 2016, doi:10.1109/3DV.2016.79, as its figure 2 draws it. Unlike there, a batch
norm follows each convolution but the last.
"""

from dataclasses import dataclass
from typing import Final

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import nn

# Convolutions of each stage.
LEFT: Final = (1, 2, 3, 3, 3)
RIGHT: Final = (3, 3, 2, 1)


@dataclass(frozen=True)
class VNetConfig:
    """`width`: channels of the first stage, 16 in the paper; each stage below has twice as many."""

    dimensions: int = 3
    in_channels: int = 1
    out_channels: int = 1
    width: int = 16


class VNet(nn.Module):
    """Logits of the same grid as the image; each axis must be a multiple of 16."""

    def __init__(self, config: VNetConfig) -> None:
        super().__init__()
        dimensions = config.dimensions
        w1, w2, w4, w8, w16 = (config.width * 2**level for level in range(5))
        left = ((config.in_channels, w1), (w2, w2), (w4, w4), (w8, w8), (w16, w16))
        self.left = nn.ModuleList(
            _Stage(dimensions, source, channels, convolutions)
            for (source, channels), convolutions in zip(left, LEFT, strict=True)
        )
        self.down = nn.ModuleList(
            _resampling("conv", dimensions, *channels)
            for channels in ((w1, w2), (w2, w4), (w4, w8), (w8, w16))
        )
        self.up = nn.ModuleList(
            _resampling("convtrans", dimensions, *channels)
            for channels in ((w16, w8), (w16, w4), (w8, w2), (w4, w1))
        )
        self.right = nn.ModuleList(
            _Stage(dimensions, channels, channels, convolutions)
            for channels, convolutions in zip((w16, w8, w4, w2), RIGHT, strict=True)
        )
        self.score = Conv["conv", dimensions](w2, config.out_channels, kernel_size=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.left[0](image)  # (n, in, ...) -> (n, w, ...)
        skips = []
        for down, stage in zip(self.down, self.left[1:], strict=True):
            skips.append(x)
            x = stage(down(x))  # (n, c, ...) -> (n, 2c, .../2)
        for up, stage in zip(self.up, self.right, strict=True):
            skip = skips.pop()  # (n, c, ...)
            x = stage(torch.cat([up(x), skip], dim=1))  # (n, 2c, ...)
        logits: torch.Tensor = self.score(x)  # (n, 2w, ...) -> (n, out, ...)
        return logits


class _Stage(nn.Module):
    """Convolutions whose input is added to their output, then the last one's PReLU."""

    def __init__(self, dimensions: int, in_channels: int, channels: int, convolutions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source in (in_channels, *[channels] * (convolutions - 1)):
            layers += [
                Conv["conv", dimensions](source, channels, kernel_size=5, padding=2, bias=False),
                Norm["batch", dimensions](channels),
                nn.PReLU(channels),
            ]
        *before, self.activation = layers
        self.convolutions = nn.Sequential(*before)
        # The image's channels are fewer than the first stage's: they are added again and again.
        repeated = [channel % in_channels for channel in range(channels)]
        self.added: list[int] | slice = slice(None) if in_channels == channels else repeated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.activation(self.convolutions(x) + x[:, self.added])
        return out


def _resampling(kind: str, dimensions: int, in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        Conv[kind, dimensions](in_channels, channels, kernel_size=2, stride=2, bias=False),
        Norm["batch", dimensions](channels),
        nn.PReLU(channels),
    )
