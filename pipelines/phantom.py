"""A synthetic chest with known lungs and lesions: the demo's study and the tests' world.

Not a digital twin: a thorax whose HU values, proportions, noise and asymmetry are near enough to a
supine scan in inspiration that networks trained on patients segment it. Left and right differ as in
people (heart, aortic arch, liver, stomach bubble), so a mirrored result cannot pass unseen.

Anatomy is described in mm, x to the patient's left, y to the back, z to the head, with the carina
near (0, 8, 45); any grid samples it. Shapes are signed distances, negative inside, painted with
edges one voxel wide: that is the partial-volume effect.

Attenuation of tissues: Hounsfield values as in Prokop and Galanski, Spiral and Multislice Computed
Tomography of the Body, 2003; ground glass and consolidation as in Hansell et al. 2008,
doi:10.1148/radiol.2462070712.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pipelines.findings import LEFT_LUNG, RIGHT_LUNG
from pipelines.volume import CTVolume

FloatArray = npt.NDArray[np.floating[Any]]  # float32 throughout; the stubs cannot follow
Point = tuple[float, float, float]

DEFAULT_SHAPE: Final = (120, 512, 512)
DEFAULT_SPACING: Final = (2.5, 0.7, 0.7)
SMALL_SHAPE: Final = (96, 128, 128)
SMALL_SPACING: Final = (3.2, 2.8, 2.8)

AIR_HU: Final = -1000.0
FAT_HU: Final = -100.0
MUSCLE_HU: Final = 52.0
BLOOD_HU: Final = 42.0
LIVER_HU: Final = 58.0
SPLEEN_HU: Final = 48.0
MARROW_HU: Final = 180.0
CORTEX_HU: Final = 620.0
CARTILAGE_HU: Final = 95.0
NOISE_HU: Final = 19.0  # standard deviation of a 2.5 mm slice at a routine dose

_APEX_Z: Final = 128.0
_HILUM_Z: Final = 20.0
_SMALLEST_VESSEL_MM: Final = 0.5
_SMALLEST_VESSEL_VOXELS: Final = 0.24  # thinner ones do not show on a coarse grid
_SMALLEST_AIRWAY_MM: Final = 1.4


class Kind(StrEnum):
    """The two opacities the phantom can have."""

    GROUND_GLASS = "ground glass"
    CONSOLIDATION = "consolidation"


@dataclass(frozen=True)
class Opacity:
    """One lesion to put into the lungs: an ellipsoid with an irregular, blurred edge.

    Attributes:
        kind: Ground glass lets vessels show through; a consolidation hides all but the bronchi.
        centre_mm: (z, y, x) in the phantom's frame; x below 0 is the right lung.
        radii_mm: Half axes (z, y, x).
    """

    kind: Kind
    centre_mm: Point
    radii_mm: Point


DEFAULT_OPACITIES: Final = (
    Opacity(Kind.GROUND_GLASS, (-50.0, 62.0, -88.0), (30.0, 26.0, 30.0)),
    Opacity(Kind.CONSOLIDATION, (-44.0, 58.0, 80.0), (17.0, 16.0, 18.0)),
    Opacity(Kind.GROUND_GLASS, (15.0, 18.0, -112.0), (24.0, 30.0, 15.0)),
    Opacity(Kind.GROUND_GLASS, (62.0, -5.0, 104.0), (19.0, 23.0, 16.0)),
    Opacity(Kind.GROUND_GLASS, (74.0, 58.0, -62.0), (12.0, 13.0, 15.0)),
)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan and the truth about it.

    Attributes:
        volume: The scan.
        lungs: uint8 (z, y, x): 1 right lung, 2 left lung; large hilar vessels and airways left out.
        lesions: uint16 (z, y, x): 1 for the first opacity, and so on, 0 elsewhere.
        opacities: What was put into the lungs.
        study_uid: Study Instance UID its DICOM files carry.
    """

    volume: CTVolume
    lungs: npt.NDArray[np.uint8]
    lesions: npt.NDArray[np.uint16]
    opacities: tuple[Opacity, ...]
    study_uid: str


@dataclass(frozen=True)
class PhantomPatient:
    """Who the files say was scanned; nobody."""

    patient_id: str = "PHANTOM-0001"
    name: str = "Phantom^Chest"
    birth_date: str = "19700101"
    sex: str = "O"


def chest(
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing: tuple[float, float, float] = DEFAULT_SPACING,
    opacities: tuple[Opacity, ...] = DEFAULT_OPACITIES,
) -> Phantom:
    """Return a chest; the same arguments give the same voxels and UIDs.

    Args:
        seed: Chooses vessels, textures and noise, not the anatomy.
        shape: Voxels along (z, y, x).
        spacing: mm along (z, y, x); shape times spacing should cover about 300 x 360 x 360 mm.
        opacities: The lesions; none for a healthy chest.
    """
    rng = np.random.default_rng(seed)
    grid = _Grid(shape, spacing)
    scene = _Scene(grid, opacities, _Textures.random(rng, grid))
    hu = np.empty(shape, np.float32)
    lungs = np.zeros(shape, np.uint8)
    lesions = np.zeros(shape, np.uint16)

    def paint(k: int) -> None:
        hu[k], lungs[k], lesions[k] = _Section(scene, k).painted()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(paint, range(shape[0])))
    for tube in _airways(rng, lungs, grid):
        _paint_tube(hu, lungs, tube, grid=grid)
    for tube in _vessels(rng, lungs, grid):
        _paint_tube(hu, lungs, tube, grid=grid)
    lesions[lungs == 0] = 0
    _add_noise(hu, seed)

    scanned = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    identity = f"{seed} {shape} {spacing} {opacities}"
    uids = [_uid("instance", identity, str(k)) for k in range(shape[0])]
    volume = CTVolume.from_input(
        scanned,
        grid.affine,
        series_uid=_uid("series", identity),
        frame_of_reference_uid=_uid("frame", identity),
        sop_instance_uids=tuple(uids),
        instance_numbers=tuple(range(shape[0], 0, -1)),  # scanned from head to foot
    )
    return Phantom(volume, lungs, lesions, opacities, _uid("study", identity))


def small_chest(seed: int = 0, *, opacities: tuple[Opacity, ...] = DEFAULT_OPACITIES) -> Phantom:
    """Return the same chest on a coarse grid, in a fraction of a second."""
    return chest(seed, shape=SMALL_SHAPE, spacing=SMALL_SPACING, opacities=opacities)


def write_dicom(
    phantom: Phantom, folder: Path, *, patient: PhantomPatient | None = None
) -> list[Path]:
    """Write one CT Image Storage file for each slice, from head to foot, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ds in datasets(phantom, patient=patient):
        path = folder / f"CT{ds.InstanceNumber:04d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def datasets(phantom: Phantom, *, patient: PhantomPatient | None = None) -> Iterator[Dataset]:
    """Yield the slices as CT Image objects (PS3.3 A.3), from head to foot."""
    for k in reversed(range(phantom.volume.shape[0])):
        yield _ct_image(phantom, k, patient or PhantomPatient())


# --- Anatomy


@dataclass(frozen=True)
class _Grid:
    """Where the voxels lie in the phantom's frame."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def axis(self, number: int) -> FloatArray:
        """Return the voxel centres along z, y or x in mm."""
        n = self.shape[number]
        return ((np.arange(n) - (n - 1) / 2) * self.spacing[number]).astype(np.float32)

    @property
    def voxel_mm(self) -> float:
        """Side of a cube as large as a voxel."""
        return math.prod(self.spacing) ** (1 / 3)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4x4, array index (z, y, x, 1) → LPS mm, with the table height of an ordinary scan."""
        affine = np.zeros((4, 4))
        affine[[2, 1, 0], [0, 1, 2]] = self.spacing
        affine[:, 3] = [*(float(self.axis(n)[0]) for n in (2, 1, 0)), 1.0]
        affine[:3, 3] += (0.0, -140.0, -180.0)
        return affine

    def index(self, point: npt.NDArray[np.float64]) -> tuple[int, int, int] | None:
        """Return the voxel (z, y, x) that holds a point (x, y, z) in mm, None outside the grid."""
        steps = point[::-1] / self.spacing + (np.array(self.shape) - 1) / 2
        k, j, i = (int(n) for n in np.rint(steps))
        inside = 0 <= k < self.shape[0] and 0 <= j < self.shape[1] and 0 <= i < self.shape[2]
        return (k, j, i) if inside else None


@dataclass(frozen=True, eq=False)
class _SmoothNoise:
    """Noise of about unit variance on coarse nodes, read slice by slice, linearly between them."""

    nodes: FloatArray
    positions: tuple[FloatArray, FloatArray, FloatArray]  # of the voxels, z, y, x, in nodes

    @classmethod
    def random(cls, rng: np.random.Generator, grid: _Grid, *, cell_mm: float) -> _SmoothNoise:
        z, y, x = (
            np.arange(n, dtype=np.float32) * np.float32(mm / cell_mm)
            for n, mm in zip(grid.shape, grid.spacing, strict=True)
        )
        nodes = rng.standard_normal([int(p[-1]) + 2 for p in (z, y, x)], dtype=np.float32)
        return cls(1.8 * nodes, (z, y, x))  # interpolation loses variance

    def section(self, k: int) -> FloatArray:
        """Return slice k (y, x)."""
        z, y, x = self.positions
        plane = _between(self.nodes, z[k : k + 1])[0]
        return _between(_between(plane, y).T, x).T


def _between(nodes: FloatArray, positions: FloatArray) -> FloatArray:
    """Return linear interpolation along the first axis."""
    lower = positions.astype(int)
    share = (positions - lower).reshape(-1, *[1] * (nodes.ndim - 1))
    between: FloatArray = nodes[lower] * (1 - share) + nodes[lower + 1] * share
    return between


@dataclass(frozen=True, eq=False)
class _Textures:
    """The irregularities of one patient."""

    soft_tissue: _SmoothNoise
    parenchyma: _SmoothNoise
    lesion_edge: _SmoothNoise
    lesion_body: _SmoothNoise

    @classmethod
    def random(cls, rng: np.random.Generator, grid: _Grid) -> _Textures:
        cells = (22.0, 9.0, 13.0, 5.0)
        return cls(*(_SmoothNoise.random(rng, grid, cell_mm=cell) for cell in cells))


@dataclass(frozen=True, eq=False)
class _Scene:
    """What all slices share."""

    grid: _Grid
    opacities: tuple[Opacity, ...]
    textures: _Textures

    @cached_property
    def x(self) -> FloatArray:
        return self.grid.axis(2)[None, :]

    @cached_property
    def y(self) -> FloatArray:
        return self.grid.axis(1)[:, None]

    @cached_property
    def from_back(self) -> FloatArray:
        """Angle around the thorax (y, x): 0 at the spine, pi at the sternum, on both sides."""
        angle: FloatArray = np.arctan2(np.abs(self.x), self.y - 5.0)
        return angle

    @cached_property
    def rib_fall(self) -> FloatArray:
        """How far a rib has come down (mm) on its way to the front; the right ones lie lower."""
        fall: FloatArray = 27.0 * (1 - np.cos(self.from_back)) + np.where(self.x < 0, 2.0, 0.0)
        return fall.astype(np.float32)

    @property
    def edge_mm(self) -> float:
        """Width of a painted edge: about one voxel."""
        return 1.2 * max(self.grid.spacing[1:])


class _Section:
    """One axial slice being painted, from the outside in."""

    def __init__(self, scene: _Scene, k: int) -> None:
        self.scene, self.k = scene, k
        self.x, self.y = scene.x, scene.y
        self.z = float(scene.grid.axis(0)[k])
        self.texture = scene.textures.soft_tissue.section(k)
        self.hu = np.full(scene.grid.shape[1:], AIR_HU, np.float32)

    def painted(self) -> tuple[FloatArray, npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
        """Return HU, lung labels and lesion labels, each (y, x)."""
        self._paint_table()
        self._paint_wall()
        self._paint_bones()
        self._paint_mediastinum()
        self._paint_abdomen()
        self._paint_spine()
        lungs, inside = self._paint_lungs()
        lesions = self._paint_opacities(inside)
        lesions[lungs == 0] = 0
        return self.hu, lungs, lesions

    def _paint(self, distance: FloatArray, value: FloatArray | float) -> None:
        """Blend `value` in where the signed distance (mm) is negative."""
        rows = np.flatnonzero((distance < self.scene.edge_mm / 2).any(axis=1))
        if rows.size:
            touched = slice(rows[0], rows[-1] + 1)  # most shapes are small
            share = _coverage(distance[touched], self.scene.edge_mm)
            colour = value[touched] if isinstance(value, np.ndarray) else value
            self.hu[touched] += share * (colour - self.hu[touched])

    def _ellipse(self, centre: tuple[float, float], radii: tuple[float, float]) -> FloatArray:
        """Return the signed distance to an ellipse, both (x, y) in mm; exact on its outline."""
        r = np.sqrt(((self.x - centre[0]) / radii[0]) ** 2 + ((self.y - centre[1]) / radii[1]) ** 2)
        distance: FloatArray = (r - 1) * min(radii)
        return distance

    def _ellipsoid(self, centre: Point, radii: Point) -> FloatArray:
        """Return the signed distance to an ellipsoid, (x, y, z) in mm, in this plane."""
        r = np.sqrt(
            ((self.x - centre[0]) / radii[0]) ** 2
            + ((self.y - centre[1]) / radii[1]) ** 2
            + ((self.z - centre[2]) / radii[2]) ** 2
        )
        distance: FloatArray = (r - 1) * min(radii)
        return distance

    def _paint_table(self) -> None:
        top = 127.0 - 24.0 * (self.x / 200.0) ** 2
        depth = self.y - top
        within = np.abs(self.x) - 190.0
        self._paint(np.maximum(np.abs(depth - 14.0) - 13.0, within), -930.0)
        for shell in (1.0, 27.0):
            self._paint(np.maximum(np.abs(depth - shell) - 0.8, within), -150.0)

    def _paint_wall(self) -> None:
        outline = self._ellipse((0.0, 5.0), (171.0 + 0.02 * self.z, 117.0)) + 0.6 * self.texture
        self._paint(outline, 20.0)  # skin
        self._paint(outline + 2.0, FAT_HU + 5.0 * self.texture)
        muscle = outline + 13.0 + 4.0 * np.cos(2 * self.scene.from_back)
        self._paint(muscle, MUSCLE_HU + 5.0 * self.texture)
        between = np.abs(self._cage - 11.0 - 2.0 * self.texture) - 1.0  # fat between the muscles
        self._paint(np.maximum(between, muscle), FAT_HU + 25.0)

    @cached_property
    def _cage(self) -> FloatArray:
        """Return the signed distance to the middle of the rib cage, an ellipse at each z."""
        dome = max(_dome(self.z), 0.5)
        return self._ellipse((0.0, 5.0), (72.0 + 66.0 * dome, 8.0 + 96.0 * dome))

    def _paint_bones(self) -> None:
        height = np.mod(self.z + self.scene.rib_fall, np.float32(25.0)) - 12.5
        rib = (np.hypot(self._cage / 4.0, height / 6.0) - 1) * 4.0
        cartilage = self.scene.from_back > 2.45
        self._paint(rib, np.where(cartilage, np.float32(CARTILAGE_HU), np.float32(CORTEX_HU)))
        self._paint(rib + 1.8, np.where(cartilage, np.float32(CARTILAGE_HU), np.float32(MARROW_HU)))
        if -45.0 < self.z < 90.0:
            sternum = self._ellipse((0.0, -97.0), (17.0, 5.5))
            self._paint(sternum, 0.6 * CORTEX_HU)
            self._paint(sternum + 1.8, 0.7 * MARROW_HU)
        if self.z > 15.0:
            for side in (-1.0, 1.0):
                plate = self._plate((side * 112.0, 72.0), side * -0.85, (36.0, 3.2))
                self._paint(plate, 0.8 * CORTEX_HU)
                self._paint(plate + 1.8, MARROW_HU)
        if 100.0 < self.z < 116.0:
            for side in (-1.0, 1.0):
                clavicle = self._plate((side * 62.0, -60.0), side * 0.12, (46.0, 5.5))
                self._paint(clavicle, CORTEX_HU)
                self._paint(clavicle + 2.0, MARROW_HU)

    def _plate(
        self, centre: tuple[float, float], angle: float, half: tuple[float, float]
    ) -> FloatArray:
        """Return the signed distance to a turned rectangle; centre (x, y) and half sides in mm."""
        dx, dy = self.x - centre[0], self.y - centre[1]
        cos, sin = math.cos(angle), math.sin(angle)
        along = np.abs(dx * cos + dy * sin) - half[0]
        across = np.abs(dy * cos - dx * sin) - half[1]
        distance: FloatArray = np.maximum(along, across)
        return distance

    def _paint_spine(self) -> None:
        in_disc = self.z % 25.0 < 5.0
        body = self._ellipse((0.0, 62.0), (17.5, 15.0))
        self._paint(body, CARTILAGE_HU if in_disc else 0.7 * CORTEX_HU)
        if not in_disc:
            self._paint(body + 1.6, MARROW_HU + 15.0)
        arch = np.minimum(
            np.abs(self._ellipse((0.0, 86.0), (13.0, 11.0))) - 2.5,
            self._plate((0.0, 106.0), math.pi / 2, (11.0, 3.0)),
        )
        self._paint(arch, 0.6 * CORTEX_HU)
        self._paint(self._ellipse((0.0, 86.0), (9.5, 8.0)), 30.0)  # canal

    @cached_property
    def _column(self) -> FloatArray:
        """Return the signed distance to the mediastinum without the heart."""
        half_width = 15.0 + 15.0 * np.exp(-(((self.y - 8.0) / 34.0) ** 2))
        half_width = half_width + 12.0 * min(max((self.z - 60.0) / 60.0, 0.0), 1.0)
        column: FloatArray = np.abs(self.x - 2.0) - half_width
        return column

    @cached_property
    def _heart(self) -> FloatArray:
        ventricles = self._ellipsoid((34.0, -34.0, -42.0), (52.0, 42.0, 50.0))
        apex = self._ellipsoid((58.0, -44.0, -58.0), (34.0, 32.0, 34.0))
        atria = self._ellipsoid((-12.0, -12.0, -28.0), (36.0, 36.0, 42.0))
        return np.minimum(np.minimum(ventricles, apex), atria)

    @cached_property
    def _aorta(self) -> FloatArray:
        if self.z < 50.0:
            return self._ellipse((22.0, 40.0), (12.5, 12.5))
        # The arch: half a flattened torus from the right front to the left back.
        dx, dy, rise = self.x - 5.5, self.y - 8.0, 1.5 * (self.z - 50.0)
        along, across = 0.458 * dx + 0.889 * dy, 0.458 * dy - 0.889 * dx
        distance: FloatArray = np.hypot(np.hypot(along, rise) - 36.0, across) - 12.5
        return distance

    def _paint_mediastinum(self) -> None:
        cavity = self._cage + 5.0
        self._paint(cavity, FAT_HU + 60.0 + 15.0 * self.texture)
        self._paint(np.maximum(self._column, cavity), FAT_HU + 25.0 + 15.0 * self.texture)
        blood = BLOOD_HU + 3.0 * self.texture
        heart = self._heart
        self._paint(np.maximum(heart - 4.0, cavity), FAT_HU + 10.0)
        self._paint(np.maximum(heart, cavity), blood)
        self._paint(self._aorta, blood)
        self._paint(self._ellipse((9.0, 26.0), (7.5, 6.0)), 35.0)  # oesophagus
        if self.z > -10.0:
            self._paint(self._ellipse((-23.0, -8.0), (9.5, 9.0)), blood)  # superior vena cava
        if 0.0 < self.z < 52.0:
            self._paint(self._ellipse((-11.0, -24.0), (16.0, 16.0)), blood)  # ascending aorta
        if 8.0 < self.z < 38.0:
            self._paint(self._ellipse((22.0, -18.0), (14.0, 17.0)), blood)  # pulmonary trunk
        if self.z > 74.0:
            for x, y in ((-14.0, -12.0), (6.0, -8.0), (18.0, 6.0)):  # branches of the arch
                self._paint(self._ellipse((x, y), (5.5, 5.5)), blood)

    @cached_property
    def _below_diaphragm(self) -> FloatArray:
        """Return the signed distance (mm) to what lies under the two domes; the right is higher."""
        right = self._dome_height(-62.0, 64.0)
        left = self._dome_height(-76.0, 60.0, centre_x=64.0)
        surface = np.where(self.x < 8.0, right, left)
        distance: FloatArray = (self.z - surface) * 0.6  # slant of the domes
        return distance

    def _dome_height(self, top: float, fall: float, centre_x: float = -58.0) -> FloatArray:
        height: FloatArray = top - fall * (
            ((self.x - centre_x) / 74.0) ** 2 + ((self.y + 12.0) / 92.0) ** 2
        )
        return height

    def _paint_abdomen(self) -> None:
        below = np.maximum(self._below_diaphragm, self._cage + 6.0)
        self._paint(below, FAT_HU + 5.0 * self.texture)
        liver = self._ellipsoid((-48.0, -8.0, -150.0), (88.0, 96.0, 92.0))
        self._paint(np.maximum(below + 1.5, liver), LIVER_HU + 3.0 * self.texture)
        spleen = self._ellipsoid((88.0, 52.0, -140.0), (34.0, 38.0, 52.0))
        self._paint(np.maximum(below + 1.5, spleen), SPLEEN_HU + 3.0 * self.texture)
        stomach = self._ellipsoid((66.0, -34.0, -136.0), (38.0, 40.0, 46.0))
        self._paint(np.maximum(below + 3.0, stomach), 35.0)
        bubble = np.maximum(stomach + 4.0, self.y + 42.0)  # air rises to the front
        self._paint(np.maximum(below + 7.0, bubble), AIR_HU)

    def _lung(self, side: float) -> FloatArray:
        """Return the signed distance to one lung; side is -1 for the right, 1 for the left."""
        dome = _dome(self.z)
        if dome <= 0:
            return np.full_like(self.hu, 99.0)
        hull = self._ellipse(
            (side * 63.0, 5.0 + 14.0 * (1 - dome)), (67.0 * dome + 1.0, 96.0 * dome + 1.0)
        )
        spine = self._ellipse((0.0, 74.0), (27.0, 33.0))
        solids = np.minimum(np.minimum(self._column, self._heart - 3.0), spine)
        solids = np.minimum(solids, np.minimum(self._aorta - 2.0, self._below_diaphragm))
        own_half = -side * (self.x - 2.0)
        distance: FloatArray = np.maximum(np.maximum(hull, own_half), -solids)
        return distance

    def _paint_lungs(self) -> tuple[npt.NDArray[np.uint8], FloatArray]:
        """Paint both lungs; return their labels and how much lung each pixel holds, 0 to 1."""
        right, left = self._lung(-1.0), self._lung(1.0)
        # Blood sinks: supine lungs are denser at the back.
        mottled = 13.0 * self.scene.textures.parenchyma.section(self.k)
        aerated = -872.0 + 0.36 * (self.y + 90.0) + mottled
        inside = _coverage(np.minimum(right, left), self.scene.edge_mm)
        self.hu += inside * (aerated - self.hu)
        labels = np.zeros(self.hu.shape, np.uint8)
        labels[right < 0] = RIGHT_LUNG
        labels[left < 0] = LEFT_LUNG
        return labels, inside

    def _paint_opacities(self, inside: FloatArray) -> npt.NDArray[np.uint16]:
        """Paint the lesions into the lung; return their labels."""
        labels = np.zeros(self.hu.shape, np.uint16)
        reached = [
            (number, opacity)
            for number, opacity in enumerate(self.scene.opacities, start=1)
            if abs(self.z - opacity.centre_mm[0]) < 2.0 * opacity.radii_mm[0]
        ]
        if not reached:
            return labels
        irregular = 0.18 * self.scene.textures.lesion_edge.section(self.k)
        body = self.scene.textures.lesion_body.section(self.k)
        for number, opacity in reached:
            (cz, cy, cx), (rz, ry, rx) = opacity.centre_mm, opacity.radii_mm
            radius = np.sqrt(
                ((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2 + ((self.z - cz) / rz) ** 2
            )
            soft = 0.5 if opacity.kind is Kind.GROUND_GLASS else 0.4
            share = np.clip((1.0 - radius - irregular) / soft + 0.5, 0.0, 1.0) * inside
            ground_glass = opacity.kind is Kind.GROUND_GLASS
            target = -540.0 + 65.0 * body if ground_glass else 20.0 + 30.0 * body
            self.hu += share * np.maximum(target - self.hu, 0.0)
            labels[share > 0.5] = number
        return labels


def _dome(z: float) -> float:
    """Return the width of the lungs at z relative to their middle: round towards the apex."""
    t = min(max((_APEX_Z - z) / 95.0, 0.0), 1.0)
    return math.sqrt(1.0 - (1.0 - t) ** 2) * min(1.0, 0.93 + 0.0007 * (_APEX_Z - z))


def _coverage(distance: FloatArray, edge_mm: float) -> FloatArray:
    """Return how much of a voxel a shape fills, 0 to 1, from its signed distance in mm."""
    share: FloatArray = np.clip(0.5 - distance / edge_mm, 0.0, 1.0)
    return share


# --- Vessels and airways


@dataclass(frozen=True, eq=False)
class _Tube:
    """A straight piece of vessel or airway from start to end, both (x, y, z) in mm."""

    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    radius_mm: float
    is_airway: bool = False


def _vessels(
    rng: np.random.Generator, lungs: npt.NDArray[np.uint8], grid: _Grid
) -> Iterator[_Tube]:
    """Yield arteries and veins, branching from the hila until they are too thin to be seen."""
    smallest_mm = max(_SMALLEST_VESSEL_MM, _SMALLEST_VESSEL_VOXELS * grid.voxel_mm)
    for label, side in ((RIGHT_LUNG, -1.0), (LEFT_LUNG, 1.0)):
        for start_z, radius in ((_HILUM_Z, 5.2), (_HILUM_Z - 16.0, 4.6)):
            hilum = np.array([side * 31.0, 8.0, start_z])
            for towards in _lobar_directions(side):
                yield from _branches(
                    rng,
                    hilum,
                    towards,
                    radius * rng.uniform(0.75, 1.0),
                    label=label,
                    lungs=lungs,
                    grid=grid,
                    smallest_mm=smallest_mm,
                    is_airway=False,
                )


def _airways(
    rng: np.random.Generator, lungs: npt.NDArray[np.uint8], grid: _Grid
) -> Iterator[_Tube]:
    """Yield trachea, main bronchi and the bronchi that CT resolves."""
    carina = np.array([0.0, 8.0, 45.0])
    yield _Tube(np.array([0.0, 2.0, 170.0]), carina, 8.5, is_airway=True)
    for label, side, radius in ((RIGHT_LUNG, -1.0, 7.0), (LEFT_LUNG, 1.0, 6.0)):
        # The right main bronchus is wider, shorter and steeper.
        hilum = np.array([side * 30.0, 10.0, 24.0 if side < 0 else 28.0])
        yield _Tube(carina, hilum, radius, is_airway=True)
        for towards in _lobar_directions(side)[1::2]:
            yield from _branches(
                rng,
                hilum,
                towards,
                radius * rng.uniform(0.5, 0.62),
                label=label,
                lungs=lungs,
                grid=grid,
                smallest_mm=_SMALLEST_AIRWAY_MM,
                is_airway=True,
            )


def _lobar_directions(side: float) -> list[npt.NDArray[np.float64]]:
    """Return where the large branches of one lung point, as unit vectors (x, y, z)."""
    towards = np.array([
        [0.45, -0.35, 0.85], [0.55, 0.35, 0.75], [0.85, -0.5, 0.15], [0.8, 0.6, 0.1],
        [0.6, -0.55, -0.6], [0.55, 0.1, -0.85], [0.45, 0.6, -0.65],
    ])  # fmt: skip
    towards[:, 0] *= side
    return list(towards / np.linalg.norm(towards, axis=1, keepdims=True))


def _branches(
    rng: np.random.Generator,
    start: npt.NDArray[np.float64],
    towards: npt.NDArray[np.float64],
    radius: float,
    *,
    label: int,
    lungs: npt.NDArray[np.uint8],
    grid: _Grid,
    smallest_mm: float,
    is_airway: bool,
) -> Iterator[_Tube]:
    """Yield a tree by depth: a tube forks into two thinner ones while it stays in its lung."""
    stack = [(start, towards, radius, True)]
    while stack:
        origin, direction, r, at_hilum = stack.pop()
        end = origin + direction * (6.0 + 4.0 * r) * rng.uniform(0.7, 1.2)
        if not at_hilum and not _holds(lungs, grid.index(end), label):
            end = (origin + end) / 2  # shorter towards the pleura
            if not _holds(lungs, grid.index(end), label):
                continue
        yield _Tube(origin, end, r, is_airway=is_airway)
        # Murray's law, r^3 = a^3 + b^3, with one child usually the larger.
        share = rng.uniform(0.35, 0.72)
        axis = rng.standard_normal(3)
        axis -= direction * (axis @ direction)
        axis /= np.sqrt(axis @ axis)
        for part, angle in ((share, -0.55), (1.0 - share, 0.7)):
            child = 0.97 * r * part ** (1.0 / 3.0)
            if child >= smallest_mm:
                turn = angle * rng.uniform(0.6, 1.2)
                stack.append((end, direction * np.cos(turn) + axis * np.sin(turn), child, False))


def _holds(lungs: npt.NDArray[np.uint8], index: tuple[int, int, int] | None, label: int) -> bool:
    """Return whether a voxel belongs to one lung."""
    return index is not None and bool(lungs[index] == label)


def _paint_tube(hu: FloatArray, lungs: npt.NDArray[np.uint8], tube: _Tube, *, grid: _Grid) -> None:
    """Draw one tube; the large ones near the hilum do not count as lung."""
    wall_mm = 1.2 if tube.is_airway else 0.0
    margin = tube.radius_mm + wall_mm + 1.2 * max(grid.spacing)
    box = _box(tube, margin, grid)
    if any(part.start >= part.stop for part in box):
        return
    z, y, x = np.ix_(*(grid.axis(n)[box[n]] for n in range(3)))
    distance = _distance_to_segment((x, y, z), tube)
    edge = 1.2 * grid.voxel_mm
    region = hu[box]
    if tube.is_airway:
        wall = _coverage(distance - tube.radius_mm - wall_mm, edge)
        region += wall * np.maximum(0.0 - region, 0.0) * min(1.0, tube.radius_mm / 3.0)
        region += _coverage(distance - tube.radius_mm, edge) * (AIR_HU - region)
    else:
        # A vessel thinner than the voxel fills only part of it.
        filled = min(1.0, (2.0 * tube.radius_mm / edge) ** 2)
        blood = filled * _coverage(distance - max(tube.radius_mm, edge / 2), edge)
        region += blood * np.maximum(BLOOD_HU - region, 0.0)
    if tube.radius_mm > 3.2:
        lungs[box][distance < tube.radius_mm + wall_mm] = 0


def _box(tube: _Tube, margin: float, grid: _Grid) -> tuple[slice, slice, slice]:
    """Return the voxels (z, y, x) within `margin` mm of a tube."""
    low = np.minimum(tube.start, tube.end)[::-1] - margin
    high = np.maximum(tube.start, tube.end)[::-1] + margin
    middle = (np.array(grid.shape) - 1) / 2
    first = np.clip(np.floor(low / grid.spacing + middle), 0, grid.shape).astype(int)
    last = np.clip(np.ceil(high / grid.spacing + middle) + 1, 0, grid.shape).astype(int)
    return (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))


def _distance_to_segment(
    point: tuple[FloatArray, FloatArray, FloatArray], tube: _Tube
) -> FloatArray:
    """Return the distance in mm from points (x, y, z) to the tube's middle line."""
    along = (tube.end - tube.start).astype(np.float32)
    offsets = [p - np.float32(s) for p, s in zip(point, tube.start, strict=True)]
    projected = offsets[0] * along[0] + offsets[1] * along[1] + offsets[2] * along[2]
    t = np.clip(projected / np.float32(along @ along), 0.0, 1.0)
    distance: FloatArray = np.sqrt(
        sum((o - t * a) ** 2 for o, a in zip(offsets, along, strict=True))
    )
    return distance


def _add_noise(hu: FloatArray, seed: int) -> None:
    """Add quantum noise: independent slices, correlated over about two pixels by the kernel."""

    def add(k: int) -> None:
        rng = np.random.default_rng((seed, k))
        white = rng.standard_normal(hu.shape[1:], dtype=np.float32)
        for axis in (0, 1):
            white = white + 0.6 * (np.roll(white, 1, axis) + np.roll(white, -1, axis))
        hu[k] += white * np.float32(NOISE_HU / (1 + 2 * 0.6**2))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(add, range(hu.shape[0])))


# --- DICOM


def _uid(*entropy: str) -> str:
    return str(generate_uid(entropy_srcs=["chest phantom", *entropy]))


def _ct_image(phantom: Phantom, k: int, patient: PhantomPatient) -> Dataset:
    """Return canonical slice k as a CT Image (PS3.3 A.3), Explicit VR Little Endian."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = UID(phantom.volume.sop_instance_uids[k])
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = phantom.volume.sop_instance_uids[k]
    _add_patient_and_study(ds, phantom, patient)
    _add_series_and_equipment(ds, phantom)
    _add_image_plane(ds, phantom.volume, k)
    _add_pixels(ds, phantom.volume, k)
    return ds


def _add_patient_and_study(ds: Dataset, phantom: Phantom, patient: PhantomPatient) -> None:
    """Add the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1)."""
    ds.PatientID = patient.patient_id
    ds.PatientName = patient.name
    ds.PatientBirthDate = patient.birth_date
    ds.PatientSex = patient.sex
    ds.StudyInstanceUID = phantom.study_uid
    ds.StudyID = "1"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260101"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.ReferringPhysicianName = ""
    ds.AccessionNumber = "PHANTOM1"
    ds.StudyDescription = "Synthetic chest"


def _add_series_and_equipment(ds: Dataset, phantom: Phantom) -> None:
    """Add General Series, Frame of Reference and Equipment (PS3.3 C.7.3.1, C.7.4.1, C.7.5.1)."""
    ds.Modality = "CT"
    ds.SeriesInstanceUID = phantom.volume.series_uid
    ds.SeriesNumber = 2
    ds.SeriesDescription = "Synthetic chest, soft kernel"
    ds.ProtocolName = "Thorax"
    ds.BodyPartExamined = "CHEST"
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID = phantom.volume.frame_of_reference_uid
    ds.PositionReferenceIndicator = ""
    ds.Manufacturer = "Synthetic"
    ds.ManufacturerModelName = "Chest phantom"


def _add_image_plane(ds: Dataset, volume: CTVolume, k: int) -> None:
    """Add General Image, Image Plane and the CT Image module (PS3.3 C.7.6.1, C.7.6.2, C.8.2.1)."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber = volume.instance_numbers[k]
    ds.AcquisitionNumber = 1
    ds.KVP = 120
    position = volume.affine @ (0.0, 0.0, k, 1.0)
    ds.ImagePositionPatient = [round(float(mm), 4) for mm in position[:3]]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [round(mm, 6) for mm in volume.spacing[1:]]
    ds.SliceThickness = round(volume.spacing[0], 6)
    ds.SliceLocation = ds.ImagePositionPatient[2]


def _add_pixels(ds: Dataset, volume: CTVolume, k: int) -> None:
    """Add the Image Pixel module (PS3.3 C.7.6.3): 12 bits unsigned, HU + 1024."""
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = volume.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelRepresentation = 0
    ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
    ds.RescaleType = "HU"
    ds.WindowCenter, ds.WindowWidth = -600, 1500
    stored = np.clip(volume.hu[k].astype(np.int32) + 1024, 0, 4095).astype("<u2")
    ds.PixelData = stored.tobytes()
