"""Heat maps: where a classifier saw what speaks for its answer (U34, A-U11).

Grad-CAM (Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74) on a network's last feature map: its
channels, weighted by the mean gradient of the answer's logit, added up, and what is above zero. An
engine gives predictions alone, so the network runs once more, in PyTorch.

A map is as coarse as the features are: a cell is a sixth of the square around the lungs for the
screening's network at 192 pixels, 4 of 128 pixels and 4 of 16 slices for the DenseNet. It shows
roughly where to look, and outlines nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.engines.torch import best_precision, channels_last
from pipelines.findings import HeatMap, SecondOpinion
from pipelines.pneumonia import InputSettings, lung_span, network_input, shrink, subset_rows
from pipelines.preprocessing import resize, square_around
from pipelines.screening import in_question, lung_slices, question
from pipelines.volume import CTVolume
from pipelines.weights import Bundle, ModelConfig, Precision

LAST_FEATURES: Final = {
    "resnet50": "net.layer4",
    "dpn92": "last",
    "inception_v3": "modules_8",
    "attention_resnet56": "last",
    "efficientnet_lite0": "last",
    "densenet3d": "last",
}
"""The module of each classifier whose output is its last feature map."""

HOTTEST: Final = 255
HALF: Final = 128  # the lowest value above half the maximum
MIDDLE: Final = 0.5  # the start of the one subset that the DenseNet is asked about

Planes = Callable[[], Iterator[tuple[int, NDArray[np.float32]]]]
"""Yields slices one at a time, each time it is called: z and the heat (y, x), 0 or more."""


@dataclass(frozen=True, eq=False)
class Explainer:
    """A classifier in PyTorch, to look into."""

    config: ModelConfig
    net: nn.Module

    @classmethod
    def open(cls, bundle: Bundle) -> "Explainer":
        """Return the bundle's network, on the GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        layout = channels_last(bundle.config.dimensions + 2)
        net = bundle.network().requires_grad_(requires_grad=False)
        return cls(bundle.config, net.to(device).to(memory_format=layout))  # type: ignore[call-overload]

    def grad_cam(self, images: NDArray[np.float32], output: int) -> NDArray[np.float32]:
        """Return where `images` (n, c, ...) speak for an output: (n, ...), 0 or more."""
        device = next(self.net.parameters()).device
        low = best_precision(device, self.config.precision) is Precision.BF16
        batch = torch.from_numpy(images).to(device)
        batch = batch.contiguous(memory_format=channels_last(batch.ndim))
        kept: list[torch.Tensor] = []

        def begin_gradients(_: nn.Module, __: object, features: torch.Tensor) -> torch.Tensor:
            kept.append(features.detach().requires_grad_())
            return kept[0]

        name = LAST_FEATURES[self.config.network["architecture"]]
        hook = self.net.get_submodule(name).register_forward_hook(begin_gradients)
        try:
            with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=low):
                logits = self.net(batch)
            (gradients,) = torch.autograd.grad(logits[:, output].sum(), kept)
        finally:
            hook.remove()
        features = kept[0].detach().float()
        space = tuple(range(2, features.ndim))
        weights = gradients.float().mean(dim=space, keepdim=True)
        out: NDArray[np.float32] = (weights * features).sum(1).relu().cpu().numpy()
        return out


@dataclass(frozen=True)
class Explainers:
    """The classifiers whose answers are explained."""

    screening: Explainer
    pneumonia: Explainer | None


def heat_maps(
    volume: CTVolume,
    lungs: NDArray[np.uint8],
    labels: NDArray[np.uint16],
    opinion: SecondOpinion | None,
    explainers: Explainers,
) -> tuple[HeatMap, ...]:
    """Return the maps of the screening and, where there is one, of the second opinion.

    `lungs` and `labels` are the masks on the volume's grid.
    """
    planes = screening_planes(volume, lungs, labels, explainers.screening)
    maps = [_heat_map("screening", "COVID-likeness", planes, lungs, labels)]
    if explainers.pneumonia is not None and opinion is not None:
        answer = opinion.most_likely
        output = list(opinion.probabilities).index(answer)
        planes = pneumonia_planes(volume, lungs, output, explainers.pneumonia)
        maps.append(_heat_map("pneumonia", answer, planes, lungs, labels))
    return tuple(maps)


def screening_planes(
    volume: CTVolume,
    lungs: NDArray[np.uint8],
    labels: NDArray[np.uint16],
    explainer: Explainer,
) -> Planes:
    """Return the heat of the slices that the screening asks about the whole lung."""
    slices = lung_slices(lungs, labels)
    images = [question(volume, lungs, labels, z, 0, explainer.config) for z in slices]
    maps = explainer.grad_cam(np.stack(images), output=0)
    return lambda: (
        (z, onto_slice(map_, in_question(lungs[z], labels[z])))
        for z, map_ in zip(slices, maps, strict=True)
    )


def onto_slice(square: NDArray[np.float32], lung: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a map of what `slice_input` showed of a slice on the slice itself (y, x)."""
    here, there, side = square_around(lung)
    out = np.zeros(lung.shape, dtype=np.float32)
    out[here] = resize(square, (side, side))[there]
    return out


def pneumonia_planes(
    volume: CTVolume, lungs: NDArray[np.uint8], output: int, explainer: Explainer
) -> Planes:
    """Return the heat of every slice of the lungs, from one subset of slices in their middle."""
    settings = InputSettings.of(explainer.config.preprocessing)
    first, stop = lung_span(lungs)
    rows = first + subset_rows(MIDDLE, stop - first, settings)
    image = network_input(shrink(volume.hu[rows], settings), settings)
    coarse = explainer.grad_cam(image[None], output)[0]
    levels = resize(coarse, (stop - first, *coarse.shape[1:]))
    return lambda: (
        (z, resize(level, volume.shape[1:])) for z, level in enumerate(levels, start=first)
    )


def lesion_share(heat: NDArray[np.uint8], lesions: NDArray[np.bool_]) -> float | None:
    """Return the share of the heat above half maximum that lies in lesions; None without heat."""
    hot = heat >= HALF
    total = int(heat[hot].sum(dtype=np.int64))
    return int(heat[hot & lesions].sum(dtype=np.int64)) / total if total else None


def _heat_map(
    purpose: str,
    answer: str,
    planes: Planes,
    lungs: NDArray[np.uint8],
    labels: NDArray[np.uint16],
) -> HeatMap:
    """Keep what lies inside the lungs, scaled to its own maximum."""

    def inside() -> Iterator[tuple[int, NDArray[np.float32]]]:
        return ((z, plane * in_question(lungs[z], labels[z])) for z, plane in planes())

    # Planes are made twice, for all of them at once would be a second volume, of floats.
    top = max(float(plane.max()) for _, plane in inside())
    heat = np.zeros(lungs.shape, dtype=np.uint8)
    if top > 0:
        for z, plane in inside():
            heat[z] = np.rint(plane * (HOTTEST / top))
    return HeatMap(purpose, answer, lesion_share(heat, labels > 0), heat)
