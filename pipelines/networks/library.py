"""The table of architectures: what a model's `config.json` may name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn

from pipelines.errors import WeightsError
from pipelines.networks.resnet import ResNet50, ResNet50Config
from pipelines.networks.unet import UNet, UNetConfig
from pipelines.networks.unetplusplus import UNetPlusPlus, UNetPlusPlusConfig

ARCHITECTURES: Final[Mapping[str, tuple[Callable[[Any], nn.Module], type[Any]]]] = {
    "unet": (UNet, UNetConfig),
    "unetplusplus": (UNetPlusPlus, UNetPlusPlusConfig),
    "resnet50": (ResNet50, ResNet50Config),
}


def build(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a network with random weights.

    Raises:
        WeightsError: the architecture or one of its options is unknown.
    """
    config = configuration(architecture, options)
    make, _ = ARCHITECTURES[architecture]
    return make(config)


def configuration(architecture: str, options: Mapping[str, Any]) -> Any:
    """Return the architecture's config dataclass, its defaults filled in.

    Raises:
        WeightsError: the architecture or one of its options is unknown.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise WeightsError(f"Unknown network '{architecture}'; this release has {known}.")
    _, config_class = ARCHITECTURES[architecture]
    fields = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(options) - fields)
    if unknown:
        raise WeightsError(
            f"Network '{architecture}' has no option {unknown}; it takes {sorted(fields)}."
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return config_class(**values)
