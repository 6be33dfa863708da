"""A CT volume in one canonical order, and the way back to the order it came in.

Every step of the pipeline sees the same world, whatever the patient's position or the scanner's
slice order: array axes (z, y, x) where z runs to the head, y to the back and x to the patient's
left. Coordinates are DICOM's patient coordinate system (PS3.3 C.7.6.2.1.1), LPS, in mm. An axial
slice drawn as it lies in memory is therefore the radiological view: the patient's right on the left
of the screen.

Nothing is resampled here: the canonical order is the signed permutation of the input's own axes
that lies nearest to LPS, so `Orientation.to_input` takes a mask back voxel by voxel. An oblique
stack stays oblique, and its affine says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]
Voxel = TypeVar("Voxel", bound=np.generic)

# Which LPS axis (0 = L, 1 = P, 2 = S) the canonical array axes z, y and x follow.
_LPS_AXIS_OF_CANONICAL: Final = (2, 1, 0)


@dataclass(frozen=True, eq=False)
class Orientation:
    """The signed permutation between the input's own array and the canonical (z, y, x) array.

    Attributes:
        axes: For canonical z, y and x, the input array's axis it was taken from.
        flipped: For canonical z, y and x, whether that axis was reversed.
        input_affine: 4x4, index (n0, n1, n2, 1) along the input array's own axes → LPS mm.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    input_affine: Affine

    @classmethod
    def from_affine(cls, input_affine: Affine) -> Orientation:
        """Return the permutation that brings an array nearest to (z, y, x).

        Args:
            input_affine: 4x4, index along the array's own axes → LPS mm.
        """
        steps = input_affine[:3, :3]
        cosines = steps / np.linalg.norm(steps, axis=0)
        rows = np.array(_LPS_AXIS_OF_CANONICAL)
        axes = max(
            permutations(range(3)), key=lambda order: float(np.abs(cosines[rows, order]).sum())
        )
        flipped = [bool(cosines[row, axis] < 0) for row, axis in zip(rows, axes, strict=True)]
        return cls(
            axes=(axes[0], axes[1], axes[2]),
            flipped=(flipped[0], flipped[1], flipped[2]),
            input_affine=input_affine,
        )

    def to_canonical(self, array: npt.NDArray[Voxel]) -> npt.NDArray[Voxel]:
        """Return the input's own array as contiguous (z, y, x)."""
        return np.ascontiguousarray(array.transpose(self.axes)[self._reversal()])

    def to_input(self, array: npt.NDArray[Voxel]) -> npt.NDArray[Voxel]:
        """Return a canonical (z, y, x) array, such as a mask, in the input's own axis order."""
        back = np.argsort(self.axes)
        return np.ascontiguousarray(array[self._reversal()].transpose(*back))

    def canonical_affine(self, canonical_shape: tuple[int, int, int]) -> Affine:
        """Return the 4x4 affine from canonical index (x, y, z, 1) to LPS mm.

        Args:
            canonical_shape: Voxels along (z, y, x).
        """
        affine = np.eye(4)
        origin = self.input_affine[:3, 3].copy()
        for column, canonical_axis in enumerate((2, 1, 0)):  # affine columns are x, y, z
            step = self.input_affine[:3, self.axes[canonical_axis]]
            if self.flipped[canonical_axis]:
                origin += step * (canonical_shape[canonical_axis] - 1)
                step = -step
            affine[:3, column] = step
        affine[:3, 3] = origin
        return affine

    def _reversal(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flipped)


@dataclass(frozen=True, eq=False)
class CTVolume:
    """One CT series as HU in the canonical (z, y, x) order, with what is needed to go back.

    Attributes:
        hu: int16 HU (z, y, x); z to the head, y to the back, x to the patient's left.
        spacing: Distance between voxel centres (z, y, x) in mm.
        affine: 4x4, canonical index (x, y, z, 1) → LPS mm.
        series_uid: Series Instance UID, or the file name of a NIfTI volume.
        frame_of_reference_uid: None where the input has none (NIfTI, or a scanner's omission).
        sop_instance_uids: One for each canonical z; empty for NIfTI.
        instance_numbers: One for each canonical z, None where the slice has none; empty for NIfTI.
        orientation: The way back to the input's own array.
        name: The series as one would point at it in a PACS, to begin a sentence with.
        warnings: What was handled on loading and a radiologist should know, as sentences.
    """

    hu: npt.NDArray[np.int16]
    spacing: tuple[float, float, float]
    affine: Affine
    series_uid: str
    frame_of_reference_uid: str | None
    sop_instance_uids: tuple[str, ...]
    instance_numbers: tuple[int | None, ...]
    orientation: Orientation
    name: str = "The series"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a volume that contradicts itself: a programming error, never an input's."""
        if self.hu.ndim != 3 or self.hu.dtype != np.int16:
            raise ValueError(f"A volume is int16 (z, y, x), not {self.hu.dtype} {self.hu.shape}.")
        for per_slice in (self.sop_instance_uids, self.instance_numbers):
            if per_slice and len(per_slice) != self.hu.shape[0]:
                raise ValueError(f"{len(per_slice)} instances for {self.hu.shape[0]} slices.")

    @classmethod
    def from_input(
        cls,
        array: npt.NDArray[np.int16],
        input_affine: Affine,
        *,
        series_uid: str,
        frame_of_reference_uid: str | None = None,
        sop_instance_uids: tuple[str, ...] = (),
        instance_numbers: tuple[int | None, ...] = (),
        name: str = "The series",
        warnings: tuple[str, ...] = (),
    ) -> CTVolume:
        """Return the canonical volume of an array in any axis order.

        Args:
            array: int16 HU in the input's own order.
            input_affine: 4x4, index along the array's own axes → LPS mm.
            series_uid: Series Instance UID, or what stands for it.
            frame_of_reference_uid: As in the input.
            sop_instance_uids: One for each index along the array's first axis, or none.
            instance_numbers: Likewise.
            name: The series as one would point at it.
            warnings: What the loader handled.
        """
        orientation = Orientation.from_affine(input_affine)
        hu = orientation.to_canonical(array)
        affine = orientation.canonical_affine((hu.shape[0], hu.shape[1], hu.shape[2]))
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        # Slices are the first axis of a DICOM stack; an axial stack keeps them along z.
        order = slice(None, None, -1 if orientation.flipped[0] else 1)
        return cls(
            hu=hu,
            spacing=(float(steps[2]), float(steps[1]), float(steps[0])),
            affine=affine,
            series_uid=series_uid,
            frame_of_reference_uid=frame_of_reference_uid,
            sop_instance_uids=sop_instance_uids[order],
            instance_numbers=instance_numbers[order],
            orientation=orientation,
            name=name,
            warnings=warnings,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        return (self.hu.shape[0], self.hu.shape[1], self.hu.shape[2])

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0
