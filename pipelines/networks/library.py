"""The table of architectures: what a model's `config.json` may name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn

from pipelines.errors import WeightsError
from pipelines.networks.attention_resnet import AttentionResNet56, AttentionResNet56Config
from pipelines.networks.densenet3d import DenseNet3D, DenseNet3DConfig
from pipelines.networks.dpn import DPN92, DPN92Config
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
    "unetplusplus": (UNetPlusPlus, UNetPlusPlusConfig),
    "resnet50": (ResNet50, ResNet50Config),
    "dpn92": (DPN92, DPN92Config),
    "inception_v3": (InceptionV3, InceptionV3Config),
    "attention_resnet56": (AttentionResNet56, AttentionResNet56Config),
    "densenet3d": (DenseNet3D, DenseNet3DConfig),
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
