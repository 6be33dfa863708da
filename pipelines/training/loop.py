"""The training loop: seeded per sample, resumable to the same result, watched while it runs.

Sample `i` of step `k` is drawn from a generator seeded with (seed, k, i), so a training that was
killed and resumed sees what the uninterrupted one saw, and so do several processes that share a
batch. Checkpoints are safetensors, written aside and renamed: a full disk or a kill leaves the last
good one.
"""

import ctypes
import json
import math
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from pipelines.engines.torch import channels_last
from pipelines.errors import PipelineError
from pipelines.files import whole_file
from pipelines.training.recipe import Optimiser, Recipe, Schedule, TrainingConfig

CHECKPOINT: Final = "checkpoint.safetensors"
BEST: Final = "best.safetensors"
CURVE: Final = "curve.csv"
WARM_UP: Final = 0.05  # share of the steps
LARGEST_GRADIENT: Final = 5.0  # norm
REPORT_EVERY_S: Final = 20.0
CHECKPOINT_EVERY_S: Final = 120.0
MALLOC_LIMIT: Final = 2**31 - 1  # bytes, the most that mallopt takes

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Process:
    """One of the processes that train together; `place` counts from 0, who alone writes."""

    place: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        return self.place == 0


ALONE: Final = Process()


@dataclass
class Progress:
    """Where a training is; travels in the checkpoint."""

    step: int = 0
    losses: list[float] = field(default_factory=list)  # since the last look at the validation
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # step, loss, score
    best: float = -math.inf
    looks_without_better: int = 0


class _Samples(Dataset[Batch]):
    """The samples of a whole training by their number."""

    def __init__(self, recipe: Recipe, config: TrainingConfig) -> None:
        self._recipe, self._config = recipe, config

    def __getitem__(self, number: int) -> Batch:
        step, place = divmod(number, self._config.batch)
        return self._recipe.sample(np.random.default_rng((self._config.seed, step, place)))


def train(
    config: TrainingConfig,
    recipe: Recipe,
    net: nn.Module,
    folder: Path,
    *,
    device: torch.device,
    made_from: str = "",
    say: Callable[[str], None] = print,
    process: Process = ALONE,
    workers: int = 0,
) -> None:
    """Train `net` in place, from the checkpoint in `folder` if there is one.

    `made_from` names the data, so that a checkpoint of other data is not continued.
    With several processes each takes its share of every batch (the gradients are averaged by
    `DistributedDataParallel`); the process group must be up. `workers` processes draw the samples
    beside the training, where it runs on a GPU.

    Raises:
        PipelineError: the loss or its gradient is no longer a number, the checkpoint belongs to
            other settings or data, or cannot be written; a compiler is wanted and there is none.
    """
    _keep_freed_memory()
    if config.batch % process.count:
        raise PipelineError(f"A batch of {config.batch} does not split over {process.count}.")
    if config.compiled:
        _require_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    layout = channels_last(max(parameter.ndim for parameter in net.parameters()))
    net.to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
    made_with = json.dumps([config.taught, made_from], sort_keys=True)
    optimiser = make_optimiser(config, net)
    average = _average(config, net)
    progress = _resume(made_with, net, average, optimiser, folder)
    if progress.step:
        say(f"Resuming {config.name} at step {progress.step} of {config.steps}.")
    else:
        say(f"No checkpoint in {folder}: {config.name} starts from the beginning.")
    shared = DistributedDataParallel(net) if process.count > 1 else net
    # `net` itself stays as it is, and is what the validation sees.
    taught = cast(nn.Module, torch.compile(shared)) if config.compiled else shared
    kept = average.module if average is not None else net
    first, began = progress.step, time.monotonic()
    saved = told = began
    batches = _batches(config, recipe, first, process, workers)
    while not _has_ended(config, progress):
        images, targets = next(batches)
        step = progress.step
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        torch.manual_seed(config.seed * config.steps + step)  # of layers that draw, as dropout does
        loss, norm = _descend(recipe, taught, optimiser, images.to(device), targets.to(device))
        if not math.isfinite(norm):  # the loss may be a number all the same
            raise PipelineError(
                f"The loss of {config.name} at step {step} is {loss:.4g}, its gradient {norm:.4g}. "
                f"What was learned until the last checkpoint, if there was one, is in {folder}; "
                "lower training.learning_rate and start again with another --work folder."
            )
        optimiser.step()
        if average is not None:
            average.update_parameters(net)
        progress.losses.append(loss)
        progress.step = done = step + 1
        now = time.monotonic()
        looked = done % config.validate_every == 0 or done == config.steps
        if looked:
            score = _validate(recipe, kept, process)
            progress.curve.append((done, float(np.mean(progress.losses)), score))
            progress.losses.clear()
            better = score > progress.best
            progress.best = max(score, progress.best)
            progress.looks_without_better = 0 if better else progress.looks_without_better + 1
            if process.writes:
                if better and config.patience:
                    _write_tensors(folder / BEST, _tensors_of(kept), {})
                _write_curve(folder / CURVE, progress.curve)
            mean = progress.curve[-1][1]
            say(f"{config.name} step {done}: loss {mean:.4f}, validation {score:.4f}")
        if now - told > REPORT_EVERY_S:
            told = now
            left = (now - began) / (done - first) * (config.steps - done)
            say(
                f"{config.name} step {done}/{config.steps}: loss {loss:.4f}, "
                f"{left / 60:.1f} min left"
            )
        if (looked or now - saved > CHECKPOINT_EVERY_S) and process.writes:
            saved = now
            _save(made_with, net, average, optimiser, folder, progress)
    if config.patience and (folder / BEST).exists():
        net.load_state_dict(load_file(folder / BEST))
    elif average is not None:
        net.load_state_dict(average.module.state_dict())
    net.eval()


def _require_compiler() -> None:
    """Refuse to compile without what `torch.compile` needs."""
    compiler = os.environ.get("CXX", "g++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    lacking = [f"a C++ compiler ('{compiler}'; name another in CXX)"]
    lacking = [] if shutil.which(compiler) else lacking
    if not header.exists():
        lacking.append(f"Python's headers ({header}; Debian's package python3-dev)")
    if lacking:
        raise PipelineError(
            f"training.compiled needs {' and '.join(lacking)}: install what is missing, or set "
            "training.compiled to false."
        )


def _has_ended(config: TrainingConfig, progress: Progress) -> bool:
    tired = 0 < config.patience <= progress.looks_without_better
    return tired or progress.step == config.steps


def make_optimiser(config: TrainingConfig, net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name (J55, U21, U22)."""
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    match config.optimiser:
        case Optimiser.SGD:
            return torch.optim.SGD(net.parameters(), momentum=config.momentum, **common)
        case Optimiser.ADAM:
            return torch.optim.Adam(net.parameters(), fused=True, **common)
        case Optimiser.ADAMW:
            return torch.optim.AdamW(net.parameters(), fused=True, **common)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate at `step` of the schedule that the settings name."""
    if config.schedule is Schedule.INVERSE:
        return config.learning_rate / (1 + config.decay * step)
    warm = max(1, round(config.steps * WARM_UP))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return (
        config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (config.steps - warm)))
    )


def _keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of giving each back: 30 % less time a 3-D step."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    libc.mallopt(trim_threshold, MALLOC_LIMIT)
    libc.mallopt(mmap_threshold, MALLOC_LIMIT)


def _average(config: TrainingConfig, net: nn.Module) -> AveragedModel | None:
    if not config.average:
        return None

    def moving(averaged: Any, current: Any, averages: torch.Tensor | int) -> None:
        # Shorter at first: the weights that a training began with would stay in a short one's.
        decay = min(config.average, (1 + int(averages)) / (10 + int(averages)))
        get_ema_multi_avg_fn(decay)(averaged, current, averages)  # type: ignore[no-untyped-call]

    return AveragedModel(net, multi_avg_fn=moving, use_buffers=True)


def _batches(
    config: TrainingConfig, recipe: Recipe, first: int, process: Process, workers: int
) -> Iterator[Batch]:
    numbers = range(first * config.batch + process.place, config.steps * config.batch)
    loader: DataLoader[Batch] = DataLoader(
        _Samples(recipe, config),
        batch_size=config.batch // process.count,
        sampler=numbers[:: process.count],
        num_workers=workers,
    )
    return iter(loader)


def _descend(
    recipe: Recipe,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[float, float]:
    """Leave the clipped gradient to the optimiser; return the loss and the gradient's norm.

    Where several processes train, the norm is the same in all of them, the loss is their own.
    """
    low = learns_in_bf16(images.device, images.ndim - 2)
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=low):
        logits = net(images)
    loss = recipe.loss(logits, targets)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(net.parameters(), LARGEST_GRADIENT)
    return float(loss.detach()), float(norm)


def learns_in_bf16(device: torch.device, dimensions: int) -> bool:
    """Return whether gradients in bf16 can be believed.

    On processors without AMX those of three-dimensional convolutions cannot: where an image is one
    slice less deep than the kernel, oneDNN 3.12 leaves parts of them unwritten.
    """
    amx: bool = torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - has no public name
    return device.type == "cuda" or dimensions < 3 or amx


def _validate(recipe: Recipe, net: nn.Module, process: Process) -> float:
    """Return the score, measured by the process that writes and known to all."""
    score = 0.0
    if process.writes:
        net.eval()
        with torch.inference_mode():
            score = recipe.validate(net)
        net.train()
    if process.count > 1:
        told = [score]
        distributed.broadcast_object_list(told, src=0)
        score = told[0]
    return score


def _save(
    made_with: str,
    net: nn.Module,
    average: AveragedModel | None,
    optimiser: torch.optim.Optimizer,
    folder: Path,
    progress: Progress,
) -> None:
    tensors = {f"net.{k}": v for k, v in _tensors_of(net).items()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in _tensors_of(average).items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v.contiguous() for k, v in state.items()}
    metadata = {"progress": json.dumps(asdict(progress)), "made_with": made_with}
    _write_tensors(folder / CHECKPOINT, tensors, metadata)


def _tensors_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.contiguous() for key, tensor in net.state_dict().items()}


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    try:
        with whole_file(path) as file:
            file.write(save(tensors, metadata))
    except OSError as error:
        kept = "The last good one is kept" if path.exists() else "There is none from before"
        raise PipelineError(
            f"{path} cannot be written: {error.strerror}. {kept}; make room and start again."
        ) from error


def _resume(
    made_with: str,
    net: nn.Module,
    average: AveragedModel | None,
    optimiser: torch.optim.Optimizer,
    folder: Path,
) -> Progress:
    path = folder / CHECKPOINT
    if not path.exists():
        return Progress()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PipelineError(f"{path} is damaged ({error}): remove it and start anew.") from error
    if metadata.get("made_with") != made_with:
        raise PipelineError(
            f"{path} was made with other settings, data or models. Remove it, or name another "
            "--work folder."
        )
    net.load_state_dict(_below(tensors, "net."))
    if average is not None:
        average.load_state_dict(_below(tensors, "average."))
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _below(tensors, "optimiser.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = _laid_out_as(weights[int(index)], value)
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return Progress(**json.loads(metadata["progress"]))


def _laid_out_as(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return what an optimiser keeps of a weight in that weight's layout.

    A file knows rows alone, and fused Adam walks through the memory of both at once.
    """
    if value.shape != weight.shape:  # a count of steps
        return value
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _write_curve(path: Path, rows: Iterable[tuple[int, float, float]]) -> None:
    lines = ["step,loss,validation", *(f"{s},{loss:.5f},{score:.5f}" for s, loss, score in rows)]
    with whole_file(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
