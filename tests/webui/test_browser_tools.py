"""The reading tools of the viewer: measurements, views, the prior study, keys and what is kept."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import Browser, Request, Route
from sqlalchemy import delete, select

from appliance import accounts, preferences
from appliance.studies import StudyAttributes
from appliance.tables import AuditEntry, Measurement
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.support.phantom import small_chest
from tests.webui.browser import Reader, needs_chromium, serving
from tests.webui.geometry import Point, on_screen
from tests.webui.world import NAME, World, known

pytestmark = needs_chromium

PRIOR_DATE = "2025-11-01"
CUT = 12
"""Slices at the feet that the prior study does not have."""


@pytest.fixture(scope="module")
def volume(chest: tuple[CTVolume, Analysis]) -> CTVolume:
    return chest[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.at(tmp_path_factory.mktemp("tools") / "data")


@pytest.fixture(scope="module")
def opened(browser: Browser, world: World, chest: tuple[CTVolume, Analysis]) -> Iterator[Reader]:
    """A reader with the small chest open, which has a prior study without the lowest slices."""
    volume, found = chest
    phantom = small_chest()
    shorter = replace(
        volume,
        hu=volume.hu[CUT:],
        sop_instance_uids=volume.sop_instance_uids[CUT:],
        instance_numbers=volume.instance_numbers[CUT:],
    )
    before = known(shorter, lungs=phantom.lungs[CUT:], lesions=phantom.lesions[CUT:] > 0)
    attributes = StudyAttributes(description="Old thorax", study_date=PRIOR_DATE.replace("-", ""))
    world.finish(world.receive("1.0", study=attributes), shorter, before)
    study_id = world.receive("1.1")
    world.finish(study_id, volume, found)
    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address)
        reader.open_study(study_id)
        yield reader
        assert reader.troubles == []
        reader.page.close()


@pytest.fixture(scope="module")
def fetching(opened: Reader) -> set[Request]:
    """What the page has asked the server for and has no answer to."""
    under_way: set[Request] = set()

    def begun(request: Request) -> None:
        if request.resource_type == "fetch":
            under_way.add(request)

    def ended(request: Request) -> None:
        under_way.discard(request)

    opened.page.on("request", begun)
    opened.page.on("requestfinished", ended)
    opened.page.on("requestfailed", ended)
    return under_way


@pytest.fixture
def reader(opened: Reader, fetching: set[Request], world: World) -> Reader:
    """The page as a reader finds it who has measured and set nothing."""
    quiet = 0
    while quiet < 2:  # between a form token and what is sent with it is a moment without a request
        opened.frames()
        quiet = 0 if fetching else quiet + 1
    opened.page.goto("about:blank")
    with world.database.transaction() as db:
        db.execute(delete(Measurement))
        preferences.put(db, accounts.named(db, NAME).id, "viewer", {})
    opened.page.goto(f"{opened.address}/studies/2")
    opened.mark("volume")
    opened.frames()
    return opened


def drag(reader: Reader, start: Point, end: Point) -> None:
    mouse = reader.page.mouse
    mouse.move(start.x, start.y)
    mouse.down()
    mouse.move((start.x + end.x) / 2, (start.y + end.y) / 2)
    mouse.move(end.x, end.y)
    mouse.up()
    reader.frames()


def whole(point: Point) -> Point:
    """A pixel that a mouse can be at."""
    return Point(round(point.x), round(point.y))


def measured(reader: Reader, number: int = -1) -> str:
    return reader.page.locator("#measurements .values").nth(number).inner_text()


def until_saved(reader: Reader, world: World, count: int) -> list[Measurement]:
    """The measurements on the server, once there are so many."""
    for _ in range(200):
        with world.database.snapshot() as db:
            rows = list(db.scalars(select(Measurement).order_by(Measurement.id)))
        if len(rows) == count:
            return rows
        reader.frames()
    raise AssertionError(f"{len(rows)} measurements, not {count}")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_ruler_measures_within_a_tenth_of_a_millimetre(
    reader: Reader, volume: CTVolume, plane: str
):
    start, end = (whole(on_screen(reader.page, volume, plane, (n, n, n))) for n in (30, 75))
    # How large a millimetre is, from the geometry that does not come from the viewer.
    near, far = (on_screen(reader.page, volume, plane, (n, n, n)) for n in (0, 50))
    across_mm = 50 * volume.spacing[1 if plane == "sagittal" else 2]
    pixels_per_mm = abs(far.x - near.x) / across_mm

    reader.press("d")
    drag(reader, start, end)

    expected = math.hypot(end.x - start.x, end.y - start.y) / pixels_per_mm
    length, unit = measured(reader).split()
    assert unit == "mm"
    assert float(length) == pytest.approx(expected, abs=0.1)


def test_an_ellipse_and_a_probe_tell_the_hu_of_the_volume(reader: Reader, volume: CTVolume):
    z = volume.shape[0] - reader.slice_number("axial")
    start, end = (whole(on_screen(reader.page, volume, "axial", (z, n, n + 10))) for n in (40, 62))
    origin, step = (on_screen(reader.page, volume, "axial", (z, n, n)) for n in (0, 1))

    reader.press("i")
    drag(reader, start, end)
    told = measured(reader)
    reader.press("h")
    at = whole(on_screen(reader.page, volume, "axial", (z, 50, 80)))
    reader.page.mouse.click(at.x, at.y)
    reader.frames()

    ys = [(point.y - origin.y) / (step.y - origin.y) for point in (start, end)]
    xs = [(point.x - origin.x) / (step.x - origin.x) for point in (start, end)]
    y, x = np.indices(volume.shape[1:])
    inside = ((x - np.mean(xs)) / (np.ptp(xs) / 2)) ** 2 + (
        (y - np.mean(ys)) / (np.ptp(ys) / 2)
    ) ** 2 <= 1
    hu = volume.hu[z][inside].astype(float)
    lines = told.split("\n")
    assert lines[0] == f"mean {hu.mean():.1f} HU, SD {hu.std():.1f}"
    assert lines[1] == f"min {hu.min():.0f}, max {hu.max():.0f}"
    assert measured(reader) == f"{volume.hu[z, 50, 80]} HU"


def test_measurements_are_kept_drawn_again_and_deleted(
    reader: Reader, world: World, volume: CTVolume
):
    z = volume.shape[0] - reader.slice_number("axial")
    start, corner, end = (
        on_screen(reader.page, volume, "axial", (z, y, x))
        for y, x in ((40, 40), (70, 40), (70, 90))
    )
    reader.press("Shift+D")
    for point in (start, corner, end):  # clicks instead of drags
        reader.page.mouse.click(point.x, point.y)
    reader.press("t")
    drag(reader, start, end)
    reader.page.keyboard.type("a <b>vessel</b>")
    reader.page.keyboard.press("Enter")
    until_saved(reader, world, 2)

    reader.page.reload()
    reader.mark("volume")
    reader.until("() => document.querySelectorAll('#measurements li').length === 2")
    reader.frames()

    assert float(measured(reader, 0).rstrip("°")) == pytest.approx(90, abs=1)
    assert reader.page.locator("#measurements input").nth(1).input_value() == "a <b>vessel</b>"
    reader.page.click("#measurements .jump >> nth=0")
    reader.press("Delete")
    (left,) = until_saved(reader, world, 1)
    assert left.kind == "arrow"
    with world.database.snapshot() as db:
        tags = db.scalars(select(AuditEntry.tag)).all()
    assert {"web:measurement:saved", "web:measurement:deleted"} <= set(tags)


def test_a_page_left_before_it_heard_that_all_is_saved_keeps_the_order(
    reader: Reader, world: World, volume: CTVolume
):
    start, end = (on_screen(reader.page, volume, "axial", (n, n, n)) for n in (30, 75))
    reader.press("d")
    drag(reader, start, end)
    until_saved(reader, world, 1)
    reader.page.route("**/measurements/*", lambda route: route.fetch())  # the answer is lost
    reader.press("i")
    drag(reader, start, end)
    until_saved(reader, world, 2)

    reader.page.reload()
    reader.mark("volume")
    reader.until("() => document.querySelectorAll('#measurements li').length === 2")

    assert measured(reader, 0).endswith("mm")
    assert measured(reader, 1).startswith("mean")
    reader.page.unroute("**/measurements/*")


def test_a_measurement_that_could_not_be_saved_is_told_and_saved_later(
    reader: Reader, world: World, volume: CTVolume
):
    def refuse(route: Route) -> None:
        if route.request.method == "PUT":
            route.abort()
        else:
            route.continue_()

    pattern = "**/measurements/*"
    reader.page.route(pattern, refuse)
    start, end = (on_screen(reader.page, volume, "coronal", (n, n, n)) for n in (30, 75))
    reader.press("d")
    drag(reader, start, end)
    reader.until("() => document.querySelector('#measurements .message').textContent")
    assert "Not saved yet" in reader.page.inner_text("#measurements .message")
    until_saved(reader, world, 0)

    reader.page.unroute(pattern)
    reader.page.reload()
    reader.mark("volume")

    (row,) = until_saved(reader, world, 1)
    assert (row.kind, row.plane) == ("distance", "coronal")
    reader.troubles[:] = [said for said in reader.troubles if "ERR_FAILED" not in said]


def test_a_mirrored_plane_says_so_and_measures_the_same(reader: Reader, volume: CTVolume):
    z = volume.shape[0] - reader.slice_number("axial")
    nx = volume.shape[2]
    reader.page.locator(".viewport.axial > canvas").hover()
    reader.press("Shift+H")

    mirrored = on_screen(reader.page, volume, "axial", (z, 50, nx - 1 - 80))
    reader.page.mouse.move(mirrored.x, mirrored.y)
    reader.frames()

    left, right = (
        reader.page.inner_text(f".viewport.axial .side.{side}") for side in ("left", "right")
    )
    assert (left, right) == ("L", "R")
    assert reader.page.inner_text(".viewport.axial .orientation-mark") == "MIRRORED"
    assert reader.readout("axial").endswith(f"{volume.hu[z, 50, 80]} HU")

    reader.press("r")
    assert not reader.page.is_visible(".viewport.axial .orientation-mark")
    assert reader.readout("axial").endswith(f"{volume.hu[z, 50, nx - 1 - 80]} HU")


def test_a_thick_slab_tells_the_hu_that_it_shows(reader: Reader, volume: CTVolume):
    z = volume.shape[0] - reader.slice_number("axial")
    at = on_screen(reader.page, volume, "axial", (z, 50, 80))
    reader.page.mouse.move(at.x, at.y)
    reader.press("m")

    count = max(1, round(10 / volume.spacing[0]))
    first = z - (count - 1) // 2
    slab = volume.hu[first : first + count, 50, 80]
    assert reader.title("axial").endswith("MIP 10 mm")
    assert reader.readout("axial").endswith(f"{slab.max()} HU")
    reader.press("m")
    assert reader.readout("axial").endswith(f"{slab.min()} HU")
    reader.press("+")
    assert reader.title("axial").endswith("MinIP 15 mm")
    reader.press("m", "m")
    assert "mm" not in reader.title("axial")


def test_the_prior_study_lies_beside_at_the_same_level_and_is_not_to_be_mistaken(
    reader: Reader, volume: CTVolume
):
    planes = "#prior .viewport.axial"
    reader.press("o")
    reader.page.wait_for_selector(f"{planes} > canvas")
    reader.frames()

    banner = reader.page.inner_text("#prior .study-banner")
    for text in (f"PRIOR {PRIOR_DATE}", "Phantom, Chest", "PHANTOM-0001", "Old thorax"):
        assert text in banner
    for plane in ("axial", "coronal", "sagittal"):
        assert (
            reader.page.inner_text(f"#prior .viewport.{plane} .prior-mark") == f"PRIOR {PRIOR_DATE}"
        )
    assert "2026-03-05" in reader.page.inner_text("#planes .study-banner")

    # The lungs' tops lie on one another, and so does all above their lower ends: the phantom's
    # lungs begin above the cut or at it.
    lungs = np.flatnonzero((small_chest().lungs > 0).any(axis=(1, 2)))
    low, high = int(lungs[0]), int(lungs[-1])
    prior_low = max(low - CUT, 0)
    for key in ("ArrowDown", "PageUp"):
        reader.page.locator("#planes .viewport.axial > canvas").hover()
        reader.press(key)
        z = volume.shape[0] - slice_number(reader, "#planes")
        level = prior_low + (z - low) / (high - low) * (high - CUT - prior_low)
        prior_z = volume.shape[0] - CUT - slice_number(reader, "#prior")
        assert prior_z == pytest.approx(level, abs=0.51)

    before = slice_number(reader, "#planes")
    reader.page.locator(f"{planes} > canvas").hover()
    reader.page.mouse.wheel(0, 120)
    reader.page.mouse.wheel(0, 120)
    reader.frames()
    assert slice_number(reader, "#planes") in (before + 2, before + 3)

    reader.page.wait_for_selector(".review .answers")
    reader.press("b")
    reader.page.locator(f"{planes} > canvas").click()
    assert "not on the prior one" in reader.page.inner_text(".edit-options")
    assert reader.page.locator(".lesions.added li").count() == 0
    reader.press("Escape")

    reader.press("o")
    assert not reader.page.is_visible("#prior")


def slice_number(reader: Reader, study: str) -> int:
    title = reader.page.inner_text(f"{study} .viewport.axial .top-left")
    return int(title.split()[1].split("/")[0])


def test_keys_and_views_stay_as_the_reader_set_them(reader: Reader, world: World):
    reader.press("?")
    reader.page.click("#help button.key >> nth=0")
    reader.page.keyboard.press("x")
    assert "This key is taken: Reject this lesion" in reader.page.inner_text("#help .message")
    reader.page.keyboard.press("k")
    assert reader.page.locator("#help button.key").first.inner_text() == "K"
    reader.page.click("#help >> text=Close")
    reader.press("f", "2", "c")
    drag_window(reader)
    reader.press("w")
    wanted = {"single": True, "fill": True, "keys": {"next-lesion": "k"}}
    for _ in range(200):
        with world.database.snapshot() as db:
            kept = preferences.get(db, accounts.named(db, NAME).id, "viewer")
        if wanted.items() <= kept.items() and kept.get("windows"):
            break
        reader.frames()

    reader.page.reload()
    reader.mark("volume")
    reader.frames()

    (own,) = kept["windows"]
    assert reader.readout("axial").startswith(f"W {own['width']}  L {own['centre']}")
    assert reader.page.get_attribute("#presets .own .window", "aria-pressed") == "true"
    assert not reader.page.is_visible(".viewport.coronal")
    reader.press("l")
    assert reader.page.is_visible(".viewport.coronal")
    first = reader.page.locator(".lesions .lesion").nth(0)
    reader.press("n")
    assert first.get_attribute("aria-current") == "true"
    reader.press("k")
    assert first.get_attribute("aria-current") == "false"

    reader.press("0")
    assert reader.page.is_visible(".viewport.sagittal")
    assert reader.readout("axial").startswith("W 1500  L -600")


def drag_window(reader: Reader) -> None:
    box = reader.page.locator(".viewport.axial > canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    reader.page.mouse.move(x, y)
    reader.page.mouse.down(button="right")
    reader.page.mouse.move(x + 40, y + 40)
    reader.page.mouse.up(button="right")
    reader.frames()


def test_lesions_are_listed_and_walked_in_the_order_of_choice(
    reader: Reader, chest: tuple[CTVolume, Analysis]
):
    _, found = chest
    by_hu = [str(one.id) for one in sorted(found.lesions, key=lambda one: -one.mean_hu)]

    reader.page.select_option(".sort select", "hu")

    assert reader.page.locator(".lesions .number").all_inner_texts() == by_hu
    reader.page.click(".lesions .lesion >> nth=0")
    reader.page.locator(".viewport.axial").focus()
    reader.press("n")
    assert reader.page.get_attribute(".lesions .lesion >> nth=1", "aria-current") == "true"


def test_cine_scrolls_round_until_it_is_stopped(reader: Reader, volume: CTVolume):
    reader.press("End", "v")
    reader.until(
        "() => +document.querySelector('.viewport.axial .top-left')"
        ".textContent.split(/[ /]+/)[1] < 20"
    )
    reader.press("v")
    stopped = reader.slice_number("axial")
    reader.page.wait_for_timeout(300)

    assert reader.slice_number("axial") == stopped
    assert reader.page.get_attribute("text=/^Cine/", "aria-pressed") == "false"


def test_fingers_scroll_zoom_and_window(reader: Reader, volume: CTVolume):
    session = reader.page.context.new_cdp_session(reader.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    box = reader.page.locator(".viewport.axial > canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    z = reader.slice_number("axial")
    touch("touchStart", (x, y))
    touch("touchMove", (x, y + 60))
    touch("touchEnd")
    reader.frames()
    assert reader.slice_number("axial") == z + 5

    mm_before = bar_mm_per_pixel(reader)
    touch("touchStart", (x - 50, y), (x + 50, y))
    touch("touchMove", (x - 100, y), (x + 100, y))
    touch("touchEnd")
    reader.frames()
    assert bar_mm_per_pixel(reader) == pytest.approx(mm_before / 2, rel=0.03)

    touch("touchStart", (x, y))
    reader.until("() => document.querySelector('.viewport.axial').classList.contains('windowing')")
    touch("touchMove", (x + 60, y + 30))
    touch("touchEnd")
    reader.frames()
    assert reader.readout("axial").startswith("W 1800  L -450")
    assert reader.slice_number("axial") == z + 5


def bar_mm_per_pixel(reader: Reader) -> float:
    bar = reader.page.locator(".viewport.axial .scale-bar")
    number, unit = bar.inner_text().split()
    return float(number) * {"mm": 1, "cm": 10}[unit] / bar.bounding_box()["width"]


def test_one_key_leads_to_the_next_study_or_says_that_there_is_none(reader: Reader):
    # What the worklist answers is its own affair; here it is who follows.
    pattern = re.compile(r"/api/worklist/next\?after=2&")
    nothing = {"study_id": None, "url": None}  # as webui.worklist.next_to_review says it
    reader.page.route(pattern, lambda route: route.fulfill(json=nothing))
    reader.press("Shift+N")
    reader.page.wait_for_selector("#notice", state="visible")
    assert reader.page.inner_text("#notice") == "No other study waits for a review."
    reader.page.unroute(pattern)

    asked: list[str] = []
    reader.page.on("request", lambda request: asked.append(request.url))
    reader.page.evaluate(
        "() => sessionStorage.setItem('worklist.view', 'state=review&order=-date')"
    )
    reader.page.route(
        pattern, lambda route: route.fulfill(json={"study_id": 1, "url": "/studies/1"})
    )
    reader.press("x")
    reader.page.keyboard.press("Shift+N")
    reader.page.wait_for_url("**/studies/1")
    reader.page.unroute(pattern)
    # What was judged is saved before, and the view is the one that the study was opened from.
    saved, following = (
        next(place for place, url in enumerate(asked) if part in url)
        for part in ("/draft", "/next?after=2&state=review&order=-date")
    )
    assert saved < following
