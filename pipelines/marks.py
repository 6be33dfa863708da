"""Regions that people mark in the viewer: how they travel, where they may lie, what they measure.

A region travels as the viewer's masks do (`pipelines.presentation`): a half-open box
``x0, y0, z0, x1, y1, z1`` and one bit for each of its voxels. It is measured by the functions that
measure the network's lesions, on the files that the viewer shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from pipelines.errors import RegionError
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Lesion, lesion_from
from pipelines.measures import Grid, measure_region
from pipelines.presentation import bounding_box, decode_slab

Place = tuple[slice, slice, slice]

_LUNGS: Final = {"right": RIGHT_LUNG, "left": LEFT_LUNG}


@dataclass(frozen=True, eq=False)
class Region:
    """Some voxels of a volume.

    Attributes:
        corner: Lowest index (z, y, x) of the box around them.
        mask: The voxels in their box (z, y, x), which they touch on every side.
    """

    corner: tuple[int, int, int]
    mask: npt.NDArray[np.bool_]

    @classmethod
    def unpacked(cls, box: Sequence[int], bits: bytes, size: Sequence[int]) -> Region:
        """Return the region of a box's bits, its box drawn as close as it goes.

        Args:
            box: Half-open (x0, y0, z0, x1, y1, z1).
            bits: As they travel, not compressed.
            size: Voxels of the volume along (x, y, z).

        Raises:
            RegionError: The box is not in the volume, the bits are not of the box, or none is set.
        """
        if len(box) != 6 or len(size) != 3:
            raise RegionError("A region needs the two corners of its box.")
        low, high = box[:3], box[3:]
        if any(not 0 <= a < b <= n for a, b, n in zip(low, high, size, strict=True)):
            raise RegionError("The box of the region does not lie in the volume.")
        shape = (high[2] - low[2], high[1] - low[1], high[0] - low[0])
        voxels = int(np.prod(shape))
        if len(bits) != -(-voxels // 8):
            raise RegionError(f"The region has {len(bits)} bytes, its box has {voxels} voxels.")
        packed = np.frombuffer(bits, np.uint8)
        mask = np.unpackbits(packed, count=voxels, bitorder="little").reshape(shape).astype(bool)
        inner = bounding_box(mask)
        if inner is None:
            raise RegionError("The region has no voxel.")
        (z0, y0, x0), (z1, y1, x1) = inner
        corner = (low[2] + z0, low[1] + y0, low[0] + x0)
        return cls(corner, np.ascontiguousarray(mask[z0:z1, y0:y1, x0:x1]))

    @property
    def box(self) -> tuple[int, int, int, int, int, int]:
        """The half-open box (x0, y0, z0, x1, y1, z1)."""
        z0, y0, x0 = self.corner
        z1, y1, x1 = (
            start + length for start, length in zip(self.corner, self.mask.shape, strict=True)
        )
        return (x0, y0, z0, x1, y1, z1)

    @property
    def place(self) -> Place:
        """Where its box lies in an array (z, y, x) of the volume."""
        x0, y0, z0, x1, y1, z1 = self.box
        return slice(z0, z1), slice(y0, y1), slice(x0, x1)

    @property
    def bits(self) -> bytes:
        """The bits as they travel, not compressed."""
        return np.packbits(self.mask, bitorder="little").tobytes()

    @property
    def digest(self) -> str:
        """The SHA-256 of box and bits: the same voxels have the same digest."""
        return hashlib.sha256(repr(self.box).encode() + self.bits).hexdigest()

    def shared(self, other: Region) -> tuple[Place, Place] | None:
        """Return where the two boxes overlap, in this mask and in the other's; None if nowhere."""
        mine, others = [], []
        for own, its in zip(self.place, other.place, strict=True):
            low, high = max(own.start, its.start), min(own.stop, its.stop)
            if low >= high:
                return None
            mine.append(slice(low - own.start, high - own.start))
            others.append(slice(low - its.start, high - its.start))
        return (mine[0], mine[1], mine[2]), (others[0], others[1], others[2])

    def overlaps(self, other: Region) -> bool:
        """Return whether the two share a voxel."""
        shared = self.shared(other)
        return shared is not None and bool((self.mask[shared[0]] & other.mask[shared[1]]).any())


@dataclass(frozen=True, eq=False, kw_only=True)
class Mark:
    """A lesion as a person outlined it.

    Attributes:
        lesion: Its measures, under its number.
        region: Its voxels.
        digest: Of the region.
        grown: Whether a computer spread it from the person's seed; else it was painted.
    """

    lesion: Lesion
    region: Region
    digest: str
    grown: bool

    @classmethod
    def kept(
        cls,
        number: int,
        *,
        box: Sequence[int],
        bits: bytes,
        measures: Mapping[str, Any],
        digest: str,
        grown: bool,
    ) -> Mark:
        """Return a lesion as it was kept.

        Args:
            number: Under which it stands.
            box: Of its region.
            bits: As they travel, not compressed.
            measures: Of the region, as `dataclasses.asdict` and JSON leave them.
            digest: Of the region when it was marked.
            grown: Whether a computer spread it from the person's seed.

        Raises:
            RegionError: The voxels are not those that were marked.
        """
        region = Region.unpacked(box, bits, box[3:])
        if region.digest != digest:
            raise RegionError("The voxels are not those that were kept.")
        lesion = replace(lesion_from(measures), id=number)
        return cls(lesion=lesion, region=region, digest=digest, grown=grown)


def measure(region: Region, viewer: Path, facts: Mapping[str, Any]) -> Lesion:
    """Return the measures of a region, its id 0.

    Args:
        region: Of the volume that the viewer shows.
        viewer: The folder with the viewer's files.
        facts: What ``viewer.json`` in it says.
    """
    voxel_ml = float(abs(np.linalg.det(np.array(facts["affine"])[:3, :3]))) / 1000
    lung_ml = facts["lungs"]["right_ml"] + facts["lungs"]["left_ml"]
    sx, sy, sz = facts["spacing_mm"]
    grid = Grid((sz, sy, sx), voxel_ml, facts["size"][0], lung_voxels=round(lung_ml / voxel_ml))
    hu, lungs = _hu(region, viewer, facts), _lungs(region, viewer, facts)
    return measure_region(0, region.mask, region.corner, hu=hu, lungs=lungs, grid=grid)


def clash(
    outlined: Mapping[int, Region],
    standing: Collection[int],
    viewer: Path,
    facts: Mapping[str, Any],
) -> tuple[int, int] | None:
    """Return the numbers of two lesions that share a voxel, one of them outlined by a person.

    Args:
        outlined: What a person outlined, by number.
        standing: The numbers of the network's lesions that were not rejected.
        viewer: The folder with the viewer's files.
        facts: What ``viewer.json`` in it says.
    """
    found = {
        row["id"]: _stored(row["mask"], viewer, facts)
        for row in facts["lesions"]
        if row["id"] in standing
    }
    regions = {**found, **outlined}
    for one, other in combinations(sorted(regions), 2):
        if {one, other} & outlined.keys() and regions[one].overlaps(regions[other]):
            return one, other
    return None


def _stored(piece: Mapping[str, Any], viewer: Path, facts: Mapping[str, Any]) -> Region:
    bits = _plain(viewer / piece["file"])
    return Region.unpacked(piece["box"], bits, facts["size"])


def _hu(region: Region, viewer: Path, facts: Mapping[str, Any]) -> npt.NDArray[np.int16]:
    """Return the HU in a region's box, of the slabs that it lies in."""
    z, y, x = region.place
    hu = np.empty(region.mask.shape, np.int16)
    nx, ny, _ = facts["size"]
    for slab in facts["slabs"]:
        first, end = slab["first"], slab["first"] + slab["count"]
        low, high = max(first, z.start), min(end, z.stop)
        if low < high:
            shown = decode_slab(_plain(viewer / slab["file"]), (slab["count"], ny, nx))
            hu[low - z.start : high - z.start] = shown[low - first : high - first, y, x]
    return hu


def _lungs(region: Region, viewer: Path, facts: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the lung labels in a region's box."""
    labels = np.zeros(region.mask.shape, np.uint8)
    for name, label in _LUNGS.items():
        piece = facts["lungs"][name]
        if piece is None:
            continue
        lung = _stored(piece, viewer, facts)
        if (shared := region.shared(lung)) is not None:
            labels[shared[0]][lung.mask[shared[1]]] = label
    return labels


def _plain(path: Path) -> bytes:
    plain: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    return plain
