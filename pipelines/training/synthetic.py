"""Lesions put into healthy lungs: true HU with exact masks, where no public data has both.

Ground glass adds density and leaves the vessels visible, consolidation replaces the air, crazy
paving is ground glass with a net of thickened septa (Fleischner glossary, Hansell 2008,
doi:10.1148/radiol.2462070712).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

AERATED_HU: Final = -850.0
TISSUE_HU: Final = 60.0
EDGE: Final = 0.4  # share of the full density from which a voxel belongs to the lesion


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], cell: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return a random field of unit variance that varies over about `cell` voxels."""
    coarse = [max(2, -(-n // c) + 1) for n, c in zip(shape, cell, strict=True)]
    field = torch.from_numpy(rng.standard_normal(coarse, dtype=np.float32))[None, None]
    fine = functional.interpolate(field, shape, mode="trilinear", align_corners=True)[0, 0]
    out: NDArray[np.float32] = (fine / (fine.std() + 1e-6)).numpy()
    return out


def add_lesions(
    hu: NDArray[np.float32],
    lung: NDArray[np.bool_],
    rng: np.random.Generator,
    spacing: tuple[float, float, float],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a copy of `hu` with one to five lesions inside `lung`, and their mask.

    `hu` and `lung` are (z, y, x); `spacing` is (z, y, x) mm.
    """
    hu, mask = hu.copy(), np.zeros(lung.shape, dtype=bool)
    inside = np.argwhere(lung)
    if len(inside) == 0:
        return hu, mask
    grid = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in hu.shape], indexing="ij")
    for _ in range(int(rng.integers(1, 6))):
        centre = inside[rng.integers(len(inside))]
        density = _density(rng, grid, centre, spacing) * lung
        if density.max() < EDGE:
            continue
        hu = _fill(rng, hu, density)
        mask |= density > EDGE
    return hu, mask


def _density(
    rng: np.random.Generator,
    grid: Sequence[NDArray[np.float32]],
    centre: NDArray[np.int64],
    spacing: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Return the share of full density, 0 outside to 1 inside, of a ragged ellipsoid."""
    radius_mm = float(np.exp(rng.uniform(np.log(4), np.log(40))))
    axes = radius_mm * rng.uniform(0.5, 1.3, 3)
    distance = np.sqrt(
        sum(((g - c) * s / a) ** 2 for g, c, s, a in zip(grid, centre, spacing, axes, strict=True))
    )
    cell = [max(1, round(radius_mm / 2 / s)) for s in spacing]
    ragged = rng.uniform(0.1, 0.4) * smooth_noise(rng, grid[0].shape, (cell[0], cell[1], cell[2]))
    softness = rng.uniform(0.05, 0.5)
    out: NDArray[np.float32] = np.clip((1 - distance + ragged) / softness, 0, 1).astype(np.float32)
    return out


def _fill(
    rng: np.random.Generator, hu: NDArray[np.float32], density: NDArray[np.float32]
) -> NDArray[np.float32]:
    kind = rng.choice(["ground glass", "consolidation", "crazy paving"], p=[0.5, 0.3, 0.2])
    grain = smooth_noise(rng, hu.shape, (1, 2, 2)) * rng.uniform(20, 90)
    if kind == "consolidation":
        solid = rng.uniform(-150, TISSUE_HU) + grain * 0.5
        replaced: NDArray[np.float32] = hu * (1 - density) + np.maximum(hu, solid) * density
        return replaced
    added = rng.uniform(130, 480) + grain
    if kind == "crazy paving":
        septa = np.abs(smooth_noise(rng, hu.shape, (2, 5, 5))) < 0.25
        added = added + septa * rng.uniform(100, 250)
    return np.minimum(hu + density * added, np.maximum(hu, TISSUE_HU))
