"""The automatic run on one page: a CT volume and three models in, an `Analysis` out (J35, J80).

A second opinion and heat maps are added where they are asked for.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import SimpleITK as sitk
import torch

from pipelines.engines.choice import EngineChoice
from pipelines.errors import NoUsableSeriesError, Refusal, Rule, WeightsError
from pipelines.findings import Analysis, HeatMap, SecondOpinion
from pipelines.heatmap import Explainer, Explainers, heat_maps
from pipelines.inference import Model
from pipelines.lesions import measure_lesions, segment_lesions
from pipelines.lungs import cut_off, measure_lungs, segment_lungs
from pipelines.pneumonia import OpinionModels, second_opinion
from pipelines.preprocessing import extract_lungs
from pipelines.quality import assess, warnings
from pipelines.screening import screen
from pipelines.series import Candidate
from pipelines.severity import measure_burden
from pipelines.volume import CTVolume
from pipelines.weights import SUMS_FILE, Bundle, open_bundle, shipped_weights

PURPOSES: Final = ("lungs", "lesions", "screening")
STEPS: Final = ("lungs", "lesions", "screening")
"""What the run does, in order; progress is told by these names."""

SECOND_OPINION: Final = "second opinion"
HEAT_MAP: Final = "heat map"

CUT_OFF: Final = "The scan ends inside the lungs: lesions beyond its ends are not seen."
PART_ONLY: Final = (
    "The COVID-likeness is that of a part of the lungs, for which it was not measured."
)
NO_LESION: Final = (
    "The case is called COVID-like, but no lesion was found: nothing that can be pointed at speaks "
    "for it."
)
NO_OPINION: Final = "The lungs lie in too few slices for a second opinion."


@dataclass(frozen=True)
class Models:
    """The three models of the automatic run, ready, and those of what is asked for besides."""

    lungs: Model
    lesions: Model
    screening: Model
    opinion: OpinionModels | None = None
    explainers: Explainers | None = None

    @classmethod
    def open(
        cls,
        folder: Path | None,
        choice: EngineChoice,
        *,
        threads: int = 0,
        second_opinion: bool = False,
        heat_map: bool = False,
    ) -> "Models":
        """Return the models below `folder`, by default the ones shipped.

        `threads` binds the whole process, 0 leaves it all processors.

        Raises:
            WeightsError: a model is missing, damaged or made for something else.
        """
        if threads:  # preparing and measuring compute as well, whatever runs the networks
            torch.set_num_threads(threads)
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)  # type: ignore[no-untyped-call]
        root = folder or shipped_weights()
        bundles = {purpose: _bundle(root, purpose) for purpose in PURPOSES}
        opinion = _opinion(root, choice, threads) if second_opinion else None
        explainers = None
        if heat_map:
            kind = None if opinion is None else Explainer.open(opinion.pneumonia.bundle)
            explainers = Explainers(Explainer.open(bundles["screening"]), kind)
        return cls(
            **{p: Model.open(b, choice, threads=threads) for p, b in bundles.items()},
            opinion=opinion,
            explainers=explainers,
        )

    @property
    def each(self) -> tuple[Model, ...]:
        """The models in the order of the steps."""
        further = () if self.opinion is None else self.opinion.each
        return (self.lungs, self.lesions, self.screening, *further)

    @property
    def further_steps(self) -> tuple[str, ...]:
        """What a run with these models does after `STEPS`."""
        asked = {SECOND_OPINION: self.opinion, HEAT_MAP: self.explainers}
        return tuple(step for step, models in asked.items() if models is not None)

    @property
    def engine(self) -> str:
        """What computes the networks: one description, or several where precisions differ."""
        engines = (engine for model in self.each for engine in model.engines)
        return ", ".join(dict.fromkeys(engine.description for engine in engines))


def _bundle(root: Path, purpose: str) -> Bundle:
    bundle = open_bundle(root / purpose)
    if bundle.config.purpose != purpose:
        raise WeightsError(
            f"{root / purpose} is a model for '{bundle.config.purpose}', not '{purpose}'."
        )
    return bundle


def _opinion(root: Path, choice: EngineChoice, threads: int) -> OpinionModels:
    """Return the models of the second opinion; the one that grades severity may be missing."""
    if not (root / "pneumonia" / SUMS_FILE).exists():
        raise WeightsError(
            f"The second opinion needs a model in {root / 'pneumonia'}, and there is none. Install "
            "or train one, or do without: no --second-opinion, analysis.second_opinion = false."
        )
    kind = Model.open(_bundle(root, "pneumonia"), choice, threads=threads)
    if not (root / "severity" / SUMS_FILE).exists():
        return OpinionModels(kind, None)
    return OpinionModels(kind, Model.open(_bundle(root, "severity"), choice, threads=threads))


Progress = Callable[[str, float, dict[str, Any]], None]
"""Told after each step: its name, its seconds, and what is known now (JSON types)."""


class Stopwatch:
    """Times the steps and tells whoever listens."""

    def __init__(self, listener: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener
        self._last = time.perf_counter()

    def done(self, step: str, **known: Any) -> None:
        """Note that `step` has just ended."""
        now = time.perf_counter()
        self.seconds[step] = now - self._last
        if self._listener is not None:
            self._listener(step, self.seconds[step], known)
        self._last = time.perf_counter()


def analyse_study(
    candidates: Iterable[Candidate], models: Models, *, progress: Progress | None = None
) -> tuple[CTVolume, Analysis]:
    """Return the first volume that shows lungs, and what is found in it.

    Raises:
        NoUsableSeriesError: none does.
    """
    without_lungs: tuple[Refusal, ...] = ()
    left: tuple[Refusal, ...] = ()
    try:
        for volume, others in candidates:
            told = (f"{r.reason} {volume.name} is analysed instead." for r in without_lungs)
            volume = replace(volume, warnings=(*volume.warnings, *told))  # noqa: PLW2901
            passed_over = tuple(r for r in without_lungs if r.series_uid != volume.series_uid)
            refused = _each_once(passed_over, others)
            try:
                return volume, analyse(volume, models, refused=refused, progress=progress)
            except NoUsableSeriesError as error:
                without_lungs += error.refusals
            del volume  # the next one needs the memory
    except NoUsableSeriesError as error:
        left = error.refusals
    raise NoUsableSeriesError(_each_once(without_lungs, left))


def _each_once(
    without_lungs: tuple[Refusal, ...], others: tuple[Refusal, ...]
) -> tuple[Refusal, ...]:
    """Return all refusals; a series without lungs was preferred, whatever was said before."""
    known = {refusal.series_uid for refusal in without_lungs}
    told = (r for r in others if r.rule is not Rule.NOT_PREFERRED or r.series_uid not in known)
    return (*without_lungs, *told)


def analyse(
    volume: CTVolume,
    models: Models,
    *,
    refused: tuple[Refusal, ...] = (),
    progress: Progress | None = None,
) -> Analysis:
    """Return lungs, lesions and COVID-likeness of one chest CT.

    `refused` are the other series of the study; they are kept with the result.

    Raises:
        NoUsableSeriesError: there are no lungs in the series.
    """
    watch = Stopwatch(progress)
    lungs = segment_lungs(volume, models.lungs)
    measures = measure_lungs(lungs, volume.voxel_ml)
    watch.done("lungs", left_ml=measures.left_ml, right_ml=measures.right_ml)

    config = models.lesions.config
    with ThreadPoolExecutor(1) as beside:
        judged = beside.submit(assess, volume, lungs)  # while the network computes
        extraction = extract_lungs(
            volume.hu,
            lungs,
            volume.spacing,
            target=config.spacing,
            margin_mm=float(config.preprocessing["lung_margin_mm"]),
        )
        labels = segment_lesions(volume, extraction, models.lesions)
        weighed = beside.submit(measure_burden, lungs, labels, volume.voxel_ml)
        found = measure_lesions(volume, labels, lungs)
    quality, burden = judged.result(), weighed.result()
    watch.done("lesions", count=len(found), volume_ml=sum(lesion.volume_ml for lesion in found))

    screening = screen(volume, lungs, labels, found, models.screening)
    watch.done("screening", probability=screening.probability, positive=screening.positive)

    opinion = None
    if models.opinion is not None:
        opinion = second_opinion(volume, lungs, models.opinion)
        watch.done(SECOND_OPINION, most_likely=opinion.most_likely if opinion else "none")
    maps: tuple[HeatMap, ...] = ()
    if models.explainers is not None:
        maps = heat_maps(volume, lungs, labels, opinion, models.explainers)
        watch.done(HEAT_MAP, count=len(maps))

    return Analysis(
        series_uid=volume.series_uid,
        shape=volume.shape,
        spacing=volume.spacing,
        affine=volume.affine,
        lungs=measures,
        lesions=screening.lesions,
        probability=screening.probability,
        positive=screening.positive,
        threshold=screening.threshold,
        models=tuple(model.bundle.reference for model in _answered(models, opinion)),
        engine=models.engine,
        timings_s=dict(watch.seconds),
        warnings=(
            *volume.warnings,
            *((CUT_OFF, PART_ONLY) if cut_off(lungs) else ()),
            *((NO_LESION,) if screening.positive and not screening.lesions else ()),
            *warnings(quality),
            *((NO_OPINION,) if models.opinion is not None and opinion is None else ()),
        ),
        refused_series=refused,
        lung_mask=lungs,
        lesion_labels=labels,
        quality=quality,
        burden=burden,
        second_opinion=opinion,
        heat_maps=maps,
        sop_instance_uids=volume.sop_instance_uids,
    )


def _answered(models: Models, opinion: SecondOpinion | None) -> Iterator[Model]:
    """Yield the models that took part: a case that is not graded was not shown to that network."""
    for model in models.each:
        match model.config.purpose:
            case "pneumonia" if opinion is None:
                continue
            case "severity" if opinion is None or opinion.severity is None:
                continue
        yield model
