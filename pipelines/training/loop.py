"""The training loop: seeded per step, resumable to the same result, watched while it runs.

Step `k` draws its samples from a generator seeded with (seed, k), so a training that was killed
and resumed sees what the uninterrupted one saw. Checkpoints are safetensors, written aside and
renamed: a full disk or a kill leaves the last good one.
"""

import csv
import ctypes
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pipelines.errors import PipelineError
from pipelines.training.recipe import Recipe, TrainingConfig

CHECKPOINT: Final = "checkpoint.safetensors"
CURVE: Final = "curve.csv"
WARM_UP: Final = 0.05  # share of the steps
REPORT_EVERY_S: Final = 20.0
CHECKPOINT_EVERY_S: Final = 120.0
MALLOC_LIMIT: Final = 2**31 - 1  # bytes, the most that mallopt takes


def train(
    config: TrainingConfig,
    recipe: Recipe,
    net: nn.Module,
    folder: Path,
    *,
    device: torch.device,
    say: Callable[[str], None] = print,
) -> None:
    """Train `net` in place, from the checkpoint in `folder` if there is one.

    Raises:
        PipelineError: the loss is no longer a number, or the checkpoint belongs to other settings.
    """
    _keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    three = int(config.network["dimensions"]) == 3
    layout = torch.channels_last_3d if three else torch.channels_last
    net.to(device).to(memory_format=layout).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(
        net.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    start, losses = _resume(config, net, optimiser, folder)
    if start:
        say(f"Resuming {config.name} at step {start} of {config.steps}.")
    _trim_curve(folder / CURVE, start)
    began = saved = told = time.monotonic()
    for step, images, targets in _batches(config, recipe, start):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        loss = _step(recipe, net, optimiser, images.to(device), targets.to(device))
        if not math.isfinite(loss):
            raise PipelineError(
                f"The loss of {config.name} at step {step} is {loss}. What was learned until the "
                f"last checkpoint is in {folder}; lower training.learning_rate and start again."
            )
        losses.append(loss)
        done = step + 1
        now = time.monotonic()
        if done % config.validate_every == 0 or done == config.steps:
            score = _validate(recipe, net)
            _append_curve(folder / CURVE, done, float(np.mean(losses)), score)
            say(f"{config.name} step {done}: loss {np.mean(losses):.4f}, validation {score:.4f}")
            losses.clear()
        if now - told > REPORT_EVERY_S:
            told = now
            left = (now - began) / (done - start) * (config.steps - done)
            say(
                f"{config.name} step {done}/{config.steps}: loss {loss:.4f}, "
                f"{left / 60:.1f} min left"
            )
        if now - saved > CHECKPOINT_EVERY_S or done == config.steps:
            saved = now
            _save(config, net, optimiser, folder, step=done, losses=losses)
    net.eval()


def _keep_freed_memory() -> None:
    """Have glibc reuse large blocks instead of giving each back: 30 % less time a 3-D step."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    libc.mallopt(trim_threshold, MALLOC_LIMIT)
    libc.mallopt(mmap_threshold, MALLOC_LIMIT)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate at `step`: a linear warm-up, then half a cosine to zero."""
    warm = max(1, round(config.steps * WARM_UP))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return (
        config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (config.steps - warm)))
    )


def _batches(
    config: TrainingConfig, recipe: Recipe, start: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    for step in range(start, config.steps):
        rng = np.random.default_rng((config.seed, step))
        pairs = [recipe.sample(rng) for _ in range(config.batch)]
        yield step, torch.stack([i for i, _ in pairs]), torch.stack([t for _, t in pairs])


def _step(
    recipe: Recipe,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: torch.Tensor,
    targets: torch.Tensor,
) -> float:
    with torch.autocast(images.device.type, dtype=torch.bfloat16):
        logits = net(images)
    loss = recipe.loss(logits, targets)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    optimiser.step()
    return float(loss.detach())


def _validate(recipe: Recipe, net: nn.Module) -> float:
    net.eval()
    with torch.inference_mode():
        score = recipe.validate(net)
    net.train()
    return score


def _save(
    config: TrainingConfig,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    folder: Path,
    *,
    step: int,
    losses: list[float],
) -> None:
    tensors = {f"net.{k}": v.contiguous() for k, v in net.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v.contiguous() for k, v in state.items()}
    metadata = {
        "step": str(step),
        "losses": json.dumps(losses),  # since the last validation, for the curve
        "settings": _settings(config),
    }
    aside = folder / f"{CHECKPOINT}.part"
    save_file(tensors, aside, metadata)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(folder / CHECKPOINT)


def _resume(
    config: TrainingConfig, net: nn.Module, optimiser: torch.optim.Optimizer, folder: Path
) -> tuple[int, list[float]]:
    path = folder / CHECKPOINT
    if not path.exists():
        return 0, []
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["settings"] != _settings(config):
            raise PipelineError(
                f"{path} was made with other settings. Remove it, or name another --work folder."
            )
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return int(metadata["step"]), json.loads(metadata["losses"])


def _settings(config: TrainingConfig) -> str:
    return json.dumps(vars(config), sort_keys=True)


def _append_curve(path: Path, step: int, loss: float, score: float) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "loss", "validation"])
        writer.writerow([step, f"{loss:.5f}", f"{score:.5f}"])


def _trim_curve(path: Path, start: int) -> None:
    """Drop what a killed run wrote after its last checkpoint: it will be written again."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    aside = path.with_suffix(".part")
    with aside.open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in rows if int(row[0]) <= start)])
    shutil.move(aside, path)
