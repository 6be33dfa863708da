"""A frame as a picture (PS3.18 section 8.3.5): modality LUT, VOI, viewport; 8 bits a sample.

Without a window in the request the image's own first one counts, else its VOI LUT, else all of its
values. Nothing is written upon a picture.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

from webui.dicomweb.problems import bad_request
from webui.dicomweb.stored import UNREADABLE, Opened, PixelError, frame

FORMATS: Final = {"image/jpeg": "JPEG", "image/png": "PNG"}
LARGEST_SIDE: Final = 4096
DEFAULT_QUALITY: Final = 90
FUNCTIONS: Final = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
PARAMETERS: Final = frozenset({"accept", "quality", "viewport", "window"})
LOOKS: Final = (
    "BitsAllocated",
    "BitsStored",
    "BluePaletteColorLookupTableData",
    "BluePaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableDescriptor",
    "ModalityLUTSequence",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "RedPaletteColorLookupTableData",
    "RedPaletteColorLookupTableDescriptor",
    "RescaleIntercept",
    "RescaleSlope",
    "SamplesPerPixel",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
)
"""The attributes that say how stored values look."""

NUMBER: Final = r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?"

Values = npt.NDArray[Any]
Region = tuple[float, float, float | None, float | None]


@dataclass(frozen=True)
class Window:
    """A window in units of the modality (PS3.3 C.11.2.1.2)."""

    center: float
    width: float
    function: str = "LINEAR"

    @property
    def is_valid(self) -> bool:
        """Whether the width is one that the function has."""
        return self.width >= 1 or (self.width > 0 and self.function != "LINEAR")


@dataclass(frozen=True)
class Wanted:
    """How a picture shall look.

    Attributes:
        media_type: A key of `FORMATS`.
        quality: Of a JPEG, 1 to 100.
        window: None for the image's own.
        viewport: Columns and rows that the picture must fit into; None for the frame's own.
        region: Left, top, width and height of the part that is shown, in pixels of the frame; a
            negative width or height mirrors, None reaches to the edge. None for all of it.
    """

    media_type: str
    quality: int = DEFAULT_QUALITY
    window: Window | None = None
    viewport: tuple[int, int] | None = None
    region: Region | None = None


def wanted(parameters: Mapping[str, str], media_type: str) -> Wanted:
    """Return what query parameters ask for; raises RequestProblem if one is malformed."""
    if unknown := sorted(parameters.keys() - PARAMETERS):
        raise bad_request(f"{unknown[0]} is unknown; known are {', '.join(sorted(PARAMETERS))}.")
    quality = parameters.get("quality", str(DEFAULT_QUALITY))
    if not re.fullmatch(r"[0-9]{1,3}", quality) or not 1 <= int(quality) <= 100:
        raise bad_request("quality must be a whole number from 1 to 100.")
    viewport, region = _viewport(parameters.get("viewport"))
    return Wanted(media_type, int(quality), _window(parameters.get("window")), viewport, region)


def render(source: Opened, index: int, wish: Wanted) -> bytes:
    """Return a frame, from 0, as an encoded picture.

    Raises:
        PixelError: there is no such frame, or it cannot be decoded.
    """
    pixels = frame(source, index)
    try:
        looks = _of_frame(source.dataset, index)
    except UNREADABLE as error:
        raise PixelError("The header does not say how the frame looks.") from error
    image = Image.fromarray(_eight_bits(pixels, looks, wish.window))
    image = _placed(image, wish)
    encoded = BytesIO()
    options = {"quality": wish.quality} if wish.media_type == "image/jpeg" else {}
    image.save(encoded, FORMATS[wish.media_type], **options)
    return encoded.getvalue()


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    match = re.fullmatch(rf"({NUMBER}),({NUMBER}),({'|'.join(FUNCTIONS)})", text.lower())
    if match is None:
        raise bad_request("window must be center,width,function: linear, linear-exact or sigmoid.")
    window = Window(float(match[1]), float(match[2]), FUNCTIONS[match[3]])
    if not window.is_valid:
        raise bad_request("window must have a width of at least 1, above 0 if it is not linear.")
    return window


def _viewport(
    text: str | None,
) -> tuple[tuple[int, int] | None, Region | None]:
    if text is None:
        return None, None
    fields = text.split(",")
    sizes_fit = all(
        re.fullmatch(r"[0-9]{1,4}", size) and 1 <= int(size) <= LARGEST_SIDE for size in fields[:2]
    )
    region_fits = all(re.fullmatch(rf"(?:{NUMBER})?", place) for place in fields[2:])
    if len(fields) not in {2, 6} or not sizes_fit or not region_fits:
        raise bad_request(
            "viewport must be columns,rows or columns,rows,left,top,width,height;"
            f" columns and rows are at most {LARGEST_SIDE}."
        )
    size = int(fields[0]), int(fields[1])
    if len(fields) == 2:
        return size, None
    left, top, width, height = (float(place) if place else None for place in fields[2:])
    return size, (left or 0.0, top or 0.0, width, height)


def _of_frame(dataset: Dataset, index: int) -> Dataset:
    """The attributes that say how a frame looks, out of its functional groups if it has any."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    macros = [
        macro[0]
        for groups in (shared[:1], frames[index : index + 1])
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence")
        for item in groups
        if (macro := item.get(name))
    ]
    attributes = Dataset()
    for source in (dataset, *macros):
        for keyword in LOOKS:
            if keyword in source:
                attributes[keyword] = source[keyword]
    attributes.set_original_encoding(*dataset.original_encoding)
    return attributes


def _eight_bits(pixels: Values, looks: Dataset, asked: Window | None) -> Values:
    interpretation = str(looks.get("PhotometricInterpretation", "MONOCHROME2"))
    try:
        if interpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, looks)
        if pixels.ndim == 3:
            deepest = np.iinfo(pixels.dtype).max
            return (pixels.astype(np.float32) * (255 / deepest)).round().astype(np.uint8)
        values = apply_modality_lut(pixels, looks)
        window = asked or _own_window(looks)
        if window is None and "VOILUTSequence" in looks:
            values = apply_voi(values, looks)
            highest = 2 ** looks.VOILUTSequence[0].LUTDescriptor[2] - 1
            window = Window(highest / 2, highest, "LINEAR_EXACT")
    except UNREADABLE as error:
        raise PixelError("The header's look-up tables cannot be used.") from error
    shades = _windowed(values, window) if window else _stretched(values)
    # The lowest value is white then (PS3.3 C.7.6.3.1.2).
    return 255 - shades if interpretation == "MONOCHROME1" else shades


def _own_window(looks: Dataset) -> Window | None:
    center, width = looks.get("WindowCenter"), looks.get("WindowWidth")
    if center in (None, "") or width in (None, ""):
        return None
    first = [value if isinstance(value, int | float) else value[0] for value in (center, width)]
    function = str(looks.get("VOILUTFunction") or "LINEAR")
    window = Window(float(first[0]), float(first[1]), function)
    return window if window.is_valid else None


def _windowed(values: Values, window: Window) -> Values:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, from 0 to 255."""
    center, width = window.center, window.width
    with np.errstate(over="ignore"):
        match window.function:
            case "SIGMOID":
                share = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - center) / width))
            case "LINEAR_EXACT":
                share = (values.astype(np.float64) - center) / width + 0.5
            case _ if width == 1:
                share = (values > center - 0.5).astype(np.float64)
            case _:
                share = (values.astype(np.float64) - (center - 0.5)) / (width - 1) + 0.5
    shades: Values = (np.clip(share, 0, 1) * 255).round().astype(np.uint8)
    return shades


def _stretched(values: Values) -> Values:
    low, high = float(values.min()), float(values.max())
    return _windowed(values, Window((low + high) / 2, max(high - low, 1.0), "LINEAR_EXACT"))


def _placed(image: Image.Image, wish: Wanted) -> Image.Image:
    """The part that is asked for, in the largest size that fits, its proportions kept."""
    if wish.region is not None:
        image = _part(image, wish.region)
    if wish.viewport is None:
        return image
    scale = min(wish.viewport[0] / image.width, wish.viewport[1] / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BILINEAR)


def _part(image: Image.Image, region: Region) -> Image.Image:
    left, top, width, height = region
    width = image.width - left if width is None else width
    height = image.height - top if height is None else height
    box = (round(left), round(top), round(left + abs(width)), round(top + abs(height)))
    if not (0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height):
        raise bad_request("viewport must show a part that lies within the frame.")
    part = image.crop(box)
    if width < 0:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if height < 0:
        part = part.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return part
