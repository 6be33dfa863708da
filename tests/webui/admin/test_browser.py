"""The administrators' pages in a real browser: live, with pictures, by keyboard."""

import pytest

from dicom_node import tasks
from tests.webui.admin.conftest import ADMINISTRATOR
from tests.webui.browser import Reader, chromium, needs_chromium, serving
from tests.webui.world import World

pytestmark = [
    needs_chromium,
    # pynetdicom leaves sockets of failed associations to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MODULE = "const chart = await import(`${path}/admin/chart.js`);"

CUT_OFF = (
    "async (value) => {"
    + MODULE
    + """
  const figure = document.createElement("figure");
  figure.dataset.chart = "line";
  const table = figure.appendChild(document.createElement("table"));
  const rows = [[table.createTHead(), ["Hour", "Minutes"]], [table.createTBody(), ["12", value]]];
  for (const [part, cells] of rows) {
    const row = part.insertRow();
    for (const text of cells) row.insertCell().textContent = text;
  }
  document.body.append(figure);
  chart.draw(figure);
  const cut = [...figure.querySelectorAll("svg text")].filter((text) => text.getBBox().x < 0);
  figure.remove();
  return cut.map((text) => text.textContent);
}"""
)
"""The numbers beside the axis that have no room."""


def test_an_administrator_at_work(world: World):
    app = world.app()
    with serving(app) as address, chromium("--disable-3d-apis") as browser:
        chief = Reader.signed_in(browser, address, name=ADMINISTRATOR)
        page = chief.page

        # What is wrong appears by itself, and leads to where it is mended.
        page.click("text=Administration")
        bars = "() => document.querySelectorAll('.chart rect.bar-0').length"
        assert page.evaluate(bars) == 0
        world.fail(world.claim(world.receive("1.2.3")), "<img src=x onerror=pwned()> broken")
        chief.until(bars)
        page.click("summary >> nth=0")
        assert page.is_visible("#day figure th >> text=Arrived")
        page.click("nav >> text=Queues and failures")
        assert "<img src=x onerror=pwned()> broken" in page.inner_text("#ended")

        # By keyboard alone.
        page.focus("text=Try 1 again")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=No study failed")

        # A node's answer comes by itself.
        page.click("nav >> text=Peers")
        page.click("text=Echo pacs")
        page.wait_for_selector("text=Asking…")
        tasks.answer_queries(world.settings, world.database)
        page.wait_for_selector("text=nothing listens there")

        # A part in which somebody is stays until they leave it.
        page.focus("text=Echo pacs")
        page.evaluate("() => { window.focused = document.activeElement; }")
        tasks.answer_queries(world.settings, world.database)
        assert page.evaluate("() => document.activeElement === window.focused")

        page.evaluate("(path) => { window.path = path; }", str(app.static_url_path))
        axis = page.evaluate(f"async () => {{ {MODULE} return chart.nice(-812, -788); }}")
        assert axis == {"low": -820, "high": -780, "step": 10}
        for value in (0, 0.04, 2, -812, 12345):  # a line that never moves
            flat = page.evaluate(f"async () => {{ {MODULE} return chart.nice({value}, {value}); }}")
            assert flat["low"] <= value <= flat["high"] > flat["low"]
            assert page.evaluate(CUT_OFF, value) == []
        runs = page.evaluate(
            f"async () => {{ {MODULE} return chart.runs([1, null, 2, 0, null]); }}"
        )
        assert runs == [[0], [2, 3]]
        assert chief.troubles == []
