"""Lesions of any kind: a 3-D U-Net++ on the extracted lungs, then regions with measures (J41).

A region is a 26-connected component on the volume's own grid.
"""

from collections.abc import Mapping
from typing import Any, Final

import cc3d
import numpy as np
from numpy.typing import NDArray

from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Lesion, Side
from pipelines.inference import Model
from pipelines.preprocessing import Box, LungExtraction, bounding_box, resize_above, window
from pipelines.volume import CTVolume

ANGLES: Final = np.deg2rad(np.arange(0, 180, 3))  # a diameter is at most 0.04 % short
BOTH_SIDES_SHARE: Final = 0.1  # of a region in the other lung, from which it lies in both


def segment_lesions(
    volume: CTVolume, extraction: LungExtraction, model: Model
) -> NDArray[np.uint16]:
    """Return uint16 (z, y, x) on the volume's own grid: regions by descending volume, 1 first."""
    image = window(extraction.hu, model.config.window_hu)
    image *= extraction.lung
    probability = model.probability(image)
    probability *= extraction.lung
    decision = model.config.decision
    crop_shape = tuple(s.stop - s.start for s in extraction.box)
    likely = without_faint(probability, decision)
    mask = resize_above(likely, crop_shape, float(decision["threshold"]))
    labels = np.zeros(volume.shape, dtype=np.uint16)
    smallest = float(decision["minimum_ml"]) / volume.voxel_ml
    labels[extraction.box] = label_regions(mask, smallest=smallest)
    return labels


def without_faint(
    probability: NDArray[np.float32], decision: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Return `probability` (z, y, x), 0 in regions above the threshold that nowhere reach the peak.

    Two thresholds, as of Canny's edges: the lower one draws the outline, the higher one says
    whether there is anything at all. A lone slice keeps its faint regions too: a peak is for what
    is seen whole.
    """
    if len(probability) == 1:
        return probability
    parts = cc3d.connected_components(probability > float(decision["threshold"]), connectivity=26)
    faint = np.ones(int(parts.max()) + 1, dtype=bool)
    faint[parts[probability >= float(decision["peak"])]] = False
    faint[0] = False
    return np.where(faint[parts], np.float32(0), probability)


def label_regions(mask: NDArray[np.bool_], *, smallest: float) -> NDArray[np.uint16]:
    """Return the connected regions of at least `smallest` voxels, numbered by descending size."""
    parts = cc3d.connected_components(mask, connectivity=26)[mask]
    sizes = np.bincount(parts)
    order = [int(i) for i in np.argsort(sizes)[::-1] if sizes[i] >= max(smallest, 1)]
    renumbered = np.zeros(len(sizes), dtype=np.uint16)
    renumbered[order] = np.arange(1, len(order) + 1)
    labels = np.zeros(mask.shape, dtype=np.uint16)
    labels[mask] = renumbered[parts]
    return labels


def measure_lesions(
    volume: CTVolume, labels: NDArray[np.uint16], lungs: NDArray[np.uint8]
) -> tuple[Lesion, ...]:
    """Return the measures of every region; probabilities are left open."""
    if not labels.any():
        return ()
    around = bounding_box(labels)
    boxes = cc3d.statistics(np.ascontiguousarray(labels[around]))["bounding_boxes"]
    lung_voxels = max(int(np.count_nonzero(lungs)), 1)
    return tuple(
        _measure(volume, labels, lungs, number, _within(around, box), lung_voxels)
        for number, box in enumerate(boxes)
        if number > 0
    )


def _within(outer: Box, inner: Box) -> Box:
    """Return a box that is counted from a corner of `outer` as one of the volume."""
    z, y, x = (
        slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True)
    )
    return z, y, x


def axial_diameter_mm(plane: NDArray[np.bool_], spacing: tuple[float, float]) -> float:
    """Return the longest diameter of a region in one slice (y, x), outer edge to outer edge.

    `spacing` is (y, x) in mm.
    """
    rows = np.flatnonzero(plane.any(axis=1))
    first, last = plane[rows].argmax(axis=1), plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
    y, x = np.tile(rows, 2), np.append(first, last)  # a pixel between two is never the farthest
    dy, dx = spacing
    across = np.outer(np.cos(ANGLES), x * dx) + np.outer(np.sin(ANGLES), y * dy)
    pixel = np.abs(np.cos(ANGLES)) * dx + np.abs(np.sin(ANGLES)) * dy
    return float((across.max(axis=1) - across.min(axis=1) + pixel).max())


def _measure(
    volume: CTVolume,
    labels: NDArray[np.uint16],
    lungs: NDArray[np.uint8],
    number: int,
    box: Box,
    lung_voxels: int,
) -> Lesion:
    mask = labels[box] == number
    corner = tuple(int(s.start) for s in box)
    areas = [np.count_nonzero(plane) for plane in mask]
    voxels = sum(areas)
    above = mask.sum(axis=0)  # (y, x)
    centre = [
        float(np.dot(counts, np.arange(len(counts)))) / voxels + start
        for counts, start in zip((areas, above.sum(axis=1), above.sum(axis=0)), corner, strict=True)
    ]
    spacing = (volume.spacing[1], volume.spacing[2])
    return Lesion(
        id=number,
        volume_ml=voxels * volume.voxel_ml,
        diameter_mm=max(axial_diameter_mm(p, spacing) for p in mask if p.any()),
        mean_hu=float(volume.hu[box][mask].mean()),
        side=_side(lungs[box][mask], centre[2] >= volume.shape[2] / 2),
        first_slice=corner[0],
        last_slice=int(box[0].stop) - 1,
        key_slice=corner[0] + int(np.argmax(areas)),
        centroid=(centre[0], centre[1], centre[2]),
        bbox=(
            (corner[0], corner[1], corner[2]),
            (int(box[0].stop), int(box[1].stop), int(box[2].stop)),
        ),
        lung_share=voxels / lung_voxels,
        probability=None,
    )


def _side(lungs: NDArray[np.uint8], left_of_middle: bool) -> Side:  # noqa: FBT001
    """Return the lung a region lies in; one wholly in the margin goes by its place."""
    left, right = int((lungs == LEFT_LUNG).sum()), int((lungs == RIGHT_LUNG).sum())
    if left + right == 0:
        return Side.LEFT if left_of_middle else Side.RIGHT
    if min(left, right) >= BOTH_SIDES_SHARE * (left + right):
        return Side.BOTH
    return Side.LEFT if left > right else Side.RIGHT
