"""`appliance select`: train the candidates of contests, keep the best, draw the comparison (J48).

A comparison is a TOML file of contests, held in their order::

    [[contests]]
    name = "classifiers"
    title = "Classifiers on the best segmenter's masks"
    base = "screening/training.toml"     # beside the comparison: what all candidates share
    after = "segmenters"                 # whose winner prepares the data
    common = { training = { steps = 1500 } }

    [contests.candidates."ResNet-50"]    # what this one has of its own
    [contests.candidates."DPN-92"]
    network = { architecture = "dpn92" }

A candidate's tables are laid over the common ones and those over the base; `network` is replaced
as a whole, and the model is called what the candidate is. With `folds = 5` a candidate is trained
five times, each time with another fifth of the groups for validation, and judged by the mean; if it
wins, its first fold goes on. The winner is best on the validation groups, the figures shown are
those of the test groups. What has been trained with the same settings, here or before, is not
trained again; the report is written after each contest.

An `[evaluation]` runs the winners of some contests together, with the shipped models for the rest,
over the test groups of some sets, as `appliance evaluate` does, and adds its report::

    [evaluation]
    contests = ["segmenters", "classifiers"]
    manifests = ["covid-volumes", "ucsd"]
    positive = "covid"
    single_cases = false        # a report to give away, without pictures; true if left out
    shipped = true              # false if left out

With `shipped` a winner with a network and the preprocessing of the shipped model gives way to it,
there and in the contests that come after: it is the same trained for longer. The reports and the
console say so each time: the shipped model may have learnt from what is a test group here.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.analysis import PURPOSES, Models
from pipelines.engines.choice import EngineChoice
from pipelines.errors import PipelineError
from pipelines.evaluation.evaluate import evaluate, require_label
from pipelines.evaluation.figures import Roc, dice_figure, roc_figure
from pipelines.evaluation.metrics import INTERVALS, Interval, bootstrap, roc_auc
from pipelines.evaluation.report import Section, write_report
from pipelines.manifest import Part
from pipelines.training.recipe import TrainingConfig, read_toml
from pipelines.training.run import METRICS_FILE, made_from, run
from pipelines.training.sets import open_sets
from pipelines.weights import open_bundle, shipped_weights

MOST_COLUMNS: Final = 8  # of single cases in a table
VERSION: Final = "0"  # of a candidate's model: it is no release
LEAD: Final = (
    "Trained and measured by `appliance select`; test groups took no part in any choice.",
    "Each candidate had the steps that its line names: trained for longer they may rank otherwise.",
    INTERVALS,
)

Tables = Mapping[str, Any]


@dataclass(frozen=True)
class Contest:
    """Candidates for one purpose, each a whole training."""

    name: str
    title: str
    candidates: Mapping[str, Sequence[TrainingConfig]]  # one each, or one for each fold
    after: str | None


@dataclass(frozen=True)
class Evaluation:
    """Which winners run together, and over what."""

    contests: Sequence[str]
    manifests: Sequence[str]
    positive: str
    single_cases: bool = True
    shipped: bool = False


@dataclass(frozen=True)
class Outcome:
    """A trained candidate: how it was trained, where its model lies, its size and its figures."""

    config: TrainingConfig
    folder: Path
    parameters: int
    figures: Mapping[str, Any]

    @property
    def trained(self) -> str:
        """Steps, batch and patch as a table shows them."""
        patch = " × ".join(map(str, self.config.patch))
        return f"{self.config.steps} steps of {self.config.batch} × ({patch})"


def select(
    path: Path,
    sets: Path,
    work: Path,
    out: Path,
    *,
    threads: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Hold the contests of the comparison in `path`; write their report to `out`.

    Models and checkpoints lie in `work`, the report of the winners together in `out/winners`. A
    candidate whose training fails is a line of the report.

    Raises:
        PipelineError: the comparison or the data are at fault, or every candidate of a contest
            failed.
    """
    contests, evaluation = read_comparison(path)
    needed = {contest.after for contest in contests}
    needed |= set(evaluation.contests) if evaluation is not None else set()
    shipped = evaluation is not None and evaluation.shipped
    if evaluation is not None:
        require_label(open_sets({"manifests": evaluation.manifests}, sets), evaluation.positive)
    notes: list[str] = []
    winners: dict[str, Path] = {}
    sections: list[Section] = []
    metrics: dict[str, Any] = {}
    for contest in contests:
        after = [] if contest.after is None else [winners[contest.after]]
        models, replaced = _models(work / "combined" / contest.name, after, shipped=shipped)
        for note in replaced:
            say(note)
        notes += [note for note in replaced if note not in notes]
        outcomes: dict[str, list[Outcome]] = {}
        lines: list[str] = []
        for name, configs in contest.candidates.items():
            try:
                outcomes[name] = _train_all(
                    f"{contest.name}: {name}",
                    configs,
                    partial(_train_once, sets=sets, work=work, models=models, threads=threads),
                    say,
                )
            except PipelineError as error:
                lines.append(f"{name} failed: {error}")
                say(lines[-1])
        if not outcomes:
            raise PipelineError(f"Every candidate of '{contest.name}' failed. {lines[-1]}")
        if contest.name in needed:
            best = max(outcomes, key=lambda name: _validation(outcomes[name]))
            winners[contest.name] = outcomes[best][0].folder
            lines.append(f"Best on the validation groups: {best}.")
            say(f"{contest.name}: best on the validation groups is {best}.")
        section = _section(contest, outcomes)
        sections.append(replace(section, lines=[*section.lines, *lines]))
        metrics[contest.name] = {n: [_row(o) for o in folds] for n, folds in outcomes.items()}
        write_report(out, "Comparison of models", LEAD, sections, metrics, notes=notes)
    if evaluation is not None:
        say("Running the winners together over the test groups.")
        chosen = [winners[name] for name in evaluation.contests]
        models, replaced = _models(work / "combined" / "winners", chosen, shipped=shipped)
        for note in replaced:
            say(note)
        notes += [note for note in replaced if note not in notes]
        write_report(out, "Comparison of models", LEAD, sections, metrics, notes=notes)
        if (out / "winners").exists():  # of an earlier run
            shutil.rmtree(out / "winners")
        evaluate(
            open_sets({"manifests": evaluation.manifests}, sets),
            Models.open(models, EngineChoice.AUTO, threads=threads),
            out / "winners",
            parts=[Part.TEST],
            positive_label=evaluation.positive,
            single_cases=evaluation.single_cases,
            notes=replaced,
            say=say,
        )
    say(f"Written: {out / 'report.html'}")


def _train_all(
    title: str,
    configs: Sequence[TrainingConfig],
    train_once: Callable[..., Path],
    say: Callable[[str], None],
) -> list[Outcome]:
    """Return what came of a candidate, of each of its folds."""
    found = []
    for number, config in enumerate(configs, start=1):
        say(f"{title}, fold {number} of {len(configs)}" if len(configs) > 1 else title)
        found.append(_outcome(config, train_once(config, say=say)))
    return found


def read_comparison(path: Path) -> tuple[list[Contest], Evaluation | None]:
    """Return the contests of a comparison, and what is to be done with their winners.

    Raises:
        PipelineError: the file or a candidate's settings are wrong, or a contest is named that is
            none, or none before.
    """
    contests: list[Contest] = []
    comparison = read_toml(path)
    for tables in comparison.get("contests", ()):
        missing = sorted({"name", "title", "base", "candidates"} - set(tables))
        if missing:
            raise PipelineError(f"{path}: a contest lacks {', '.join(missing)}.")
        if tables["name"] in [contest.name for contest in contests]:
            raise PipelineError(f"{path}: two contests are called '{tables['name']}'.")
        after = tables.get("after")
        if after is not None and after not in [contest.name for contest in contests]:
            raise PipelineError(f"{path}: '{tables['name']}' comes after '{after}', which is none.")
        base = read_toml(path.parent / tables["base"])
        shared = _laid_over(base, tables.get("common", {}))
        folds = int(tables.get("folds", 1))
        if folds < 1 or not tables["candidates"]:
            raise PipelineError(f"{path}: '{tables['name']}' needs candidates, and folds above 0.")
        candidates = {
            name: _folded(_named(TrainingConfig.of(_laid_over(shared, own), path), name), folds)
            for name, own in tables["candidates"].items()
        }
        contests.append(Contest(tables["name"], tables["title"], candidates, after))
    if not contests:
        raise PipelineError(f"{path} holds no contest.")
    _require_purposes(path, contests, [contest.after for contest in contests])
    if "evaluation" not in comparison:
        return contests, None
    try:
        evaluation = Evaluation(**comparison["evaluation"])
    except TypeError as error:
        raise PipelineError(
            f"{path}: [evaluation] has the keys contests, manifests, positive, single_cases and "
            f"shipped: {error}."
        ) from error
    unknown = set(evaluation.contests) - {contest.name for contest in contests}
    if unknown:
        raise PipelineError(f"{path}: [evaluation] names no contest with {', '.join(unknown)}.")
    _require_purposes(path, contests, evaluation.contests)
    return contests, evaluation


def _require_purposes(
    path: Path, contests: Iterable[Contest], needed: Collection[str | None]
) -> None:
    """Refuse winners that no automatic run has a place for."""
    for contest in contests:
        purposes = {configs[0].purpose for configs in contest.candidates.values()}
        if contest.name in needed and not purposes <= set(PURPOSES):
            raise PipelineError(
                f"{path}: '{contest.name}' is for {', '.join(sorted(purposes))}; others can come "
                f"after, and [evaluation] can name, only what is for {', '.join(PURPOSES)}."
            )


def _named(config: TrainingConfig, candidate: str) -> TrainingConfig:
    return replace(config, name=candidate, version=VERSION)


def _folded(config: TrainingConfig, folds: int) -> list[TrainingConfig]:
    if folds == 1:
        return [config]
    return [
        replace(config, data={**config.data, "fold": {**fold, "seed": config.seed}})
        for fold in ({"number": number, "count": folds} for number in range(folds))
    ]


def _validation(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.figures["validation"] for outcome in outcomes]))


def _laid_over(base: Tables, own: Tables) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = {**below, **value} if both and key != "network" else value  # type: ignore[dict-item]
    return merged


def _models(folder: Path, winners: Iterable[Path], *, shipped: bool) -> tuple[Path, list[str]]:
    """Return a folder of models, the winners and the shipped ones for all other purposes.

    With `shipped` a winner that is one of a shipped model's networks gives way to it; what is
    returned besides says so, a sentence for each.
    """
    sources = {purpose: shipped_weights() / purpose for purpose in PURPOSES}
    notes = []
    for winner in winners:
        won = open_bundle(winner).config
        like = open_bundle(sources[won.purpose]).config
        alike = [(member.network, member.preprocessing) for member in like.members]
        if shipped and (won.network, won.preprocessing) in alike:
            notes.append(
                f"Not the winner '{won.name}' but the shipped {like.name} {like.version} is used "
                f"for {won.purpose}, as the comparison asks for: it may know the test cases."
            )
        else:
            sources[won.purpose] = winner
    for purpose, source in sources.items():
        if (folder / purpose).exists():
            shutil.rmtree(folder / purpose)
        shutil.copytree(source, folder / purpose)
    return folder, notes


def _train_once(
    config: TrainingConfig,
    sets: Path,
    work: Path,
    models: Path,
    *,
    threads: int,
    say: Callable[[str], None],
) -> Path:
    """Return the model made with these settings on data from these models; train it if need be."""
    made_with = json.dumps([config.taught, made_from(config, sets, models)], sort_keys=True)
    name = hashlib.sha256(made_with.encode()).hexdigest()[:16]
    model = work / "models" / name
    if (model / METRICS_FILE).exists():  # what a training writes last
        say("  trained before with these settings")
    else:
        checkpoints = work / "checkpoints" / name
        run(
            config,
            sets,
            checkpoints,
            model,
            models=models,
            cache=work / "prepared",
            threads=threads,
            say=say,
        )
    return model


def _outcome(config: TrainingConfig, folder: Path) -> Outcome:
    bundle = open_bundle(folder)
    parameters = sum(p.numel() for p in bundle.network().parameters())
    figures = json.loads((folder / METRICS_FILE).read_text())
    return Outcome(config, folder, parameters, figures)


def _section(contest: Contest, folds: Mapping[str, Sequence[Outcome]]) -> Section:
    outcomes = {
        name if len(found) == 1 else f"{name}, fold {number}": outcome
        for name, found in folds.items()
        for number, outcome in enumerate(found, start=1)
    }
    figures = next(iter(outcomes.values())).figures
    if "scored" in figures:
        return _opinions(contest, folds)
    section = (_classifiers if "test" in figures else _segmenters)(contest, outcomes)
    means = [
        f"{name}: {len(found)} folds, validation {_validation(found):.3f} on average."
        for name, found in folds.items()
        if len(found) > 1
    ]
    return replace(section, lines=[*section.lines, *means])


def _segmenters(contest: Contest, outcomes: Mapping[str, Outcome]) -> Section:
    of = {name: list(_cases(outcome.figures).values()) for name, outcome in outcomes.items()}
    cases = list(_cases(next(iter(outcomes.values())).figures))
    columns = cases if len(cases) <= MOST_COLUMNS else []
    rows = []
    for name, outcome in outcomes.items():
        each = _cases(outcome.figures)
        pooled = outcome.figures.get("lesion_dice_pooled")
        slices = outcome.figures.get("slice_dice")  # of single slices, where there are any
        rows.append(
            (
                name,
                f"{outcome.parameters / 1e6:.2f} M",
                outcome.trained,
                f"{outcome.figures['validation']:.3f}",
                str(_mean(list(each.values()), list(each))),
                f"{pooled:.3f}" if pooled is not None else "",
                str(_mean(list(slices.values()), list(slices))) if slices else "",
                *(f"{each[case]:.3f}" for case in columns),
            )
        )
    header = ("", "parameters", "trained", "validation", "test Dice [95 %]", "pooled")
    return Section(
        contest.title,
        header=(*header, "test Dice of single slices [95 %]", *columns),
        rows=rows,
        figures={f"{contest.name}-dice": dice_figure(of, "Test cases")},
    )


def _opinions(contest: Contest, folds: Mapping[str, Sequence[Outcome]]) -> Section:
    """Return each class against the rest; cases of several folds are those each was kept from."""
    rows, drawn = [], {}
    for place, (name, found) in enumerate(folds.items()):
        part = Part.TEST if len(found) == 1 else Part.VALIDATION
        scored = [row for outcome in found for row in outcome.figures["scored"] if row[0] == part]
        classes = list(found[0].figures["auc"])
        truth = np.array([classes.index(row[3]) for row in scored], dtype=int)
        scores = np.array([row[4] for row in scored]).reshape(len(scored), len(classes))
        curves = _against_the_rest(scores, truth, classes, [f"{row[1]} {row[2]}" for row in scored])
        if curves:
            title = f"{name}: each class and the rest"
            drawn[f"{contest.name}-roc-{place}"] = roc_figure(curves, title)
        right = int((scores.argmax(axis=1) == truth).sum())
        rows.append(
            (
                name,
                f"{found[0].parameters / 1e6:.2f} M",
                found[0].trained,
                f"{_validation(found):.3f}",
                f"{right} of {len(scored)}",
                ", ".join(f"{kind} {roc.auc}" for kind, roc in curves.items() if roc.auc),
            )
        )
    return Section(
        contest.title,
        lines=["With folds, every case is judged by the network that had not learnt from it."],
        header=("", "parameters", "trained", "validation", "called rightly", "AUC of each class"),
        rows=rows,
        figures=drawn,
    )


def _against_the_rest(
    scores: NDArray[np.float64], truth: NDArray[np.int_], classes: Sequence[str], groups: list[str]
) -> dict[str, Roc]:
    """Return the curve of each class that is there and is not alone."""
    curves = {}
    for number, kind in enumerate(classes):
        positive = truth == number
        if positive.any() and not positive.all():
            auc = bootstrap(
                lambda rows, s=scores[:, number], t=positive: roc_auc(s[rows], t[rows]),  # type: ignore[misc]
                groups,
                classes=positive.tolist(),
            )
            curves[kind] = Roc(scores[:, number], positive, auc=auc)
    return curves


def _cases(figures: Tables) -> dict[str, float]:
    each: Mapping[str, Any] = figures["lesion_dice" if "lesion_dice" in figures else "lung_dice"]
    return {name: float(value) for name, value in each.items()}


def _classifiers(contest: Contest, outcomes: Mapping[str, Outcome]) -> Section:
    curves, rows = {}, []
    for name, outcome in outcomes.items():
        scores, truth, groups = _scores(outcome.figures["test"])
        auc = bootstrap(
            lambda rows, s=scores, t=truth: roc_auc(s[rows], t[rows]),  # type: ignore[misc]
            groups,
            classes=truth.tolist(),
        )
        threshold = float(outcome.figures["threshold"])
        curves[name] = Roc(scores, truth, threshold=threshold, auc=auc)
        called = scores >= threshold
        figures = outcome.figures
        rows.append(
            (
                name,
                f"{outcome.parameters / 1e6:.2f} M",
                outcome.trained,
                f"{figures['train_positives']} + {figures['train_negatives']}",
                f"{figures['validation']:.3f}",
                str(auc),
                f"{called[truth].mean():.3f}",
                f"{(~called)[~truth].mean():.3f}",
                ", ".join(f"{n} {area:.3f}" for n, area in _by_set(figures)),
            )
        )
    header = ("", "parameters", "trained", "on + and −", "validation AUC", "test AUC [95 %]")
    return Section(
        contest.title,
        lines=["The star is the Youden point of the validation slices, shown on the test slices."],
        header=(*header, "sensitivity", "specificity", "AUC by set"),
        rows=rows,
        figures={f"{contest.name}-roc": roc_figure(curves, "Test slices")},
    )


def _scores(
    rows: Iterable[Sequence[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[str]]:
    rows = list(rows)
    return (
        np.array([score for _, _, _, score in rows], dtype=np.float64),
        np.array([truth for _, _, truth, _ in rows], dtype=bool),
        [f"{name} {group}" for name, group, _, _ in rows],
    )


def _by_set(figures: Tables) -> Iterable[tuple[str, float]]:
    """Yield each test set with its AUC, but for those of one class."""
    for name in sorted({row[0] for row in figures["test"]}):
        if (area := figures[name]["auc"]) is not None:
            yield name, float(area)


def _mean(values: Sequence[float], groups: Sequence[str]) -> Interval:
    array = np.array(values)
    return bootstrap(lambda rows: float(array[rows].mean()), groups)


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "parameters": outcome.parameters,
        "digest": open_bundle(outcome.folder).digest,
        "training": outcome.config.taught,
        **outcome.figures,
    }
