"""Key images: the slices of the largest lesions, outlined, for reports and for the PACS.

Drawn as radiologists look at them, the patient's right on the left, whatever order the images were
stored in. No patient's text is burnt in. What a person outlined is dashed.
"""

from __future__ import annotations

from collections.abc import Collection
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipelines.findings import Analysis, Lesion

NOTICE: Final = "AI result, not for primary diagnosis"
MOST_IMAGES: Final = 5
NO_LESIONS: Final = "No lesions were found"
NONE_LEFT: Final = "No lesion was confirmed"

_LEVEL_HU, _WIDTH_HU = -600, 1500  # the lung window
_LONGER_SIDE: Final = 768  # px
_PICTURE_PX: Final = 512
_MARGIN: Final = 10  # px
_SCALE_MM: Final = 50
_DASH: Final = 6  # px
_COLOURS: Final = (
    (255, 90, 95), (78, 161, 242), (242, 193, 78), (120, 220, 120), (200, 120, 240), (90, 220, 220),
)  # fmt: skip
_WHITE: Final = (255, 255, 255)
_AMBER: Final = (232, 200, 96)


def key_slices(analysis: Analysis) -> list[int]:
    """Return the canonical z to show: the key slices of the largest lesions, each once."""
    # What a person added has a later number, whatever its size.
    by_size = sorted(analysis.lesions, key=lambda lesion: -lesion.volume_ml)
    slices = list(dict.fromkeys(lesion.key_slice for lesion in by_size))
    if slices:
        return slices[:MOST_IMAGES]
    filled = np.flatnonzero((analysis.lung_mask > 0).any(axis=(1, 2)))
    return [int(filled[len(filled) // 2]) if filled.size else analysis.shape[0] // 2]


def draw_key_image(
    analysis: Analysis,
    z: int,
    hu: npt.NDArray[np.int16],
    *,
    number: int | None,
    of_reader: Collection[int] = (),
    without_lesions: str = NO_LESIONS,
) -> Image.Image:
    """Return one canonical slice in the lung window with its lesions outlined, RGB.

    Args:
        analysis: With the lesions that stand.
        z: Which slice.
        hu: Its values (y, x).
        number: Its instance number, None where it has none.
        of_reader: The numbers of the lesions that a person outlined.
        without_lesions: What to say where none stands.
    """
    picture = _Picture(hu, analysis.spacing[1:])
    shown = [lesion for lesion in analysis.lesions if lesion.first_slice <= z <= lesion.last_slice]
    for lesion in shown:
        dashed = lesion.id in of_reader
        picture.outline(analysis.lesion_labels[z] == lesion.id, lesion, dashed=dashed)
    # Slices count from the head, as the viewer and most scanners do.
    place = f"slice {analysis.shape[0] - z} of {analysis.shape[0]}"
    picture.write(
        [
            (NOTICE, _AMBER),
            (place if number is None else f"{place}, image {number}", _WHITE),
            *((_caption(one, of_reader), _colour(one)) for one in shown[:MOST_IMAGES]),
            *(() if analysis.lesions else ((without_lesions, _WHITE),)),
        ]
    )
    picture.mark_sides()
    picture.draw_scale()
    return picture.image


def picture(image: Image.Image) -> bytes:
    """Return a key image as reports hold it, PNG: smaller than the object of its own."""
    smaller = image.copy()
    smaller.thumbnail((_PICTURE_PX, _PICTURE_PX))
    file = BytesIO()
    smaller.save(file, "PNG")
    return file.getvalue()


def _colour(lesion: Lesion) -> tuple[int, int, int]:
    return _COLOURS[(lesion.id - 1) % len(_COLOURS)]


def _caption(lesion: Lesion, of_reader: Collection[int]) -> str:
    score = "" if lesion.probability is None else f", COVID-like {lesion.probability:.2f}"
    if lesion.id in of_reader:
        score = ", by the reader"
    return f"{lesion.id}: {lesion.volume_ml:.1f} ml, {lesion.diameter_mm:.0f} mm{score}"


class _Picture:
    """One slice, true to its proportions in mm."""

    def __init__(self, hu: npt.NDArray[np.int16], spacing_mm: tuple[float, float]) -> None:
        """Window and scale a slice (rows, columns), spaced along rows and columns."""
        grey = np.clip((hu.astype(np.float32) - _LEVEL_HU) / _WIDTH_HU + 0.5, 0, 1) * 255
        height_mm, width_mm = hu.shape[0] * spacing_mm[0], hu.shape[1] * spacing_mm[1]
        self._px_per_mm = _LONGER_SIDE / max(height_mm, width_mm)
        size = round(width_mm * self._px_per_mm), round(height_mm * self._px_per_mm)
        self.image = Image.fromarray(grey.astype(np.uint8)).resize(size).convert("RGB")
        self._draw = ImageDraw.Draw(self.image)

    def outline(self, region: npt.NDArray[np.bool_], lesion: Lesion, *, dashed: bool) -> None:
        """Draw the border of a lesion (rows, columns), and its number beside it."""
        scaled = Image.fromarray(region).resize(self.image.size, Image.Resampling.NEAREST)
        inside = np.asarray(scaled, bool)
        if not inside.any():
            return
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        border = inside & ~core
        if dashed:
            down, across = np.indices(border.shape)
            border &= (down + across) // _DASH % 2 == 0
        self._draw.bitmap((0, 0), Image.fromarray(border), fill=_colour(lesion))
        rows, columns = np.nonzero(inside)
        place = int(columns.max()) + 4, int(rows.min())
        self._text(place, str(lesion.id), _colour(lesion), size=20, anchor="ls")

    def write(self, lines: list[tuple[str, tuple[int, int, int]]]) -> None:
        """Write lines of text into the top left corner."""
        for row, (text, colour) in enumerate(lines):
            self._text((_MARGIN, _MARGIN + 20 * row), text, colour, size=16)

    def mark_sides(self) -> None:
        """Write the patient's sides at the edges."""
        middle = self.image.height // 2
        self._text((_MARGIN, middle), "R", _AMBER, size=24, anchor="lm")
        self._text((self.image.width - _MARGIN, middle), "L", _AMBER, size=24, anchor="rm")

    def draw_scale(self) -> None:
        """Draw a bar that says how long it is."""
        right, bottom = self.image.width - _MARGIN, self.image.height - _MARGIN
        left = right - round(_SCALE_MM * self._px_per_mm)
        self._draw.line((left, bottom, right, bottom), fill=_WHITE, width=3)
        place = (right, bottom - 6)
        self._text(place, f"{_SCALE_MM // 10} cm", _WHITE, size=16, anchor="rs")

    def _text(
        self,
        place: tuple[int, int],
        text: str,
        colour: tuple[int, int, int],
        *,
        size: int,
        anchor: str = "la",
    ) -> None:
        font = ImageFont.load_default(size)
        self._draw.text(place, text, colour, font, anchor, stroke_width=2, stroke_fill=(0, 0, 0))
