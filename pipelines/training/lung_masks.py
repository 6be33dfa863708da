"""The shipped lung model on single 8-bit slices, for the sets that come without lung masks."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipelines.inference import Model, predict_slices
from pipelines.preprocessing import MULTIPLE, resize


def lung_mask(image: NDArray[np.float32], pixel_mm: float, model: Model) -> NDArray[np.bool_]:
    """Return the lungs of a slice `(y, x)` in [0, 1]."""
    return at(image, pixel_mm, model.config.spacing[1], lambda i: _lung(i, model)) > 0.5


def at(
    image: NDArray[np.float32],
    have_mm: float,
    want_mm: float,
    network: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return a network's answer computed at `want_mm` pixels, back on the image's own."""
    shape = tuple(max(1, round(n * have_mm / want_mm)) for n in image.shape)
    return resize(network(resize(image, shape)), image.shape)


def _lung(image: NDArray[np.float32], model: Model) -> NDArray[np.float32]:
    height, width = image.shape
    padded = np.pad(image, ((0, -height % MULTIPLE), (0, -width % MULTIPLE)))
    out: NDArray[np.float32] = predict_slices(model.engine, padded[None, None])[0, 0]
    return out[:height, :width]
