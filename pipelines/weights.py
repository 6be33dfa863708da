"""Model bundles: a folder with configuration, safetensors, checksums and a model card.

Whatever reads a bundle checks it against `SHA256SUMS` first; the digest that a result carries is
that of the configuration and the weights together: another threshold is another model. Weights are
stored in half precision and computed in single.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from pipelines.errors import WeightsError
from pipelines.files import whole_file
from pipelines.findings import ModelRef, model_digest
from pipelines.limits import (
    ABOVE_ZERO,
    COUNT,
    FLAG,
    FROM_ZERO,
    NAME,
    NAMES,
    NUMBER,
    RANGE,
    SPACING,
    TABLE,
    TO_ONE,
    Limit,
)
from pipelines.networks.library import SEGMENTERS, NetworkConfig, build, configuration

WEIGHTS_FILE: Final = "weights.safetensors"
CONFIG_FILE: Final = "config.json"
SUMS_FILE: Final = "SHA256SUMS"

ENSEMBLE: Final = "ensemble"
"""In place of an architecture: several networks, `members`, whose probabilities are averaged."""

GRID: Final = ("spacing_mm", "window_hu")
SUBSETS: Final = ("subsets", "slices", "size", "clip_hu", "mean_hu", "std_hu")
NEEDED: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "lungs": {"preprocessing": GRID, "decision": ("threshold",)},
    "lesions": {
        "preprocessing": (*GRID, "lung_margin_mm"),
        "decision": ("threshold", "peak", "minimum_ml"),
    },
    "screening": {"preprocessing": ("size", "window_hu"), "decision": ("threshold",)},
    "pneumonia": {
        "preprocessing": SUBSETS,
        "decision": ("classes", "graded", "labels", "validated"),
    },
    "severity": {"preprocessing": SUBSETS, "decision": ("classes", "validated")},
}
"""What the settings of a model must name, by its purpose."""

OPTIONAL: Final = ("labels",)

LIMITS: Final[Mapping[str, Limit]] = {
    "spacing_mm": SPACING,
    "window_hu": RANGE,
    "lung_margin_mm": FROM_ZERO,
    "size": COUNT,
    "subsets": COUNT,
    "slices": COUNT,
    "clip_hu": RANGE,
    "mean_hu": NUMBER,
    "std_hu": ABOVE_ZERO,
    "threshold": TO_ONE,
    "peak": TO_ONE,
    "minimum_ml": FROM_ZERO,
    "classes": NAMES,
    "graded": NAME,
    "labels": TABLE,
    "validated": FLAG,
}
"""What each of these settings may be."""


@dataclass(frozen=True)
class Shape:
    """What the network of a purpose takes; what it gives is 1 or, with classes, one for each."""

    segments: bool
    dimensions: tuple[int, ...]
    in_channels: int
    neighbours: bool = False
    """Whether a network of two dimensions may see the slices beside its own as further channels."""
    ensemble: bool = False
    """Whether several networks may be averaged."""


SHAPES: Final[Mapping[str, Shape]] = {
    "lungs": Shape(segments=True, dimensions=(2,), in_channels=1),
    "lesions": Shape(
        segments=True, dimensions=(2, 3), in_channels=1, neighbours=True, ensemble=True
    ),
    "screening": Shape(segments=False, dimensions=(2,), in_channels=2),
    "pneumonia": Shape(segments=False, dimensions=(3,), in_channels=1),
    "severity": Shape(segments=False, dimensions=(3,), in_channels=1),
}


class Precision(StrEnum):
    """What convolutions are computed in."""

    FP32 = "fp32"
    BF16 = "bf16"


@dataclass(frozen=True)
class ModelConfig:
    """What a model is and how its input must be prepared: `config.json`.

    `precision` is the lowest one in which the weights are as true as in fp32, measured on the test
    groups; no engine computes them in a lower one. A model of several networks has `members`, each
    with its own, and none of the properties of its one network.
    """

    name: str
    version: str
    purpose: str
    network: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    decision: Mapping[str, Any]
    precision: Precision

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing (z, y, x) in mm that the network was trained at."""
        z, y, x = (float(step) for step in self.preprocessing["spacing_mm"])
        return z, y, x

    @property
    def window_hu(self) -> tuple[float, float]:
        """HU that become 0 and 1."""
        low, high = (float(limit) for limit in self.preprocessing["window_hu"])
        return low, high

    @property
    def members(self) -> tuple["ModelConfig", ...]:
        """One configuration for each network, in the order of their weights."""
        if self.network.get("architecture") != ENSEMBLE:
            return (self,)
        return tuple(
            replace(
                self,
                network={k: v for k, v in member.items() if k != "precision"},
                precision=Precision(member["precision"]),
            )
            for member in self.network["members"]
        )

    def network_with_random_weights(self) -> nn.Module:
        """Return the architecture named in the configuration.

        Raises:
            WeightsError: there is none of this name, or it cannot be configured so.
        """
        return build(*self._architecture())

    @property
    def network_config(self) -> NetworkConfig:
        """The configuration of the network, its defaults filled in.

        Raises:
            WeightsError: there is no such network, or it cannot be configured so.
        """
        return configuration(*self._architecture())

    @property
    def dimensions(self) -> int:
        """Axes of the network's input: 2 (y, x) or 3 (z, y, x)."""
        return self.network_config.dimensions

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return self.network_config.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the network's output: the classes of a classifier."""
        return self.network_config.out_channels

    def activation(self) -> nn.Module:
        """Return what makes probabilities of logits; several classes exclude each other."""
        return nn.Softmax(dim=1) if self.out_channels > 1 else nn.Sigmoid()

    def check(self) -> None:
        """Refuse settings that the pipeline would miss in the middle of a study, or not heed.

        Raises:
            WeightsError: a setting is missing, unknown or impossible.
        """
        if self.purpose not in NEEDED:
            known = ", ".join(NEEDED)
            raise WeightsError(
                f"'{self.name}' is a model for '{self.purpose}'; this release knows {known}."
            )
        for key in ("name", "version"):
            self._require(NAME, key, getattr(self, key))
        for table, needed in NEEDED[self.purpose].items():
            values = getattr(self, table)
            self._require(TABLE, table, values)
            if missing := sorted(set(needed) - set(values)):
                raise WeightsError(f"'{self.name}' lacks {_listed(table, missing)}.")
            if unknown := sorted(set(values) - set(needed) - set(OPTIONAL)):
                raise WeightsError(
                    f"'{self.name}' has {_listed(table, unknown)}, which this release does not "
                    "know: it is made for another one."
                )
            for key, value in values.items():
                self._require(LIMITS[key], f"{table}.{key}", value)
        self._check_decision()
        if self.network.get("architecture") == ENSEMBLE:
            self._check_ensemble()
        for member in self.members:
            self._check_network(member)

    def _require(self, limit: Limit, key: str, value: object) -> None:
        if not limit.holds(value):
            raise WeightsError(f"'{self.name}': {limit.refusal(key, value)}")

    def _check_decision(self) -> None:
        if self.purpose == "lesions":
            threshold, peak = self.decision["threshold"], self.decision["peak"]
            if threshold > peak:
                raise WeightsError(
                    f"'{self.name}' has decision.threshold {threshold} above decision.peak {peak}: "
                    "the peak is what a lesion reaches within its outline."
                )
        classes = self.decision.get("classes", ())
        named = [self.decision[key] for key in ("graded",) if key in self.decision]
        named += self.decision.get("labels", {}).values() if classes else ()
        if strange := sorted({str(name) for name in named if name not in classes}):
            raise WeightsError(
                f"'{self.name}' names {', '.join(strange)} in [decision], which is none of its "
                f"classes {', '.join(classes)}."
            )

    def _check_ensemble(self) -> None:
        if not SHAPES[self.purpose].ensemble:
            raise WeightsError(f"'{self.name}' is for {self.purpose}, which takes one network.")
        members = self.network.get("members")
        if not isinstance(members, list) or len(members) < 2 or not all(map(TABLE.holds, members)):
            raise WeightsError(
                f"'{self.name}' is an ensemble: network.members must be a list of two or more "
                "networks, each with its architecture."
            )
        for member in members:
            if member.get("architecture") == ENSEMBLE:
                raise WeightsError(
                    f"'{self.name}' has an ensemble within an ensemble: name them all."
                )
            if member.get("precision") not in list(Precision):
                raise WeightsError(
                    f"'{self.name}' is an ensemble: each of network.members needs its precision, "
                    f"one of {', '.join(Precision)}."
                )

    def _check_network(self, member: "ModelConfig") -> None:
        shape, config = SHAPES[self.purpose], member.network_config
        architecture = member.network["architecture"]
        if (architecture in SEGMENTERS) is not shape.segments:
            raise WeightsError(
                f"'{self.name}' is for {self.purpose}, which '{architecture}' cannot do: it "
                f"{'classifies' if shape.segments else 'segments'}."
            )
        if config.dimensions not in shape.dimensions:
            raise WeightsError(
                f"'{self.name}' is for {self.purpose}: network.dimensions must be "
                f"{' or '.join(map(str, shape.dimensions))}, not {config.dimensions}."
            )
        beside = shape.neighbours and config.dimensions == 2
        if config.in_channels != shape.in_channels and not beside:
            raise WeightsError(
                f"'{self.name}' is for {self.purpose}: network.in_channels must be "
                f"{shape.in_channels}, not {config.in_channels}."
            )
        outputs = len(self.decision.get("classes", ("one",)))
        if config.out_channels != outputs:
            raise WeightsError(
                f"'{self.name}' has {config.out_channels} outputs, and {outputs} are needed: "
                "network.out_channels must be the number of its classes, or 1 without."
            )

    def _architecture(self) -> tuple[str, dict[str, Any]]:
        options = {k: v for k, v in self.network.items() if k != "architecture"}
        return str(self.network.get("architecture", "")), options


def _listed(table: str, keys: list[str]) -> str:
    return ", ".join(f"{table}.{key}" for key in keys)


@dataclass(frozen=True)
class Bundle:
    """A model whose files are what its checksums say; `tensors` are still in half precision."""

    config: ModelConfig
    digest: str
    tensors: Mapping[str, torch.Tensor]

    @property
    def reference(self) -> ModelRef:
        """How a result names this model (J79)."""
        return ModelRef(
            purpose=self.config.purpose,
            name=self.config.name,
            version=self.config.version,
            digest=self.digest,
        )

    @property
    def members(self) -> tuple["Bundle", ...]:
        """The bundle of each network alone; an ensemble's tensors begin with their number."""
        configs = self.config.members
        if len(configs) == 1:
            return (self,)
        return tuple(
            Bundle(config, f"{self.digest}.{i}", _below(self.tensors, f"{i}."))
            for i, config in enumerate(configs)
        )

    def network(self) -> nn.Module:
        """Return the network in single precision, ready to infer; an ensemble has `members`.

        Raises:
            WeightsError: the tensors do not fit the architecture.
        """
        net = self.config.network_with_random_weights()
        single = {k: t.float() if t.is_floating_point() else t for k, t in self.tensors.items()}
        try:
            net.load_state_dict(single)
        except RuntimeError as error:
            raise WeightsError(
                f"The weights of '{self.config.name}' do not fit its network: {error}"
            ) from error
        return net.eval()


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def shipped_weights() -> Path:
    """Return the folder of weights that came with this installation.

    Raises:
        WeightsError: there is none.
    """
    folder = Path(__file__).resolve().parent.parent / "weights"
    if not folder.is_dir():
        raise WeightsError(
            f"There is no {folder}. Set analysis.weights_dir to the folder of the models."
        )
    return folder


def open_bundle(folder: Path) -> Bundle:
    """Return the model in `folder`, its files checked.

    Raises:
        WeightsError: a file is missing, damaged or not what the checksums say, or the settings are
            not those of this release.
    """
    files = {}
    sums = _checksums(folder)
    for name, expected in sums.items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise WeightsError(f"{folder / name} cannot be read: {error.strerror}.") from error
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise WeightsError(f"{folder / name} is damaged: install the model again.")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in files:
            raise WeightsError(f"{folder / SUMS_FILE} does not name {name}.")
    try:
        values = json.loads(files[CONFIG_FILE])
        config = ModelConfig(**{**values, "precision": Precision(values["precision"])})
        tensors = load(files[WEIGHTS_FILE])
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise WeightsError(f"{folder} is no model of this release: {error}") from error
    config.check()
    digest = model_digest(sums[CONFIG_FILE], sums[WEIGHTS_FILE])
    return Bundle(config=config, digest=digest, tensors=tensors)


def write_bundle(folder: Path, config: ModelConfig, net: nn.Module) -> None:
    """Write the configuration, the half-precision weights and the checksums of both.

    All are on the disk before the first takes its place: what fails until then, a full disk above
    all, leaves the older model. The checksums come last: a reader in between finds a damaged model,
    never a mixture of two that passes.

    Raises:
        WeightsError: the configuration is none that could be opened again.
    """
    config.check()
    half = {
        key: tensor.detach().cpu().to(torch.float16 if tensor.is_floating_point() else tensor.dtype)
        for key, tensor in net.state_dict().items()
    }
    files = {
        WEIGHTS_FILE: save({k: t.contiguous() for k, t in half.items()}),
        CONFIG_FILE: (json.dumps(vars(config), indent=2, allow_nan=False) + "\n").encode(),
    }
    sums = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    with ExitStack() as renamed:  # in the end, the last one opened first
        for name, content in {SUMS_FILE: "".join(sums).encode(), **files}.items():
            file = renamed.enter_context(whole_file(folder / name))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _checksums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS_FILE).read_text().splitlines()
    except OSError as error:
        raise WeightsError(
            f"{folder} holds no model: {SUMS_FILE} cannot be read ({error.strerror})."
        ) from error
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if any(len(pair) != 2 or Path(pair[1]).name != pair[1] for pair in pairs):
        raise WeightsError(f"{folder / SUMS_FILE} is not a list of checksums.")
    return {name: digest for digest, name in pairs}
