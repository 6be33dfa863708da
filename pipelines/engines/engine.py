"""The one seam between the pipeline and what computes its networks."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A network ready to run."""

    @property
    def description(self) -> str:
        """Library, precision and device, as a result names them."""

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities for a batch `(n, channels, ...)`, in the network's output shape."""
