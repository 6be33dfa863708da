"""U-Net++: nested, dense skip pathways with deep supervision (J39).

Zhou et al. 2020, doi:10.1109/TMI.2019.2959609; the layers are MONAI's. Batch norm, not MONAI's
instance norm: with instance norm the mask of a voxel depends on how the volume is cut. Unlike in
the paper, the activation is a LeakyReLU of slope 0.1, not a ReLU, and the default has a half to a
quarter of the channels.

Node X(i, j) is the j-th of level i: X(i, 0) are the encoder's, and X(i, j) joins all nodes before
it on its level with X(i + 1, j - 1), upsampled. Deep supervision makes an answer of every X(0, j),
so a trained network can be pruned to any depth.
"""

from dataclasses import dataclass
from functools import partial

import torch
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from torch import nn

from pipelines.errors import WeightsError


@dataclass(frozen=True)
class UNetPlusPlusConfig:
    """`features`: channels of the five levels, then of the last up-convolution.

    `depth` (1 to 4): there are only nodes with i + j <= depth. The weights of a deeper network fit.
    """

    dimensions: int = 3
    in_channels: int = 1
    out_channels: int = 1
    features: tuple[int, int, int, int, int, int] = (16, 16, 32, 64, 128, 16)
    depth: int = 4

    def __post_init__(self) -> None:
        """Refuse a depth that the nested grid does not have.

        Raises:
            WeightsError: it is none of 1 to 4.
        """
        if not 1 <= self.depth <= 4:
            raise WeightsError(f"U-Net++ has the depths 1 to 4, not {self.depth}.")


class UNetPlusPlus(nn.Module):
    """Logits of the same grid as the image; each axis must be a multiple of 16.

    In training the outputs of X(0, 1) to X(0, depth) come stacked; in evaluation only the last of
    them is computed.
    """

    def __init__(self, config: UNetPlusPlusConfig) -> None:
        super().__init__()
        self.depth = config.depth
        self.net = BasicUNetPlusPlus(
            spatial_dims=config.dimensions,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            features=config.features,
            deep_supervision=True,
            act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
            norm="batch",
        )
        # MONAI names a layer `kind_i_j`. What computes nothing must not wait for a gradient either.
        pruned = {n for n, _ in self.net.named_children() if int(n[-3]) + int(n[-1]) > self.depth}
        for name in pruned:
            delattr(self.net, name)
        self.net.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            partial(_leave_out, pruned)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        levels = [[self._layer("conv", 0, 0)(image)]]  # of each level i: X(i, 0), X(i, 1), ...
        for diagonal in range(1, self.depth + 1):
            node = self._layer("conv", diagonal, 0)(levels[-1][0])
            levels.append([node])  # (n, c_i, .../2^i)
            for j in range(1, diagonal + 1):
                i = diagonal - j
                skip = levels[i][0] if j == 1 else torch.cat(levels[i], dim=1)  # (n, j c_i, ...)
                node = self._layer("upcat", i, j)(node, skip)
                levels[i].append(node)
        supervised = range(1 if self.training else self.depth, self.depth + 1)
        logits = [self._layer("final_conv", 0, j)(levels[0][j]) for j in supervised]
        return torch.stack(logits) if self.training else logits[0]  # ([depth,] n, out, ...)

    def _layer(self, kind: str, i: int, j: int) -> nn.Module:
        return self.net.get_submodule(f"{kind}_{i}_{j}")


def _leave_out(
    layers: set[str], _net: nn.Module, weights: dict[str, torch.Tensor], prefix: str, *_: object
) -> None:
    """Take `layers` out of the weights of a deeper network."""
    for key in list(weights):
        if key.removeprefix(prefix).split(".")[0] in layers:
            del weights[key]
