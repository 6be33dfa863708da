"""A network over a whole volume: in one pass where memory allows, else in boxes with a halo.

Batch norm makes a voxel's result depend on its surroundings alone, so boxes agree with one pass
where the network reaches no further than the halo by which they overlap. A U-Net++ of full depth
reaches about 100 voxels, so its boxes agree nearly, and the better the wider the halo. A network of
two dimensions takes the slices as they come, each with its neighbours if it has channels for them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.engines.choice import EngineChoice, open_engine
from pipelines.engines.engine import Engine
from pipelines.errors import InferenceError
from pipelines.preprocessing import MULTIPLE, Box, pad_to_multiple
from pipelines.weights import Bundle, ModelConfig

# A process stays below 4 GiB; the volume, its masks and the libraries take what is left.
NETWORK_BYTES: Final = 2_900_000_000
HALO: Final = 16  # voxels
WIDE_HALO: Final = 32
WIDE_WORTH: Final = 1.25  # times the voxels to compute that the wide halo may cost
SLICE_MULTIPLE: Final = 32  # of the sides of a slice: what 2-D networks may halve five times
RIM: Final = 16  # voxels; more than none finds the lungs' edges, more than this nothing further
MOST_CUTS: Final = 6  # along one axis
SLICES_A_BATCH: Final = 16


@dataclass(frozen=True)
class Model:
    """A bundle and the engines that run it, one for each network."""

    bundle: Bundle
    engines: tuple[Engine, ...]

    @classmethod
    def open(cls, bundle: Bundle, choice: EngineChoice, *, threads: int = 0) -> "Model":
        """Return the model ready to run."""
        engines = (open_engine(member, choice, threads=threads) for member in bundle.members)
        return cls(bundle, tuple(engines))

    @property
    def engine(self) -> Engine:
        """The engine of a model of one network, as every classifier is."""
        (engine,) = self.engines
        return engine

    @property
    def config(self) -> ModelConfig:
        """The bundle's configuration."""
        return self.bundle.config

    def probability(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what a segmentation model says of `image` (z, y, x) in [0, 1], on its voxels.

        Several networks say the mean of what they say alone, as nnU-Net's do (Isensee 2021,
        doi:10.1038/s41592-020-01008-z).
        """
        members = zip(self.engines, self.config.members, strict=True)
        said = (self.ask(engine, member, image) for engine, member in members)
        mean = next(said)
        for count, probability in enumerate(said, start=2):
            mean += (probability - mean) / count
        return mean

    def ask(
        self, engine: Engine, member: ModelConfig, image: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return what one of the networks says of `image`."""
        dimensions, channels = member.dimensions, member.in_channels
        return predict_stack(engine, image, dimensions=dimensions, channels=channels)


def predict_stack(
    engine: Engine, image: NDArray[np.float32], *, dimensions: int, channels: int = 1
) -> NDArray[np.float32]:
    """Return the probabilities (z, y, x) of a network.

    One of two dimensions sees slices as `with_neighbours` shows them, one of three `RIM` voxels of
    nothing around them.

    Raises:
        InferenceError: the network answers something that is no number.
    """
    height, width = image.shape[1:]
    if dimensions == 2:
        missing = ((0, 0), (0, -height % SLICE_MULTIPLE), (0, -width % SLICE_MULTIPLE))
        slices = with_neighbours(np.pad(image, missing), channels)
        return predict_slices(engine, slices)[:, 0, :height, :width]
    seen = predict_volume(engine, np.pad(image, ((0, 0), (RIM, RIM), (RIM, RIM))))
    return seen[:, RIM : RIM + height, RIM : RIM + width]


def with_neighbours(image: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Return each slice of `image` (z, y, x) as `(z, channels, y, x)`.

    Channel 0 is the slice, then come the ones before it and behind it by turns, the nearest first;
    beyond the ends of the stack, its last slice there.
    """
    steps = [(i + 1) // 2 * (-1) ** i for i in range(1, channels)]
    rows = np.arange(len(image))[:, None] + np.array([0, *steps])
    seen: NDArray[np.float32] = image[np.clip(rows, 0, len(image) - 1)]
    return seen


def predict_volume(
    engine: Engine, image: NDArray[np.float32], *, one_pass_voxels: int = 0
) -> NDArray[np.float32]:
    """Return the probabilities `(z, y, x)` of a 3-D network over `image` (z, y, x) in [0, 1].

    They are 0 in a box that holds nothing but zeros, which the network is not given. A box has
    `one_pass_voxels` at most, by default as many as the engine has memory for.

    Raises:
        InferenceError: the network answers something that is no number.
    """
    largest = one_pass_voxels or NETWORK_BYTES // engine.bytes_a_voxel
    padded = pad_to_multiple(image)
    whole = np.empty(padded.shape, dtype=np.float32)
    for core, around in tiles(padded.shape, largest):
        if not padded[core].any():  # no lung: nobody asks what the network would say
            whole[core] = 0
            continue
        part = engine.predict(np.ascontiguousarray(padded[around])[None, None])[0, 0]
        inner = tuple(
            slice(c.start - a.start, c.stop - a.start) for c, a in zip(core, around, strict=True)
        )
        whole[core] = part[inner]
    z, y, x = image.shape
    return _numbers(whole[:z, :y, :x])


def tiles(shape: tuple[int, ...], largest: int) -> Iterator[tuple[Box, Box]]:
    """Yield boxes that cover `shape`, and the same boxes with their halo, cut at the edges.

    A box with its halo has at most `largest` voxels, unless not even the smallest cut allows that;
    of the cuts that do, the one that computes least is taken, with the wide halo where that costs
    little more. Every length is a multiple of 16.
    """
    cost, counts, halo = _cut(shape, largest, HALO)
    wide = _cut(shape, largest, WIDE_HALO)
    if wide[0] <= WIDE_WORTH * cost:
        _, counts, halo = wide
    spans = [list(_spans(n, count, halo)) for n, count in zip(shape, counts, strict=True)]
    for z, y, x in product(*spans):
        yield (z[0], y[0], x[0]), (z[1], y[1], x[1])


def _cut(shape: tuple[int, ...], largest: int, halo: int) -> tuple[float, tuple[int, ...], int]:
    """Return the voxels to compute, the parts of each axis, and the halo, of the cheapest cut.

    The voxels are infinitely many where no cut makes boxes of at most `largest`; the parts are then
    the smallest that there are.
    """
    most = [min(n // MULTIPLE, MOST_CUTS) for n in shape]
    fitting = [
        (float(math.prod(counts) * voxels), counts, halo)
        for counts in product(*(range(1, n + 1) for n in most))
        if (voxels := _tile_voxels(shape, counts, halo)) <= largest
    ]
    return min(fitting, default=(math.inf, tuple(most), halo))


def _tile_voxels(shape: tuple[int, ...], counts: tuple[int, ...], halo: int) -> int:
    return math.prod(
        max(around.stop - around.start for _, around in _spans(n, count, halo))
        for n, count in zip(shape, counts, strict=True)
    )


def _spans(length: int, count: int, halo: int) -> Iterator[tuple[slice, slice]]:
    """Yield `count` parts of a length, each with its halo; fewer where they would be too short."""
    step = -(-length // (count * MULTIPLE)) * MULTIPLE
    for first in range(0, length, step):
        last = min(first + step, length)
        yield slice(first, last), slice(max(0, first - halo), min(length, last + halo))


def predict_slices(engine: Engine, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the output `(n, ...)` of a 2-D network over `images` (n, channels, y, x).

    Raises:
        InferenceError: the network answers something that is no number.
    """
    parts = [
        engine.predict(np.ascontiguousarray(images[first : first + SLICES_A_BATCH]))
        for first in range(0, len(images), SLICES_A_BATCH)
    ]
    return _numbers(np.concatenate(parts))


def _numbers(out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Refuse what is no number: it is below every threshold, and would pass for a healthy lung."""
    if not np.isfinite(out).all():
        raise InferenceError(
            "A network answered something that is no number, so there is no result. Try the other "
            "engine (analysis.engine); if that does not help, the model is at fault."
        )
    return out
