"""What the pipeline found in one CT series, and how it is kept on disk.

numpy and nibabel only, so that whoever shows or delivers a result never loads a network.

A result folder holds

- ``analysis.json``: every field of `Analysis` but the arrays, lengths in mm, volumes in ml,
  positions as canonical (z, y, x) indices (`pipelines.volume`);
- ``lungs.nii.gz`` and ``lesions.nii.gz``: the masks in the input's own axis order and geometry, so
  that they overlay the input in any other program. NIfTI coordinates are RAS, ours LPS: x and y
  change sign;
- ``heatmap.nii.gz`` and ``heatmap_pneumonia.nii.gz``, only where they were computed: the heat maps
  of the screening and of the second opinion, 0 to 255, in the same geometry.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import nibabel as nib
import numpy as np
import numpy.typing as npt

from pipelines.errors import Refusal, ResultError, Rule
from pipelines.volume import Affine, CTVolume, Orientation

SCHEMA: Final = 1
RIGHT_LUNG: Final = 1
LEFT_LUNG: Final = 2

_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])

Index = tuple[int, int, int]
Box = tuple[Index, Index]


class Side(StrEnum):
    """The patient's own side."""

    LEFT = "left"
    RIGHT = "right"
    BOTH = "both"


@dataclass(frozen=True)
class Lesion:
    """One connected lesion region.

    Attributes:
        id: 1 for the largest volume, then descending; the value in `Analysis.lesion_labels`.
        volume_ml: Sum of its voxels.
        diameter_mm: Longest diameter in any one axial slice.
        mean_hu: Mean over its voxels, HU.
        side: The lung or lungs it lies in.
        first_slice: Most caudal canonical z.
        last_slice: Most cranial canonical z, inclusive.
        key_slice: Canonical z of the slice to look at first.
        centroid: Canonical (z, y, x) index, fractional.
        bbox: Half-open ((z0, y0, x0), (z1, y1, x1)).
        lung_share: Its volume over that of both lungs, 0 to 1.
        probability: That the region is COVID-like, 0 to 1; None until classified.
    """

    id: int
    volume_ml: float
    diameter_mm: float
    mean_hu: float
    side: Side
    first_slice: int
    last_slice: int
    key_slice: int
    centroid: tuple[float, float, float]
    bbox: Box
    lung_share: float
    probability: float | None


@dataclass(frozen=True)
class LungMeasures:
    """Volumes of the two lungs, lesions included."""

    left_ml: float
    right_ml: float

    @property
    def total_ml(self) -> float:
        return self.left_ml + self.right_ml


class Flaw(StrEnum):
    """What may make a scan unfit for the result; a closed set."""

    METAL = "metal"
    MOTION = "motion"
    NOISE = "noise"
    LUNGS_CUT = "lungs cut by the field of view"
    BODY_CUT = "body cut by the field of view"


@dataclass(frozen=True)
class Quality:
    """What was measured of a scan's flaws (`pipelines.quality`).

    Attributes:
        metal_ml: Metal in the slices of the lungs; None where the series cannot show any.
        motion_mm: Furthest that contours jump between two slices beyond what is expected.
        motion_steps: How many such jumps are too far.
        noise_hu: Standard deviation in soft tissue, HU; None where there is too little of that.
        body_cut: Share of the body's outline at the edge of the field of view, 0 to 1.
        lungs_cut_cm2: Area of the lungs at that edge.
        flaws: Those that may change the result, by the thresholds of the day.
    """

    metal_ml: float | None
    motion_mm: float
    motion_steps: int
    noise_hu: float | None
    body_cut: float
    lungs_cut_cm2: float
    flaws: tuple[Flaw, ...]


class Grade(StrEnum):
    """How much of the more affected lung is involved (`pipelines.severity`)."""

    CT_0 = "CT-0"
    CT_1 = "CT-1"
    CT_2 = "CT-2"
    CT_3 = "CT-3"
    CT_4 = "CT-4"


@dataclass(frozen=True)
class Involvement:
    """Lesion in a part of the lungs: its volume, and its share of that part, 0 to 1."""

    lesion_ml: float
    share: float


@dataclass(frozen=True)
class LungInvolvement:
    """Lesion in one lung and in the thirds of its own height."""

    whole: Involvement
    upper: Involvement
    middle: Involvement
    lower: Involvement


@dataclass(frozen=True)
class Burden:
    """Lesion burden, from the masks alone; voxels of lesions outside the lung mask are left out.

    Attributes:
        right: The patient's right lung.
        left: The patient's left lung.
        both: Both lungs together.
        grade: Of the lung with the larger share; not validated as a clinical grade.
    """

    right: LungInvolvement
    left: LungInvolvement
    both: Involvement
    grade: Grade


@dataclass(frozen=True)
class SecondOpinion:
    """What kind of pneumonia another network sees (`pipelines.pneumonia`).

    Attributes:
        probabilities: By class, in the network's order; they add up to 1.
        most_likely: The class with the highest one.
        severity: Grade of that class, where it has grades and a network for them is there.
        validated: Whether the models that took part are, by their own word.
    """

    probabilities: dict[str, float]
    most_likely: str
    severity: str | None
    validated: bool


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Where a classifier saw what speaks for its answer (`pipelines.heatmap`).

    Attributes:
        purpose: Of the model that was asked: screening or pneumonia.
        answer: What it speaks for.
        lesion_share: Share of the heat above half maximum that lies in lesions, 0 to 1; None where
            nothing spoke for the answer.
        heat: uint8 (z, y, x): 255 at the maximum, 0 outside the lungs and in slices not asked
            about.
    """

    FILES: ClassVar[Mapping[str, str]] = {
        "screening": "heatmap.nii.gz",
        "pneumonia": "heatmap_pneumonia.nii.gz",
    }

    purpose: str
    answer: str
    lesion_share: float | None
    heat: npt.NDArray[np.uint8]

    @property
    def file(self) -> str:
        """Its file in the result folder."""
        return self.FILES[self.purpose]


def model_digest(settings_sum: str, weights_sum: str) -> str:
    """Return what names a model, from the sums of its two files: another threshold is another."""
    return hashlib.sha256(f"{settings_sum}{weights_sum}".encode()).hexdigest()


@dataclass(frozen=True)
class ModelRef:
    """Which model said so; `digest` is its `model_digest`."""

    purpose: str
    name: str
    version: str
    digest: str


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything that is known about one analysed series.

    Attributes:
        series_uid: Series Instance UID, or a NIfTI volume's file name.
        shape: Voxels of the canonical volume (z, y, x).
        spacing: mm along (z, y, x).
        affine: 4x4, canonical index (x, y, z, 1) → LPS mm.
        lungs: Volumes of the lungs.
        lesions: By descending volume.
        probability: That the case is COVID-like, 0 to 1.
        positive: Whether `probability` reaches `threshold`.
        threshold: Operating point of the case score.
        models: Every network that took part.
        engine: Name and precision of the engine.
        timings_s: Seconds for each step.
        warnings: Sentences a radiologist should read with the result.
        refused_series: The other series of the study, and why.
        lung_mask: uint8 (z, y, x): 1 right lung, 2 left lung, 0 elsewhere.
        lesion_labels: uint16 (z, y, x): `Lesion.id`, 0 elsewhere.
        quality: What is wrong with the scan; None in results that are older than the measures.
        burden: How much of the lungs is lesion; None likewise.
        second_opinion: Of the network that tells kinds of pneumonia apart; None unless asked for.
        heat_maps: None but those asked for.
        sop_instance_uids: Of the images, one for each canonical z; empty for NIfTI.
    """

    ANALYSIS_FILE: ClassVar[str] = "analysis.json"
    LUNGS_FILE: ClassVar[str] = "lungs.nii.gz"
    LESIONS_FILE: ClassVar[str] = "lesions.nii.gz"

    series_uid: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: Affine
    lungs: LungMeasures
    lesions: tuple[Lesion, ...]
    probability: float
    positive: bool
    threshold: float
    models: tuple[ModelRef, ...]
    engine: str
    timings_s: dict[str, float]
    warnings: tuple[str, ...]
    refused_series: tuple[Refusal, ...]
    lung_mask: npt.NDArray[np.uint8]
    lesion_labels: npt.NDArray[np.uint16]
    quality: Quality | None = None
    burden: Burden | None = None
    second_opinion: SecondOpinion | None = None
    heat_maps: tuple[HeatMap, ...] = ()
    sop_instance_uids: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return what ``analysis.json`` holds: every field but the arrays, as JSON types."""
        arrays = {"affine", "lung_mask", "lesion_labels"}
        plain = {
            f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in arrays
        }
        return {"schema": SCHEMA, **plain, "affine": self.affine.tolist()}

    def save(self, folder: Path, volume: CTVolume) -> None:
        """Write the result folder; it appears whole or not at all."""
        with whole_folder(folder) as staging:
            self.write(staging, volume)

    def write(self, folder: Path, volume: CTVolume) -> None:
        """Write the files into a folder, one made by `whole_folder` if others join them."""
        text = json.dumps(self.summary(), indent=1, allow_nan=False, ensure_ascii=False)
        (folder / self.ANALYSIS_FILE).write_text(text + "\n", encoding="utf-8")
        _save_mask(folder / self.LUNGS_FILE, self.lung_mask, volume.orientation)
        _save_mask(folder / self.LESIONS_FILE, self.lesion_labels, volume.orientation)
        for heat_map in self.heat_maps:
            _save_mask(folder / heat_map.file, heat_map.heat, volume.orientation)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the analysis saved in a folder.

        Raises:
            ResultError: The folder lacks a file or was written by another schema.
        """
        try:
            summary = json.loads((folder / cls.ANALYSIS_FILE).read_text(encoding="utf-8"))
            if summary.pop("schema") != SCHEMA:
                raise ResultError(f"{folder / cls.ANALYSIS_FILE} has another schema than {SCHEMA}.")
            return cls(
                **_typed(summary, folder),
                lung_mask=load_mask(folder / cls.LUNGS_FILE).astype(np.uint8),
                lesion_labels=load_mask(folder / cls.LESIONS_FILE).astype(np.uint16),
            )
        except (
            OSError,
            KeyError,
            TypeError,
            ValueError,
            nib.filebasedimages.ImageFileError,
        ) as error:
            raise ResultError(f"{folder} holds no readable analysis: {error}") from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a staging folder that becomes `folder`, synced, if the block ends without an error.

    Raises:
        ResultError: `folder` exists already and is not empty; a result is never overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResultError(f"{folder} exists already and is not empty.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging
        for path in sorted(staging.rglob("*"), reverse=True):
            _sync(path)
        staging.chmod(0o755)
        _sync(staging)
        staging.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _save_mask(path: Path, mask: npt.NDArray[np.integer[Any]], orientation: Orientation) -> None:
    image = nib.Nifti1Image(  # type: ignore[no-untyped-call]
        orientation.to_input(mask), _LPS_TO_RAS @ orientation.input_affine
    )
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    nib.save(image, path)


def load_mask(path: Path) -> npt.NDArray[np.integer[Any]]:
    """Return a NIfTI mask in the canonical order (z, y, x) of `pipelines.volume`."""
    image = nib.Nifti1Image.from_filename(path)
    orientation = Orientation.from_affine(_LPS_TO_RAS @ np.asarray(image.affine, np.float64))
    return orientation.to_canonical(np.asarray(image.dataobj))


def _plain(value: Any) -> Any:
    """Return a field as JSON types: dataclasses become objects, tuples lists."""
    if isinstance(value, HeatMap):
        return {f.name: getattr(value, f.name) for f in fields(value) if f.name != "heat"}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _typed(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the constructor's arguments from ``analysis.json``, the masks apart."""
    return {
        **summary,
        "shape": tuple(summary["shape"]),
        "spacing": tuple(summary["spacing"]),
        "affine": np.array(summary["affine"], np.float64),
        "lungs": LungMeasures(**summary["lungs"]),
        "lesions": tuple(lesion_from(row) for row in summary["lesions"]),
        "models": tuple(ModelRef(**row) for row in summary["models"]),
        "warnings": tuple(summary["warnings"]),
        "refused_series": tuple(
            Refusal(**{**row, "rule": Rule(row["rule"])}) for row in summary["refused_series"]
        ),
        "quality": _quality(summary.get("quality")),
        "burden": _burden(summary.get("burden")),
        "second_opinion": _second_opinion(summary.get("second_opinion")),
        "heat_maps": tuple(
            HeatMap(**row, heat=load_mask(folder / HeatMap.FILES[row["purpose"]]).astype(np.uint8))
            for row in summary.get("heat_maps", ())
        ),
        "sop_instance_uids": tuple(summary.get("sop_instance_uids", ())),
    }


def _quality(row: dict[str, Any] | None) -> Quality | None:
    if row is None:
        return None
    return Quality(**{**row, "flaws": tuple(Flaw(flaw) for flaw in row["flaws"])})


def _burden(row: dict[str, Any] | None) -> Burden | None:
    if row is None:
        return None
    right, left = (
        LungInvolvement(**{part: Involvement(**said) for part, said in row[side].items()})
        for side in ("right", "left")
    )
    return Burden(right, left, Involvement(**row["both"]), Grade(row["grade"]))


def _second_opinion(row: dict[str, Any] | None) -> SecondOpinion | None:
    return None if row is None else SecondOpinion(**row)


def lesion_from(row: Mapping[str, Any]) -> Lesion:
    """Return a lesion as `dataclasses.asdict` and JSON leave it."""
    low, high = row["bbox"]
    return Lesion(
        **{
            **row,
            "side": Side(row["side"]),
            "centroid": tuple(row["centroid"]),
            "bbox": (tuple(low), tuple(high)),
        }
    )
