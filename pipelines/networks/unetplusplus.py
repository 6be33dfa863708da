"""U-Net++: nested, dense skip pathways with deep supervision (J39).

Zhou et al. 2020, doi:10.1109/TMI.2019.2959609; the implementation is MONAI's. Batch norm, not
MONAI's instance norm: with instance norm the mask of a voxel depends on how the volume is cut.
"""

from dataclasses import dataclass

import torch
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch import nn


@dataclass(frozen=True)
class UNetPlusPlusConfig:
    """`features`: channels of the five levels, then of the last up-convolution."""

    dimensions: int = 3
    in_channels: int = 1
    out_channels: int = 1
    features: tuple[int, int, int, int, int, int] = (16, 16, 32, 64, 128, 16)


class UNetPlusPlus(nn.Module):
    """Logits of the same grid as the image; each axis must be a multiple of 16.

    In training the four nested outputs come stacked, shallowest first; in evaluation only the
    deepest one is returned.
    """

    def __init__(self, config: UNetPlusPlusConfig) -> None:
        super().__init__()
        self.net = BasicUNetPlusPlus(
            spatial_dims=config.dimensions,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            features=config.features,
            deep_supervision=True,
            act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
            norm="batch",
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        nested = self.net(image)  # (n, in, ...) -> 4 of (n, out, ...)
        if self.training:
            return torch.stack(nested)  # (4, n, out, ...)
        deepest: torch.Tensor = nested[-1]
        return deepest
