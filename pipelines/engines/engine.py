"""The one seam between the pipeline and what computes its networks."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.weights import Precision


class Engine(Protocol):
    """A network ready to run."""

    @property
    def description(self) -> str:
        """Library, precision and device, as a result names them."""

    @property
    def precision(self) -> Precision:
        """What convolutions are computed in."""

    @property
    def bytes_a_voxel(self) -> int:
        """Memory that a voxel of a volume takes on its way through a 3-D U-Net++ of 16 channels."""

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities for a batch `(n, channels, ...)`, in the network's output shape."""
