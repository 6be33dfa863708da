"""The detector against what it must find and what it must leave alone; figures are printed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.font_manager
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont

from appliance.burned_in_text import has_text
from tests.support.ct_series import real
from tests.support.figures import FIGURE
from tests.support.phantom import small_chest

TEXTS = ("DOE^JOHN 1955-03-14", "Müller, Anna", "ID 4711-0815", "Doe John M", "25.11.1961 09:41")
DEJAVU = Path(matplotlib.font_manager.findfont("DejaVu Sans"))
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")


def drawn(image: np.ndarray, text: str, place: tuple[int, int], font, ink: float) -> np.ndarray:
    """The image with text in an ink, as a workstation writes it."""
    mask = Image.new("L", image.shape[::-1])
    ImageDraw.Draw(mask).text(place, text, 255, font)
    opaque = np.asarray(mask) / 255
    return image * (1 - opaque) + ink * opaque


def fonts(size: int) -> Iterator[ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    yield ImageFont.load_default(size)
    yield from (ImageFont.truetype(str(DEJAVU.with_name(name)), size) for name in FONTS)


def found_share(images: list[np.ndarray], size: int, ink: Callable[[np.ndarray], float]) -> float:
    """Return in how many of the images a text of this size is found."""
    rng = np.random.default_rng(size)
    found = []
    for font in fonts(size):
        for text in TEXTS:
            image = images[rng.integers(len(images))].astype(float)
            rows, columns = image.shape
            widest = max(1, columns - int(font.getlength(text)) - 4)
            place = int(rng.integers(widest)), int(rng.integers(rows - 2 * size))
            found.append(has_text(drawn(image, text, place, font, ink(image))))
    return float(np.mean(found))


@pytest.mark.parametrize("size", [12, 16, 24, 40])
def test_bright_text_on_a_chest_is_found(size: int):
    slices = list(small_chest().volume.hu[20:80:10].repeat(4, axis=1).repeat(4, axis=2))

    assert found_share(slices, size, np.max) >= 0.95


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_turned_text_is_found(turn: int):
    image = drawn(np.zeros((200, 300)), "DOE JOHN 1955", (20, 90), ImageFont.load_default(18), 255)

    assert has_text(np.rot90(image, turn))


def test_coloured_text_is_found():
    image = np.zeros((100, 300, 3))
    image[..., 1] = drawn(image[..., 1], "DOE JOHN", (20, 40), ImageFont.load_default(18), 255)

    assert has_text(image.astype(np.uint8))


def test_dark_text_on_a_bright_sheet_is_found():
    image = drawn(np.full((100, 300), 250.0), "DOE JOHN", (20, 40), ImageFont.load_default(18), 5)

    assert has_text(image)


def test_the_synthetic_chest_shows_no_text():
    assert not any(map(has_text, small_chest().volume.hu[::8]))


@pytest.mark.parametrize("image", [np.zeros((64, 64)), np.zeros((1, 1)), np.eye(64)])
def test_an_image_of_nothing_shows_no_text(image: np.ndarray):
    assert not has_text(image)


def pixels(paths) -> list[np.ndarray]:
    return [pydicom.dcmread(path).pixel_array for path in sorted(paths)]


def real_images(kind: str) -> list[np.ndarray]:
    if kind == "localisers":
        philips = real("dicom/philips_localizer_and_summary")
        ge = real("dicom/chest_localizer")
        return pixels([*philips.glob("S1*"), *philips.glob("S4010_I[123]0*"), *ge.iterdir()])
    if kind == "slices of P002":
        return pixels(sorted(real("dicom/chest_covid_P002").iterdir())[::6])
    if kind == "reformats":
        return pixels(real("dicom/chest_sagittal_reformat").iterdir())
    volumes = (np.asarray(nib.load(path).dataobj) for path in real("volumes").glob("*.nii.gz"))
    return [volume[:, :, k].T for volume in volumes for k in range(0, volume.shape[2], 9)]


@pytest.mark.parametrize("kind", ["localisers", "slices of P002", "reformats", "volumes"])
def test_real_images_show_no_text(kind: str, record_property):
    shown = [has_text(image) for image in real_images(kind)]

    record_property(FIGURE, f"text seen in {kind} without any: {sum(shown)} of {len(shown)}")
    assert not any(shown)


def test_real_sheets_of_a_scanner_show_text():
    folder = real("dicom/philips_localizer_and_summary")

    assert all(map(has_text, pixels(folder.glob("S4010_I[456]0*"))))


@pytest.mark.parametrize("kind", ["localisers", "slices of P002", "reformats"])
@pytest.mark.parametrize(("size", "least"), [(10, 0.7), (14, 0.9), (20, 0.9), (32, 0.9)])
def test_text_on_real_images_is_found(kind: str, size: int, least: float, record_property):
    share = found_share(real_images(kind), size, np.max)

    record_property(FIGURE, f"text of {size} px found in {kind}: {share:.0%}")
    assert share >= least
