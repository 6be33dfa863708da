"""The models on 8-bit slices and stacks that somebody else windowed, cropped and equalised.

Public sets and papers come so; studies never do. Their spacing is an assumption, their grey no HU:
their lungs are brought to the level that windowed HU has. Slices `(y, x)` and stacks `(z, y, x)`
are in [0, 1], masks boolean; `pixel_mm` and `spacing` are what a manifest says.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.inference import Model
from pipelines.lesions import label_regions, without_faint
from pipelines.preprocessing import bounding_box, resampled_shape, resize, slice_input

AERATED_LEVEL: Final = 0.12  # of aerated lung, -860 HU in the window [-1024, 350]
FLAT_SLICES: Final = 32  # a lone slice is read as the middle of so many equal ones
THICK_SLICES: Final = 60  # a stack of fewer slices is taken as it is, a finer one in two halves
SMALLEST_PIXELS: Final = 12  # of a region in a slice that the classifier is asked about

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Probabilities of an image, both (z, y, x): `Model.probability`."""


def like_hu(image: NDArray[np.float32], lung: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return `image` with aerated lung as dark as in windowed HU.

    The darker half of the lung tells where that is: in the brighter half there may be disease.
    """
    return towards(image, lung, AERATED_LEVEL, quantile=0.25)


def towards(
    image: NDArray[np.float32], lung: NDArray[np.bool_], level: float, *, quantile: float = 0.5
) -> NDArray[np.float32]:
    """Return `image` in [0, 1] shifted so that a quantile of the lung, its median, is `level`.

    White stays white: the map is linear from black to the quantile and from there to one. It brings
    equalised 8-bit slices, whose lungs are too bright, and windowed HU to the same ground.
    """
    if not lung.any():
        return image
    now = float(np.clip(np.quantile(image[lung], quantile), 0.02, 0.9))
    return np.interp(image, [0.0, now, 1.0], [0.0, level, 1.0]).astype(np.float32)


def lung_mask(image: NDArray[np.float32], pixel_mm: float, model: Model) -> NDArray[np.bool_]:
    """Return the lungs of a slice."""
    want_mm = model.config.spacing[1]
    shape = tuple(max(1, round(n * pixel_mm / want_mm)) for n in image.shape)
    (found,) = model.probability(resize(image, shape)[None])
    threshold = float(model.config.decision["threshold"])
    lungs: NDArray[np.bool_] = resize(found, image.shape) > threshold
    return lungs


def lesion_mask(
    image: NDArray[np.float32],
    lung: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    target: tuple[float, float, float],
    network: Network,
    decision: Mapping[str, Any],
) -> NDArray[np.bool_]:
    """Return the lesions of a stack, as `decision` draws them; none outside the lungs.

    In the plane the network sees `target`; slices are taken as they come, for nobody knows their
    distance, a fine stack as two coarser ones, so that every slice has a result of its own.
    """
    out = np.zeros(image.shape, dtype=np.float32)
    halves = 1 if len(image) < THICK_SLICES else 2
    for half in range(halves):
        rows = slice(half, None, halves)
        if lung[rows].any():
            out[rows] = _probability(image[rows], lung[rows], spacing, target, network)
    out *= lung
    mask: NDArray[np.bool_] = without_faint(out, decision) > float(decision["threshold"])
    return mask


def _probability(
    image: NDArray[np.float32],
    lung: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    target: tuple[float, float, float],
    network: Network,
) -> NDArray[np.float32]:
    shape = resampled_shape(image.shape, (target[0], *spacing[1:]), target)
    inside = resize(lung, shape) > 0.5
    if not inside.any():
        return np.zeros_like(image)
    box = bounding_box(inside)
    seen = like_hu(resize(image, shape)[box], inside[box]) * inside[box]
    full = np.zeros(shape, dtype=np.float32)
    full[box] = ask(network, seen)
    return resize(full, image.shape)


def ask(network: Network, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a network says of a stack; of a lone slice, as the middle of so many equal."""
    if len(image) > 1:
        return network(image)
    middle = slice(FLAT_SLICES // 2, FLAT_SLICES // 2 + 1)
    return network(np.repeat(image, FLAT_SLICES, axis=0))[middle]


def regions_in_question(lesion: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return the regions of a slice (y, x) from 1, the largest first; specks are left out."""
    regions: NDArray[np.uint16] = label_regions(lesion[None], smallest=SMALLEST_PIXELS)[0]
    return regions


def question(
    image: NDArray[np.float32], lung: NDArray[np.bool_], regions: NDArray[np.bool_], size: int
) -> NDArray[np.float32]:
    """Return what the classifier sees of a slice: `(2, size, size)`, asked about `regions`.

    It is what `pipelines.screening.question` makes of HU. All three arrays are (y, x); channel 0 is
    above 0 in the lungs, so that they can be told from around them.
    """
    grey, asked = slice_input(np.maximum(image, 1 / 255), lung, regions, size)
    return np.stack([like_hu(grey, grey > 0), asked])
