from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from tests.support.instances import Names, ct_instance
from tests.webui.dicomweb.conftest import Archive
from tests.webui.dicomweb.test_retrieve import path_of

RAMP = np.arange(64, dtype=np.int16).reshape(8, 8) * 16


def ramp(**attributes: Any) -> Dataset:
    """A slice of stored values 0 to 1008, which are -1024 to -16 HU."""
    return ct_instance(
        Names.fresh(),
        PixelData=RAMP.tobytes(),
        RescaleSlope=1,
        RescaleIntercept=-1024,
        **attributes,
    )


@pytest.fixture
def picture(archive: Archive, get: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def drawn(dataset: Dataset, question: str = "", frame: str = "") -> np.ndarray:
        archive.take(dataset)
        answer = get(f"{path_of(dataset)}{frame}/rendered{question}", accept="image/png")
        assert answer.status_code == 200, answer.json
        return np.asarray(Image.open(BytesIO(answer.data)))

    return drawn


def test_the_window_of_the_request_counts(picture: Callable[..., np.ndarray]):
    shades = picture(ramp(WindowCenter=0, WindowWidth=1), "?window=-520,1008,linear-exact")

    expected = np.clip((RAMP - 1024 + 520) / 1008 + 0.5, 0, 1) * 255
    assert np.abs(shades - expected).max() <= 0.51


def test_the_images_own_window_counts(picture: Callable[..., np.ndarray]):
    shades = picture(ramp(WindowCenter=[-520.5, 40], WindowWidth=[101, 400]))

    # PS3.3 C.11.2.1.2.1: black up to c - 0.5 - (w - 1) / 2, white beyond c - 0.5 + (w - 1) / 2.
    hu = RAMP - 1024
    assert (shades[hu <= -571] == 0).all()
    assert (shades[hu > -471] == 255).all()
    inside = (hu > -571) & (hu <= -471)
    assert np.abs(shades[inside] - ((hu[inside] + 521) / 100 + 0.5) * 255).max() <= 0.51


def test_without_a_window_all_values_are_seen(picture: Callable[..., np.ndarray]):
    shades = picture(ramp())

    assert (shades.min(), shades.max()) == (0, 255)
    assert (np.diff(shades.ravel().astype(int)) >= 0).all()


def test_monochrome1_is_white_where_it_is_low(picture: Callable[..., np.ndarray]):
    shades = picture(ramp(PhotometricInterpretation="MONOCHROME1"))

    assert (shades[0, 0], shades[7, 7]) == (255, 0)


def test_a_sigmoid_is_a_sigmoid(picture: Callable[..., np.ndarray]):
    shades = picture(ramp(), "?window=-512,200,sigmoid")

    expected = 255 / (1 + np.exp(-4 * (RAMP - 1024 + 512) / 200))
    assert np.abs(shades - expected).max() <= 0.51


def test_a_voi_lut_counts(picture: Callable[..., np.ndarray]):
    lut = Dataset()
    lut.LUTDescriptor = [64, 0, 16]
    lut.LUTData = np.linspace(65535, 0, 64).astype("<u2").tobytes()
    lut["LUTData"].VR = "OW"
    dataset = ct_instance(
        Names.fresh(),
        PixelData=np.arange(64, dtype=np.uint16).tobytes(),
        PixelRepresentation=0,
        VOILUTSequence=[lut],
    )

    shades = picture(dataset)

    assert (shades[0, 0], shades[7, 7]) == (255, 0)


def test_a_frame_has_its_own_window(picture: Callable[..., np.ndarray]):
    groups = []
    for center in (-1000, -30):
        window = Dataset()
        window.WindowCenter, window.WindowWidth = center, 2
        group = Dataset()
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    dataset = ramp(NumberOfFrames=2)
    dataset.PixelData = RAMP.tobytes() * 2
    dataset.PerFrameFunctionalGroupsSequence = groups

    first = picture(dataset, frame="/frames/1")
    second = picture(dataset, frame="/frames/2")

    assert (first > 0).sum() > 60
    assert (second > 0).sum() < 3


def test_colours_stay(picture: Callable[..., np.ndarray]):
    colours = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
    dataset = ct_instance(
        Names.fresh(),
        SamplesPerPixel=3,
        PlanarConfiguration=1,
        PhotometricInterpretation="RGB",
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        PixelData=np.moveaxis(colours, 2, 0).tobytes(),
    )

    assert np.array_equal(picture(dataset), colours)


def test_the_viewport_fits_and_crops(picture: Callable[..., np.ndarray]):
    dataset = ramp()

    assert picture(dataset, "?viewport=16,100").shape == (16, 16)
    whole = picture(dataset)
    assert np.array_equal(picture(dataset, "?viewport=4,2,2,3,4,2"), whole[3:5, 2:6])
    assert np.array_equal(picture(dataset, "?viewport=8,8,,,-8,"), whole[:, ::-1])
    assert np.array_equal(picture(dataset, "?viewport=8,8,,,,-8"), whole[::-1])


def test_a_jpeg_is_given_unless_another_is_liked_better(archive: Archive, get: Callable[..., Any]):
    dataset = ramp()
    archive.take(dataset)
    address = f"{path_of(dataset)}/rendered"

    assert get(address).mimetype == "image/jpeg"
    assert get(address, accept="image/*").mimetype == "image/jpeg"
    assert get(address, accept="image/jpeg;q=0.5, image/png").mimetype == "image/png"
    assert get(f"{address}?accept=image/png").mimetype == "image/png"
    sizes = [len(get(f"{address}?quality={quality}").data) for quality in (10, 100)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    "question",
    [
        "window=1,2",
        "window=a,2,linear",
        "window=1,0,linear",
        "window=1,0,sigmoid",
        "window=1,-5,linear-exact",
        "window=nan,5,linear",
        "window=1,2,cubic",
        "viewport=0,5",
        "viewport=5",
        "viewport=99999,5",
        "viewport=5,5,1,1",
        "viewport=5,5,0,0,100,100",
        "viewport=5,5,-3,0,2,2",
        "quality=0",
        "quality=101",
        "annotation=patient",
        "nonsense=1",
    ],
)
def test_what_cannot_be_drawn_is_refused(archive: Archive, get: Callable[..., Any], question: str):
    dataset = ramp()
    archive.take(dataset)

    answer = get(f"{path_of(dataset)}/rendered?{question}")

    assert answer.status_code == 400
    assert answer.json["error"].endswith(".")


def test_a_picture_shows_one_frame_that_is_there(archive: Archive, get: Callable[..., Any]):
    dataset = ramp()
    archive.take(dataset)

    assert get(f"{path_of(dataset)}/frames/1,1/rendered").status_code == 400
    assert get(f"{path_of(dataset)}/frames/2/rendered").status_code == 404
