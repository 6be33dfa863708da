"""`appliance evaluate`: the models on any data set, as figures, tables and pictures (J57-J66)."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from pipelines.analysis import Models
from pipelines.errors import PipelineError
from pipelines.evaluation.figures import (
    Roc,
    calibration_figure,
    dice_figure,
    gallery,
    roc_figure,
)
from pipelines.evaluation.metrics import Interval, calibration
from pipelines.evaluation.readers import Calls, ReaderPoints, reader_points
from pipelines.evaluation.reading import CaseResult, Picture, read
from pipelines.evaluation.report import Section, write_report
from pipelines.evaluation.summary import ALL, labelled, opinion_figures, summarise
from pipelines.manifest import Manifest, Part

GALLERY: Final = 12
DICE: Final = {
    "lung_dice": "lungs",
    "lesion_dice": "lesions",
    "lesion_dice_given_lungs": "lesions, given the true lungs",
}


def evaluate(
    sets: Sequence[Manifest],
    models: Models,
    out: Path,
    *,
    parts: Sequence[Part],
    positive_label: str,
    readers: Calls | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the models over the cases of `parts`, write the report, return its figures.

    `readers` are what people called the cases, to stand beside the models.

    Raises:
        PipelineError: no case is in those parts, or one cannot be read.
    """
    results = list(_results(sets, models, parts, say))
    metrics = {
        "models": [vars(model.bundle.reference) for model in models.each],
        "engine": models.engine,
        "sets": {manifest.name: manifest.digest for manifest in sets},
        **summarise(results, positive_label=positive_label),
    }
    truth = {r.case.id: r.case.label for r in results if r.case.label is not None}
    points = reader_points(readers or {}, truth, positive_label)
    if points is not None:
        metrics["readers"] = asdict(points)
    classes = _classes(models)
    if classes:
        metrics["second_opinion"] = opinion_figures(results, classes)
    lead = [
        ", ".join(f"{m.purpose}: {m.name} {m.version}" for m in _references(models)),
        f"{len(results)} cases of {', '.join(m.name for m in sets)}; parts: {', '.join(parts)}.",
        "Intervals hold 95 % of 1,000 resamples of the groups (patients, papers).",
    ]
    sections = list(_sections(results, metrics, models, positive_label, points))
    if classes:
        sections.append(
            _opinion_section(results, metrics["second_opinion"], classes, readers or {})
        )
    write_report(out, "Evaluation", lead, sections, metrics)
    return metrics


def _results(
    sets: Sequence[Manifest], models: Models, parts: Sequence[Part], say: Callable[[str], None]
) -> Iterable[CaseResult]:
    cases = [(manifest, case) for manifest in sets for case in manifest.of(*parts)]
    if not cases:
        raise PipelineError(f"No case is in the parts {', '.join(parts)}.")
    began = told = time.monotonic()
    for done, (manifest, case) in enumerate(cases):
        now = time.monotonic()
        if done and now - told > 10:
            told = now
            left = (now - began) / done * (len(cases) - done)
            say(f"{done} of {len(cases)} cases, {left / 60:.1f} min left")
        yield read(manifest.load(case), manifest.name, models)


def _references(models: Models) -> Iterable[Any]:
    return (model.bundle.reference for model in models.each)


def _sections(
    results: Sequence[CaseResult],
    metrics: Mapping[str, Any],
    models: Models,
    positive_label: str,
    readers: ReaderPoints | None,
) -> Iterable[Section]:
    whole = metrics[ALL]
    known = {key: name for key, name in DICE.items() if key in whole}
    if known:
        values = {
            name: [v for r in results if (v := getattr(r, key)) is not None]
            for key, name in known.items()
        }
        yield Section(
            "Segmentation",
            lines=list(_lesion_lines(whole)),
            header=("", "cases", "Dice, mean [95 %]", "worst"),
            rows=[
                (
                    name,
                    str(whole[key]["cases"]),
                    _shown(Interval(*(whole[key][k] for k in ("value", "low", "high")))),
                    f"{whole[key]['worst']:.3f}",
                )
                for key, name in known.items()
            ],
            figures={"dice": dice_figure(values, "Each case")},
        )
    if "auc" in whole:
        scores, truth, _ = labelled(results, positive_label)
        threshold = float(models.screening.config.decision["threshold"])
        figures: dict[str, Figure] = {
            "roc": roc_figure(
                {ALL: Roc(scores, truth, threshold=threshold, auc=_interval(whole["auc"]))},
                f"{positive_label} or not",
                readers,
            ),
            "calibration": calibration_figure(calibration(scores, truth)),
        }
        yield Section(
            "Classification", lines=list(_reader_lines(readers)) if readers else (), figures=figures
        )
    for key, title in (
        ("by_data_set", "By data set"),
        ("by_part", "By part"),
        ("by_site", "By site"),
        ("by_scanner", "By scanner"),
        ("by_label", "By label"),
    ):
        if len(metrics[key]) > 1:
            yield Section(title, header=COLUMNS, rows=[_row(n, f) for n, f in metrics[key].items()])
    yield from _galleries(results, positive_label)


def _classes(models: Models) -> dict[str, str]:
    """Return the second opinion's class by the label of a manifest; empty without one."""
    if models.opinion is None:
        return {}
    labels: Mapping[str, str] = models.opinion.pneumonia.config.decision["labels"]
    return dict(labels)


def _opinion_section(
    results: Sequence[CaseResult],
    figures: Mapping[str, Mapping[str, Any]],
    classes: Mapping[str, str],
    readers: Calls,
) -> Section:
    """Return each class against the rest, the readers beside the network (U30)."""
    known = [r for r in results if r.classes is not None and r.case.label in classes]
    truth = {r.case.id: classes[str(r.case.label)] for r in known}
    called = {
        name: {case: classes.get(label, label) for case, label in of.items()}
        for name, of in readers.items()
    }
    curves = {}
    for place, (name, found) in enumerate(figures.items()):
        scores = np.array([(r.classes or {})[name] for r in known])
        positive = np.array([truth[r.case.id] == name for r in known])
        roc = Roc(scores, positive, auc=_interval(found["auc"]))
        points = reader_points(called, truth, name)
        curves[f"class-{place}"] = roc_figure({name: roc}, f"{name} or another class", points)
    return Section(
        "Second opinion",
        lines=["Each class against the rest; a case is called by its most likely class."],
        header=("", "cases", "AUC [95 %]", "sensitivity", "specificity"),
        rows=[
            (
                name,
                str(found["cases"]),
                _shown(_interval(found["auc"])),
                f"{found['sensitivity']:.3f}",
                f"{found['specificity']:.3f}",
            )
            for name, found in figures.items()
        ],
        figures=curves,
    )


def _galleries(results: Sequence[CaseResult], positive_label: str) -> Iterable[Section]:
    """Yield the pictures of what went wrong, and of what went right (J61, J65)."""
    masks = [r for r in results if r.lesion_dice is not None]
    if masks:
        yield Section(
            "Lesions",
            lines=["The cases with the lowest Dice: orange is what was found, blue what is true."],
            figures={"lesions": gallery(_captioned(sorted(masks, key=_dice), _dice))},
        )
    judged = [r for r in results if r.case.label is not None and r.probability is not None]
    hit = [r for r in judged if r.case.label == positive_label]
    rest = [r for r in judged if r.case.label != positive_label]
    for name, title, cases, called, sign in (
        ("missed", f"Called negative: {positive_label}", hit, False, 1),
        ("false-alarms", f"Called positive: not {positive_label}", rest, True, -1),
        ("hits", f"Called positive: {positive_label}", hit, True, -1),
    ):
        shown = sorted((r for r in cases if r.positive is called), key=_probability)[::sign]
        if shown:
            lines = [f"{len(shown)} of {len(cases)}; the surest first. Orange: lesions found."]
            figure = gallery(_captioned(shown, _probability))
            yield Section(title, lines=lines, figures={name: figure})


def _captioned(
    results: Iterable[CaseResult], figure: Callable[[CaseResult], float]
) -> list[tuple[str, Picture]]:
    """Return the first pictures, each with its case, a figure and what was warned of."""
    shown: list[tuple[str, Picture]] = []
    for result in results:
        if result.picture is None or len(shown) == GALLERY:
            continue
        flags = [note.split(":")[0].split("(")[0].strip(" .") for note in result.notes]
        caption = "\n".join([f"{result.case.id}: {figure(result):.2f}", *flags])
        shown.append((caption, result.picture))
    return shown


def _probability(result: CaseResult) -> float:
    return result.probability if result.probability is not None else 0.0


COLUMNS: Final = (
    "",
    "cases",
    "lung Dice",
    "lesion Dice",
    "pooled",
    "AUC",
    "sensitivity",
    "specificity",
    "slices hit",
    "slices spared",
)


def _row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    pooled = figures.get("lesion_dice_pooled")
    hit, spared = figures.get("slice_sensitivity"), figures.get("slice_specificity")
    intervals = (
        _shown(_interval(figures[key])) if key in figures else ""
        for key in ("lung_dice", "lesion_dice")
    )
    called = (
        _shown(_interval(figures[key])) if key in figures else ""
        for key in ("auc", "sensitivity", "specificity")
    )
    return (
        name,
        str(figures["cases"]),
        *intervals,
        f"{pooled:.3f}" if pooled is not None else "",
        *called,
        f"{hit:.3f}" if hit is not None else "",
        f"{spared:.3f}" if spared is not None else "",
    )


def _lesion_lines(figures: Mapping[str, Any]) -> Iterable[str]:
    if "lesion_dice_pooled" in figures:
        yield f"Pooled over all voxels, the lesion Dice is {figures['lesion_dice_pooled']:.3f}."
    names = {"below_10_mm": "below 10 mm", "from_10_mm": "from 10 mm"}
    for size, found in figures.get("lesions_found", {}).items():
        yield (
            f"Of {found['lesions']} lesions {names[size]} in diameter, "
            f"{found['sensitivity']:.0%} were found."
        )
    if "false_regions" in figures:
        false = figures["false_regions"]
        yield (
            f"False regions a case: {false['per_case']:.1f}, {false['ml_per_case']:.1f} ml; "
            f"the largest {false['largest_ml']:.1f} ml."
        )


def _reader_lines(readers: ReaderPoints) -> Iterable[str]:
    for name, point in {
        **readers.each,
        "Readers' mean": readers.mean,
        **({"Readers' majority": readers.majority} if readers.majority else {}),
    }.items():
        yield f"{name}: sensitivity {point.sensitivity:.3f}, specificity {point.specificity:.3f}."


def _interval(figure: Mapping[str, float]) -> Interval:
    return Interval(figure["value"], figure["low"], figure["high"])


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _dice(result: CaseResult) -> float:
    return result.lesion_dice if result.lesion_dice is not None else 1.0
