"""The queue's entry point: claim a study, load, analyse, save, move on.

The only module here that knows the appliance. A message carries a study's row id, and says no more
than that something waits: whose turn it is, the database tells (`appliance.priority`). Running the
task twice is harmless, because only one claim succeeds, and the work of a worker that was taken for
dead is thrown away when it tries to finish. A process in which something unforeseen failed ends.
"""

import shutil
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from celery import current_task, shared_task

from appliance import lifecycle, priority, studies
from appliance.config import AnalysisSettings, Settings
from appliance.database import Database
from appliance.errors import LostRaceError
from appliance.lifecycle import Claim, FinishedAnalysis
from appliance.queue import current
from appliance.store import Store
from appliance.studies import SeriesOutcome
from pipelines import analysis, presentation
from pipelines.analysis import Models
from pipelines.engines.choice import EngineChoice
from pipelines.errors import NoUsableSeriesError, PipelineError, Refusal, WeightsError
from pipelines.findings import Analysis, whole_folder
from pipelines.series import Candidate, study_candidates
from pipelines.volume import CTVolume

log = structlog.get_logger()

STEPS: Final = ("reading", *analysis.STEPS, "saving")
"""Of every study; what is asked for besides comes before the saving."""


@shared_task(name="pipelines.analyse_study")
def analyse_study(study_id: int) -> None:
    """Analyse the study whose turn it is: this one, or one that waits and is more urgent."""
    app = current()
    settings, database = app.settings, app.database
    try:
        models = _models(settings.analysis)
    except WeightsError as error:
        # The appliance's fault, not the study's: it keeps waiting, and the sweep rings again.
        log.error("analysis.no_models", reason=str(error))  # noqa: TRY400
        return
    again = (current_task.request.delivery_info or {}).get("redelivered", False)
    claim = priority.claim_next(
        database,
        # One that failed for a while waits for the sweep, not for the message that comes again.
        0 if again else study_id,
        owner=lifecycle.owner_here(),
        lease_s=settings.lifecycle.lease_s,
        in_a_row=settings.priority.in_a_row,
    )
    if claim is None:
        return
    log.info("analysis.started", study_id=claim.study_id, attempt=claim.attempt)
    try:
        with lifecycle.keep(database, claim, lease_s=settings.lifecycle.lease_s):
            state = _run(settings, database, claim, models)
    except LostRaceError:
        log.warning("analysis.overtaken", study_id=claim.study_id)
        return
    log.info("analysis.ended", study_id=claim.study_id, state=state)


def _run(settings: Settings, database: Database, claim: Claim, models: Models) -> lifecycle.State:
    """Do the work; whatever goes wrong ends as a state with a reason, never as a stuck study."""
    attempts = settings.lifecycle.max_attempts
    try:
        return _analyse(settings, database, claim, models)
    except NoUsableSeriesError as error:
        state = lifecycle.reject(database, claim, reason=str(error))
        _note_outcomes(database, claim, error.refusals)
        return state
    except PipelineError as error:
        return lifecycle.fail(
            database, claim, reason=str(error), transient=False, max_attempts=attempts
        )
    except LostRaceError:
        raise
    except Exception as error:
        log.exception("analysis.failed", study_id=claim.study_id)
        reason = f"{type(error).__name__}: see the worker's log"
        lifecycle.fail(database, claim, reason=reason, transient=True, max_attempts=attempts)
        # Libraries may never recover: oneDNN remembers a primitive that it had no memory for, CUDA
        # a broken context. So the pool starts another process.
        raise SystemExit(1) from error


def _analyse(
    settings: Settings, database: Database, claim: Claim, models: Models
) -> lifecycle.State:
    steps = _Steps(database, claim, (*STEPS[:-1], *models.further_steps, STEPS[-1]))
    volumes = _read(settings, database, claim, steps)
    volume, found = analysis.analyse_study(volumes, models, progress=steps.finished)
    folder = settings.analyses_dir / str(claim.study_id) / uuid.uuid4().hex
    with whole_folder(folder) as staging:
        found.write(staging, volume)
        presentation.write_viewer(volume, found, staging / "viewer")
    try:
        steps.done("saving")
        state = lifecycle.finish(
            database, claim, _for_database(settings, folder, volume, found, steps.seconds)
        )
    except LostRaceError:
        shutil.rmtree(folder)  # whoever holds the study now writes its own
        raise
    _note_outcomes(database, claim, found.refused_series, analysed=volume.series_uid)
    return state


def _read(
    settings: Settings, database: Database, claim: Claim, steps: "_Steps"
) -> Iterator[Candidate]:
    """Yield the study's volumes, the best first; reading is a step told anew for each."""
    steps.start("reading")
    store = Store(settings.store_dir)
    with database.snapshot() as db:
        files = studies.instances_of(db, claim.study_id)
    paths = [store.path_of(file.digest) for file in files]
    for volume, refused in study_candidates(paths, threads=settings.analysis.threads):
        steps.done("reading", summary={"slices": volume.shape[0], "refused": len(refused)})
        yield volume, refused
        del volume  # the next one needs the memory
        steps.start("reading")


def _note_outcomes(
    database: Database,
    claim: Claim,
    refused: tuple[Refusal, ...],
    *,
    analysed: str | None = None,
) -> None:
    outcomes = [SeriesOutcome(r.series_uid, "refused", r.reason) for r in refused]
    if analysed is not None:
        outcomes.append(SeriesOutcome(analysed, "analysed"))
    with database.transaction() as db:
        studies.record_series_outcomes(db, claim.study_id, outcomes)


class _Steps:
    """Publishes what runs and what came out of it."""

    def __init__(self, database: Database, claim: Claim, steps: tuple[str, ...]) -> None:
        self.steps = steps
        self.seconds: dict[str, float] = {}
        self._database = database
        self._claim = claim
        self._watch = analysis.Stopwatch(None)

    def start(self, step: str) -> None:
        """Say that `step` runs."""
        self._watch = analysis.Stopwatch(None)
        studies.start_step(
            self._database,
            self._claim,
            step=step,
            done=self.steps.index(step),
            total=len(self.steps),
        )

    def done(self, step: str, *, summary: dict[str, Any] | None = None) -> None:
        """Say that `step` has ended and the next one runs."""
        self._watch.done(step)
        self.finished(step, self._watch.seconds[step], summary or {})

    def finished(self, step: str, seconds: float, summary: dict[str, Any]) -> None:
        """Take what the analysis tells after each of its steps."""
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        position = self.steps.index(step)
        studies.record_step(
            self._database,
            self._claim,
            step=step,
            position=position,
            total=len(self.steps),
            seconds=seconds,
            summary=summary,
        )
        if position + 1 < len(self.steps):
            self.start(self.steps[position + 1])


def _for_database(
    settings: Settings,
    folder: Path,
    volume: CTVolume,
    found: Analysis,
    seconds: dict[str, float],
) -> FinishedAnalysis:
    summary = found.summary()
    return FinishedAnalysis(
        folder=str(folder.relative_to(settings.data_dir)),
        probability=found.probability,
        positive=found.positive,
        lesion_count=len(found.lesions),
        lesion_volume_ml=sum(lesion.volume_ml for lesion in found.lesions),
        models=summary["models"],
        timings={step: round(value, 3) for step, value in seconds.items()},
        lung_hu=float(volume.hu[found.lung_mask > 0].mean(dtype=np.float64)),
    )


@cache
def _models(chosen: AnalysisSettings) -> Models:
    """Open the models once in the life of the worker."""
    return Models.open(
        chosen.weights_dir,
        EngineChoice(chosen.engine),
        threads=chosen.threads,
        second_opinion=chosen.second_opinion,
        heat_map=chosen.heat_map,
    )
