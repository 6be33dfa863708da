"""U-Net, for lungs or lesions: encoder and decoder with a skip at every level (J37).

Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28; the implementation is MONAI's. Unlike in
the paper, convolutions keep the size ("same" padding), so logits cover the whole image; a batch
norm follows each of them, and a LeakyReLU of slope 0.1 instead of a ReLU; the last up-convolution
keeps all channels; there is no dropout; and the default has a quarter of the channels at most.
"""

from dataclasses import dataclass

import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import nn


@dataclass(frozen=True)
class UNetConfig:
    """`features`: channels of the five levels, then of the last up-convolution."""

    dimensions: int = 2
    in_channels: int = 1
    out_channels: int = 1
    features: tuple[int, int, int, int, int, int] = (16, 16, 32, 64, 128, 16)


class UNet(nn.Module):
    """Logits of the same grid as the image; each axis must be a multiple of 16."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.net = BasicUNet(
            spatial_dims=config.dimensions,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            features=config.features,
            act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
            norm="batch",
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(image)  # (n, in, ...) -> (n, out, ...)
        return logits
