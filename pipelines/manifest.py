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

`domain` says what a value means: `hu`, or `display`, 8 bits after a window somebody else chose.
`group` is what must not be torn apart by a split: a patient, or the paper a slice was cut from.
A `label` says where it comes from (`label_source`: NAT, radiology, follow-up, publication; J11).
`lesion_slices` are the slices in which somebody saw a lesion, counted from 0 at the most caudal.
`part` (train, validation, test) of a case overrules `split`, which otherwise sends groups of every
label to the three parts, by the seed alone: the same manifest always gives the same split (J17).
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipelines.errors import ManifestError, PipelineError
from pipelines.findings import load_mask
from pipelines.series import load_input

VOLUME_SUFFIXES: Final = (".nii", ".nii.gz", ".zip")


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

        The test part stays; all else is training or, in its fold, validation (U9).
        """
        learnt = [replace(c, part=None) for c in self.cases if c.part is not Part.TEST]
        place = _places(learnt, Split(seed, validation=1 / count, test=0.0))
        cases = tuple(
            case
            if case.part is Part.TEST
            else replace(
                case,
                part=Part.VALIDATION if int(place[case.group] * count) == number else Part.TRAIN,
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
            ManifestError: one cannot be read, or a mask has another shape than the image.
        """
        try:
            image, spacing = self._image(case)
            lung, lesion = (self._mask(image.shape, files) for files in _masks(case))
        except (OSError, KeyError, ValueError, UnidentifiedImageError, PipelineError) as error:
            raise ManifestError(f"Case '{case.id}' of '{self.name}': {_said(error)}") from error
        return Stack(case, image, spacing, lung, lesion)

    def _image(self, case: Case) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
        if isinstance(case.image, str) and self._knows_its_geometry(case.image):
            volume, _ = load_input(self.root / case.image)
            return volume.hu, volume.spacing
        if case.spacing_mm is None:
            raise ManifestError("spacing_mm is missing, and its files do not carry it.")
        return self._slices(case.image).astype(np.int16), case.spacing_mm

    def _mask(self, shape: tuple[int, ...], files: Files | None) -> NDArray[np.bool_] | None:
        if files is None:
            return None
        if isinstance(files, str) and self._knows_its_geometry(files):
            mask = load_mask(self.root / files) > 0
        else:
            mask = self._slices(files) > 0
        if mask.shape != shape:
            raise ManifestError(f"the mask {files} is {mask.shape}, its image {shape}.")
        return mask

    def _knows_its_geometry(self, name: str) -> bool:
        return name.lower().endswith(VOLUME_SUFFIXES) or (self.root / name).is_dir()

    def _slices(self, files: Files) -> NDArray[Any]:
        names = (files,) if isinstance(files, str) else files
        parts = [np.atleast_3d(self._array(name).T).T for name in names]
        return np.concatenate(parts)

    def _array(self, name: str) -> NDArray[Any]:
        path, _, key = name.partition("#")
        if key:
            with np.load(self.root / path) as arrays:
                array: NDArray[Any] = arrays[key]
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
    """Yield the cases with their part; groups stay whole and every label goes everywhere.

    Raises:
        ManifestError: a case has no part and there is no split.
    """
    cases = list(cases)
    place = _places([case for case in cases if case.part is None], split)
    for case in cases:
        if case.part is not None:
            yield case
            continue
        if split is None:
            raise ManifestError(f"case '{case.id}' has no part, and there is no split.")
        share = place[case.group]
        if share < split.test:
            part = Part.TEST
        elif share < split.test + split.validation:
            part = Part.VALIDATION
        else:
            part = Part.TRAIN
        yield replace(case, part=part)


def _places(cases: list[Case], split: Split | None) -> dict[str, float]:
    """Return a place in [0, 1) for each group, evenly spread among the groups of its labels."""
    if split is None:
        return {}
    labels: dict[str, set[str]] = {}
    for case in cases:
        labels.setdefault(case.group, set()).add(case.label or "")
    strata: dict[tuple[str, ...], list[str]] = {}
    for group, found in sorted(labels.items()):
        strata.setdefault(tuple(sorted(found)), []).append(group)
    rng = np.random.default_rng(split.seed)
    return {
        groups[index]: rank / len(groups)
        for _, groups in sorted(strata.items())
        for rank, index in enumerate(rng.permutation(len(groups)))
    }


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
            for name in (files,) if isinstance(files, str) else files or ():
                if not (manifest.root / name.partition("#")[0]).exists():
                    raise ManifestError(f"case '{case.id}': {manifest.root / name} is missing.")


def _masks(case: Case) -> tuple[Files | None, Files | None]:
    return case.lung, case.lesion


def _said(error: Exception) -> str:
    return f"{error.args[0]} is not in the file." if isinstance(error, KeyError) else str(error)
