"""The report in Chromium: printed, copied over HTTP, downloaded."""

from pathlib import Path
from typing import Any

import pypdfium2
from playwright.sync_api import Browser

from tests.webui.browser import Reader, needs_chromium, serving
from tests.webui.world import World

pytestmark = needs_chromium


def test_it_is_read_copied_printed_and_downloaded(
    browser: Browser, world: World, chest: Any, tmp_path: Path
):
    study_id = world.receive("1.2.3")
    world.finish(study_id, *chest)
    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address)
        page = reader.page
        # As in a hospital, where the page comes over HTTP by another name than 127.0.0.1.
        page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.goto(f"{address}/studies/{study_id}/report")
        assert "UNCONFIRMED" in page.inner_text(".stamp")
        reader.until("() => [...document.images].every((image) => image.naturalWidth > 0)")
        page.evaluate(
            "() => document.addEventListener('copy', () => {"
            " window.copied = document.activeElement.value; })"
        )

        page.click("#copy")
        page.wait_for_selector("#copied >> text=The report is in the clipboard.")

        assert page.evaluate("() => window.copied").startswith("UNCONFIRMED\nChest CT: result")
        printed = tmp_path / "printed.pdf"
        page.pdf(path=printed, format="A4")
        document = pypdfium2.PdfDocument(printed)
        said = [sheet.get_textpage().get_text_bounded() for sheet in document]
        document.close()
        assert all("UNCONFIRMED" in sheet for sheet in said)
        assert "Research use only" in said[0]
        with page.expect_download() as download:
            page.click("text=Download PDF")
        assert download.value.suggested_filename == "report-1-1-0.pdf"
        assert Path(download.value.path()).read_bytes().startswith(b"%PDF")
        assert reader.troubles == []
        page.close()
