"""PyTorch: the GPU's engine, and on a CPU the reference the other engine is held against."""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.weights import Precision

BYTES_A_VOXEL: Final = {Precision.BF16: 1_100, Precision.FP32: 1_400}  # measured on a CPU


def best_precision(device: torch.device, lowest: Precision) -> Precision:
    """Return bf16 where the weights allow it and the processor computes it, else fp32."""
    if lowest is Precision.FP32:
        return Precision.FP32
    if device.type == "cuda":
        return Precision.BF16 if torch.cuda.is_bf16_supported() else Precision.FP32
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - has no public name
    return Precision.BF16 if has_bf16 else Precision.FP32


class TorchEngine:
    """A PyTorch network in evaluation mode, and what makes probabilities of its logits."""

    def __init__(
        self,
        net: nn.Module,
        device: torch.device,
        precision: Precision,
        activation: Callable[[torch.Tensor], torch.Tensor] = torch.sigmoid,
    ) -> None:
        self.activation = activation
        self.device = device
        self.precision = precision
        self.net = net.eval().to(device)
        if precision is Precision.FP32:  # else a GPU rounds the factors of a product to 10 bits
            torch.backends.cudnn.allow_tf32 = False

    @property
    def description(self) -> str:
        return f"PyTorch {torch.__version__} {self.precision} ({self.device.type})"

    @property
    def bytes_a_voxel(self) -> int:
        return BYTES_A_VOXEL[self.precision]

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        images = torch.from_numpy(batch).to(self.device)
        images = images.contiguous(memory_format=channels_last(images.ndim))
        low = self.precision is Precision.BF16
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low),
        ):
            out: NDArray[np.float32] = self.activation(self.net(images).float()).cpu().numpy()
        return out


def channels_last(dimensions: int) -> torch.memory_format:
    """Return the layout in which convolutions of images `(n, c, ...)` are fastest."""
    return torch.channels_last_3d if dimensions == 5 else torch.channels_last
