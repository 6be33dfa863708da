"""The viewer on a real study, against the values in its own DICOM files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from pipelines.findings import LEFT_LUNG, RIGHT_LUNG
from pipelines.series import load_input
from pipelines.volume import CTVolume
from tests.support.ct_series import real
from tests.support.figures import FIGURE
from tests.webui.browser import Reader, chromium, needs_chromium, serving
from tests.webui.geometry import on_screen
from tests.webui.world import World, known

pytestmark = needs_chromium

AIR_IN_LUNG_HU = -500


@pytest.fixture(scope="module")
def folder() -> Path:
    return real("dicom/chest_covid_P002")


@pytest.fixture(scope="module")
def volume(folder: Path) -> CTVolume:
    return load_input(folder)[0]


@pytest.fixture(scope="module")
def reader(volume: CTVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader with the study open; where the lesions are does not matter here."""
    lungs, lesions = stand_ins(volume)
    world = World.at(tmp_path_factory.mktemp("real") / "data")
    study_id = world.receive("P002")
    world.finish(study_id, volume, known(volume, lungs=lungs, lesions=lesions))
    with serving(world.app()) as address, chromium() as browser:
        opened = Reader.signed_in(browser, address)
        opened.open_study(study_id)
        yield opened
        assert opened.troubles == []
        opened.page.close()


def stand_ins(volume: CTVolume) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Masks that need no network: air as lungs, and a ball in the middle of each."""
    nz, ny, nx = volume.shape
    lungs = np.where(volume.hu < AIR_IN_LUNG_HU, RIGHT_LUNG, 0).astype(np.uint8)
    lungs[:, :, nx // 2 :][lungs[:, :, nx // 2 :] > 0] = LEFT_LUNG
    z, y, x = np.ogrid[:nz, :ny, :nx]
    sz, sy, sx = volume.spacing
    lesions = np.zeros(volume.shape, dtype=bool)
    for share, radius_mm in ((0.3, 12), (0.7, 15)):
        distance = (
            ((z - nz / 2) * sz) ** 2 + ((y - ny / 2) * sy) ** 2 + ((x - nx * share) * sx) ** 2
        )
        lesions |= distance < radius_mm**2
    return lungs, lesions


def test_the_hu_under_the_cursor_are_pydicoms(reader: Reader, volume: CTVolume, folder: Path):
    files = {int(ds.InstanceNumber): ds for ds in map(pydicom.dcmread, sorted(folder.iterdir()))}
    random = np.random.default_rng(3)
    reader.press("n", "2")

    for _ in range(8):
        reader.press(*["ArrowDown"] * int(random.integers(0, 5)))
        number = reader.slice_number("axial")
        image = int(reader.title("axial").split("image")[1])
        ds = files[image]
        # Head first, supine, not tilted: the image's own rows and columns are y and x.
        assert [float(v) for v in ds.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
        y, x = (int(random.integers(80, 430)) for _ in range(2))
        point = on_screen(reader.page, volume, "axial", (volume.shape[0] - number, y, x))
        reader.page.mouse.move(point.x, point.y)
        reader.frames()

        expected = round(float(ds.pixel_array[y, x]) * ds.RescaleSlope + ds.RescaleIntercept)
        assert reader.readout("axial").endswith(f"{expected} HU")


def test_the_head_is_slice_1(reader: Reader, folder: Path):
    heights = {
        int(ds.InstanceNumber): float(ds.ImagePositionPatient[2])
        for ds in (pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir())
    }

    reader.press("Home")

    image = int(reader.title("axial").split("image")[1])
    assert heights[image] == max(heights.values())


def test_a_real_study_opens_quickly(reader: Reader, record_property: Callable[[str, object], None]):
    marks = {name: reader.mark(name) for name in ("ready", "first-lesion-slice", "volume")}

    told = ", ".join(f"{name} {time:.0f} ms" for name, time in marks.items())
    record_property(FIGURE, f"viewer, P002: {told}")
    assert marks["first-lesion-slice"] < 10_000
