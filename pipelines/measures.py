"""What is measured of one region, whoever marked it: the lesion network or a person.

Needs no network, so the web server measures what a radiologist marks by the very same functions.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Index, Lesion, Side

ANGLES: Final = np.deg2rad(np.arange(0, 180, 3))  # a diameter is at most 0.04 % short
BOTH_SIDES_SHARE: Final = 0.1  # of a region in the other lung, from which it lies in both


@dataclass(frozen=True)
class Grid:
    """What a region's measures need to know of the volume around it.

    Attributes:
        spacing: mm along (z, y, x).
        voxel_ml: Volume of one voxel.
        columns: Voxels along x.
        lung_voxels: Voxels of both lungs.
    """

    spacing: tuple[float, float, float]
    voxel_ml: float
    columns: int
    lung_voxels: int


def measure_region(
    number: int,
    mask: NDArray[np.bool_],
    corner: Index,
    *,
    hu: NDArray[np.int16],
    lungs: NDArray[np.uint8],
    grid: Grid,
) -> Lesion:
    """Return the measures of a region; its probability is left open.

    Args:
        number: What becomes its id.
        mask: Its voxels in its bounding box (z, y, x), which they touch on every side.
        corner: Lowest index of the box in the volume.
        hu: HU in the box.
        lungs: Lung labels in the box.
        grid: Of the volume.
    """
    areas = [np.count_nonzero(plane) for plane in mask]
    voxels = sum(areas)
    above = mask.sum(axis=0)  # (y, x)
    centre = [
        float(np.dot(counts, np.arange(len(counts)))) / voxels + start
        for counts, start in zip((areas, above.sum(axis=1), above.sum(axis=0)), corner, strict=True)
    ]
    z, y, x = (start + length for start, length in zip(corner, mask.shape, strict=True))
    return Lesion(
        id=number,
        volume_ml=voxels * grid.voxel_ml,
        diameter_mm=max(axial_diameter_mm(p, grid.spacing[1:]) for p in mask if p.any()),
        mean_hu=float(hu[mask].mean()),
        side=_side(lungs[mask], centre[2] >= grid.columns / 2),
        first_slice=corner[0],
        last_slice=z - 1,
        key_slice=corner[0] + int(np.argmax(areas)),
        centroid=(centre[0], centre[1], centre[2]),
        bbox=(corner, (z, y, x)),
        lung_share=voxels / max(grid.lung_voxels, 1),
        probability=None,
    )


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


def _side(lungs: NDArray[np.uint8], left_of_middle: bool) -> Side:  # noqa: FBT001
    """Return the lung a region lies in; one wholly in the margin goes by its place."""
    left, right = int((lungs == LEFT_LUNG).sum()), int((lungs == RIGHT_LUNG).sum())
    if left + right == 0:
        return Side.LEFT if left_of_middle else Side.RIGHT
    if min(left, right) >= BOTH_SIDES_SHARE * (left + right):
        return Side.BOTH
    return Side.LEFT if left > right else Side.RIGHT
