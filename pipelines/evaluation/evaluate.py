"""`appliance evaluate`: the models on any data set, as figures, tables and pictures (J57-J66)."""

import difflib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from pipelines.analysis import Models
from pipelines.errors import ManifestError, PipelineError
from pipelines.evaluation.figures import (
    Roc,
    calibration_figure,
    dice_figure,
    gallery,
    roc_figure,
)
from pipelines.evaluation.metrics import INTERVALS, Interval, calibration
from pipelines.evaluation.readers import Calls, ReaderPoints, load_readers, reader_points
from pipelines.evaluation.reading import CaseResult, Picture, read, unreadable
from pipelines.evaluation.report import Section, write_report
from pipelines.evaluation.summary import (
    ALL,
    NOT_GRADED,
    against_rest,
    asked,
    called,
    case_row,
    classified,
    of_both_classes,
    opinion_figures,
    score,
    scored,
    severity_figures,
    summarise,
)
from pipelines.findings import whole_folder
from pipelines.manifest import Case, Manifest, Part

POSITIVE: Final = "covid"  # what the shipped classifier looks for
GALLERY: Final = 12
DIGEST: Final = 12  # characters that tell digests apart for a reader
TOLD_FROM: Final = 0.1  # of the cases; before, a volume among slices makes any estimate wrong
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
    readers: Path | None = None,
    single_cases: bool = True,
    notes: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the models over the cases of `parts`, write the report, return its figures.

    `readers` is a CSV file of what people called the cases, to stand beside the models
    (`pipelines.evaluation.readers`). Without `single_cases` the report names and shows no case: it
    can be given away where the data cannot. A case that cannot be read is one without an answer.
    `notes` stand above the report. `out` is a new folder, or an empty one.

    Raises:
        PipelineError: two sets have one name, no case is in those parts or has that label, the
            readers' calls do not fit the cases, or `out` is not empty.
    """
    _check_names(sets)
    require_label(sets, positive_label)
    with whole_folder(out) as staging:
        return _evaluate(
            sets,
            models,
            staging,
            parts=parts,
            positive_label=positive_label,
            readers=readers,
            single_cases=single_cases,
            notes=notes,
            say=say,
        )


def require_label(sets: Sequence[Manifest], positive_label: str) -> None:
    """Refuse to look for a label that no case has, but for the one of the shipped classifier.

    Raises:
        PipelineError: it is such a label.
    """
    known = sorted({case.label for manifest in sets for case in manifest.cases if case.label})
    if positive_label in (*known, POSITIVE):
        return
    near = difflib.get_close_matches(positive_label, (*known, POSITIVE), n=1, cutoff=0.0)
    raise PipelineError(
        f"No case has the label '{positive_label}'; the nearest is '{near[0]}'. "
        f"The sets have the labels {', '.join(known) or 'none'}."
    )


def _evaluate(
    sets: Sequence[Manifest],
    models: Models,
    out: Path,
    *,
    parts: Sequence[Part],
    positive_label: str,
    readers: Path | None,
    single_cases: bool,
    notes: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    classes, grades = _classes(models), _grades(models)
    calls = load_readers(readers, sets, {*classes, *classes.values()}) if readers else {}
    results = list(_results(sets, models, parts, say))
    metrics = {
        "models": [vars(model.bundle.reference) for model in models.each],
        "engine": models.engine,
        "sets": {manifest.name: manifest.digest for manifest in sets},
        **summarise(results, positive_label=positive_label),
    }
    truth = {r.key: r.case.label for r in results if r.case.label is not None}
    points = reader_points(calls, truth, positive_label)
    if points is not None:
        metrics["readers"] = asdict(points)
    if classes:
        metrics["second_opinion"] = opinion_figures(results, classes)
    if grades:
        metrics["severity"] = severity_figures(results, grades)
    lead = [
        f"Made on {datetime.now().astimezone().date()}; computed by {models.engine}.",
        "Models: "
        + ", ".join(
            f"{m.purpose} {m.name} {m.version} ({m.digest[:DIGEST]})" for m in _references(models)
        ),
        "Sets: " + ", ".join(f"{m.name} ({m.digest[:DIGEST]})" for m in sets),
        f"{len(results)} cases; parts: {', '.join(parts)}.",
        INTERVALS,
        *_unanswered_line(results),
    ]
    sections = list(_sections(results, metrics, models, positive_label, points))
    if single_cases:
        metrics["each"] = [case_row(result) for result in results]
        sections += _case_sections(results, positive_label)
    if classes:
        sections.append(_opinion_section(results, metrics["second_opinion"], classes, calls))
    if grades and metrics["severity"]["cases"]:
        sections.append(_severity_section(metrics["severity"]["confusion"]))
    write_report(out, "Evaluation", lead, sections, metrics, notes=notes)
    return metrics


def _check_names(sets: Sequence[Manifest]) -> None:
    names = [manifest.name for manifest in sets]
    for name in names:
        if names.count(name) > 1:
            raise PipelineError(f"Two of the manifests are called '{name}': give one another name.")


def _results(
    sets: Sequence[Manifest], models: Models, parts: Sequence[Part], say: Callable[[str], None]
) -> Iterable[CaseResult]:
    cases = [(manifest, case) for manifest in sets for case in manifest.of(*parts)]
    if not cases:
        have = [part for part in Part if any(manifest.of(part) for manifest in sets)]
        raise PipelineError(
            f"No case is in the parts {', '.join(parts)}; the manifests have cases in "
            f"{', '.join(have) or 'none'}."
        )
    began = told = time.monotonic()
    for done, (manifest, case) in enumerate(cases):
        now = time.monotonic()
        if done and now - told > 10:
            told = now
            left = (now - began) / done * (len(cases) - done)
            known = done >= TOLD_FROM * len(cases)
            about = f", about {left / 60:.0f} min left" if known else ""
            say(f"{done} of {len(cases)} cases{about}")
        result = _result(manifest, case, models)
        if not result.answered:
            say(f"Not answered: '{case.id}' of '{manifest.name}'. {' '.join(result.notes)}")
        yield result


def _result(manifest: Manifest, case: Case, models: Models) -> CaseResult:
    try:
        stack = manifest.load(case)
    except ManifestError as error:
        return unreadable(case, manifest.name, models, str(error))
    return read(stack, manifest.name, models)


def _unanswered_line(results: Sequence[CaseResult]) -> Iterable[str]:
    unanswered = sum(not result.answered for result in results)
    if unanswered:
        yield (
            f"Not answered: {unanswered} of {len(results)} cases. They count as wrong: as empty "
            "masks, as missed if positive, else as false alarms, also in slices that nobody "
            "marked. Volumes of false regions are of the cases answered."
        )


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
                    str(_interval(whole[key])),
                    f"{whole[key]['worst']:.3f}",
                )
                for key, name in known.items()
            ],
            figures={"dice": dice_figure(values, "Each case")},
        )
    if "lesions_found" in whole:
        yield _found_section(metrics)
    if "auc" in whole:
        yield _curves(results, metrics, models, positive_label, readers)
    for key, title in (
        ("by_data_set", "By data set"),
        ("by_part", "By part"),
        ("by_site", "By site"),
        ("by_scanner", "By scanner"),
        ("by_label", "By label"),
    ):
        if len(metrics[key]) > 1 or key == "by_data_set":
            yield Section(title, header=COLUMNS, rows=[_row(n, f) for n, f in metrics[key].items()])


def _found_section(metrics: Mapping[str, Any]) -> Section:
    """Return how many lesions were found, by data set and size."""
    sizes = {"below_10_mm": "below 10 mm", "from_10_mm": "from 10 mm"}
    by_set = metrics["by_data_set"]
    return Section(
        "Lesions found",
        lines=[
            "A lesion is a connected region of the true mask; found: any voxel of it was marked.",
            "A false region is one without any true voxel.",
        ],
        header=("", "longest axial diameter", "lesions", "found", "share"),
        rows=[
            (name, said, str(of["lesions"]), str(of["found"]), f"{of['sensitivity']:.0%}")
            for name, figures in (by_set if len(by_set) > 1 else {ALL: metrics[ALL]}).items()
            for size, said in sizes.items()
            if (of := figures.get("lesions_found", {}).get(size))
        ],
    )


def _curves(
    results: Sequence[CaseResult],
    metrics: Mapping[str, Any],
    models: Models,
    positive_label: str,
    readers: ReaderPoints | None,
) -> Section:
    """Return the ROC of each set that has both classes, and of these together."""
    by_set = of_both_classes(results, positive_label)
    pooled = list(chain.from_iterable(by_set.values()))
    curves = {name: (found, metrics["by_data_set"][name]) for name, found in by_set.items()}
    if len(curves) > 1:
        curves[ALL] = pooled, metrics[ALL]
    threshold = float(models.screening.config.decision["threshold"])
    rocs = {
        name: Roc(
            *scored(found, positive_label), threshold=threshold, auc=_interval(figures["auc"])
        )
        for name, (found, figures) in curves.items()
    }
    figures = {"roc": roc_figure(rocs, f"{positive_label} or not", readers)}
    answered = [result for result in pooled if result.answered]
    if answered:
        figures["calibration"] = calibration_figure(calibration(*scored(answered, positive_label)))
    lines = [
        f"The curves and the calibration are of the sets with both classes: {', '.join(by_set)}.",
        f"A star is the operating point: the model's own threshold, {threshold:.3f}.",
    ]
    left_out = sorted({result.data_set for result in classified(results)} - set(by_set))
    if left_out:
        lines.append(f"Left out, for they have one class only: {', '.join(left_out)}.")
    return Section(
        "Classification",
        lines=[*lines, *(_reader_lines(readers) if readers else ())],
        figures=figures,
    )


def _classes(models: Models) -> dict[str, str]:
    """Return the second opinion's class by the label of a manifest; empty without one."""
    if models.opinion is None:
        return {}
    labels: Mapping[str, str] = models.opinion.pneumonia.config.decision["labels"]
    return dict(labels)


def _grades(models: Models) -> dict[str, str]:
    """Return the grade by the label of a manifest; empty where the models give none."""
    if models.opinion is None or models.opinion.severity is None:
        return {}
    labels: Mapping[str, str] = models.opinion.severity.config.decision.get("labels", {})
    return dict(labels)


def _severity_section(confusion: Mapping[str, Mapping[str, int]]) -> Section:
    columns = list(next(iter(confusion.values())))
    return Section(
        "Severity",
        lines=[f"Cases by their grade and the one given; '{NOT_GRADED}': taken for another class."],
        header=("", *columns),
        rows=[(true, *(str(said[name]) for name in columns)) for true, said in confusion.items()],
    )


def _opinion_section(
    results: Sequence[CaseResult],
    figures: Mapping[str, Mapping[str, Any]],
    classes: Mapping[str, str],
    readers: Calls,
) -> Section:
    """Return each class against the rest, the readers beside the network (U30)."""
    known = asked(results, classes)
    truth = {r.key: classes[str(r.case.label)] for r in known}
    called = {
        name: {case: classes.get(label, label) for case, label in of.items()}
        for name, of in readers.items()
    }
    curves = {}
    for place, (name, found) in enumerate(figures.items()):
        roc = Roc(*against_rest(known, classes, name), auc=_interval(found["auc"]))
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
                str(_interval(found["auc"])),
                f"{found['sensitivity']:.3f}",
                f"{found['specificity']:.3f}",
            )
            for name, found in figures.items()
        ],
        figures=curves,
    )


def _case_sections(results: Sequence[CaseResult], positive_label: str) -> Iterable[Section]:
    """Yield each case, what has no answer, pictures of what went wrong and right (J61, J65)."""
    yield Section(
        "Each case",
        header=("case", "data set", "label", "probability", "lung Dice", "lesion Dice"),
        rows=[
            (
                r.case.id,
                r.data_set,
                r.case.label or "",
                *(
                    "" if figure is None else f"{figure:.3f}"
                    for figure in (r.probability, r.lung_dice, r.lesion_dice)
                ),
            )
            for r in results
        ],
    )
    unanswered = [r for r in results if not r.answered]
    if unanswered:
        yield Section(
            "Not answered",
            header=("case", "data set", "why"),
            rows=[(r.case.id, r.data_set, " ".join(r.notes)) for r in unanswered],
        )
    masks = [r for r in results if r.overlap is not None]
    if masks:
        shown = [(caption(r, _dice(r)), r.picture) for r in sorted(masks, key=_dice)]
        yield Section(
            "Lesions",
            lines=[
                "The cases with the lowest Dice: orange is what was found, blue what is true.",
                "Above: Dice and the largest region, missed (FN), false (FP), or else found (TP).",
            ],
            figures=_gallery("lesions", shown),
        )
    judged = classified(results)
    hit = [r for r in judged if r.case.label == positive_label]
    rest = [r for r in judged if r.case.label != positive_label]
    for name, title, kind, cases, positive, sign in (
        ("missed", f"Called negative: {positive_label}", "FN", hit, False, 1),
        ("false-alarms", f"Called positive: not {positive_label}", "FP", rest, True, -1),
        ("hits", f"Called positive: {positive_label}", "TP", hit, True, -1),
    ):
        found = [r for r in cases if called(r, positive_label) is positive]
        found.sort(key=lambda r: sign * score(r, positive_label))
        if found:
            shown = [(caption(r, r.probability, kind=kind), r.picture) for r in found]
            lines = [f"{len(found)} of {len(cases)}; the surest first. Orange: lesions found."]
            yield Section(title, lines=lines, figures=_gallery(name, shown))


def _gallery(name: str, shown: Iterable[tuple[str, Picture | None]]) -> dict[str, Figure]:
    """Return the first pictures; a case that could not be read has none."""
    pictures = [(said, picture) for said, picture in shown if picture is not None]
    return {name: gallery(pictures[:GALLERY])} if pictures else {}


def caption(result: CaseResult, figure: float | None, *, kind: str = "") -> str:
    """Return what stands above a picture: kind, case and figure, a region, what was warned of.

    Without a figure the case was not answered.

    The region is the largest missed or false one, else the largest that was found; its volume is in
    ml, its longest axial diameter in mm. Without a true mask it is the largest found.
    """
    flags = [note.split(":")[0].split("(")[0].strip(" .") for note in result.notes]
    said = "not answered" if figure is None else f"{figure:.2f}"
    return "\n".join([f"{kind} {result.case.id}: {said}".strip(), *_region(result), *flags])


def _region(result: CaseResult) -> Iterable[str]:
    wrong = [("FP", region) for region in result.false_regions]
    wrong += [("FN", lesion) for lesion in result.lesions if not lesion.met]
    right = [("TP", lesion) for lesion in result.lesions if lesion.met]
    if result.overlap is None:
        right = [("largest region", region) for region in result.regions or ()]
    if wrong or right:
        kind, region = max(wrong or right, key=lambda named: named[1].volume_ml)
        yield f"{kind} {region.volume_ml:.1f} ml, {region.diameter_mm:.0f} mm"


COLUMNS: Final = (
    "",
    "cases",
    "not answered",
    "lung Dice",
    "lesion Dice",
    "pooled",
    "AUC",
    "positives",
    "negatives",
    "sensitivity",
    "specificity",
    "slices hit",
    "slices spared",
)


def _row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    pooled = figures.get("lesion_dice_pooled")
    hit, spared = figures.get("slice_sensitivity"), figures.get("slice_specificity")
    intervals = (
        str(_interval(figures[key])) if key in figures else ""
        for key in ("lung_dice", "lesion_dice")
    )
    auc, *called = (
        str(_interval(figures[key])) if key in figures else ""
        for key in ("auc", "sensitivity", "specificity")
    )
    return (
        name,
        str(figures["cases"]),
        str(figures["unanswered"]),
        *intervals,
        f"{pooled:.3f}" if pooled is not None else "",
        auc,
        *(str(figures.get(key, "")) for key in ("positives", "negatives")),
        *called,
        f"{hit:.3f}" if hit is not None else "",
        f"{spared:.3f}" if spared is not None else "",
    )


def _lesion_lines(figures: Mapping[str, Any]) -> Iterable[str]:
    if "lesion_dice_pooled" in figures:
        yield f"Pooled over all voxels, the lesion Dice is {figures['lesion_dice_pooled']:.3f}."
    if "false_regions" in figures:
        false = figures["false_regions"]
        yield (
            f"False regions a case: {false['per_case']:.1f}, {false['ml_per_case']:.1f} ml; "
            f"the largest {false['largest_ml']:.1f} ml."
        )
    if "without_lesions" in figures:
        spared = figures["without_lesions"]
        yield (
            f"In the {spared['cases']} cases without a lesion, which have no Dice, "
            f"{spared['ml_per_case']:.1f} ml were marked on average, {spared['most_ml']:.1f} ml at "
            "most."
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


def _dice(result: CaseResult) -> float:
    """Return the Dice of the lesions; 0 for a false region in a case without any, else 1."""
    if result.lesion_dice is not None:
        return result.lesion_dice
    return 0.0 if result.false_regions else 1.0
