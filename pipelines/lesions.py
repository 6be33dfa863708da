"""Lesions of any kind: a 3-D U-Net++ on the extracted lungs, then regions with measures (J41).

A region is a 26-connected component on the volume's own grid.
"""

from collections.abc import Mapping
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from pipelines.findings import Lesion
from pipelines.inference import Model
from pipelines.measures import Grid, measure_region
from pipelines.preprocessing import Box, LungExtraction, bounding_box, resize_above, window
from pipelines.volume import CTVolume


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
    grid = Grid(
        volume.spacing, volume.voxel_ml, volume.shape[2], lung_voxels=int(np.count_nonzero(lungs))
    )
    return tuple(
        measure_region(
            number,
            labels[box] == number,
            (int(box[0].start), int(box[1].start), int(box[2].start)),
            hu=volume.hu[box],
            lungs=lungs[box],
            grid=grid,
        )
        for number, box in ((n, _within(around, inner)) for n, inner in enumerate(boxes) if n > 0)
    )


def _within(outer: Box, inner: Box) -> Box:
    """Return a box that is counted from a corner of `outer` as one of the volume."""
    z, y, x = (
        slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True)
    )
    return z, y, x
