"""What the training loop asks of a task: samples, a loss, a score while it runs, a last report."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pipelines.errors import PipelineError
from pipelines.weights import Precision


@dataclass(frozen=True)
class TrainingConfig:
    """One training: the TOML file beside the weights it makes.

    `network`, `preprocessing`, `decision` and `precision` travel into the model's `config.json`
    unchanged; `data` is the recipe's own (splits by group).
    """

    name: str
    version: str
    purpose: str
    network: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    decision: Mapping[str, Any]
    precision: Precision
    data: Mapping[str, Any]
    seed: int
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    validate_every: int
    patch: tuple[int, ...]  # voxels, in the order of the network's spatial axes (z, y, x)

    @classmethod
    def load(cls, path: Path) -> "TrainingConfig":
        """Read a training's TOML file.

        Raises:
            PipelineError: the file is not TOML, or a key is missing or unknown.
        """
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise PipelineError(f"Cannot read the training file {path}: {error}") from error
        training = raw.pop("training", {})
        known = set(cls.__dataclass_fields__)
        given = {**raw, **training}
        if set(given) != known:
            missing, unknown = sorted(known - set(given)), sorted(set(given) - known)
            raise PipelineError(f"{path}: missing keys {missing}, unknown keys {unknown}.")
        try:
            given["precision"] = Precision(given["precision"])
        except ValueError as error:
            raise PipelineError(f"{path}: {error}; known are fp32 and bf16.") from error
        given["patch"] = tuple(given["patch"])
        return cls(**given)


class Recipe(Protocol):
    """A task the loop can train; it holds the data."""

    def sample(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one image `(c, ...)` and its target."""

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the scalar to minimise."""

    def validate(self, net: nn.Module) -> float:
        """Return the score on the validation groups, higher is better; `net` is in eval mode."""

    def report(self, net: nn.Module) -> dict[str, Any]:
        """Return the figures of the model card, measured on the test groups."""
