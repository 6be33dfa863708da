"""One training from its settings to the bundle of its model."""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessRaisedException, spawn

from pipelines.errors import PipelineError
from pipelines.files import whole_file
from pipelines.training.imagenet import begin_with_imagenet
from pipelines.training.lesions import LesionRecipe
from pipelines.training.loop import ALONE, Process, train
from pipelines.training.lungs import LungRecipe
from pipelines.training.pneumonia import PneumoniaRecipe
from pipelines.training.recipe import Beginning, Recipe, TrainingConfig
from pipelines.training.screening import ScreeningRecipe
from pipelines.training.sets import open_sets
from pipelines.weights import open_bundle, shipped_weights, write_bundle

METRICS_FILE: Final = "metrics.json"
FAILURE_FILE: Final = "failure"

PREPARED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "lungs": (),
    "lesions": ("lungs",),
    "screening": ("lungs", "lesions"),
    "pneumonia": ("lungs",),
    "severity": ("lungs",),
}
"""The models that prepare the data of a training, by its purpose."""

Say = Callable[[str], None]


def run(
    config: TrainingConfig,
    sets: Path,
    work: Path,
    out: Path,
    *,
    models: Path | None = None,
    cache: Path | None = None,
    threads: int = 0,
    say: Say = print,
) -> None:
    """Train on all GPUs or the processor, measure on the test groups, write the bundle to `out`.

    `sets` holds the manifests, `work` the checkpoints, `models` the models that prepare the data,
    by default the ones shipped, `cache` what they prepared, by default `work`.

    Raises:
        PipelineError: the settings or the data are at fault.
    """
    if threads:
        torch.set_num_threads(threads)
    models, cache = models or shipped_weights(), cache or work
    gpus = torch.cuda.device_count()
    if gpus > 1:
        with tempfile.TemporaryDirectory() as folder:
            meeting = Path(folder)
            job = (gpus, meeting, config, sets, work, out, models, cache)
            try:
                spawn(_train_together, job, nprocs=gpus)  # type: ignore[no-untyped-call]
            except ProcessRaisedException as error:
                if (meeting / FAILURE_FILE).exists():
                    raise PipelineError((meeting / FAILURE_FILE).read_text()) from error
                raise
    else:
        _train(config, sets, work, out, models, cache, process=ALONE, say=say)


def made_from(config: TrainingConfig, sets: Path, models: Path) -> str:
    """Return a digest of a training's data: its manifests and the models that prepare them.

    Raises:
        PipelineError: one of them is missing or broken.
    """
    digests = [manifest.digest for manifest in open_sets(config.data, sets)]
    prepared_by = PREPARED_BY.get(config.purpose, ())
    digests += [open_bundle(models / purpose).digest for purpose in prepared_by]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _train_together(
    place: int,
    count: int,
    meeting: Path,
    config: TrainingConfig,
    sets: Path,
    work: Path,
    out: Path,
    models: Path,
    cache: Path,
) -> None:
    """Be one of several processes, each with a GPU of its own where there is one."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(place)
        backend = "nccl"
    at = f"file://{meeting}/meeting"
    distributed.init_process_group(backend, init_method=at, rank=place, world_size=count)
    process = Process(place, count)
    say = print if process.writes else _nothing
    try:
        _train(config, sets, work, out, models, cache, process=process, say=say)
    except PipelineError as error:
        (meeting / FAILURE_FILE).write_text(str(error))
        raise
    distributed.destroy_process_group()


def _nothing(_: str) -> None:
    """Leave the telling to the first process."""


def _train(
    config: TrainingConfig,
    sets: Path,
    work: Path,
    out: Path,
    models: Path,
    cache: Path,
    *,
    process: Process,
    say: Say,
) -> None:
    model = config.model
    model.check()
    try:
        data = made_from(config, sets, models)
        recipe = _recipe(config, sets, cache, models, say)
    except KeyError as error:
        raise PipelineError(
            f"The training file of {config.name} lacks {error} in [network] or [data]."
        ) from error
    torch.manual_seed(config.seed)
    net = model.network_with_random_weights()
    if config.begin_with is Beginning.IMAGENET:
        begin_with_imagenet(net)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # On a GPU the samples come from processes beside it; a processor would only be divided.
    workers = (os.cpu_count() or 1) // process.count if device.type == "cuda" else 0
    train(
        config,
        recipe,
        net,
        work,
        device=device,
        made_from=data,
        say=say,
        process=process,
        workers=workers,
    )
    if not process.writes:
        return
    say("Measuring on the validation and test groups.")
    with torch.inference_mode():
        figures = {"validation": recipe.validate(net), **recipe.report(net)}
    if "threshold" in figures:  # chosen on the validation groups, shown on the test groups
        decision = {**model.decision, "threshold": round(figures["threshold"], 4)}
        model = dataclasses.replace(model, decision=decision)
    write_bundle(out, model, net)
    with whole_file(out / METRICS_FILE) as file:
        file.write(f"{json.dumps(figures, indent=1)}\n".encode())
    say(f"Written: {out}. Bring the figures of {METRICS_FILE} into its model_card.md.")


def _recipe(config: TrainingConfig, sets: Path, cache: Path, models: Path, say: Say) -> Recipe:
    match config.purpose:
        case "lungs":
            return LungRecipe(config, sets, say=say)
        case "lesions":
            return LesionRecipe(config, sets, models, say=say)
        case "screening":
            return ScreeningRecipe(config, sets, cache, models, say=say)
        case _:  # "pneumonia" or "severity"
            return PneumoniaRecipe(config, sets, cache, models, say=say)
