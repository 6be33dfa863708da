"""How much of the test figures comes from pictures that look like ones of the training.

Usage: python -m bench.look_alikes SETS, the folder of `appliance prepare`. Two of the public sets
name no patients (SARS-CoV-2, MedSeg) and one names papers (COVID-CT), so neighbours of one scan may
stand on both sides of a split. Each test picture is compared with all that are not: the highest
correlation at 48 x 48 pixels. The figures of the shipped models' `metrics.json`, one for each
network that marks lesions, are then taken once more without the pictures above a correlation.
Printed and kept in `bench/results/look_alikes.json`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.evaluation.metrics import roc_auc
from pipelines.manifest import Case, Manifest, Part, open_manifest
from pipelines.weights import shipped_weights

RESULT = Path(__file__).parent / "results" / "look_alikes.json"
SIDE = 48
LIMITS = (1.01, 0.95, 0.93, 0.9)  # the first leaves nothing out


def main() -> None:
    """Print and keep the figures without the look-alikes, for each limit."""
    sets = Path(sys.argv[1])
    classified = [open_manifest(sets / f"{name}.json") for name in ("ucsd", "sars")]
    medseg = open_manifest(sets / "medseg.json")
    scored = _metrics(shipped_weights() / "screening")["test"]
    networks = sorted(path.parent for path in shipped_weights().glob("lesions/*/metrics.json"))
    dice = {network.name: _metrics(network)["slice_dice"] for network in networks}
    report: dict[str, dict[str, object]] = {}
    for manifest in (*classified, medseg):
        tests = [case for case in manifest.cases if case.part is Part.TEST]
        likeness = _likeness(manifest, tests)
        figures: dict[str, object] = {}
        for limit in LIMITS:
            kept = likeness < limit
            if manifest is medseg:
                figure = {
                    f"Dice, {network}": round(
                        float(np.array([each[case.id] for case in tests])[kept].mean()), 3
                    )
                    for network, each in dice.items()
                }
            else:
                rows = [row for row in scored if row[0] == manifest.name]
                assert [row[1] for row in rows] == [case.group for case in tests]
                scores, truth = (np.array([row[n] for row in rows])[kept] for n in (3, 2))
                figure = {"AUC": round(roc_auc(scores, truth), 3)}
            figures["all" if limit > 1 else f"below {limit}"] = {"cases": int(kept.sum()), **figure}
        report[manifest.name] = figures
        print(f"{manifest.name}: {json.dumps(figures)}", flush=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


def _metrics(model: Path) -> dict[str, list[list[object]] | dict[str, float]]:
    found: dict[str, list[list[object]] | dict[str, float]]
    found = json.loads((model / "metrics.json").read_text())
    return found


def _likeness(manifest: Manifest, tests: list[Case]) -> NDArray[np.float64]:
    """Return the highest correlation of each test picture with one that is none."""
    others = [case for case in manifest.cases if case.part is not Part.TEST]
    mine, theirs = (
        np.stack([_small(manifest, case) for case in cases]) for cases in (tests, others)
    )
    return (mine @ theirs.T / SIDE**2).max(axis=1)


def _small(manifest: Manifest, case: Case) -> NDArray[np.float64]:
    picture = torch.from_numpy(manifest.load(case).image.astype(np.float32))[None]
    small = torch.nn.functional.interpolate(picture, (SIDE, SIDE), mode="area")[0, 0]
    flat = small.numpy().astype(np.float64).ravel()
    return (flat - flat.mean()) / (flat.std() + 1e-6)


if __name__ == "__main__":
    main()
