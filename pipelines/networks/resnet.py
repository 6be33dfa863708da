"""ResNet-50 in two or three dimensions, any number of input channels (J44, J46).

He et al. 2016, doi:10.1109/CVPR.2016.90; the implementation is MONAI's. Where a stage halves the
grid, its first block's 3x3 convolution has the stride, not the 1x1 before it as in the paper:
"ResNet v1.5", of the same parameters.
"""

from dataclasses import dataclass

import torch
from monai.networks.nets.resnet import resnet50
from torch import nn


@dataclass(frozen=True)
class ResNet50Config:
    """Two channels by default: the CT and the mask of the regions in question (J46)."""

    dimensions: int = 2
    in_channels: int = 2
    out_channels: int = 1


class ResNet50(nn.Module):
    """One logit per image and output."""

    def __init__(self, config: ResNet50Config) -> None:
        super().__init__()
        self.net = resnet50(
            spatial_dims=config.dimensions,
            n_input_channels=config.in_channels,
            num_classes=config.out_channels,
            conv1_t_stride=2,
            bias_downsample=False,  # as in the paper; MONAI kept a bias for old checkpoints
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(image)  # (n, in, ...) -> (n, out)
        return logits
