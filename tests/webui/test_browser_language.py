"""A Chinese reader at work: worklist and viewer, in the browser."""

import re

from playwright.sync_api import Browser

from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.browser import Reader, needs_chromium, serving
from tests.webui.test_language import is_english, speak
from tests.webui.world import NAME, World
from webui import language

pytestmark = needs_chromium


def english_in(text: str) -> list[str]:
    """The lines of a text that are still English."""
    return [line.strip() for line in text.splitlines() if is_english(line)]


def test_worklist_and_viewer_speak_chinese(
    browser: Browser, world: World, chest: tuple[CTVolume, Analysis]
):
    speak(world.database, NAME, language.CHINESE)
    volume, found = chest
    study_id = world.receive("1.1")
    analysis_id = world.finish(study_id, volume, found)
    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address)
        page = reader.page
        assert page.get_attribute("html", "lang") == "zh-Hans-CN"

        arriving = world.receive("1.2")
        reader.until(
            "(id) => document.querySelector(`tr[data-study='${id}'] .badge`)?.innerText"
            " === '接收中'",
            str(arriving),
        )
        ready = page.inner_text(f"tr[data-study='{study_id}']")
        assert "等待审核" in ready
        assert f"{len(found.lesions)} 个病灶" in ready
        assert english_in(page.inner_text("main")) == []

        page.click(f"tr[data-study='{study_id}'] a")
        page.wait_for_selector(".review .confirm")
        assert page.inner_text(".top-bar .warning") == "AI 结果，不得作为主要诊断依据"
        assert "横断面" in page.inner_text(".viewport >> nth=0")
        assert "肺窗" in page.inner_text("#presets")
        assert "铺路石征" in page.text_content(".signs >> nth=0")
        assert english_in(page.inner_text(".panel")) == []

        page.keyboard.press("?")
        page.wait_for_selector("#help[open]")
        shown = page.inner_text("#help").replace("Home", "").replace("End", "").replace("Page", "")
        shown = re.sub(r"Shift|Ctrl|Esc|Del", "", shown)
        assert "厚层：MIP、MinIP、平均、关闭" in shown
        assert english_in(shown) == []
        assert reader.troubles == []
        page.close()
    assert analysis_id
