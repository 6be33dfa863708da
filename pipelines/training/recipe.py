"""What the training loop asks of a task: samples, a loss, a score while it runs, a last report."""

import inspect
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import nn

from pipelines.errors import PipelineError
from pipelines.limits import (
    ABOVE_ZERO,
    BELOW_ONE,
    COUNT,
    COUNTS,
    FLAG,
    FROM_ZERO,
    NAME,
    TABLE,
    WHOLE,
    Limit,
)
from pipelines.weights import ModelConfig, Precision, shipped_weights


class Optimiser(StrEnum):
    """What moves the weights."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"


class Schedule(StrEnum):
    """How the learning rate falls.

    `cosine` warms up over a twentieth of the steps, then follows half a cosine to zero. `inverse`
    is the first reading of the paper's "learning rate decay of 5e-4": rate / (1 + decay * step);
    the second is Adam's `weight_decay` (J55, A-6).
    """

    COSINE = "cosine"
    INVERSE = "inverse"


class Beginning(StrEnum):
    """The weights that a training begins with; `imagenet` is for efficientnet_lite0 alone."""

    RANDOM = "random"
    IMAGENET = "imagenet"


@dataclass(frozen=True)
class TrainingConfig:
    """One training: the TOML file beside the weights it makes.

    `network`, `preprocessing`, `decision` and `precision` travel into the model's `config.json`
    unchanged, but for `preprocessing.profile`, which stands for what `weights/profiles.toml` says
    of it; `data` is the recipe's own (manifests, shares of sources).

    Attributes:
        name: Of the model.
        version: Of the model, as text.
        purpose: What it is for: lungs, lesions, screening, pneumonia or severity.
        network: architecture, and the options that this network takes.
        preprocessing: What the purpose needs, or profile: one of those in profiles.toml.
        decision: What the purpose needs: threshold, peak and minimum_ml, or classes and labels.
        precision: The lowest one in which the weights are as true as in fp32: fp32 or bf16.
        data: manifests, and what else the purpose takes: shares, positive, class_weights.
        seed: Of everything that is drawn.
        steps: Batches altogether.
        batch: Samples a step, over all processes.
        learning_rate: The highest of the schedule.
        weight_decay: Of the optimiser.
        validate_every: Steps between two looks at the validation groups.
        patch: Voxels, in the order of the network's spatial axes (z, y, x).
        loss: dice, dice and cross-entropy, cross-entropy or weighted cross-entropy.
        optimiser: adam, adamw or sgd.
        schedule: cosine, which warms up first, or inverse, rate / (1 + decay * step).
        decay: Of `Schedule.INVERSE`.
        momentum: Of `Optimiser.SGD`.
        patience: Looks without a better score after which the training ends with the best weights;
            0 to go on to the last step and keep its weights.
        average: Decay of a moving average of the weights, which is what is kept; 0 for none.
        begin_with: Random weights, or published ones.
        compiled: Train what `torch.compile` makes of the network. On two cores a step of the 2-D
            ResNet-50 then takes half the time, one of the 3-D U-Net++ no less.
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
    patch: tuple[int, ...]
    loss: str
    optimiser: Optimiser = Optimiser.ADAMW
    schedule: Schedule = Schedule.COSINE
    decay: float = 0.0
    momentum: float = 0.9
    patience: int = 0
    average: float = 0.0
    begin_with: Beginning = Beginning.RANDOM
    compiled: bool = False

    @property
    def taught(self) -> dict[str, Any]:
        """What decides the weights: a training may go on with the rest changed."""
        return {key: value for key, value in vars(self).items() if key not in NOT_TAUGHT}

    @property
    def model(self) -> ModelConfig:
        """What the model that is made will say of itself."""
        return ModelConfig(
            name=self.name,
            version=self.version,
            purpose=self.purpose,
            network=self.network,
            preprocessing=self.preprocessing,
            decision=self.decision,
            precision=self.precision,
        )

    @classmethod
    def load(cls, path: Path) -> "TrainingConfig":
        """Read a training's TOML file.

        Raises:
            PipelineError: the file is not TOML, a key is missing or unknown, or a value cannot be.
        """
        return cls.of(read_toml(path), path)

    @classmethod
    def of(cls, tables: Mapping[str, Any], path: Path) -> "TrainingConfig":
        """Return the settings in the tables of a TOML file; `path` is for the errors."""
        training = tables.get("training", {})
        if not TABLE.holds(training):
            raise PipelineError(f"{path}: {TABLE.refusal('training', training)}")
        given = {k: v for k, v in tables.items() if k != "training"} | training
        known = set(cls.__dataclass_fields__)
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if not required <= set(given) <= known:
            missing, unknown = sorted(required - set(given)), sorted(set(given) - known)
            raise PipelineError(f"{path}: missing keys {missing}, unknown keys {unknown}.")
        try:
            for key, kind in ENUMERATIONS.items():
                if key in given:
                    given[key] = kind(given[key])
        except ValueError as error:
            known_values = ", ".join(ENUMERATIONS[key])
            raise PipelineError(f"{path}: {error}; {key} is one of {known_values}.") from error
        for key, limit in LIMITS.items():
            if key in given and not limit.holds(given[key]):
                raise PipelineError(f"{path}: {limit.refusal(key, given[key])}")
        if not given["data"].get("manifests"):
            raise PipelineError(f"{path}: [data] must name its manifests.")
        given["patch"] = tuple(given["patch"])
        given["preprocessing"] = _of_profile(given["preprocessing"], given["purpose"], path)
        config = cls(**given)
        axes = config.model.dimensions
        if len(config.patch) != axes:
            raise PipelineError(
                f"{path}: patch must be {axes} numbers, as the network has {axes} dimensions, not "
                f"{len(config.patch)}."
            )
        return config


def reference() -> str:
    """Return every key of a training file with its default, its limits and its meaning."""
    _, _, listed = (inspect.getdoc(TrainingConfig) or "").partition("Attributes:\n")
    meanings = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE))
    lines = []
    for key in fields(TrainingConfig):
        limit = LIMITS[key.name].words if key.name in LIMITS else ""
        default = "needed" if key.default is MISSING else f"{key.default} if left out"
        lines.append(f"{key.name}: {'; '.join(part for part in (limit, default) if part)}")
        lines.append(f"    {' '.join(meanings[key.name].split())}")
    return "\n".join(lines)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        PipelineError: it cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise PipelineError(f"Cannot read the training file {path}: {error}") from error


def _of_profile(own: Mapping[str, Any], purpose: str, path: Path) -> dict[str, Any]:
    """Return a training's own preprocessing over that of the profile it names."""
    values = dict(own)
    if "profile" not in values:
        return values
    profile = values.pop("profile")
    known = read_toml(shipped_weights() / PROFILES_FILE)
    if purpose not in known.get(profile, {}):
        of_purpose = [name for name, purposes in known.items() if purpose in purposes]
        raise PipelineError(
            f"{path}: there is no profile '{profile}' for {purpose}, but {of_purpose}."
        )
    return {**known[profile][purpose], **values}


NOT_TAUGHT: Final = ("name", "version", "compiled")
PROFILES_FILE: Final = "profiles.toml"
LIMITS: Final[Mapping[str, Limit]] = {
    "network": TABLE,
    "preprocessing": TABLE,
    "decision": TABLE,
    "data": TABLE,
    "purpose": NAME,
    "seed": WHOLE,
    "steps": COUNT,
    "batch": COUNT,
    "learning_rate": ABOVE_ZERO,
    "weight_decay": FROM_ZERO,
    "validate_every": COUNT,
    "patch": COUNTS,
    "loss": NAME,
    "decay": FROM_ZERO,
    "momentum": BELOW_ONE,
    "patience": WHOLE,
    "average": BELOW_ONE,
    "compiled": FLAG,
}
"""What each setting may be; name and version, which candidates replace, are the model's."""
ENUMERATIONS: Final[Mapping[str, type[StrEnum]]] = {
    "precision": Precision,
    "optimiser": Optimiser,
    "schedule": Schedule,
    "begin_with": Beginning,
}


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
