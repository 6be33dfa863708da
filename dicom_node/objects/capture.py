"""Key images as Secondary Captures (PS3.3 A.8.1): the slices of the largest lesions, outlined.

Drawn as radiologists look at them, the patient's right on the left, whatever order the images were
stored in. No patient's text is burnt in. Lesions that a person rejected are on none; then the
images are new ones, in a series of their own.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.objects.provenance import Provenance, source_image
from pipelines.findings import Analysis, Lesion

ROLE: Final = "key images"
SERIES_NUMBER: Final = 9103
CONFIRMED_ROLE: Final = "confirmed key images"
CONFIRMED_SERIES_NUMBER: Final = 9105
MOST_IMAGES: Final = 5

_NOTICE: Final = "AI result, not for primary diagnosis"
_NO_LESIONS: Final = "No lesions were found"
_NONE_LEFT: Final = "No lesion was confirmed"
_LEVEL_HU, _WIDTH_HU = -600, 1500  # the lung window
_LONGER_SIDE: Final = 768  # px
_MARGIN: Final = 10  # px
_SCALE_MM: Final = 50
_COLOURS: Final = (
    (255, 90, 95), (78, 161, 242), (242, 193, 78), (120, 220, 120), (200, 120, 240), (90, 220, 220),
)  # fmt: skip
_WHITE: Final = (255, 255, 255)
_AMBER: Final = (232, 200, 96)


def build_captures(provenance: Provenance) -> tuple[Dataset, ...]:
    """Return the key images, that of the largest lesion first; without lesions one of the lungs.

    Raises:
        DecodeError: The pixel data of an image are damaged.
    """
    slices = key_slices(provenance.confirmed)
    return tuple(_capture(provenance, z, number) for number, z in enumerate(slices, start=1))


def key_slices(analysis: Analysis) -> list[int]:
    """Return the canonical z to show: the key slices of the largest lesions, each once."""
    slices = list(dict.fromkeys(lesion.key_slice for lesion in analysis.lesions))
    if slices:
        return slices[:MOST_IMAGES]
    filled = np.flatnonzero((analysis.lung_mask > 0).any(axis=(1, 2)))
    return [int(filled[len(filled) // 2]) if filled.size else analysis.shape[0] // 2]


def draw_key_image(provenance: Provenance, z: int) -> Image.Image:
    """Return one canonical slice in the lung window with its lesions that stand, outlined, RGB.

    Raises:
        DecodeError: Its pixel data are damaged.
    """
    analysis = provenance.confirmed
    picture = _Picture(provenance.source.hounsfield(z), analysis.spacing[1:])
    shown = [lesion for lesion in analysis.lesions if lesion.first_slice <= z <= lesion.last_slice]
    for lesion in shown:
        picture.outline(analysis.lesion_labels[z] == lesion.id, lesion)
    number = provenance.source.images[z].instance_number
    # Slices count from the head, as the viewer and most scanners do.
    place = f"slice {analysis.shape[0] - z} of {analysis.shape[0]}"
    picture.write(
        [
            (_NOTICE, _AMBER),
            (place if number is None else f"{place}, image {number}", _WHITE),
            *((_caption(lesion), _colour(lesion)) for lesion in shown[:MOST_IMAGES]),
            *(() if analysis.lesions else ((_without_lesions(provenance), _WHITE),)),
        ]
    )
    picture.mark_sides()
    picture.draw_scale()
    return picture.image


def _without_lesions(provenance: Provenance) -> str:
    return _NONE_LEFT if provenance.analysis.lesions else _NO_LESIONS


def _capture(provenance: Provenance, z: int, number: int) -> Dataset:
    image = draw_key_image(provenance, z)
    # What nobody rejected anything of is the machine's, which the PACS has.
    if provenance.confirmed is provenance.analysis:
        ds = provenance.new_object(
            SecondaryCaptureImageStorage,
            provenance.uid(ROLE, str(z)),
            series=ROLE,
            series_number=SERIES_NUMBER,
            modality="OT",
            written_at=provenance.local(provenance.analysed_at),
        )
    else:
        ds = provenance.new_object(
            SecondaryCaptureImageStorage,
            provenance.verified_uid(CONFIRMED_ROLE, str(z)),
            series=CONFIRMED_ROLE,
            series_number=CONFIRMED_SERIES_NUMBER,
            modality="OT",
            written_at=provenance.written_at,
            of_verification=True,
        )
    ds.InstanceNumber = number
    ds.BodyPartExamined = "CHEST"
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.PatientOrientation = ["L", "P"]
    ds.DerivationDescription = "Lung window with the outlines of the lesions that were found"
    ds.SourceImageSequence = [source_image(provenance.source.images[z])]
    ds.ImageComments = _NOTICE
    ds.BurnedInAnnotation = "NO"
    provenance.copy_compression(ds)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "RGB"
    ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = image.height, image.width
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    pixels = image.tobytes()
    ds.PixelData = pixels + b"\0" * (len(pixels) % 2)
    ds["PixelData"].VR = "OB"
    return ds


def _colour(lesion: Lesion) -> tuple[int, int, int]:
    return _COLOURS[(lesion.id - 1) % len(_COLOURS)]


def _caption(lesion: Lesion) -> str:
    score = "" if lesion.probability is None else f", COVID-like {lesion.probability:.2f}"
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

    def outline(self, region: npt.NDArray[np.bool_], lesion: Lesion) -> None:
        """Draw the border of a lesion (rows, columns), and its number beside it."""
        scaled = Image.fromarray(region).resize(self.image.size, Image.Resampling.NEAREST)
        inside = np.asarray(scaled, bool)
        if not inside.any():
            return
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        self._draw.bitmap((0, 0), Image.fromarray(inside & ~core), fill=_colour(lesion))
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
