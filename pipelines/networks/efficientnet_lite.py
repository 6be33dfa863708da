"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, ReLU6 in place of swish.

Tan and Le 2019, arXiv:1905.11946, table 1; the Lite variant is TensorFlow's (2020). Layers and
padding are TensorFlow's, so that the published ImageNet weights fit.
"""

from dataclasses import dataclass
from typing import Final

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import nn
from torch.nn import functional

STEM: Final = 32
HEAD: Final = 1280
STAGES: Final = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPSILON: Final = 1e-3  # of the batch norms
DROPOUT: Final = 0.2


@dataclass(frozen=True)
class EfficientNetLite0Config:
    """Two channels by default: the CT and the mask of the regions in question (J46)."""

    dimensions: int = 2
    in_channels: int = 2
    out_channels: int = 1


class EfficientNetLite0(nn.Module):
    """One logit per image and output."""

    def __init__(self, config: EfficientNetLite0Config) -> None:
        super().__init__()
        d = config.dimensions
        self.stem = _convolution(d, config.in_channels, STEM, 3, stride=2)
        self.blocks = nn.Sequential()
        channels = STEM
        for blocks, kernel, stride, expansion, out_channels in STAGES:
            for index in range(blocks):
                self.blocks.append(
                    InvertedResidual(
                        d,
                        channels,
                        out_channels,
                        kernel,
                        stride=1 if index else stride,
                        expansion=expansion,
                    )
                )
                channels = out_channels
        self.last = _convolution(d, channels, HEAD, 1)
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(HEAD, config.out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(image))  # (n, in, ...) -> (n, 320, .../32)
        x = self.last(x).flatten(2).mean(2)  # (n, 1280)
        logits: torch.Tensor = self.linear(self.dropout(x))  # (n, out)
        return logits


class InvertedResidual(nn.Module):
    """Widens, looks around in each channel by itself, and narrows without an activation."""

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int,
        expansion: int,
    ) -> None:
        super().__init__()
        d, width = dimensions, in_channels * expansion
        self.adds = stride == 1 and in_channels == out_channels
        self.expand = _convolution(d, in_channels, width, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(d, width, width, kernel, stride=stride, groups=width)
        self.project = _convolution(d, width, out_channels, 1)[:-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + new if self.adds else new


class SamePadding(nn.Module):
    """TensorFlow's "SAME": as many zeros as a stride needs, one more behind than before."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        widths: list[int] = []
        for size in reversed(x.shape[2:]):
            missing = max(self.kernel - 1 - (size - 1) % self.stride, 0)
            widths += [missing // 2, missing - missing // 2]
        return functional.pad(x, widths) if any(widths) else x


def _convolution(
    d: int, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    symmetric = stride == 1
    layers: list[nn.Module] = [] if symmetric else [SamePadding(kernel, stride)]
    layers += [
        Conv[Conv.CONV, d](
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2 if symmetric else 0,
            groups=groups,
            bias=False,
        ),
        Norm[Norm.BATCH, d](out_channels, eps=EPSILON),
        nn.ReLU6(inplace=True),
    ]
    return nn.Sequential(*layers)
