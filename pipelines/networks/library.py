"""The table of architectures: what a model's `config.json` may name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from torch import nn

from pipelines.errors import WeightsError
from pipelines.networks.attention_resnet import AttentionResNet56, AttentionResNet56Config
from pipelines.networks.densenet3d import DenseNet3D, DenseNet3DConfig
from pipelines.networks.dpn import DPN92, DPN92Config
from pipelines.networks.efficientnet_lite import EfficientNetLite0, EfficientNetLite0Config
from pipelines.networks.efficientnet_unet import EfficientNetUNet, EfficientNetUNetConfig
from pipelines.networks.fcn8s import FCN8s, FCN8sConfig
from pipelines.networks.inception import InceptionV3, InceptionV3Config
from pipelines.networks.resnet import ResNet50, ResNet50Config
from pipelines.networks.unet import UNet, UNetConfig
from pipelines.networks.unetplusplus import UNetPlusPlus, UNetPlusPlusConfig
from pipelines.networks.vnet import VNet, VNetConfig

ARCHITECTURES: Final[Mapping[str, tuple[Callable[[Any], nn.Module], type[Any]]]] = {
    "fcn8s": (FCN8s, FCN8sConfig),
    "unet": (UNet, UNetConfig),
    "vnet": (VNet, VNetConfig),
    "efficientnet_unet": (EfficientNetUNet, EfficientNetUNetConfig),
    "unetplusplus": (UNetPlusPlus, UNetPlusPlusConfig),
    "resnet50": (ResNet50, ResNet50Config),
    "dpn92": (DPN92, DPN92Config),
    "inception_v3": (InceptionV3, InceptionV3Config),
    "attention_resnet56": (AttentionResNet56, AttentionResNet56Config),
    "efficientnet_lite0": (EfficientNetLite0, EfficientNetLite0Config),
    "densenet3d": (DenseNet3D, DenseNet3DConfig),
}

SEGMENTERS: Final = ("fcn8s", "unet", "vnet", "efficientnet_unet", "unetplusplus")
"""The architectures that answer with a mask; the others classify."""


class NetworkConfig(Protocol):
    """What every architecture's config dataclass has."""

    @property
    def dimensions(self) -> int:
        """Axes of an image: 2 (y, x) or 3 (z, y, x)."""

    @property
    def in_channels(self) -> int:
        """Channels of the input."""

    @property
    def out_channels(self) -> int:
        """Channels of the output: the classes of a classifier."""


def build(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a network with random weights.

    Raises:
        WeightsError: the architecture or one of its options is unknown, or not of its kind.
    """
    config = configuration(architecture, options)
    make, _ = ARCHITECTURES[architecture]
    return make(config)


def configuration(architecture: str, options: Mapping[str, Any]) -> NetworkConfig:
    """Return the architecture's config dataclass, its defaults filled in.

    Raises:
        WeightsError: the architecture or one of its options is unknown, or not of its kind.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise WeightsError(f"Unknown network '{architecture}'; this release has {known}.")
    _, config_class = ARCHITECTURES[architecture]
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise WeightsError(
            f"Network '{architecture}' has no option {unknown}; it takes {sorted(defaults)}."
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    for name, value in values.items():
        if not _is_like(value, defaults[name]):
            raise WeightsError(
                f"Network '{architecture}' takes {name} like {defaults[name]}, not {value!r}."
            )
    config: NetworkConfig = config_class(**values)
    if config.dimensions not in {2, 3}:
        raise WeightsError(
            f"Network '{architecture}' has 2 or 3 dimensions, not {config.dimensions}."
        )
    return config


def _is_like(value: object, default: object) -> bool:
    """Return whether `value` is what `default` is: a flag, a positive integer or several."""
    if isinstance(value, tuple) and isinstance(default, tuple):
        return len(value) == len(default) and all(map(_is_like, value, default))
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, int) and isinstance(default, int) and value > 0
