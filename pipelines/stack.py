"""Whether the slices of a series form one regular stack, and the affine of that stack.

Pure geometry on headers, in the terms of PS3.3 C.7.6.2.1.1 (Image Position, Image Orientation).
Positions decide, never the order of files or instance numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.errors import Rule
from pipelines.headers import InstanceHeader
from pipelines.volume import Affine

Vectors = npt.NDArray[np.float64]

MIN_SPACING_MM: Final = 0.3
MAX_SPACING_MM: Final = 10.0  # beyond, what lies between two slices is a guess
MIN_PIXEL_MM: Final = 0.1
MAX_PIXEL_MM: Final = 3.0  # 512 of them already span three bodies

# Scanners write positions with 3 to 6 decimals, some with rounding in the last.
SAME_POSITION_MM: Final = 0.01
SAME_COSINE: Final = 1e-3
SPACING_TOLERANCE: Final = 0.05  # of the usual distance between slices
MAX_SHEAR_DEGREES: Final = 0.5  # between the normal of the slices and the way they are stacked
MAX_SIDEWAYS_MM: Final = 2.0
MAX_OBLIQUE_DEGREES: Final = 30.0  # between the normal of the slices and the patient's long axis

Violation = tuple[Rule, str]


def violations(instances: Sequence[InstanceHeader]) -> Iterator[Violation]:
    """Yield each rule of geometry that the images break, with a clause that says how."""
    if any(not _has_plane(header) for header in instances):
        yield Rule.NO_GEOMETRY, "an image has no valid position, orientation or pixel spacing"
        return
    orientations = np.array([header.orientation for header in instances])
    degrees = [_degrees_off_axis(_normal(orientation)) for orientation in orientations]
    slanted = sum(angle > MAX_OBLIQUE_DEGREES for angle in degrees)
    if 2 * slanted > len(instances):
        yield Rule.REFORMAT, "its slices are not axial, but a reformat or survey in another plane"
        return
    if np.ptp(orientations, axis=0).max() > SAME_COSINE:
        yield Rule.MIXED_ORIENTATION, "its slices do not have one orientation"
        return
    sizes = {(header.pixel_spacing, _size(header)) for header in instances}
    if len(sizes) > 1:
        yield Rule.MIXED_SIZE, "its slices do not have one size and pixel spacing"
    yield from _spacing_violations(instances)


def along_normal(instances: Sequence[InstanceHeader]) -> list[InstanceHeader]:
    """Return the images sorted by their position along the slices' normal."""
    heights = _heights(instances)
    return [instances[k] for k in np.argsort(heights, kind="stable")]


def groups_by_position(ordered: Sequence[InstanceHeader]) -> list[list[int]]:
    """Return the indices of sorted images, those at one position together."""
    heights = _heights(ordered)
    groups: list[list[int]] = [[0]]
    for k in range(1, len(ordered)):
        if heights[k] - heights[k - 1] > SAME_POSITION_MM:
            groups.append([])
        groups[-1].append(k)
    return groups


def stack_affine(ordered: Sequence[InstanceHeader]) -> Affine:
    """Return 4x4: index (slice, row, column, 1) of images sorted by `along_normal` → LPS mm."""
    first, last = ordered[0], ordered[-1]
    assert first.orientation is not None
    assert first.pixel_spacing is not None
    between_rows, between_columns = first.pixel_spacing
    affine = np.eye(4)
    steps = max(len(ordered) - 1, 1)
    affine[:3, 0] = (np.array(last.position) - np.array(first.position)) / steps
    affine[:3, 1] = np.array(first.orientation[3:]) * between_rows
    affine[:3, 2] = np.array(first.orientation[:3]) * between_columns
    affine[:3, 3] = first.position
    return affine


def shear_degrees(affine: Affine) -> float:
    """Return how far, in degrees, the most slanted pair of axes is from a right angle."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes - np.eye(3))
    return math.degrees(math.asin(min(float(cosines.max()), 1.0)))


def is_pixel(sides_mm: Sequence[float]) -> bool:
    """Return whether these can be the sides of a chest CT's pixels."""
    return all(MIN_PIXEL_MM <= side <= MAX_PIXEL_MM for side in sides_mm)


def _spacing_violations(instances: Sequence[InstanceHeader]) -> Iterator[Violation]:
    ordered = along_normal(instances)
    unique = [ordered[group[0]] for group in groups_by_position(ordered)]
    if len(unique) < 2:
        if len(instances) > 1:
            yield Rule.DUPLICATE_POSITION, f"all {len(instances)} images lie at one position"
        return
    if (tilt := shear_degrees(stack_affine(unique))) > MAX_SHEAR_DEGREES:
        yield Rule.GANTRY_TILT, f"its slices are tilted by {tilt:.1f}° against their stacking"
    elif (shift := _sideways_mm(unique)) > MAX_SIDEWAYS_MM:
        yield Rule.UNEVEN_SPACING, f"its slices are shifted sideways by up to {shift:.1f} mm"
    sides = unique[0].pixel_spacing
    if sides is not None and not is_pixel(sides):
        limits = f"{MIN_PIXEL_MM} to {MAX_PIXEL_MM:g} mm"
        yield Rule.SPACING_OUT_OF_RANGE, f"its pixels are {max(sides):.3g} mm wide, not {limits}"
    gaps = np.diff(_heights(unique))
    usual = float(np.median(gaps))
    if not MIN_SPACING_MM <= usual <= MAX_SPACING_MM:
        limits = f"{MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm"
        yield Rule.SPACING_OUT_OF_RANGE, f"its slices are {usual:.2f} mm apart, not {limits}"
    steps = gaps / usual
    whole = np.maximum(np.rint(steps), 1)
    if (np.abs(steps - whole) > SPACING_TOLERANCE).any():
        worst = float(gaps[np.argmax(np.abs(steps - 1))])
        apart = f"mostly {usual:.2f} mm apart, but also {worst:.2f} mm"
        yield Rule.UNEVEN_SPACING, f"its slices are unevenly spaced, {apart}"
    elif (whole > 1).any():
        missing = int(whole.sum()) - len(gaps)
        after = _image_name(unique[int(np.argmax(whole))])
        yield Rule.MISSING_SLICE, f"slices are missing ({missing}, the first beside {after})"


def _sideways_mm(unique: Sequence[InstanceHeader]) -> float:
    """Return how far the slices wander across their normal."""
    positions = np.array([header.position for header in unique])
    normal = _normal(np.array(unique[0].orientation))
    across = positions - np.outer(positions @ normal, normal)
    return float(np.ptp(across, axis=0).max())


def _has_plane(header: InstanceHeader) -> bool:
    if header.position is None or header.orientation is None or header.pixel_spacing is None:
        return False
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    return (
        all(math.isfinite(n) for n in (*header.position, *header.orientation))
        and all(0 < mm < math.inf for mm in header.pixel_spacing)
        and abs(float(row @ row) - 1) < 0.01
        and abs(float(column @ column) - 1) < 0.01
        and abs(float(row @ column)) < 0.01
    )


def _size(header: InstanceHeader) -> tuple[int, int] | None:
    return None if header.pixels is None else (header.pixels.rows, header.pixels.columns)


def _normal(orientation: Vectors) -> Vectors:
    return np.cross(orientation[:3], orientation[3:])


def _degrees_off_axis(normal: Vectors) -> float:
    return math.degrees(math.acos(min(abs(float(normal[2])), 1.0)))


def _heights(instances: Sequence[InstanceHeader]) -> Vectors:
    """Return each image's position along the normal of the first, in mm."""
    normal = _normal(np.array(instances[0].orientation))
    return np.array([header.position for header in instances]) @ normal


def _image_name(header: InstanceHeader) -> str:
    return "an image" if header.instance_number is None else f"image {header.instance_number}"
