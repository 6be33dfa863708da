"""Whether an image has text in its pixels, which no header tells (PS3.15 E.3.1).

Text looks like nothing in a body: a row of small, separate shapes that stand on one line, have
nearly one height, are drawn in one ink and stand out sharply from what surrounds them. Only such
rows are found. Handwriting, a single initial or text as faint as what it lies on is not: this is a
guard beside the rules on what may leave, no proof that an image is clean.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import cc3d
import numpy as np
from numpy.typing import NDArray

LEVELS: Final = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)  # of the image's range
GLYPH_HEIGHT_PX: Final = (5, 64)
GLYPH_WIDTH_OF_HEIGHT: Final = 1.4
MIN_GLYPHS: Final = 4
# The lower-case letters have 0.7 of the height of capitals and digits.
HEIGHT_RATIO: Final = 0.62
BASELINE_OF_HEIGHT: Final = 0.12
GAP_OF_HEIGHT: Final = 1.3
REACH_PX: Final = 2 * GLYPH_WIDTH_OF_HEIGHT * GLYPH_HEIGHT_PX[1]  # from left to next left, at most
INK_OF_RANGE: Final = 0.06
CONTRAST_OF_RANGE: Final = 0.15
RING_PX: Final = 2

Image = NDArray[Any]


@dataclass(frozen=True)
class _Shape:
    """A component's box, its bottom on the line it stands on, and its extreme value."""

    top: int
    bottom: int
    left: int
    right: int
    ink: float

    @property
    def height(self) -> int:
        return self.bottom - self.top


def has_text(image: Image) -> bool:
    """Return whether a row of text is found in an image, along its rows or its columns.

    Args:
        image: (rows, columns) or (rows, columns, samples), of any number type.
    """
    samples = image[..., None] if image.ndim == 2 else image
    for sample in np.moveaxis(samples, -1, 0):
        low, high = float(sample.min()), float(sample.max())
        if high <= low:
            continue
        scaled = ((sample - low) / (high - low)).astype(np.float32)
        for ink in (scaled, 1 - scaled):
            for level in LEVELS:
                if _has_row(_shapes(ink, level)) or _has_row(_shapes(np.rot90(ink), level)):
                    return True
    return False


def _shapes(ink: Image, level: float) -> Iterator[_Shape]:
    """Yield what is as large as a letter, and much brighter than its surroundings."""
    labels = cc3d.connected_components((ink >= level).astype(np.uint8), connectivity=8)
    statistics = cc3d.statistics(labels, no_slice_conversion=True)
    boxes = np.asarray(statistics["bounding_boxes"]).astype(int)
    boxes[:, 1::2] += 1  # the ends lie beyond the last pixel, as in a slice
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    low, high = GLYPH_HEIGHT_PX
    fits = (low <= height) & (height <= high) & (width <= GLYPH_WIDTH_OF_HEIGHT * height)
    fits[0] = False  # the background
    for top, bottom, left, right in boxes[fits].tolist():
        box = ink[top:bottom, left:right]
        extreme = float(box.max())
        if extreme - _around(ink, top, bottom, left, right) >= CONTRAST_OF_RANGE:
            yield _Shape(top, bottom, left, right, extreme)


def _around(ink: Image, top: int, bottom: int, left: int, right: int) -> float:
    """Return the median of a frame around a box."""
    rows, columns = ink.shape
    above, below = max(top - RING_PX, 0), min(bottom + RING_PX, rows)
    before, after = max(left - RING_PX, 0), min(right + RING_PX, columns)
    frame = (
        ink[above:top, before:after],
        ink[bottom:below, before:after],
        ink[top:bottom, before:left],
        ink[top:bottom, right:after],
    )
    values = np.concatenate([part.ravel() for part in frame])
    return float(np.median(values)) if values.size else 1.0


def _has_row(shapes: Iterable[_Shape]) -> bool:
    """Return whether enough shapes follow one another on a line."""
    ordered = sorted(shapes, key=lambda shape: shape.left)
    lengths: list[int] = []
    first = 0  # the first shape near enough to be followed
    for place, shape in enumerate(ordered):
        while shape.left - ordered[first].left > REACH_PX:
            first += 1
        before = range(first, place)
        follows = (lengths[k] for k in before if _follows(ordered[k], shape))
        lengths.append(1 + max(follows, default=0))
        if lengths[-1] >= MIN_GLYPHS:
            return True
    return False


def _follows(first: _Shape, second: _Shape) -> bool:
    small, large = sorted((first.height, second.height))
    return (
        small >= HEIGHT_RATIO * large
        and abs(first.bottom - second.bottom) <= max(1, BASELINE_OF_HEIGHT * large)
        and 0 <= second.left - first.right + 1 <= GAP_OF_HEIGHT * large
        and abs(first.ink - second.ink) <= INK_OF_RANGE
    )
