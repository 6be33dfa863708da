"""Random geometry and intensity (J33, A-8), and the bridge between HU and 8-bit sets."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

GREY_BINS: Final = 64
EQUALISED_SHARE: Final = 0.5  # of the HU samples, made to look like the 8-bit sets
EQUALISED_TILE: Final = 32  # pixels: the 8-bit sets are 256 pixels wide, equalised in 8 x 8 tiles
EQUALISED_CLIP: Final = (1.2, 4.0)  # of the mean of the histogram; OpenCV's usual value is 3


@dataclass(frozen=True)
class Pose:
    """Where a patch lies in the plane of its source: centre in pixels, then 2x2 matrix.

    `matrix` takes an offset in patch pixels (x, y) to an offset in source pixels.
    """

    centre: tuple[float, float]  # (y, x)
    matrix: NDArray[np.float64]


def random_pose(
    rng: np.random.Generator,
    centre: tuple[float, float],
    scale: float,
    *,
    zoom: float = 1.1,
    turn_deg: float = 10.0,
) -> Pose:
    """Return a pose with random zoom, rotation and left-right flip.

    `scale` is source pixels per patch pixel before the zoom.
    """
    size = scale * float(np.exp(rng.uniform(-np.log(zoom), np.log(zoom))))
    angle = np.deg2rad(rng.uniform(-turn_deg, turn_deg))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Pose(centre, size * turn @ np.diag([flip, 1.0]))


def cut(
    stack: NDArray[np.generic], pose: Pose, shape: tuple[int, int], *, fill: float
) -> NDArray[np.float32]:
    """Return `(z, *shape)` sampled linearly from `stack` (z, y, x); `fill` outside of it."""
    height, width = stack.shape[-2:]
    out_height, out_width = shape
    to_norm = np.array([2 / width, 2 / height])
    linear = to_norm[:, None] * pose.matrix * np.array([out_width / 2, out_height / 2])
    cy, cx = pose.centre
    offset = np.array([2 * (cx + 0.5) / width - 1, 2 * (cy + 0.5) / height - 1])
    theta = torch.from_numpy(np.column_stack([linear, offset])).float()[None]
    source = torch.from_numpy(np.ascontiguousarray(stack, dtype=np.float32) - fill)[None]
    grid = functional.affine_grid(theta, [1, 1, out_height, out_width], align_corners=False)
    out: NDArray[np.float32] = (
        functional.grid_sample(source, grid, mode="bilinear", align_corners=False)[0] + fill
    ).numpy()
    return out


def vary_display(
    rng: np.random.Generator, image: NDArray[np.float32], *, saturate: bool = False
) -> NDArray[np.float32]:
    """Return `image` in [0, 1] with another contrast, brightness, gamma, blur and noise.

    `saturate` also imitates the narrow windows that papers print.
    """
    strength = rng.uniform(0, 1)
    contrast = float(np.exp(rng.uniform(-0.35, 0.35) * strength))
    if saturate and rng.random() < 0.3:
        contrast *= rng.uniform(1.0, 1.8)
    out = (image - 0.2) * contrast + 0.2 + rng.uniform(-0.1, 0.1) * strength
    out = np.clip(out, 0, 1) ** float(np.exp(rng.uniform(-0.4, 0.4) * strength))
    if rng.random() < 0.3:
        out = blur(out, float(rng.uniform(0.4, 1.0)))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * (rng.uniform(0, 0.05) * strength)
    return np.clip(out + noise, 0, 1)


def equalise(image: NDArray[np.float32], *, tile: int, clip: float) -> NDArray[np.float32]:
    """Return `image` (z, y, x) in [0, 1], each slice equalised locally (CLAHE).

    The histogram of each square of about `tile` pixels, no bin above `clip` times the mean, becomes
    the grey curve at the square's centre; in between, curves are interpolated (Zuiderveld 1994,
    Graphics Gems IV, 474). It makes HU look like the 8-bit sets, which were equalised so.
    """
    depth, height, width = image.shape
    rows, columns = (max(1, round(n / tile)) for n in (height, width))
    bins = (image * (GREY_BINS - 1)).astype(np.int64)
    square = (np.arange(height) * rows // height)[:, None] * columns
    square = square + np.arange(width) * columns // width
    where = (np.arange(depth)[:, None, None] * rows * columns + square) * GREY_BINS + bins
    counts = np.bincount(where.ravel(), minlength=depth * rows * columns * GREY_BINS)
    shares = counts.reshape(depth, rows, columns, GREY_BINS).astype(np.float32)
    shares /= shares.sum(axis=-1, keepdims=True)
    clipped = np.minimum(shares, clip / GREY_BINS)
    clipped += (1 - clipped.sum(axis=-1, keepdims=True)) / GREY_BINS
    curves = torch.from_numpy(np.cumsum(clipped, axis=-1))
    y, x = ((np.arange(n, dtype=np.float32) + 0.5) * 2 / n - 1 for n in (height, width))
    grid = np.stack(np.broadcast_arrays(x, y[:, None], image * 2 - 1), axis=-1)
    out: NDArray[np.float32] = functional.grid_sample(
        curves.permute(0, 3, 1, 2)[:, None],
        torch.from_numpy(np.ascontiguousarray(grid))[:, None],
        padding_mode="border",
        align_corners=False,
    )[:, 0, 0].numpy()
    return out


def blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Return each slice of `image` (z, y, x) under a Gaussian of `sigma` pixels."""
    steps = np.arange(-3, 4)
    line = np.exp(-0.5 * (steps / sigma) ** 2)
    kernel = torch.from_numpy((line / line.sum()).astype(np.float32))
    out = torch.from_numpy(np.ascontiguousarray(image))[:, None]
    out = functional.conv2d(out, kernel.view(1, 1, 1, 7), padding=(0, 3))
    out = functional.conv2d(out, kernel.view(1, 1, 7, 1), padding=(3, 0))
    return out[:, 0].numpy()
