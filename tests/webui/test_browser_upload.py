"""Upload as a person does it in Chromium, with a connection that breaks in the middle."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route
from sqlalchemy import select

from appliance import uploads
from appliance.tables import Instance, Study
from tests.support.instances import REAL_STUDY, Names, as_file, ct_instance, needs_real_data
from tests.webui.browser import Reader, needs_chromium, serving
from tests.webui.test_upload import zipped
from tests.webui.world import World
from webui import upload

pytestmark = needs_chromium


@pytest.fixture
def world(world: World) -> World:
    dicom = replace(world.settings.dicom, min_free_bytes=0)
    return replace(world, settings=replace(world.settings, dicom=dicom))


@pytest.fixture
def reader(browser: Browser, world: World) -> Iterator[Reader]:
    with serving(world.app()) as address:
        signed_in = Reader.signed_in(browser, address)
        signed_in.page.click("text=Upload")
        signed_in.page.wait_for_selector("#upload")
        yield signed_in
        signed_in.page.close()


@needs_real_data
def test_a_real_study_goes_as_a_zip_file_through_a_broken_line_and_a_closed_tab(
    reader: Reader, world: World, tmp_path: Path
):
    page = reader.page
    archive = tmp_path / "P002.zip"
    archive.write_bytes(zipped({path.name: path.read_bytes() for path in REAL_STUDY.iterdir()}))
    assert archive.stat().st_size > 3 * upload.PIECE_BYTES
    pieces: list[int] = []

    def breaking(route: Route) -> None:
        """Let two pieces through, and then none."""
        pieces.append(1)
        route.continue_() if len(pieces) <= 2 else route.abort()

    page.route("**/files/*", breaking)
    page.set_input_files("#files", archive)
    page.click("#start")
    page.wait_for_selector("#told.trouble >> text=No connection")
    page.close()  # the tab is gone, and with it everything that the page knew
    reader.page = page = page.context.new_page()
    page.goto(f"{reader.address}/upload")
    page.wait_for_selector("#interrupted >> text=P002.zip: 0 of 1 files are here")
    (waiting,) = uploads.uploads_of(world.settings, 1)
    assert waiting.offset(0) == 2 * upload.PIECE_BYTES
    rest: list[str] = []
    page.on("request", lambda sent: rest.append(sent.url) if sent.method == "PATCH" else None)

    page.set_input_files("#files", archive)
    page.click("#start")
    page.wait_for_selector("#studies a", timeout=180_000)

    assert len(rest) == -(-archive.stat().st_size // upload.PIECE_BYTES) - 2
    images = len([path for path in REAL_STUDY.iterdir() if path.is_file()])
    assert f"New images: {images}." in page.inner_text("#counts")
    with world.database.snapshot() as db:
        (study,) = db.scalars(select(Study)).all()
        assert (study.state, study.source_ae) == ("RECEIVING", "web reader")
        assert len(db.scalars(select(Instance.id)).all()) == images
    page.click("#studies a")
    page.wait_for_selector("#status")


def test_what_was_refused_is_named_as_text(reader: Reader, tmp_path: Path):
    page = reader.page
    name = "<img src=x onerror=pwned()>.txt"
    (tmp_path / name).write_text("no image")
    as_file(ct_instance(Names.fresh(), PatientName="<b>Muster^Anna"), tmp_path / "IM1")

    page.set_input_files("#files", [tmp_path / name, tmp_path / "IM1"])
    assert page.is_hidden("#person")
    page.keyboard.press("Enter")  # the button has the focus
    page.wait_for_selector("#studies a")

    assert page.inner_text("#studies a") == "<b>Muster, Anna"
    assert page.inner_text("#reasons") == f"{name}: no DICOM file"
    assert reader.troubles == []
