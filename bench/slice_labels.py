"""Hold found lesions against the slices and lobes that a radiologist marked (COVID-CT-MD).

Usage: python -m bench.slice_labels DATA, the folder of the research data sets. Runs the automatic
run on the labelled cases and prints, and keeps in `bench/results/slice_labels.json`, for each, how
many marked slices have a lesion and how many unmarked ones have one too. Lobes are not segmented: a
mark counts as hit when the slice has a lesion in a lung of that side.
"""

import json
import sys
from pathlib import Path

import numpy as np

from pipelines.analysis import Models, analyse
from pipelines.engines.choice import EngineChoice
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG
from pipelines.series import load_input

RESULT = Path(__file__).parent / "results" / "slice_labels.json"
CASES = {
    "covid_P001": "volumes/covidctmd_covid_P001.nii.gz",
    "covid_P002": "dicom/chest_covid_P002",
    "cap_cap001": "volumes/covidctmd_cap_cap001.nii.gz",
    # In training as healthy: what is found here is no measure of specificity.
    "normal001 (in training)": "volumes/covidctmd_normal_normal001.nii.gz",
    "lidc_0001 (in training)": "volumes/lidc_0001_noncovid.nii.gz",
}
LOBES = ("LLL", "LUL", "RLL", "RML", "RUL")


def main() -> None:
    """Print one line for each case; keep them, with the models that were asked."""
    root = Path(sys.argv[1])
    labels = json.loads((root / "volumes/covidctmd_slice_lobe_labels.json").read_text())["cases"]
    models = Models.open(None, EngineChoice.AUTO)
    report = {}
    for case, path in CASES.items():
        volume, _ = load_input(root / path)
        found = analyse(volume, models)
        figures: dict[str, object] = {
            "probability": round(found.probability, 3),
            "positive": found.positive,
            "lesions": len(found.lesions),
            "lesion_ml": round(sum(lesion.volume_ml for lesion in found.lesions), 1),
            "largest_ml": round(found.lesions[0].volume_ml, 1) if found.lesions else 0.0,
        }
        if case in labels:
            figures |= _against(labels[case], found.lesion_labels[::-1], found.lung_mask[::-1])
        report[case] = figures
        print(f"{case}: {json.dumps(figures)}", flush=True)
    named = (models.lungs.bundle, models.lesions.bundle, models.screening.bundle)
    asked = {b.config.purpose: f"{b.config.name} {b.config.version} {b.digest}" for b in named}
    RESULT.write_text(json.dumps({"models": asked, "cases": report}, indent=1) + "\n")


def _against(label: dict[str, object], lesions: np.ndarray, lungs: np.ndarray) -> dict[str, object]:
    """Return hits by slice and by side; index 0 of the arrays is the most cranial slice."""
    marked = np.zeros(len(lesions), dtype=bool)
    marked[label["infected_slices"]] = True
    hit = (lesions > 0).any(axis=(1, 2))
    sides = {"left": (LEFT_LUNG, ("LLL", "LUL")), "right": (RIGHT_LUNG, ("RLL", "RML", "RUL"))}
    by_side = {}
    for side, (lung, lobes) in sides.items():
        rows = [
            int(row)
            for row, flags in label["lobes_LLL_LUL_RLL_RML_RUL"].items()
            if any(flags[LOBES.index(lobe)] for lobe in lobes)
        ]
        found = [bool(((lesions[row] > 0) & (lungs[row] == lung)).any()) for row in rows]
        by_side[side] = f"{sum(found)} of {len(found)}"
    return {
        "marked_slices_hit": f"{int((hit & marked).sum())} of {int(marked.sum())}",
        "unmarked_slices_hit": f"{int((hit & ~marked).sum())} of {int((~marked).sum())}",
        "marked_lobes_hit_by_side": by_side,
    }


if __name__ == "__main__":
    main()
