"""Data sets for training and evaluation: a JSON manifest names files, labels and provenance.

A manifest is one JSON object::

    {"name": "covid-2020", "source": "10.5281/zenodo.3757476", "licence": "CC BY-NC-SA 4.0",
     "root": ".",
     "split": {"seed": 1, "validation": 0.1, "test": 0.2},
     "cases": [{"id": "v00", "group": "v00", "domain": "display", "spacing_mm": [1.25, 1.4, 1.4],
                "image": "v00.npz#image", "lung": "v00.npz#lung", "lesion": "v00.npz#lesion",
                "label": "covid", "label_source": "NAT", "site": "Wuhan 1", "scanner": "SOMATOM"}]}

`root` is the folder that file names are relative to, itself relative to the manifest. A file is

- a folder of DICOM files, a zip of one, or a NIfTI file, which know their own geometry;
- `file.npz#key`, an array (y, x) or (z, y, x), z to the head, y to the back, x to the left; or a
  PNG or JPEG, an axial slice in the radiological view; or a list of those, one for each slice, the
  most caudal first. These need `spacing_mm`, in the order (z, y, x).

A mask, `lung` or `lesion`, is any of these but DICOM: whatever is above 0 belongs to it.

`domain` says what a value means: `hu`, or `display`, 8 bits after a window somebody else chose:
whole numbers from 0 to 255. A PNG or JPEG holds no HU.
`group` is what must not be torn apart by a split: a patient, or the paper a slice was cut from.
A `label` says where it comes from (`label_source`: NAT, radiology, follow-up, publication; J11).
`lesion_slices` are the slices in which somebody saw a lesion, counted from 0 at the most caudal.
`part` (train, validation, test) of a case overrules `split`, which otherwise shares out the groups,
those of each label for themselves and as near to the shares as whole groups allow; a label's only
group is for training. The seed alone decides: the same manifest always gives the same split (J17).
A case more may move groups from part to part. To keep the test groups of a set that grows, give its
cases a `part`.
"""

import difflib
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import ManifestError, PipelineError
from pipelines.findings import load_mask
from pipelines.series import load_input

NIFTI_SUFFIXES: Final = (".nii", ".nii.gz")
VOLUME_SUFFIXES: Final = (*NIFTI_SUFFIXES, ".zip")

_DAMAGED: Final = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    OSError,
    SyntaxError,  # of a PNG whose chunks are broken
    ValueError,
    PipelineError,
)


class Domain(StrEnum):
    """What a pixel value means."""

    HU = "hu"
    DISPLAY = "display"


class Part(StrEnum):
    """What a case may be used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


Files = str | tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One study or slice of a data set, its files not yet read."""

    id: str
    group: str
    domain: Domain
    image: Files
    lung: Files | None = None
    lesion: Files | None = None
    spacing_mm: tuple[float, float, float] | None = None
    label: str | None = None
    label_source: str | None = None
    lesion_slices: tuple[int, ...] | None = None
    site: str | None = None
    scanner: str | None = None
    part: Part | None = None


@dataclass(frozen=True)
class Split:
    """Shares of the groups that are kept from training, and the seed that picks them."""

    seed: int
    validation: float
    test: float

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing for training.

        Raises:
            ManifestError: they do, or one is below 0.
        """
        if not (min(self.validation, self.test) >= 0 and self.validation + self.test < 1):
            raise ManifestError("split: validation and test are from 0 and together below 1.")


@dataclass(frozen=True, eq=False)
class Stack:
    """Axial slices of one case, `(z, y, x)`, z to the head, y to the back, x to the patient's left.

    `image` is int16: HU, or 0 to 255. `spacing` is (z, y, x) mm. A single slice is a stack of one.
    """

    case: Case
    image: NDArray[np.int16]
    spacing: tuple[float, float, float]
    lung: NDArray[np.bool_] | None
    lesion: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Manifest:
    """A data set: its cases, each in one part, and where its files lie."""

    name: str
    source: str
    licence: str
    root: Path
    cases: tuple[Case, ...]
    digest: str

    def fold(self, number: int, count: int, seed: int) -> "Manifest":
        """Return the data set with another validation part: fold `number`, from 0, of `count`.

        The test part stays; all else is training or, in its fold, validation (U9). Groups are dealt
        to the folds in turn, label after label.
        """
        learnt = [case for case in self.cases if case.part is not Part.TEST]
        dealt = chain.from_iterable(_shuffled(learnt, seed))
        fold_of = {group: place % count for place, group in enumerate(dealt)}
        cases = tuple(
            case
            if case.part is Part.TEST
            else replace(
                case, part=Part.VALIDATION if fold_of[case.group] == number else Part.TRAIN
            )
            for case in self.cases
        )
        return replace(self, cases=cases)

    def of(self, *parts: Part) -> tuple[Case, ...]:
        """Return the cases of `parts`."""
        return tuple(case for case in self.cases if case.part in parts)

    def load(self, case: Case) -> Stack:
        """Read the files of a case.

        Raises:
            ManifestError: one cannot be read, a value does not fit the domain, a mask has another
                shape than the image, or a slice is marked that is none.
        """
        try:
            image, spacing = self._image(case)
            lung, lesion = (self._mask(image.shape, files) for files in _masks(case))
            _check_marks(case, len(image))
        except _DAMAGED as error:
            raise ManifestError(f"Case '{case.id}' of '{self.name}': {_said(error)}") from error
        return Stack(case, image, spacing, lung, lesion)

    def _image(self, case: Case) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
        if isinstance(case.image, str) and self._knows_its_geometry(case.image):
            volume, _ = load_input(self.root / case.image)
            return _in_domain(volume.hu, case.domain), volume.spacing
        if case.spacing_mm is None:
            raise ManifestError("spacing_mm is missing, and its files do not carry it.")
        if case.domain is Domain.HU and not all("#" in name for name in _each(case.image)):
            raise ManifestError("a picture holds no HU: its domain is 'display'.")
        return _in_domain(self._slices(case.image), case.domain), case.spacing_mm

    def _mask(self, shape: tuple[int, ...], files: Files | None) -> NDArray[np.bool_] | None:
        if files is None:
            return None
        if isinstance(files, str) and files.lower().endswith(NIFTI_SUFFIXES):
            mask = load_mask(self.root / files) > 0
        elif isinstance(files, str) and self._knows_its_geometry(files):
            raise ManifestError(f"the mask {files} is no NIfTI file, array or picture.")
        else:
            mask = self._slices(files) > 0
        if mask.shape != shape:
            raise ManifestError(f"the mask {files} is {mask.shape}, its image {shape}.")
        return mask

    def _knows_its_geometry(self, name: str) -> bool:
        return name.lower().endswith(VOLUME_SUFFIXES) or (self.root / name).is_dir()

    def _slices(self, files: Files) -> NDArray[Any]:
        return np.concatenate([np.atleast_3d(self._array(name).T).T for name in _each(files)])

    def _array(self, name: str) -> NDArray[Any]:
        path, _, key = name.partition("#")
        if key:
            if not zipfile.is_zipfile(self.root / path):
                raise ManifestError(f"{path} is no npz file.")
            with np.load(self.root / path) as arrays:
                array: NDArray[Any] = arrays[key]
            if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "buif":
                raise ManifestError(f"{name} is {array.dtype} {array.shape}, no slice or stack.")
            return array
        with Image.open(self.root / path) as picture:
            return np.asarray(picture.convert("L"))


def open_manifest(path: Path) -> Manifest:
    """Return the data set that a manifest describes, every case in its part.

    Raises:
        ManifestError: it is no JSON, lacks a key or has one too many, names a file that is not
            there, or a group stands in two parts.
    """
    try:
        content = path.read_bytes()
        raw = json.loads(content)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read as a manifest: {error}") from error
    try:
        top = _checked(raw, {"name", "source", "licence", "cases"}, {"root", "split"}, "the top")
        cases = [_case(row, place) for place, row in enumerate(top["cases"])]
        split = _split(top.get("split"))
        manifest = Manifest(
            name=str(top["name"]),
            source=str(top["source"]),
            licence=str(top["licence"]),
            root=path.parent / str(top.get("root", ".")),
            cases=tuple(with_parts(cases, split)),
            digest=hashlib.sha256(content).hexdigest(),
        )
        _check_cases(manifest)
    except (ManifestError, TypeError, ValueError) as error:
        raise ManifestError(f"{path}: {error}") from error
    return manifest


def with_parts(cases: Iterable[Case], split: Split | None) -> Iterator[Case]:
    """Yield the cases with their part; groups stay whole, those of each label are shared out.

    Raises:
        ManifestError: a case has no part and there is no split.
    """
    cases = list(cases)
    part_of = _shared_out([case for case in cases if case.part is None], split)
    for case in cases:
        yield case if case.part is not None else replace(case, part=part_of[case.group])


def _shared_out(cases: list[Case], split: Split | None) -> dict[str, Part]:
    """Return the part of each group."""
    if not cases:
        return {}
    if split is None:
        raise ManifestError(f"case '{cases[0].id}' has no part, and there is no split.")
    return {
        group: part
        for groups in _shuffled(cases, split.seed)
        for group, part in zip(groups, _parts(len(groups), split), strict=True)
    }


def _parts(groups: int, split: Split) -> Iterator[Part]:
    """Yield the part of each of so many groups: whole shares, the rest to the largest remainders.

    A tie goes to the test part. A lone group is for training.
    """
    if groups == 1:
        split = replace(split, validation=0.0, test=0.0)
    test, validation = (  # exact, so that a share of 0.1 is one of ten groups
        Fraction(share).limit_denominator(10**6) * groups
        for share in (split.test, split.validation)
    )
    wanted = {
        Part.TEST: test,
        Part.VALIDATION: validation,
        Part.TRAIN: groups - test - validation,
    }
    counts = {part: math.floor(share) for part, share in wanted.items()}
    by_remainder = sorted(wanted, key=lambda part: counts[part] - wanted[part])
    for part in by_remainder[: groups - sum(counts.values())]:
        counts[part] += 1
    for part, count in counts.items():
        yield from [part] * count


def _shuffled(cases: list[Case], seed: int) -> list[list[str]]:
    """Return the groups in random order, those of the same labels together."""
    labels: dict[str, set[str]] = {}
    for case in cases:
        labels.setdefault(case.group, set()).add(case.label or "")
    strata: dict[tuple[str, ...], list[str]] = {}
    for group, found in sorted(labels.items()):
        strata.setdefault(tuple(sorted(found)), []).append(group)
    rng = np.random.default_rng(seed)
    return [
        [groups[index] for index in rng.permutation(len(groups))]
        for _, groups in sorted(strata.items())
    ]


def _case(row: object, place: int) -> Case:
    allowed = {field.name for field in fields(Case)}
    required = {"id", "group", "domain", "image"}
    values = _checked(row, required, allowed - required, f"case {place}")
    for key in ("image", "lung", "lesion"):
        if isinstance(values.get(key), list):
            values[key] = tuple(str(name) for name in values[key])
    if "spacing_mm" in values:
        z, y, x = (float(step) for step in values["spacing_mm"])
        if min(z, y, x) <= 0:
            raise ManifestError(f"case '{values['id']}': spacing_mm must be above 0.")
        values["spacing_mm"] = (z, y, x)
    if "lesion_slices" in values:
        values["lesion_slices"] = tuple(int(z) for z in values["lesion_slices"])
    if "label" in values and "label_source" not in values:
        raise ManifestError(f"case '{values['id']}' has a label but no label_source.")
    values["domain"] = Domain(values["domain"])
    if "part" in values:
        values["part"] = Part(values["part"])
    return Case(**values)


def _split(row: object) -> Split | None:
    if row is None:
        return None
    values = _checked(row, {"seed", "validation", "test"}, set(), "split")
    return Split(int(values["seed"]), float(values["validation"]), float(values["test"]))


def _checked(row: object, required: set[str], optional: set[str], where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ManifestError(f"{where} is no JSON object.")
    missing = sorted(required - set(row))
    if missing:
        raise ManifestError(f"{where} lacks {', '.join(missing)}.")
    for key in sorted(set(row) - required - optional):
        near = difflib.get_close_matches(key, required | optional, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise ManifestError(f"{where} has an unknown key '{key}'{hint}")
    return dict(row)


def _check_cases(manifest: Manifest) -> None:
    seen: set[str] = set()
    part_of: dict[str, Part | None] = {}
    for case in manifest.cases:
        if case.id in seen:
            raise ManifestError(f"two cases are called '{case.id}'.")
        seen.add(case.id)
        if part_of.setdefault(case.group, case.part) is not case.part:
            raise ManifestError(f"group '{case.group}' stands in two parts.")
        for files in (case.image, *_masks(case)):
            for name in _each(files or ()):
                if not (manifest.root / name.partition("#")[0]).exists():
                    raise ManifestError(f"case '{case.id}': {manifest.root / name} is missing.")


def _each(files: Files) -> tuple[str, ...]:
    return (files,) if isinstance(files, str) else files


def _masks(case: Case) -> tuple[Files | None, Files | None]:
    return case.lung, case.lesion


def _in_domain(values: NDArray[Any], domain: Domain) -> NDArray[np.int16]:
    """Return the values of an image as int16.

    Raises:
        ManifestError: they are not what the domain says.
    """
    limits = np.iinfo(np.uint8 if domain is Domain.DISPLAY else np.int16)
    low, high = values.min(), values.max()
    if not (limits.min <= low and high <= limits.max):
        raise ManifestError(
            f"its values go from {low:g} to {high:g}, those of '{domain}' from {limits.min} to "
            f"{limits.max}."
        )
    if values.dtype.kind == "f":
        whole = np.rint(values)
        if domain is Domain.DISPLAY and (values != whole).any():
            raise ManifestError("its values are no whole numbers from 0 to 255, as 'display' is.")
        values = whole
    return values.astype(np.int16, copy=False)


def _check_marks(case: Case, slices: int) -> None:
    beyond = [z for z in case.lesion_slices or () if not 0 <= z < slices]
    if beyond:
        raise ManifestError(f"lesion_slices names {beyond[0]}; the slices are 0 to {slices - 1}.")


def _said(error: Exception) -> str:
    return f"{error.args[0]} is not in the file." if isinstance(error, KeyError) else str(error)
