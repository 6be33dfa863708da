"""Where a voxel lies on the screen, worked out apart from the viewer's own code.

Each plane is centred in its canvas, as large as fits, true to its proportions in mm.
"""

from dataclasses import dataclass

from playwright.sync_api import Page

from pipelines.volume import CTVolume


@dataclass(frozen=True)
class Point:
    x: float
    y: float


def on_screen(page: Page, volume: CTVolume, plane: str, voxel: tuple[int, int, int]) -> Point:
    """The middle of voxel (z, y, x) on the page, while `plane` is neither zoomed nor panned."""
    box = page.locator(f".viewport.{plane} > canvas").bounding_box()
    assert box is not None
    z, y, x = voxel
    nz, ny, nx = volume.shape
    sz, sy, sx = volume.spacing
    columns, rows, column, row, wide, high = {
        "axial": (nx, ny, x, y, sx, sy),
        "coronal": (nx, nz, x, nz - 1 - z, sx, sz),
        "sagittal": (ny, nz, y, nz - 1 - z, sy, sz),
    }[plane]
    scale = min(box["width"] / (columns * wide), box["height"] / (rows * high))
    return Point(
        box["x"] + box["width"] / 2 + (column + 0.5 - columns / 2) * wide * scale,
        box["y"] + box["height"] / 2 + (row + 0.5 - rows / 2) * high * scale,
    )
