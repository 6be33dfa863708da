"""One training from its settings to the bundle of its model."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from pipelines.errors import PipelineError
from pipelines.training.lesions import LesionRecipe
from pipelines.training.loop import ALONE, Process, train
from pipelines.training.lungs import LungRecipe
from pipelines.training.pneumonia import PneumoniaRecipe
from pipelines.training.recipe import Recipe, TrainingConfig
from pipelines.training.screening import ScreeningRecipe
from pipelines.weights import ModelConfig, shipped_weights, write_bundle

METRICS_FILE: Final = "metrics.json"

Say = Callable[[str], None]


def run(
    config: TrainingConfig,
    sets: Path,
    work: Path,
    out: Path,
    *,
    models: Path | None = None,
    threads: int = 0,
    say: Say = print,
) -> None:
    """Train on all GPUs or the processor, measure on the test groups, write the bundle to `out`.

    `sets` holds the manifests, `work` the checkpoints, `models` the models that prepare the data of
    a classifier, by default the ones shipped.

    Raises:
        PipelineError: the settings or the data are at fault.
    """
    if threads:
        torch.set_num_threads(threads)
    models = models or shipped_weights()
    gpus = torch.cuda.device_count()
    if gpus > 1:
        with tempfile.TemporaryDirectory() as folder:
            meeting = f"file://{folder}/meeting"
            job = (gpus, meeting, config, sets, work, out, models)
            spawn(_train_together, job, nprocs=gpus)  # type: ignore[no-untyped-call]
    else:
        _train(config, sets, work, out, models, process=ALONE, say=say)


def _train_together(
    place: int,
    count: int,
    meeting: str,
    config: TrainingConfig,
    sets: Path,
    work: Path,
    out: Path,
    models: Path,
) -> None:
    """Be one of several processes, each with a GPU of its own."""
    torch.cuda.set_device(place)
    distributed.init_process_group("nccl", init_method=meeting, rank=place, world_size=count)
    process = Process(place, count)
    say = print if process.writes else _nothing
    _train(config, sets, work, out, models, process=process, say=say)
    distributed.destroy_process_group()


def _nothing(_: str) -> None:
    """Leave the telling to the first process."""


def _train(
    config: TrainingConfig,
    sets: Path,
    work: Path,
    out: Path,
    models: Path,
    *,
    process: Process,
    say: Say,
) -> None:
    try:
        recipe = _recipe(config, sets, work, models, say)
    except KeyError as error:
        raise PipelineError(
            f"The training file of {config.name} lacks {error} in [data] or [preprocessing]."
        ) from error
    torch.manual_seed(config.seed)
    model = ModelConfig(
        name=config.name,
        version=config.version,
        purpose=config.purpose,
        network=config.network,
        preprocessing=config.preprocessing,
        decision=config.decision,
        precision=config.precision,
    )
    net = model.network_with_random_weights()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # On a GPU the samples come from processes beside it; a processor would only be divided.
    workers = (os.cpu_count() or 1) // process.count if device.type == "cuda" else 0
    train(config, recipe, net, work, device=device, say=say, process=process, workers=workers)
    if not process.writes:
        return
    say("Measuring on the validation and test groups.")
    with torch.inference_mode():
        figures = {"validation": recipe.validate(net), **recipe.report(net)}
    if "threshold" in figures:  # chosen on the validation groups, shown on the test groups
        decision = {**model.decision, "threshold": round(figures["threshold"], 4)}
        model = dataclasses.replace(model, decision=decision)
    write_bundle(out, model, net)
    aside = out / f".{METRICS_FILE}.part"
    aside.write_text(json.dumps(figures, indent=1) + "\n")
    aside.replace(out / METRICS_FILE)
    say(f"Written: {out}. Bring the figures of {METRICS_FILE} into its model_card.md.")


def _recipe(config: TrainingConfig, sets: Path, work: Path, models: Path, say: Say) -> Recipe:
    match config.purpose:
        case "lungs":
            return LungRecipe(config, sets)
        case "lesions":
            return LesionRecipe(config, sets, models)
        case "screening":
            return ScreeningRecipe(config, sets, work, models, say=say)
        case "pneumonia" | "severity":
            return PneumoniaRecipe(config, sets, work, models, say=say)
        case _:
            raise PipelineError(
                f"There is no training for '{config.purpose}'; known are lungs, lesions, screening,"
                " pneumonia, severity."
            )
