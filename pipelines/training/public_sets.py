"""The public research sets this project trains on, written as manifests (`pipelines.manifest`).

Each set keeps its own traps here (orientation, packing, grouping), so that nothing after this
module knows where a slice came from. The folder layout and licences: the data's own README.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import PipelineError
from pipelines.files import whole_file
from pipelines.series import load_input
from pipelines.training.healthy_lungs import threshold_lungs

# The 8-bit sets carry no spacing. A chest of about 350 mm fills the width; training varies it.
CHEST_MM: Final = 350.0
LUNGS_MM: Final = 300.0  # what both lungs are wide, where a slice is cropped to them
SARS_RUN: Final = 10  # neighbouring numbers are often the same patient
VALIDATION: Final = ("v05", "v15")
TEST: Final = ("v02", "v06", "v12", "v16")
SPLIT: Final = {"seed": 3, "validation": 0.1, "test": 0.2}

Row = dict[str, Any]


def write_manifests(data: Path, out: Path, *, say: Callable[[str], None] = print) -> None:
    """Write one manifest for each set in `data` to `out`, with the arrays that need unpacking.

    Raises:
        PipelineError: there is none of the sets.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    for name, (source, licence, rows) in SETS.items():
        cases = list(rows(data, out / name))
        if not cases:
            say(f"{name}: not there ({source})")
            continue
        say(f"{name}: {len(cases)} cases of {source}")
        written += 1
        manifest: Row = {"name": name, "source": source, "licence": licence}
        if any("part" not in case for case in cases):
            manifest["split"] = SPLIT
        content = json.dumps({**manifest, "cases": cases}, indent=1)
        with whole_file(out / f"{name}.json") as file:
            file.write(f"{content}\n".encode())
    if not written:
        raise PipelineError(f"{data} holds none of the sets. Name the folder of the research data.")


def _covid_volumes(data: Path, folder: Path) -> Iterator[Row]:
    packed = data / "lesion_slices" / "masks.npz"
    if not packed.exists():
        return
    with np.load(packed) as masks:
        lung = np.unpackbits(masks["lung"], axis=-1).astype(bool)
        lesion = np.unpackbits(masks["lesion"], axis=-1).astype(bool)
        names = [Path(str(name)).stem for name in masks["name"]]
    volumes = [name.split("_")[0] for name in names]
    for volume in sorted(set(volumes)):
        rows = [i for i, v in enumerate(volumes) if v == volume]
        slices = np.stack([_grey(data / "lesion_slices" / "ct" / f"{names[i]}.jpg") for i in rows])
        # The Radiopaedia volumes are stored upside down against the others.
        upright = slice(None, None, -1 if int(volume[1:]) >= 10 else 1)
        arrays = {"image": slices, "lung": lung[rows] | lesion[rows], "lesion": lesion[rows]}
        part = "test" if volume in TEST else "validation" if volume in VALIDATION else "train"
        yield {
            "id": volume,
            "group": volume,
            "domain": "display",
            "spacing_mm": [1.25, CHEST_MM / 256, CHEST_MM / 256],
            **_kept(folder / f"{volume}.npz", {k: a[:, upright] for k, a in arrays.items()}),
            "label": "covid",
            "label_source": "publication",
            "site": "coronacases" if int(volume[1:]) < 10 else "radiopaedia",
            "part": part,
        }


def _medseg(data: Path, folder: Path) -> Iterator[Row]:
    pictures = sorted((data / "lesion_medseg" / "imgs_binary").glob("*"))
    for place, path in enumerate(pictures):
        mask = _grey(data / "lesion_medseg" / "gt_binary" / f"{path.stem}.png") > 0
        # Stored turned by 90 degrees and cropped to the lungs.
        image, lesion = (np.rot90(array, -1) for array in (_grey(path), mask))
        pixel_mm = LUNGS_MM / image.shape[1]
        yield {
            "id": path.stem,
            "group": path.stem,
            "domain": "display",
            "spacing_mm": [2.5, pixel_mm, pixel_mm],
            **_kept(folder / f"{path.stem}.npz", {"image": image, "lesion": lesion}),
            "label": "covid",
            "label_source": "publication",
            "part": "test" if place % 4 == 0 else "train",
        }


def _lung_slices(data: Path, folder: Path) -> Iterator[Row]:
    packed = data / "lung_slices" / "lungs.npz"
    if not packed.exists():
        return
    with np.load(packed) as arrays:
        lung = np.unpackbits(arrays["lung"], axis=-1).astype(bool)
        slices = zip(arrays["hu"], lung, arrays["name"], strict=True)
    for place, (hu, mask, name) in enumerate(slices):  # one scan each
        yield {
            "id": str(name),
            "group": str(name),
            "domain": "hu",
            "spacing_mm": [2.5, CHEST_MM / 256, CHEST_MM / 256],
            **_kept(folder / f"{name}.npz", {"image": hu, "lung": mask}),
            "part": ("test", "validation", "train", "train", "train")[place % 5],
        }


def _whole_volumes(data: Path, folder: Path) -> Iterator[Row]:
    labels = data / "volumes" / "covidctmd_slice_lobe_labels.json"
    marks = json.loads(labels.read_text()) if labels.exists() else {"cases": {}}
    for name, files, label in (
        ("P001", "volumes/covidctmd_covid_P001.nii.gz", "covid"),
        ("P002", "dicom/chest_covid_P002", "covid"),
        ("cap001", "volumes/covidctmd_cap_cap001.nii.gz", "pneumonia"),
        ("normal001", "volumes/covidctmd_normal_normal001.nii.gz", "healthy"),
        ("lidc_0001", "volumes/lidc_0001_noncovid.nii.gz", "nodule"),
    ):
        path = (data / files).resolve()
        if not path.exists():
            continue
        row: Row = {
            "id": name,
            "group": name,
            "domain": "hu",
            "image": str(path),
            "label": label,
            "label_source": "radiology",
            "site": "LIDC-IDRI" if label == "nodule" else "COVID-CT-MD",
        }
        marked = [m for key, m in marks["cases"].items() if key.endswith(name)]
        volume, _ = load_input(path)
        if label in ("healthy", "nodule"):  # lungs to put lesions into
            lung = threshold_lungs(volume.hu, pixel_mm2=volume.spacing[1] * volume.spacing[2])
            kept = _kept(folder / f"{name}.npz", {"lung": lung})
            yield {**row, **kept, "part": "train"}
        else:
            last = volume.shape[0] - 1  # the marks count from the head
            seen = sorted(last - int(z) for z in marked[0]["infected_slices"]) if marked else None
            yield {**row, **({"lesion_slices": seen} if seen is not None else {}), "part": "test"}


def _ucsd(data: Path, _folder: Path) -> Iterator[Row]:
    for name, label in (("CT_COVID", "covid"), ("CT_NonCOVID", "other")):
        for path in sorted((data / "slices_ucsd" / name).glob("*")):
            yield _labelled(path, f"{name}/{_paper(path.stem)}", label)


def _sars(data: Path, _folder: Path) -> Iterator[Row]:
    for name, label in (("COVID", "covid"), ("non-COVID", "other")):
        for path in sorted((data / "slices_sars" / name).glob("*")):
            number = int("".join(re.findall(r"\d+", path.stem)) or 0)
            yield _labelled(path, f"{name}/{number // SARS_RUN}", label)


def _labelled(path: Path, group: str, label: str) -> Row:
    with Image.open(path) as picture:
        pixel_mm = CHEST_MM / picture.width
    return {
        "id": f"{path.parent.name}/{path.stem}",
        "group": group,
        "domain": "display",
        "spacing_mm": [1.0, pixel_mm, pixel_mm],
        "image": str(path.resolve()),
        "label": label,
        "label_source": "publication",
    }


def _paper(stem: str) -> str:
    numbered = re.match(r"\d+$", stem)
    if numbered:  # no paper in the name: neighbours stay together
        return f"run{int(stem) // SARS_RUN}"
    return re.split(r"-p\d+|%|_\d", stem)[0]


def _kept(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Row:
    """Write arrays, whole or not at all, and return how a manifest refers to them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return {key: f"{path.parent.name}/{path.name}#{key}" for key in arrays}


def _grey(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


SETS: Final[Mapping[str, tuple[str, str, Callable[[Path, Path], Iterator[Row]]]]] = {
    "covid-volumes": (
        "COVID-19 CT Lung and Infection Segmentation, doi:10.5281/zenodo.3757476, reduced",
        "CC BY, sources CC BY-NC-SA",
        _covid_volumes,
    ),
    "medseg": ("COVID-SemiSeg from MedSeg", "non-commercial research", _medseg),
    "lung-slices": (
        "Kaggle, finding lungs in CT data",
        "CC BY-NC-SA, unverified",
        _lung_slices,
    ),
    "whole-volumes": (
        "COVID-CT-MD, doi:10.1038/s41597-021-00900-3; LIDC-IDRI",
        "CC BY 4.0 (data unverified); CC BY 3.0",
        _whole_volumes,
    ),
    "ucsd": ("UCSD-AI4H COVID-CT", "research use", _ucsd),
    "sars": ("SARS-CoV-2 CT-scan (Soares, Angelov)", "CC BY-NC-SA 4.0", _sars),
}
