"""From case results to the figures of a report: `metrics.json`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.metrics import Interval, bootstrap, calibration, roc_auc
from pipelines.evaluation.reading import CaseResult

SMALL_MM: Final = 10.0  # patchy opacities below this are what the paper's model missed (J66)
ALL: Final = "all"


def summarise(results: Sequence[CaseResult], *, positive_label: str) -> dict[str, Any]:
    """Return the figures of all cases, and by data set, part, site and scanner.

    `positive_label` is what the classifier looks for; every other label is negative.
    """
    return {
        "cases": len(results),
        "positive_label": positive_label,
        ALL: _figures(results, positive_label),
        "by_data_set": _by(results, lambda r: r.data_set, positive_label),
        "by_part": _by(results, lambda r: str(r.case.part), positive_label),
        "by_site": _by(results, lambda r: r.case.site, positive_label),
        "by_scanner": _by(results, lambda r: r.case.scanner, positive_label),
        "by_label": _by(results, lambda r: r.case.label, positive_label),
        "each": [case_row(result) for result in results],
    }


def case_row(result: CaseResult) -> dict[str, Any]:
    """Return one case as JSON types."""
    row = {
        key: value
        for key, value in asdict(result).items()
        if key not in ("case", "picture", "lesions") and value not in (None, ())
    }
    case = result.case
    row |= {"id": case.id, "group": case.group, "part": str(case.part)}
    row |= {k: v for k, v in (("label", case.label), ("site", case.site)) if v}
    if result.lesions:
        row["lesions"] = [[round(f.diameter_mm, 1), f.found] for f in result.lesions]
    return row


def labelled(
    results: Iterable[CaseResult], positive_label: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[str]]:
    """Return scores, truth and groups of the cases that have a label and a probability."""
    known = [r for r in results if r.case.label is not None and r.probability is not None]
    scores = np.array([r.probability for r in known], dtype=np.float64)
    truth = np.array([r.case.label == positive_label for r in known], dtype=bool)
    return scores, truth, [r.case.group for r in known]


def opinion_figures(
    results: Iterable[CaseResult], classes: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the figures of the second opinion for each class against the rest (U26-U30).

    `classes` is the class by the label of a manifest; cases of other labels are left out. A class
    that a data set does not have is left out too (U32).
    """
    known = [r for r in results if r.classes is not None and r.case.label in classes]
    truth = np.array([classes[str(r.case.label)] for r in known])
    said = [dict(r.classes or {}) for r in known]
    groups = _groups(known)
    figures: dict[str, dict[str, Any]] = {}
    for name in sorted(set(truth.tolist())):
        of = truth == name
        if of.all():
            continue
        scores = np.array([probabilities[name] for probabilities in said])
        called = np.array([max(p, key=lambda c, p=p: p[c]) == name for p in said])  # type: ignore[misc]
        figures[name] = {
            "cases": int(of.sum()),
            "auc": _interval(_auc_of(scores, of), groups),
            "sensitivity": float(called[of].mean()),
            "specificity": float((~called)[~of].mean()),
        }
    return figures


def _auc_of(
    scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> Callable[[NDArray[np.int64]], float]:
    return lambda rows: roc_auc(scores[rows], positive[rows])


def _by(
    results: Sequence[CaseResult], key: Callable[[CaseResult], str | None], positive: str
) -> dict[str, Any]:
    names = sorted({name for r in results if (name := key(r)) is not None})
    return {name: _figures([r for r in results if key(r) == name], positive) for name in names}


def _figures(results: Sequence[CaseResult], positive_label: str) -> dict[str, Any]:
    figures: dict[str, Any] = {"cases": len(results)}
    for key in ("lung_dice", "lesion_dice", "lesion_dice_given_lungs"):
        known = [r for r in results if getattr(r, key) is not None]
        if known:
            values = np.array([getattr(r, key) for r in known])
            figures[key] = {
                **_interval(_mean_of(values), _groups(known)),
                "worst": float(values.min()),
                "cases": len(known),
            }
    overlaps = [r.overlap for r in results if r.overlap is not None]
    if overlaps:
        total = sum(o.mask + o.truth for o in overlaps)
        figures["lesion_dice_pooled"] = 2 * sum(o.both for o in overlaps) / total if total else 1.0
        figures["false_regions"] = _false_regions(results)
    figures |= _lesions(results) | _slices(results) | _classification(results, positive_label)
    return figures


def _mean_of(values: NDArray[np.float64]) -> Callable[[NDArray[np.int64]], float]:
    return lambda rows: float(values[rows].mean())


def _groups(results: Iterable[CaseResult]) -> list[str]:
    return [r.case.group for r in results]


def _interval(
    figure: Callable[[NDArray[np.int64]], float], groups: Sequence[str]
) -> dict[str, float]:
    found: Interval = bootstrap(figure, groups)
    return asdict(found)


def _false_regions(results: Iterable[CaseResult]) -> dict[str, float]:
    volumes = [r.false_regions_ml for r in results if r.overlap is not None]
    return {
        "per_case": float(np.mean([len(v) for v in volumes])),
        "ml_per_case": float(np.mean([sum(v) for v in volumes])),
        "largest_ml": max((max(v) for v in volumes if v), default=0.0),
    }


def _lesions(results: Iterable[CaseResult]) -> dict[str, Any]:
    lesions = [lesion for r in results for lesion in r.lesions]
    sizes = {
        "below_10_mm": [f.found for f in lesions if f.diameter_mm < SMALL_MM],
        "from_10_mm": [f.found for f in lesions if f.diameter_mm >= SMALL_MM],
    }
    found = {
        size: {"lesions": len(hits), "sensitivity": float(np.mean(hits))}
        for size, hits in sizes.items()
        if hits
    }
    return {"lesions_found": found} if found else {}


def _slices(results: Iterable[CaseResult]) -> dict[str, Any]:
    marks = [r.slices for r in results if r.slices is not None]
    marked, unmarked = sum(m.marked for m in marks), sum(m.unmarked for m in marks)
    if not marked or not unmarked:
        return {}
    return {
        "slice_sensitivity": sum(m.marked_hit for m in marks) / marked,
        "slice_specificity": 1 - sum(m.unmarked_hit for m in marks) / unmarked,
        "slices": marked + unmarked,
    }


def _classification(results: Iterable[CaseResult], positive_label: str) -> dict[str, Any]:
    results = list(results)
    scores, truth, groups = labelled(results, positive_label)
    if len(scores) == 0:
        return {}
    called = np.array([r.positive for r in results if r.case.label and r.positive is not None])
    figures: dict[str, Any] = {"positives": int(truth.sum()), "negatives": int((~truth).sum())}
    if truth.any():
        figures["sensitivity"] = _interval(lambda rows: _share(called[rows][truth[rows]]), groups)
    if (~truth).any():
        figures["specificity"] = _interval(lambda rows: _share(~called[rows][~truth[rows]]), groups)
    if truth.any() and (~truth).any():
        figures["auc"] = _interval(_auc_of(scores, truth), groups)
        found = calibration(scores, truth)
        figures["calibration"] = {"brier": found.brier, "error": found.error}
    return figures


def _share(flags: NDArray[np.bool_]) -> float:
    if len(flags) == 0:
        raise ValueError("No case of the class was drawn.")
    return float(flags.mean())
