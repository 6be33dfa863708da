"""Data sets of a few tiny synthetic chests, as the manifests that trainings read."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.phantom import small_chest

PARTS = ("train", "train", "validation", "test", "test")
STEP = 2  # voxels left out, in each direction
WINDOW_HU = (-1024, 350)


def write_sets(folder: Path) -> Path:
    """Write a set for each kind of source: 8-bit volumes, lungs in HU, and two labelled."""
    folder.mkdir(parents=True, exist_ok=True)
    chest = small_chest()
    step = (slice(None, None, STEP),) * 3
    hu = chest.volume.hu[step]
    lung, lesion = chest.lungs[step] > 0, chest.lesions[step] > 0
    spacing = [STEP * mm for mm in chest.volume.spacing]
    grey = _grey(hu)
    z = int(lesion.sum(axis=(1, 2)).argmax())
    np.savez_compressed(
        folder / "chest.npz",
        hu=hu,
        lung=lung,
        lesion=lesion,
        grey=grey,
        slice_hu=hu[z],
        slice_lung=lung[z],
    )
    masks = {"lung": "chest.npz#lung", "lesion": "chest.npz#lesion"}
    _write(folder, "volumes", [_row("display", "grey", spacing, p) | masks for p in PARTS])
    _write(
        folder,
        "lungs",
        [_row("hu", "hu", spacing, p) | {"lung": "chest.npz#lung"} for p in PARTS[:1]]
        + [_row("hu", "slice_hu", spacing, p) | {"lung": "chest.npz#slice_lung"} for p in PARTS],
    )
    for name in ("one", "other"):
        labelled = []
        for label, noise in (("covid", 0), ("healthy", 60)):
            for place, part in enumerate((*PARTS, *PARTS)):
                key = f"{name}_{label}_{place}"
                rng = np.random.default_rng(place + noise)
                shown = grey[z].astype(int) + rng.integers(0, 1 + noise, grey[z].shape)
                np.savez_compressed(folder / f"{key}.npz", image=np.clip(shown, 0, 255))
                row = {"id": key, "group": key, "domain": "display", "image": f"{key}.npz#image"}
                row |= {"spacing_mm": spacing, "label": label, "label_source": "made"}
                labelled.append(row | {"part": part})
        _write(folder, name, labelled)
    return folder


def _grey(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    low, high = WINDOW_HU
    return np.clip((hu.astype(float) - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def _row(domain: str, key: str, spacing: list[float], part: str) -> dict[str, object]:
    return {"domain": domain, "image": f"chest.npz#{key}", "spacing_mm": spacing, "part": part}


def _write(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    cases = [{"id": f"{name}-{n}", "group": f"{name}-{n}", **row} for n, row in enumerate(rows)]
    top = {"name": name, "source": "made", "licence": "none", "cases": cases}
    (folder / f"{name}.json").write_text(json.dumps(top))
