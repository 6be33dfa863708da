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

A mask, `lung` or `lesion`, is any of these but DICOM and JPEG: whatever is above 0 belongs to it,
and a JPEG's noise is. A key that is null is as good as left out.

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
import functools
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
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
FARTHEST_MM: Final = 1e4  # of two slices or pixels
LONGEST_SHOWN: Final = 60  # characters of a wrong value
LOSSY: Final = ("JPEG", "JPEG2000", "MPO", "WEBP")  # formats of pictures, as Pillow names them

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

    @functools.cached_property
    def digest(self) -> str:
        """What the data are: every case in its part, and the content of its files.

        The same data elsewhere have the same digest. All files are read for it.
        """
        content = functools.cache(content_of)  # a file may hold many cases
        rows = [asdict(case) for case in self.cases]
        for row in rows:
            for key in ("image", "lung", "lesion"):
                named = (name.partition("#") for name in _each(row[key] or ()))
                row[key] = [[content(self.root / path), array] for path, _, array in named]
        told = json.dumps([self.name, rows], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

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
            self._refuse_lossy(files)
            mask = self._slices(files) > 0
        if mask.shape != shape:
            raise ManifestError(f"the mask {files} is {mask.shape}, its image {shape}.")
        return mask

    def _knows_its_geometry(self, name: str) -> bool:
        return name.lower().endswith(VOLUME_SUFFIXES) or (self.root / name).is_dir()

    def _refuse_lossy(self, mask: Files) -> None:
        for name in _each(mask):
            if "#" in name:
                continue
            with Image.open(self.root / name) as picture:
                if picture.format in LOSSY:
                    raise ManifestError(
                        f"the mask {name} is a {picture.format}, which adds noise around what is "
                        "marked: make it anew as a PNG, an array or a NIfTI file."
                    )

    def _slices(self, files: Files) -> NDArray[Any]:
        stacks = [np.atleast_3d(self._array(name).T).T for name in _each(files)]
        for name, stack in zip(_each(files), stacks, strict=True):
            if stack.shape[1:] != stacks[0].shape[1:]:
                raise ManifestError(
                    f"{name} is {stack.shape[1:]}, the slices before it {stacks[0].shape[1:]}: "
                    "the slices of a case must have one size."
                )
        return np.concatenate(stacks)

    def _array(self, name: str) -> NDArray[Any]:
        path, _, key = name.partition("#")
        if key:
            if not zipfile.is_zipfile(self.root / path):
                raise ManifestError(f"{path} is no npz file.")
            with np.load(self.root / path) as arrays:
                if key not in arrays.files:
                    raise ManifestError(
                        f"{path} holds no array '{key}': name one of {', '.join(arrays.files)}."
                    )
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
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read as a manifest: {error}") from error
    try:
        top = _checked(raw, {"name", "source", "licence", "cases"}, {"root", "split"}, "the top")
        _check_texts(top, ("name", "source", "licence", "root"), "the top")
        manifest = Manifest(
            name=top["name"],
            source=top["source"],
            licence=top["licence"],
            root=path.parent / top.get("root", "."),
            cases=tuple(with_parts(_cases(top["cases"]), _split(top.get("split")))),
        )
        _check_cases(manifest)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error
    return manifest


def paths_of(files: Files | None) -> tuple[str, ...]:
    """Return where these files lie below the root, arrays by the file that holds them."""
    return tuple(name.partition("#")[0] for name in _each(files or ()))


def content_of(path: Path) -> str:
    """Return a digest of the bytes of a file, or of all files in a folder whatever their names.

    What cannot be read differs from what can; why, whoever reads it for its pixels is told.
    """
    try:
        if path.is_dir():
            files = sorted(content_of(file) for file in path.rglob("*") if file.is_file())
            return hashlib.sha256(" ".join(files).encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"not readable: {error.strerror}"


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


def _cases(rows: object) -> list[Case]:
    if not isinstance(rows, list):
        raise ManifestError(f"cases is {_shown(rows)}; it is a list of objects.")
    return [_case(row, place) for place, row in enumerate(rows)]


def _case(row: object, place: int) -> Case:
    allowed = {field.name for field in fields(Case)}
    required = {"id", "group", "domain", "image"}
    name = row.get("id") if isinstance(row, Mapping) else None
    where = f"case '{name}'" if isinstance(name, str) else f"case {place}"
    values = _checked(row, required, allowed - required, where)
    _check_texts(values, ("id", "group", "label", "label_source", "site", "scanner"), where)
    for key in {"image", "lung", "lesion"} & set(values):
        values[key] = _files(values[key], f"{where}: {key}")
    if "spacing_mm" in values:
        steps = values["spacing_mm"]
        numbers = _is_list(steps, int, float) and len(steps) == 3
        if not (numbers and all(0 < step < FARTHEST_MM for step in steps)):
            raise ManifestError(
                f"{where}: spacing_mm is {_shown(steps)}; it is three numbers, each above 0, in mm "
                "and in the order (z, y, x)."
            )
        values["spacing_mm"] = tuple(float(step) for step in steps)
    if "lesion_slices" in values:
        if not _is_list(values["lesion_slices"], int):
            raise ManifestError(
                f"{where}: lesion_slices is {_shown(values['lesion_slices'])}; it is a list of "
                "whole numbers."
            )
        values["lesion_slices"] = tuple(values["lesion_slices"])
    if "label" in values and "label_source" not in values:
        raise ManifestError(f"{where} has a label but no label_source.")
    for key, kind in (("domain", Domain), ("part", Part)):
        if key in values:
            if values[key] not in list(kind):
                known = ", ".join(kind)
                raise ManifestError(
                    f"{where}: {key} is {_shown(values[key])}; it is one of {known}."
                )
            values[key] = kind(values[key])
    return Case(**values)


def _files(value: object, what: str) -> Files:
    names: list[Any] = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(n, str) and n.partition("#")[0] for n in names):
        raise ManifestError(
            f"{what} is {_shown(value)}; it is the name of a file, or a list of such names, one "
            "for each slice."
        )
    return value if isinstance(value, str) else tuple(names)


def _is_list(value: object, *kinds: type) -> bool:
    """Return whether this is a list of numbers of these kinds."""
    return isinstance(value, list) and all(type(number) in kinds for number in value)


def _shown(value: object) -> str:
    """Return what stands in the file, cut short."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _check_texts(values: Mapping[str, object], keys: Iterable[str], where: str) -> None:
    for key in keys:
        if key in values and not isinstance(values[key], str):
            raise ManifestError(
                f"{where}: {key} is {_shown(values[key])}; it is a text, in quotation marks."
            )


def _split(row: object) -> Split | None:
    if row is None:
        return None
    values = _checked(row, {"seed", "validation", "test"}, set(), "split")
    seed, *shares = values["seed"], values["validation"], values["test"]
    if type(seed) is not int or seed < 0 or not _is_list(shares, int, float):
        raise ManifestError(
            f"split is {_shown(row)}; seed is a whole number from 0, validation and test are "
            "shares."
        )
    return Split(seed, *shares)


def _checked(row: object, required: set[str], optional: set[str], where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ManifestError(f"{where} is no JSON object.")
    values = {key: value for key, value in row.items() if value is not None}
    missing = sorted(required - set(values))
    if missing:
        raise ManifestError(f"{where} lacks {', '.join(missing)}.")
    for key in sorted(set(row) - required - optional):
        near = difflib.get_close_matches(key, required | optional, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise ManifestError(f"{where} has an unknown key '{key}'{hint}")
    return values


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
            for path in paths_of(files):
                if not (manifest.root / path).exists():
                    raise ManifestError(f"case '{case.id}': {manifest.root / path} is missing.")


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
