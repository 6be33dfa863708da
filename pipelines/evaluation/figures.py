"""The pictures of a report, as PNG. Drawn by matplotlib, which only reports need."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.evaluation.metrics import Calibration, Interval, roc_auc, roc_curve
from pipelines.evaluation.readers import ReaderPoints
from pipelines.evaluation.reading import Picture
from pipelines.files import whole_file

DOTS_PER_INCH: Final = 110
CAPTION_CHARACTERS: Final = 46  # in a line above a picture of the gallery
FOUND: Final = "#ff8c1a"
TRUTH: Final = "#3fa7ff"


class Roc:
    """One curve: scores, truth, and the threshold whose point is the star (J59, A-15)."""

    def __init__(
        self,
        scores: NDArray[np.floating],
        positive: NDArray[np.bool_],
        *,
        threshold: float | None = None,
        auc: Interval | None = None,
    ) -> None:
        self.scores, self.positive = scores, positive
        self.threshold, self.auc = threshold, auc


def roc_figure(
    curves: Mapping[str, Roc], title: str, readers: ReaderPoints | None = None
) -> Figure:
    """Return the ROC curves on one square, each operating point a star.

    Readers are red crosses, their mean a blue one, their majority vote a blue diamond (U30).
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for name, roc in curves.items():
        false_rate, true_rate = roc_curve(roc.scores, roc.positive)
        auc = roc.auc or Interval(roc_auc(roc.scores, roc.positive))
        (line,) = axes.plot(false_rate, true_rate, label=f"{name}: AUC {auc}")
        if roc.threshold is not None:
            called = roc.scores >= roc.threshold
            star = (called[~roc.positive].mean(), called[roc.positive].mean())
            axes.plot(*star, marker="*", markersize=14, color=line.get_color())
    for point in readers.each.values() if readers else ():
        axes.plot(1 - point.specificity, point.sensitivity, "x", color="red")
    if readers:
        mean, majority = readers.mean, readers.majority
        axes.plot(1 - mean.specificity, mean.sensitivity, "x", color="blue", label="readers, mean")
        if majority:
            place = (1 - majority.specificity, majority.sensitivity)
            axes.plot(*place, "D", color="blue", label="readers, majority")
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", title=title, aspect="equal")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def calibration_figure(found: Calibration) -> Figure:
    """Return the share of positives against the probability said, a dot for each bin."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    said, seen, cases = zip(*found.bins, strict=True)
    axes.scatter(said, seen, s=[20 + 2 * n for n in cases])
    axes.set(xlabel="probability", ylabel="share of positives", aspect="equal")
    axes.set(xlim=(0, 1), ylim=(0, 1), title=f"Calibration error {found.error:.3f}")
    return figure


def dice_figure(by_name: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Return a dot for each case and a bar at the mean, a column for each name."""
    figure = Figure(figsize=(1.5 + 1.2 * len(by_name), 4), layout="constrained")
    axes = figure.add_subplot()
    for place, values in enumerate(by_name.values()):
        spread = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0.0]
        axes.scatter(place + np.asarray(spread), values, s=14, alpha=0.7)
        axes.hlines(float(np.mean(values)), place - 0.3, place + 0.3, color="black")
    axes.set(ylim=(0, 1), ylabel="Dice", title=title)
    axes.set_xticks(range(len(by_name)), list(by_name), rotation=20, ha="right", fontsize=8)
    return figure


def gallery(pictures: Sequence[tuple[str, Picture]], columns: int = 4) -> Figure:
    """Return the slices with what was found and what is true as outlines (J61, J65)."""
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    for place, (caption, picture) in enumerate(pictures, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(picture.grey, cmap="gray", vmin=0, vmax=255)
        _outline(axes, picture.truth, TRUTH)
        _outline(axes, picture.found, FOUND)
        lines = (textwrap.fill(line, CAPTION_CHARACTERS) for line in caption.splitlines())
        axes.set_title("\n".join(lines), fontsize=7)
        axes.axis("off")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; without a date, so equal data give equal files."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _outline(axes: Axes, mask: NDArray[np.bool_], colour: str) -> None:
    if mask.any():
        axes.contour(mask.astype(float), levels=[0.5], colors=colour, linewidths=0.8)
