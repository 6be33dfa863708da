"""Which series of a study is the chest CT to analyse, and its slices as one volume.

`study_candidates` is the whole way from files to volumes: headers are read (`describe_files`),
every series is held against the rules (`choose_series`), and those that pass are decoded, the best
first (`load_series`). What is refused says why, in a sentence for whoever sent the study.

A stack that is not regular is refused, not repaired: a mask drawn on a guess would be a wrong mask.
The one exception is an exact duplicate of a slice, which is left out with a note.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom import config
from pydicom.uid import CTImageStorage

from pipelines.decoding import (
    MAX_FILE_BYTES,
    PADDING_HU,
    decode_hounsfield,
    is_lossy,
    uid_name,
    undecodable_reason,
)
from pipelines.errors import (
    DecodeError,
    GeometryError,
    NoUsableSeriesError,
    Refusal,
    Rule,
    UnreadableInputError,
)
from pipelines.headers import InstanceHeader, read_header
from pipelines.stack import (
    MAX_PIXEL_MM,
    MAX_SHEAR_DEGREES,
    MAX_SPACING_MM,
    MIN_PIXEL_MM,
    MIN_SPACING_MM,
    Violation,
    along_normal,
    groups_by_position,
    is_pixel,
    shear_degrees,
    stack_affine,
    violations,
)
from pipelines.volume import CTVolume

MIN_SLICES: Final = 16
MAX_VOXELS: Final = 2**29  # 1 GiB as int16: 512 x 512 x 2048
MAX_FILES: Final = 20_000
MAX_UNPACKED_BYTES: Final = 8 * 2**30
USUAL_SPACING_MM: Final = 2.5  # the grid of the lesion net: thinner slices cost time, no detail
AIR_AT_MOST_HU: Final = -500.0  # a chest CT without a voxel below is not in HU

_CHEST: Final = re.compile(r"CHEST|THORA|THOR\b|THOR_|LUNG|PULM|HRCT|WHOLE ?BODY|\bCAP\b|\bTAP\b")
_OTHER_BODY_PART: Final = re.compile(
    r"\b(HEAD|BRAIN|SKULL|CRANI\w*|NEURO\w*|FACE|FACIAL|SINUS\w*|ORBIT\w*|DENTAL|KNEE|ANKLE|FOOT"
    r"|HIP|WRIST|HAND|ELBOW|EXTREMITY|LEG|PELVIS|LSPINE|L-SPINE|LUMBAR)\b"
)
# Image Type (PS3.3 C.8.16.1.3 and vendors' own): pixels that are no longer one slice's attenuation.
_PROJECTIONS: Final = frozenset(
    {"MIP", "MINIP", "MNIP", "MAXIP", "PROJECTION", "VRT", "VOLREN", "SUBTRACTION", "PERFUSION"}
)


_NOT_NIFTI: Final = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
    EOFError,
    OSError,
    ValueError,
    zlib.error,
)


@dataclass(frozen=True)
class SeriesHeader:
    """The images of one series, or of one acquisition in it, in no particular order.

    Attributes:
        series_uid: Series Instance UID; empty for files that could not be read.
        instances: At least one, unless files could not be read.
        unreadable: How many DICOM files could not be read.
        notes: What was handled, as sentences; they become the volume's warnings.
    """

    series_uid: str
    instances: tuple[InstanceHeader, ...]
    unreadable: int = 0
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The series as one would point at it in a PACS."""
        first = self.instances[0]
        number = "" if first.series_number is None else f" {first.series_number}"
        described = first.description or first.protocol
        quoted = f' "{described}"' if described else ""
        images = "1 image" if len(self.instances) == 1 else f"{len(self.instances)} images"
        return f"Series{number}{quoted} ({images})"


@dataclass(frozen=True)
class Choice:
    """The series that may be analysed, best first and at least one, and why the others are not."""

    candidates: tuple[SeriesHeader, ...]
    refused: tuple[Refusal, ...]


# --- From files to a volume


Candidate = tuple[CTVolume, tuple[Refusal, ...]]
"""A volume that may be analysed, and why the other series of its study are not."""


def load_input(path: Path, *, threads: int = 0) -> Candidate:
    """Return the best of `candidates`."""
    with closing(candidates(path, threads=threads)) as found:
        return next(found)


def candidates(path: Path, *, threads: int = 0) -> Generator[Candidate]:
    """Yield the volumes in a DICOM folder or file, a zip of one, or a NIfTI file, the best first.

    Args:
        path: What was given to us.
        threads: For decoding; 0 for one on each core.

    Raises:
        UnreadableInputError: It holds nothing of the kind, or more than it should.
        GeometryError: A NIfTI volume sheared or spaced like no chest CT.
        NoUsableSeriesError: DICOM, but no series may be analysed, or no other is left.
    """
    if path.is_dir():
        yield from study_candidates(_files_below(path), threads=threads)
    elif not path.is_file():
        raise UnreadableInputError(f"{path} does not exist.")
    elif path.name.lower().endswith((".nii", ".nii.gz")):
        yield load_nifti(path), ()
    elif zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory() as folder:
            yield from study_candidates(unpack(path, Path(folder)), threads=threads)
    else:
        yield from study_candidates([path], threads=threads)


def study_candidates(paths: Iterable[Path], *, threads: int = 0) -> Generator[Candidate]:
    """Yield the volume of every series that may be analysed, the best first, each when asked for.

    A series that passes the rules and then fails to decode is refused too, and the next best taken.

    Args:
        paths: Files of one study, in any order; what is not DICOM is passed over.
        threads: For decoding; 0 for one on each core.

    Raises:
        NoUsableSeriesError: There is none, or none is left; it carries all that were refused.
    """
    described = describe_files(paths)
    choice = choose_series(described)
    notes = tuple(_notes(described))
    failed: list[Refusal] = []
    for series in choice.candidates:
        try:
            volume = load_series(series, threads=threads)
        except GeometryError as error:
            failed.append(_refusal(series, error.rule, f"{error} {_remedy(error.rule)}"))
        except DecodeError as error:
            failed.append(_refusal(series, Rule.UNDECODABLE, f"{error} {_IF_DAMAGED}"))
        else:
            volume = replace(volume, warnings=(*volume.warnings, *notes))
            yield volume, _beside(series, choice, failed)
            del volume  # the next one needs the memory
    raise NoUsableSeriesError((*failed, *choice.refused))


def _beside(chosen: SeriesHeader, choice: Choice, failed: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """Return why the other series of the study are not analysed."""
    told = {chosen.series_uid, *(refusal.series_uid for refusal in failed)}
    sentence = f"{chosen.name} suits the analysis better."
    not_preferred = [
        _refusal(other, Rule.NOT_PREFERRED, sentence)
        for other in choice.candidates
        if other.series_uid not in told
    ]
    others = [refusal for refusal in choice.refused if refusal.series_uid != chosen.series_uid]
    return (*failed, *others, *not_preferred)


def _notes(described: Sequence[SeriesHeader]) -> Iterator[str]:
    """Yield what a reader must know about the files beside the analysed series."""
    if unreadable := sum(series.unreadable for series in described):
        yield f"{unreadable} files could not be read: slices may be missing."
    studies = {header.study_uid for series in described for header in series.instances}
    if len(studies) > 1:
        yield f"The files belong to {len(studies)} studies; one series of one of them is analysed."


def describe_files(paths: Iterable[Path]) -> list[SeriesHeader]:
    """Return the series that the files belong to; pixels are not read."""
    by_series: defaultdict[str, list[InstanceHeader]] = defaultdict(list)
    unreadable = 0
    # Real studies carry illegal UIDs and numbers: they are data here, not reasons to stop.
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            try:
                header = read_header(path)
            except UnreadableInputError:
                unreadable += 1
            else:
                # De-identified studies may have one SOP Instance UID for all images, or none: every
                # file counts, and what was sent twice is found by its position and pixels.
                if header is not None:
                    by_series[header.series_uid].append(header)
    series = [SeriesHeader(uid, tuple(found)) for uid, found in by_series.items()]
    if unreadable:
        series.append(SeriesHeader("", (), unreadable=unreadable))
    return series


def choose_series(series: Iterable[SeriesHeader]) -> Choice:
    """Return the series that pass every rule, the best first.

    Raises:
        NoUsableSeriesError: None does.
    """
    candidates: list[SeriesHeader] = []
    refused: list[Refusal] = []
    for whole in series:
        for part in _acquisitions(_without_localisers(whole)):
            refusal = examine(part)
            if refusal is None:
                candidates.append(part)
            else:
                refused.append(refusal)
    if not candidates:
        raise NoUsableSeriesError(tuple(refused))
    candidates.sort(key=_preference)
    return Choice(tuple(candidates), tuple(refused))


def load_series(series: SeriesHeader, *, threads: int = 0) -> CTVolume:
    """Decode a series that passed the rules.

    Args:
        series: One of `Choice.candidates`.
        threads: 0 for one on each core.

    Raises:
        GeometryError: Two slices share a position and differ.
        DecodeError: A slice cannot be decoded.
    """
    ordered = along_normal(series.instances)
    stack = _decode(ordered, threads=threads or os.cpu_count() or 1)
    kept = _without_duplicates(ordered, stack)
    notes = series.notes
    if len(kept) < len(ordered):
        notes += (f"{len(ordered) - len(kept)} exact duplicates of slices were left out.",)
        stack, ordered = stack[kept], [ordered[k] for k in kept]
    return CTVolume.from_input(
        stack,
        stack_affine(ordered),
        series_uid=series.series_uid,
        frame_of_reference_uid=ordered[0].frame_of_reference_uid,
        sop_instance_uids=tuple(header.sop_instance_uid for header in ordered),
        instance_numbers=tuple(header.instance_number for header in ordered),
        name=series.name,
        warnings=notes + _lossy_note(ordered),
    )


def load_nifti(path: Path) -> CTVolume:
    """Return the volume in a NIfTI file of HU, in any axis order.

    Raises:
        UnreadableInputError: Not NIfTI, not 3-D, without orientation, or not HU.
        GeometryError: Sheared, or spaced like no chest CT.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        if len(image.shape) == 4 and image.shape[3] == 1:
            image = image.slicer[..., 0]
        if len(image.shape) != 3 or not 0 < np.prod(image.shape, dtype=float) <= MAX_VOXELS:
            raise UnreadableInputError(f"{path.name} has the shape {image.shape}, not a CT's.")
        if not (image.header["sform_code"] or image.header["qform_code"]):
            raise UnreadableInputError(f"{path.name} does not say where left and right are.")
        values = np.asanyarray(image.dataobj)
    except _NOT_NIFTI as error:
        raise UnreadableInputError(f"{path.name} is no readable NIfTI file: {error}") from error
    hu = _as_hounsfield(values, path.name)
    warnings = tuple(_nifti_warnings(values, np.asarray(image.affine)))
    ras_to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = ras_to_lps @ np.asarray(image.affine, np.float64)
    volume = CTVolume.from_input(
        hu, affine, series_uid=path.name, name=path.name, warnings=warnings
    )
    _check_nifti_geometry(volume)
    return volume


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a zip archive into numbered files and return them; its names are never used.

    Raises:
        UnreadableInputError: It is damaged, encrypted, or unpacks to more than a study may hold.
    """
    paths = []
    left = MAX_UNPACKED_BYTES
    try:
        with zipfile.ZipFile(archive) as source:
            members = [member for member in source.infolist() if not member.is_dir()]
            if len(members) > MAX_FILES:
                raise UnreadableInputError(f"{archive.name} holds more than {MAX_FILES} files.")
            for number, member in enumerate(members):
                # What counts is what comes out, not the size that the archive claims.
                with source.open(member) as packed:
                    content = packed.read(min(left, MAX_FILE_BYTES) + 1)
                left -= len(content)
                if left < 0 or len(content) > MAX_FILE_BYTES:
                    raise UnreadableInputError(f"{archive.name} unpacks to more than it should.")
                paths.append(folder / f"{number:06d}")
                paths[-1].write_bytes(content)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise UnreadableInputError(f"{archive.name} cannot be unpacked: {error}") from error
    return paths


def _files_below(folder: Path) -> list[Path]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if len(paths) > MAX_FILES:
        raise UnreadableInputError(f"{folder} holds more than {MAX_FILES} files.")
    return paths


# --- Rules


def examine(series: SeriesHeader) -> Refusal | None:
    """Return why a series may not be analysed, with every rule it breaks; None if it may."""
    if series.unreadable:
        reason = (
            f"{series.unreadable} DICOM files are malformed and could not be read; resend them."
        )
        return Refusal(series.series_uid, Rule.UNREADABLE, reason)
    broken = list(_broken_rules(series))
    if not broken:
        return None
    rule = broken[0][0]
    clauses = "; ".join(clause for _, clause in broken)
    return _refusal(series, rule, f"{clauses}. {_remedy(rule)}")


_IF_DAMAGED: Final = (
    "Remove the study here (`appliance study remove`), then send it again: an image that is here"
    " is not replaced."
)
_DEFAULT_REMEDY: Final = "Send the original axial chest series."
_REMEDIES: Final = {
    Rule.GANTRY_TILT: "Send a series without tilt, or one that the scanner has straightened.",
    Rule.DUPLICATE_POSITION: "Send each phase or reconstruction as a series of its own.",
    Rule.MISSING_SLICE: "Send the missing slices.",
    Rule.UNEVEN_SPACING: "Send a series with even spacing.",
    Rule.UNDECODABLE: "Send it uncompressed or losslessly compressed.",
    Rule.UNSUPPORTED_OBJECT: "Send single-frame CT images.",
}


def _remedy(rule: Rule) -> str:
    return _REMEDIES.get(rule, _DEFAULT_REMEDY)


def _broken_rules(series: SeriesHeader) -> Iterator[Violation]:
    """Yield the rules a series breaks, what it is before how it lies."""
    kind = _kind_violation(series.instances)
    if kind is not None:
        yield kind
        return
    yield from violations(series.instances)
    if part := _other_body_part(series.instances[0]):
        yield Rule.NOT_CHEST, f"it shows another part of the body ({part})"
    if len(series.instances) < MIN_SLICES:
        found = len(series.instances)
        yield Rule.TOO_FEW_SLICES, f"{found} are fewer than the {MIN_SLICES} slices of a volume"
    yield from _pixel_violations(series.instances)


def _kind_violation(instances: Sequence[InstanceHeader]) -> Violation | None:
    """Return why the images are no slices of a CT scan, None if they are."""
    for header in instances:
        if header.modality != "CT":
            return Rule.NOT_CT, f"its modality is {header.modality or 'not stated'}"
        if header.sop_class_uid != CTImageStorage:
            name = uid_name(header.sop_class_uid)
            return Rule.UNSUPPORTED_OBJECT, f"it holds {name}, such as summaries or dose reports"
        if header.is_localiser:
            return Rule.LOCALISER, "it is a localiser (survey radiograph)"
        if projected := _words(header) & _PROJECTIONS:
            return Rule.DERIVED, f"it is computed from slices ({', '.join(sorted(projected))})"
    return None


def _words(header: InstanceHeader) -> set[str]:
    """Return the words that say how an image was made; workstations write some into the name."""
    texts = list(header.image_type)
    if "DERIVED" in texts:
        texts.append(header.description.upper())
    return {word for text in texts for word in re.split(r"[^A-Z]+", text)}


def _pixel_violations(instances: Sequence[InstanceHeader]) -> Iterator[Violation]:
    voxels = 0
    for header in instances:
        if header.pixels is None:
            yield Rule.UNDECODABLE, "an image does not hold one slice of Hounsfield units"
            return
        if reason := undecodable_reason(header.pixels):
            yield Rule.UNDECODABLE, reason
            return
        voxels += header.pixels.rows * header.pixels.columns
    if voxels > MAX_VOXELS:
        yield Rule.TOO_LARGE, f"its {voxels / 1e6:.0f} million voxels exceed {MAX_VOXELS / 1e6:.0f}"


def _other_body_part(header: InstanceHeader) -> str | None:
    """Return the part of the body that is named, unless the chest is named anywhere."""
    texts = [header.body_part, header.description.upper(), header.protocol.upper()]
    if any(_CHEST.search(text) for text in texts):
        return None
    found = [match.group(0) for text in texts if (match := _OTHER_BODY_PART.search(text))]
    return found[0].lower() if found else None


def _without_localisers(series: SeriesHeader) -> SeriesHeader:
    """Return a series without the localisers that some scanners file with its slices."""
    slices = tuple(header for header in series.instances if not header.is_localiser)
    if not slices or len(slices) == len(series.instances):
        return series
    note = f"{len(series.instances) - len(slices)} localisers in the series were left out."
    return replace(series, instances=slices, notes=(*series.notes, note))


def _acquisitions(series: SeriesHeader) -> list[SeriesHeader]:
    """Return the acquisitions of a series whose slices share positions, else the series itself.

    Two phases in one series are two volumes if each of them is a regular stack of its own.
    """
    if not _shares_positions(series.instances):
        return [series]
    by_number: defaultdict[int | None, list[InstanceHeader]] = defaultdict(list)
    for header in series.instances:
        by_number[header.acquisition_number].append(header)
    parts = [replace(series, instances=tuple(part)) for part in by_number.values()]
    regular = all(examine(part) is None and not _shares_positions(part.instances) for part in parts)
    return parts if regular else [series]


def _shares_positions(instances: Sequence[InstanceHeader]) -> bool:
    if not instances or any(h.position is None or h.orientation is None for h in instances):
        return False
    return len(groups_by_position(along_normal(instances))) < len(instances)


def _preference(series: SeriesHeader) -> tuple[bool, bool, float, int]:
    """Return a key that sorts the best series first."""
    first = series.instances[0]
    texts = (first.body_part, first.description.upper(), first.protocol.upper())
    names_chest = any(_CHEST.search(text) for text in texts)
    affine = stack_affine(along_normal(series.instances))
    spacing = float(np.linalg.norm(affine[:3, 0]))
    number = first.series_number if first.series_number is not None else 10_000
    unusual = round(abs(spacing - USUAL_SPACING_MM), 2)  # mm; else rounding would decide
    return (not names_chest, "DERIVED" in first.image_type, unusual, number)


def _refusal(series: SeriesHeader, rule: Rule, sentence: str) -> Refusal:
    return Refusal(series.series_uid, rule, f"{series.name} is refused, {rule}: {sentence}")


# --- Pixels


def _decode(ordered: Sequence[InstanceHeader], *, threads: int) -> npt.NDArray[np.int16]:
    """Return the HU of the images (slice, row, column)."""
    slices = [header.pixels for header in ordered if header.pixels is not None]
    stack = np.empty((len(slices), slices[0].rows, slices[0].columns), np.int16)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode_hounsfield, slices, stack))
    return stack


def _without_duplicates(
    ordered: Sequence[InstanceHeader], stack: npt.NDArray[np.int16]
) -> list[int]:
    """Return the indices of the slices to keep, one for each position.

    Raises:
        GeometryError: Slices at one position differ.
    """
    kept = []
    for first, *others in groups_by_position(ordered):
        if any(not np.array_equal(stack[first], stack[other]) for other in others):
            message = "two different slices lie at one position."
            raise GeometryError(Rule.DUPLICATE_POSITION, message)
        kept.append(first)
    return kept


def _lossy_note(ordered: Sequence[InstanceHeader]) -> tuple[str, ...]:
    if any(header.pixels and is_lossy(header.pixels.transfer_syntax_uid) for header in ordered):
        return ("The images were compressed with loss: small or faint lesions may be altered.",)
    return ()


def _as_hounsfield(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.int16]:
    """Return NIfTI values as int16 HU.

    Raises:
        UnreadableInputError: They are no HU: not numbers, or without air.
    """
    if values.dtype.kind not in "iuf":
        raise UnreadableInputError(f"{name} holds no single numbers, but {values.dtype}.")
    if values.dtype.kind == "f":
        values = np.nan_to_num(np.rint(values), nan=PADDING_HU)
    limits = np.iinfo(np.int16)
    hu: npt.NDArray[np.int16] = np.clip(values, limits.min, limits.max).astype(np.int16)
    if hu.min() > AIR_AT_MOST_HU:
        raise UnreadableInputError(f"{name} holds no air below {AIR_AT_MOST_HU:g}: is it in HU?")
    return hu


def _nifti_warnings(values: npt.NDArray[Any], affine: npt.NDArray[Any]) -> Iterator[str]:
    """Yield what a NIfTI file lacks, although it can be analysed."""
    if values.dtype.kind == "f" and (empty := int(np.isnan(values).sum())):
        yield f"{empty} voxels hold no number: they are taken for air outside the scan."
    if np.array_equal(np.abs(affine), np.eye(4)):
        yield (
            "The file gives no spacing of its own, but voxels of 1 mm from position 0: if the true "
            "spacing was lost, every volume and diameter is wrong."
        )


def _check_nifti_geometry(volume: CTVolume) -> None:
    if not (np.isfinite(volume.affine).all() and is_pixel(volume.spacing[1:])):
        sides = f"{volume.spacing[1]:.3g} x {volume.spacing[2]:.3g} mm"
        raise GeometryError(
            Rule.SPACING_OUT_OF_RANGE,
            f"{volume.series_uid} has pixels of {sides}, "
            f"not {MIN_PIXEL_MM} to {MAX_PIXEL_MM:g} mm.",
        )
    if (shear := shear_degrees(volume.affine)) > MAX_SHEAR_DEGREES:
        raise GeometryError(
            Rule.GANTRY_TILT, f"{volume.series_uid} is tilted by {shear:.1f}° against its axes."
        )
    if not MIN_SPACING_MM <= volume.spacing[0] <= MAX_SPACING_MM:
        apart = f"{volume.spacing[0]:.2f} mm apart, not {MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm"
        raise GeometryError(Rule.SPACING_OUT_OF_RANGE, f"{volume.series_uid} has slices {apart}.")
    if volume.shape[0] < MIN_SLICES:
        raise GeometryError(
            Rule.TOO_FEW_SLICES, f"{volume.series_uid} has {volume.shape[0]} slices."
        )
