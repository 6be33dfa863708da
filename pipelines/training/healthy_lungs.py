"""The lungs of a healthy chest, found by a threshold: where lesions are put in for training."""

from typing import Final

import cc3d
import numpy as np
from numpy.typing import NDArray

AIR_HU: Final = -400  # between aerated lung and soft tissue
AIRWAY_MM2: Final = 700.0  # a trachea is 150 to 400 mm2 wide


def threshold_lungs(hu: NDArray[np.int16], *, pixel_mm2: float) -> NDArray[np.bool_]:
    """Return the aerated lungs of a healthy chest: the air that does not touch the border."""
    air = hu < AIR_HU
    labels = cc3d.connected_components(air, connectivity=6)
    sides = [labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]]
    for outside in np.unique(np.concatenate([np.unique(side) for side in sides])):
        air &= labels != outside
    labels = cc3d.connected_components(air, connectivity=6)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    lungs = np.isin(labels, np.flatnonzero(sizes > 0.1 * sizes.max()))
    return np.stack([_fill_holes(_without_airways(p, AIRWAY_MM2 / pixel_mm2)) for p in lungs])


def _without_airways(plane: NDArray[np.bool_], largest: float) -> NDArray[np.bool_]:
    """Drop the trachea and main bronchi: small islands of air in a slice that has real lung."""
    labels = cc3d.connected_components(plane, connectivity=4)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max() < 4 * largest:
        return plane
    kept: NDArray[np.bool_] = np.isin(labels, np.flatnonzero(sizes > largest))
    return kept


def _fill_holes(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    holes = cc3d.connected_components(np.pad(~plane, 1, constant_values=True), connectivity=4)
    filled: NDArray[np.bool_] = (holes != holes[0, 0])[1:-1, 1:-1]
    return filled
