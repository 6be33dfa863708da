"""Which side is which, from the DICOM files to the screen, however the patient lay."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser
from pydicom.dataset import Dataset

from pipelines.findings import LEFT_LUNG
from pipelines.series import load_input
from pipelines.volume import CTVolume
from tests.support.ct_series import slices, turned, write
from tests.support.phantom import small_chest
from tests.webui.browser import Reader, needs_chromium, serving
from tests.webui.geometry import on_screen
from tests.webui.world import World, known

pytestmark = needs_chromium

MARK_HU = 2500
MARK = (70, 30, 85)
"""A cube that is nowhere else: z towards the head, y towards the front, x towards the left."""
HALF = 2

POSITIONS = {
    "HFS": {"rows": False, "columns": False},
    "FFS": {"rows": False, "columns": True},
    "HFP": {"rows": True, "columns": True},
    "FFP": {"rows": True, "columns": False},
}
"""How rows and columns run through the patient, by Patient Position (PS3.3 C.7.3.1.1.2)."""


def marked(series: list[Dataset]) -> list[Dataset]:
    """The slices of the chest, from head to foot, with the mark in the patient."""
    z, y, x = MARK
    for number, ds in enumerate(series):
        if abs(len(series) - 1 - number - z) > HALF:
            continue
        stored = ds.pixel_array.copy()
        value = round((MARK_HU - float(ds.RescaleIntercept)) / float(ds.RescaleSlope))
        stored[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1] = value
        ds.PixelData = stored.tobytes()
    return series


@pytest.mark.parametrize("position", POSITIONS)
def test_the_mark_is_on_its_side_in_every_plane(browser: Browser, tmp_path: Path, position: str):
    series = turned(marked(slices()), **POSITIONS[position])
    for ds in series:
        ds.PatientPosition = position
    write(series, tmp_path / "series")
    volume, _ = load_input(tmp_path / "series")
    phantom = small_chest()
    world = World.at(tmp_path / "data")
    study_id = world.receive("1.1")
    analysis = known(volume, lungs=phantom.lungs, lesions=phantom.lesions > 0)
    world.finish(study_id, volume, analysis)

    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address)
        reader.open_study(study_id)
        # Not the loaded volume but the phantom says where the mark is.
        go_to_mark(reader, phantom.volume)
        for plane, letters in {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}.items():
            shown = reader.page.locator(f".viewport.{plane} .side").all_inner_texts()
            assert "".join(shown) == letters
            assert hu_at(reader, phantom.volume, plane, MARK) == MARK_HU
            mirrored = tuple(
                size - 1 - at for size, at in zip(phantom.volume.shape, MARK, strict=True)
            )
            assert hu_at(reader, phantom.volume, plane, mirrored) != MARK_HU
        assert reader.troubles == []
        reader.page.context.close()
    # The mark lies where the analysis says left: numbers and pictures speak of one side.
    assert analysis.lungs.left_ml > 0
    assert np.argwhere(phantom.lungs == LEFT_LUNG)[:, 2].mean() > volume.shape[2] / 2


def go_to_mark(reader: Reader, volume: CTVolume) -> None:
    """All planes through the mark, by the coronal plane and then the axial one."""
    for plane in ("coronal", "axial"):
        point = on_screen(reader.page, volume, plane, MARK)
        reader.page.mouse.click(point.x, point.y)
        reader.frames()


def hu_at(reader: Reader, volume: CTVolume, plane: str, voxel: tuple[int, ...]) -> int:
    point = on_screen(reader.page, volume, plane, (voxel[0], voxel[1], voxel[2]))
    reader.page.mouse.move(point.x, point.y)
    reader.frames()
    return int(reader.readout(plane).removesuffix(" HU").split()[-1])
