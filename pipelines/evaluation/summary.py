"""From case results to the figures of a report: `metrics.json`."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.metrics import (
    Region,
    bootstrap,
    calibration,
    proportion,
    roc_auc,
)
from pipelines.evaluation.reading import CaseResult

BELOW_ALL: Final = -1.0  # scores beyond those of probabilities
ABOVE_ALL: Final = 2.0
SMALL_MM: Final = 10.0  # patchy opacities below this are what the paper's model missed (J66)
ALL: Final = "all"
NOT_GRADED: Final = "not graded"


def summarise(results: Sequence[CaseResult], *, positive_label: str) -> dict[str, Any]:
    """Return the figures of all cases, and by data set, part, site and scanner.

    `positive_label` is what the classifier looks for; every other label is negative. Sensitivity
    and specificity are of all labelled cases, the area and the calibration of the sets that have
    both classes, `auc_sets`. A case not answered counts as empty masks and as called wrongly: as
    missed if positive, with the lowest score for the area, else as a false alarm, with the highest.
    Volumes of false regions are of the cases answered.
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
    }


def case_row(result: CaseResult) -> dict[str, Any]:
    """Return one case as JSON types."""
    row = {
        key: value
        for key, value in asdict(result).items()
        if key not in ("case", "picture", "lesions", "regions") and value not in (None, ())
    }
    case = result.case
    row |= {"id": case.id, "group": case.group, "part": str(case.part)}
    row |= {k: v for k, v in (("label", case.label), ("site", case.site)) if v}
    if result.lesions:
        row["lesions"] = [[round(lesion.diameter_mm, 1), lesion.met] for lesion in result.lesions]
    if result.regions is not None:
        row["regions"] = _volumes(result.regions)
    if result.overlap is not None:
        row["false_regions"] = _volumes(result.false_regions)
    return row


def _volumes(regions: Iterable[Region]) -> dict[str, float]:
    volumes = [region.volume_ml for region in regions]
    return {"count": len(volumes), "ml": sum(volumes), "largest_ml": max(volumes, default=0.0)}


def classified(results: Iterable[CaseResult]) -> list[CaseResult]:
    """Return the cases with a label that a classifier was asked about, answered or not."""
    return [r for r in results if r.case.label is not None and r.positive is not None]


def of_both_classes(
    results: Iterable[CaseResult], positive_label: str
) -> dict[str, list[CaseResult]]:
    """Return the classified cases by data set, of the sets that have both classes.

    Where one set has the positives and another the rest, a curve over both tells sets apart.
    """
    by_set: dict[str, list[CaseResult]] = {}
    for result in classified(results):
        by_set.setdefault(result.data_set, []).append(result)
    return {
        name: found
        for name, found in by_set.items()
        if len({r.case.label == positive_label for r in found}) > 1
    }


def scored(
    results: Sequence[CaseResult], positive_label: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scores and truth of classified cases."""
    scores = np.array([score(r, positive_label) for r in results], dtype=np.float64)
    truth = np.array([r.case.label == positive_label for r in results], dtype=bool)
    return scores, truth


def score(result: CaseResult, positive_label: str) -> float:
    """Return the probability of a classified case, or what is wrong at every threshold."""
    return _or_wrong(result.probability, positive=result.case.label == positive_label)


def called(result: CaseResult, positive_label: str) -> bool:
    """Return whether a classified case counts as called positive; unanswered, the wrong way."""
    return bool(result.positive) if result.answered else result.case.label != positive_label


def _or_wrong(probability: float | None, *, positive: bool) -> float:
    if probability is not None:
        return probability
    return BELOW_ALL if positive else ABOVE_ALL


def opinion_figures(
    results: Iterable[CaseResult], classes: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the figures of the second opinion for each class against the rest (U26-U30).

    `classes` is the class by the label of a manifest; cases of other labels are left out. A class
    that a data set does not have is left out too (U32).
    """
    known = asked(results, classes)
    figures: dict[str, dict[str, Any]] = {}
    for name in sorted({classes[str(r.case.label)] for r in known}):
        scores, of = against_rest(known, classes, name)
        if of.all():
            continue
        said = np.array(
            [
                max(r.classes, key=r.classes.__getitem__) == name if r.classes else not its
                for r, its in zip(known, of, strict=True)
            ]
        )
        figures[name] = {
            "cases": int(of.sum()),
            "auc": asdict(bootstrap(_auc_of(scores, of), _groups(known), classes=of.tolist())),
            "sensitivity": float(said[of].mean()),
            "specificity": float((~said)[~of].mean()),
        }
    return figures


def asked(results: Iterable[CaseResult], labels: Mapping[str, str]) -> list[CaseResult]:
    """Return the cases of these labels that the second opinion was asked about."""
    return [r for r in results if r.classes is not None and r.case.label in labels]


def against_rest(
    known: Sequence[CaseResult], classes: Mapping[str, str], name: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the scores of a class, wrong where there was no answer, and which cases are of it."""
    of = [classes[str(r.case.label)] == name for r in known]
    scores = [
        _or_wrong(r.classes.get(name, 0.0) if r.classes else None, positive=its)
        for r, its in zip(known, of, strict=True)
    ]
    return np.array(scores), np.array(of)


def severity_figures(results: Iterable[CaseResult], grades: Mapping[str, str]) -> dict[str, Any]:
    """Return how often a case of each grade was given each grade.

    `grades` is the grade by the label of a manifest; cases of other labels are left out. A case
    that the second opinion takes for another class, or has no answer for, is not graded.
    """
    known = asked(results, grades)
    said = Counter((grades[str(r.case.label)], r.grade or NOT_GRADED) for r in known)
    columns = [*sorted(set(grades.values())), NOT_GRADED]
    return {
        "cases": len(known),
        "confusion": {
            true: {name: said[true, name] for name in columns}
            for true in sorted({true for true, _ in said})
        },
    }


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
    unanswered = sum(not r.answered for r in results)
    figures: dict[str, Any] = {"cases": len(results), "unanswered": unanswered}
    for key in ("lung_dice", "lesion_dice", "lesion_dice_given_lungs"):
        known = [r for r in results if getattr(r, key) is not None]
        if known:
            values = np.array([getattr(r, key) for r in known])
            figures[key] = {
                **asdict(bootstrap(_mean_of(values), _groups(known))),
                "worst": float(values.min()),
                "cases": len(known),
            }
    overlaps = [r.overlap for r in results if r.overlap is not None]
    if overlaps:
        total = sum(o.mask + o.truth for o in overlaps)
        figures["lesion_dice_pooled"] = 2 * sum(o.both for o in overlaps) / total if total else 1.0
        figures |= _false_regions(results) | _without_lesions(results)
    figures |= _lesions(results) | _slices(results) | _classification(results, positive_label)
    return figures


def _mean_of(values: NDArray[np.float64]) -> Callable[[NDArray[np.int64]], float]:
    return lambda rows: float(values[rows].mean())


def _groups(results: Iterable[CaseResult]) -> list[tuple[str, str]]:
    return [r.group for r in results]


def _false_regions(results: Iterable[CaseResult]) -> dict[str, Any]:
    volumes = [_volumes(r.false_regions) for r in results if r.overlap is not None and r.answered]
    if not volumes:
        return {}
    figures = {
        "per_case": float(np.mean([v["count"] for v in volumes])),
        "ml_per_case": float(np.mean([v["ml"] for v in volumes])),
        "largest_ml": max(v["largest_ml"] for v in volumes),
    }
    return {"false_regions": figures}


def _without_lesions(results: Iterable[CaseResult]) -> dict[str, Any]:
    """Return what was marked in the cases whose truth has no lesion: they have no Dice."""
    cases = [r for r in results if r.overlap and r.overlap.truth == 0 and r.answered]
    if not cases:
        return {}
    marked = [_volumes(r.false_regions)["ml"] for r in cases]
    figures = {"cases": len(cases), "ml_per_case": float(np.mean(marked)), "most_ml": max(marked)}
    return {"without_lesions": figures}


def _lesions(results: Iterable[CaseResult]) -> dict[str, Any]:
    lesions = [lesion for r in results for lesion in r.lesions]
    sizes = {
        "below_10_mm": [lesion.met for lesion in lesions if lesion.diameter_mm < SMALL_MM],
        "from_10_mm": [lesion.met for lesion in lesions if lesion.diameter_mm >= SMALL_MM],
    }
    found = {
        size: {"lesions": len(hits), "found": sum(hits), "sensitivity": float(np.mean(hits))}
        for size, hits in sizes.items()
        if hits
    }
    return {"lesions_found": found} if found else {}


def _slices(results: Iterable[CaseResult]) -> dict[str, Any]:
    marks = [r.slices for r in results if r.slices is not None]
    marked, unmarked = sum(m.marked for m in marks), sum(m.unmarked for m in marks)
    figures: dict[str, Any] = {"slices": marked + unmarked} if marks else {}
    if marked:
        figures["slice_sensitivity"] = sum(m.marked_hit for m in marks) / marked
    if unmarked:
        figures["slice_specificity"] = 1 - sum(m.unmarked_hit for m in marks) / unmarked
    return figures


def _classification(results: Iterable[CaseResult], positive_label: str) -> dict[str, Any]:
    known = classified(results)
    if not known:
        return {}
    _, truth = scored(known, positive_label)
    said = np.array([called(r, positive_label) for r in known], dtype=bool)
    figures: dict[str, Any] = {"positives": int(truth.sum()), "negatives": int((~truth).sum())}
    for name, of, right in (("sensitivity", truth, said), ("specificity", ~truth, ~said)):
        if of.any():
            groups = [r.group for r, its in zip(known, of, strict=True) if its]
            figures[name] = asdict(proportion(right[of], groups))
    return figures | _curve(of_both_classes(known, positive_label), positive_label)


def _curve(by_set: Mapping[str, list[CaseResult]], positive_label: str) -> dict[str, Any]:
    pooled = list(chain.from_iterable(by_set.values()))
    if not pooled:
        return {}
    scores, truth = scored(pooled, positive_label)
    auc = bootstrap(_auc_of(scores, truth), _groups(pooled), classes=truth.tolist())
    figures: dict[str, Any] = {"auc": asdict(auc), "auc_sets": list(by_set)}
    answered = [r for r in pooled if r.answered]
    if answered:
        found = calibration(*scored(answered, positive_label))
        figures["calibration"] = {"brier": found.brier, "error": found.error}
    return figures
