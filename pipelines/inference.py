"""A network over a whole volume: in one pass where memory allows, else in slabs along z.

Batch norm makes a voxel's result depend on its surroundings alone, so slabs that overlap by a halo
agree with one pass; nothing is computed twice but the halo.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.engines.choice import EngineChoice, open_engine
from pipelines.engines.engine import Engine
from pipelines.preprocessing import MULTIPLE, pad_to_multiple
from pipelines.weights import Bundle, ModelConfig

# A 3-D U-Net++ of 16 channels needs about 450 bytes a voxel: 6 million stay below 3 GiB.
ONE_PASS_VOXELS: Final = 6_000_000
HALO: Final = 16  # slices
SLICES_A_BATCH: Final = 16


@dataclass(frozen=True)
class Model:
    """A bundle and the engine that runs it."""

    bundle: Bundle
    engine: Engine

    @classmethod
    def open(cls, bundle: Bundle, choice: EngineChoice, *, threads: int = 0) -> "Model":
        """Return the model ready to run."""
        return cls(bundle, open_engine(bundle, choice, threads=threads))

    @property
    def config(self) -> ModelConfig:
        """The bundle's configuration."""
        return self.bundle.config


def predict_volume(
    engine: Engine, image: NDArray[np.float32], *, one_pass_voxels: int = ONE_PASS_VOXELS
) -> NDArray[np.float32]:
    """Return the probabilities `(z, y, x)` of a 3-D network over `image` (z, y, x) in [0, 1]."""
    padded = pad_to_multiple(image)
    depth, area = padded.shape[0], padded.shape[1] * padded.shape[2]
    slab = max(MULTIPLE, one_pass_voxels // area // MULTIPLE * MULTIPLE)
    if depth <= slab:
        whole = engine.predict(padded[None, None])[0, 0]
    else:
        whole = np.empty(padded.shape, dtype=np.float32)
        core = max(MULTIPLE, slab - 2 * HALO)
        for first in range(0, depth, core):
            last = min(first + core, depth)
            low, high = max(0, first - HALO), min(depth, last + HALO)
            part = engine.predict(padded[None, None, low:high])[0, 0]
            whole[first:last] = part[first - low : last - low]
    z, y, x = image.shape
    out: NDArray[np.float32] = whole[:z, :y, :x]
    return out


def predict_slices(engine: Engine, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the output `(n, ...)` of a 2-D network over `images` (n, channels, y, x)."""
    parts = [
        engine.predict(np.ascontiguousarray(images[first : first + SLICES_A_BATCH]))
        for first in range(0, len(images), SLICES_A_BATCH)
    ]
    out: NDArray[np.float32] = np.concatenate(parts)
    return out
