"""Outlining lesions in front of a real browser: what is painted is what is kept."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Browser, Route
from sqlalchemy import select

from appliance import marks
from appliance.tables import MarkedRegion, Review, ReviewDraft
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.browser import Reader, looking, needs_chromium
from tests.webui.geometry import on_screen
from tests.webui.world import NAME, PASSWORD, World
from webui.marks import region_of
from webui.results import open_result

pytestmark = needs_chromium

Mask = npt.NDArray[np.bool_]
Voxel = tuple[int, int, int]

BRUSH_MM = 10
THROUGH = {"axial": 0, "coronal": 1, "sagittal": 2}
LOCK = "dialog.lock"
SAVED = "() => !Object.keys(sessionStorage).some((key) => key.startsWith('review:'))"


@pytest.fixture
def reader(browser: Browser, address: str, study_id: int) -> Iterator[Reader]:
    opened = looking(browser, address, study_id)
    yield opened
    assert opened.troubles == []
    opened.page.close()


@pytest.fixture
def free(chest: tuple[CTVolume, Analysis]) -> Mask:
    """The lungs far from every lesion."""
    volume, found = chest
    free = found.lung_mask > 0
    reach = [round(30 / mm) for mm in volume.spacing]
    for lesion in found.lesions:
        box = [
            slice(max(0, low - by), high + by)
            for low, high, by in zip(*lesion.bbox, reach, strict=True)
        ]
        free[tuple(box)] = False
    return free


@pytest.fixture
def healthy(free: Mask) -> Voxel:
    """A voxel (z, y, x) in the lungs, far from every lesion."""
    places = np.argwhere(free)
    middle = places.mean(axis=0)
    z, y, x = places[np.abs(places - middle).sum(axis=1).argmin()]
    return int(z), int(y), int(x)


@pytest.fixture
def elsewhere(chest: tuple[CTVolume, Analysis], free: Mask, healthy: Voxel) -> Voxel:
    """Another one in the same slice, further away than a brush is wide."""
    z, *place = healthy
    places = np.argwhere(free[z])
    away = np.linalg.norm((places - place) * chest[0].spacing[1:], axis=1)
    y, x = places[np.abs(away - 3 * BRUSH_MM).argmin()]
    return z, int(y), int(x)


def go_to(reader: Reader, volume: CTVolume, voxel: Voxel) -> None:
    """Bring all planes to a voxel by the slice bars, which no tool changes."""
    for plane, axis in THROUGH.items():
        bar = reader.page.locator(f".viewport.{plane} .slice-bar").bounding_box()
        count, index = volume.shape[axis], voxel[axis]
        place = count - 1 - index if plane == "axial" else index
        reader.page.mouse.click(
            bar["x"] + bar["width"] / 2, bar["y"] + (place + 0.5) * bar["height"] / count
        )
    reader.frames()


def end_session(reader: Reader) -> None:
    reader.page.context.clear_cookies()


def dab(
    reader: Reader, volume: CTVolume, plane: str, voxel: Voxel, *, diameter_mm: float = BRUSH_MM
) -> Mask:
    """Click with the brush; what it must have painted, from the pixel that was clicked."""
    point = on_screen(reader.page, volume, plane, voxel)
    x, y = round(point.x), round(point.y)
    reader.page.mouse.move(x, y)
    reader.page.mouse.down()
    reader.page.mouse.up()
    reader.frames()
    axes = [axis for axis in range(3) if axis != THROUGH[plane]]
    down, across = axes
    moved = list(map(float, voxel))
    for axis, off in ((down, y - point.y), (across, x - point.x)):
        further = list(voxel)
        further[axis] += 1
        beside = on_screen(reader.page, volume, plane, (further[0], further[1], further[2]))
        step = beside.y - point.y if axis == down else beside.x - point.x
        moved[axis] += off / step
    places = np.ix_(*(np.arange(n) for n in volume.shape))
    far = sum(((places[a] - moved[a]) * volume.spacing[a]) ** 2 for a in axes)
    under = np.broadcast_to(far <= (diameter_mm / 2) ** 2, volume.shape).copy()
    in_slice = np.zeros(volume.shape, bool)
    in_slice[tuple(voxel[a] if a == THROUGH[plane] else slice(None) for a in range(3))] = True
    return under & in_slice


def drafted(world: World, number: int, shape: tuple[int, ...]) -> Mask:
    """What the server keeps of an outline that was not confirmed."""
    with world.database.snapshot() as db:
        (draft,) = db.scalars(select(ReviewDraft)).all()
        return mask_of(world, draft.judged["marks"][str(number)]["digest"], shape)


def mask_of(world: World, digest: str, shape: tuple[int, ...]) -> Mask:
    with world.database.snapshot() as db:
        region = region_of(marks.regions(db, 1)[digest])
    mask = np.zeros(shape, bool)
    mask[region.place] = region.mask
    return mask


def test_what_is_painted_in_three_planes_is_what_is_kept(
    reader: Reader, world: World, chest: tuple[CTVolume, Analysis], healthy: Voxel
):
    volume, found = chest
    number = len(found.lesions) + 1
    go_to(reader, volume, healthy)
    reader.press("b")

    painted = np.zeros(volume.shape, bool)
    for plane in THROUGH:
        painted |= dab(reader, volume, plane, healthy)
    erased = dab(reader, volume, "axial", healthy)  # the same again changes nothing
    assert (erased & ~painted).sum() == 0
    assert f"added by {NAME}" in reader.page.inner_text(".added-part")
    reader.until(SAVED)
    np.testing.assert_array_equal(drafted(world, number, volume.shape), painted)

    reader.press("Control+z")
    reader.press("Control+z")
    reader.press("Control+Shift+z")
    reader.press("e", "[", "[", "[", "[")
    painted &= ~dab(reader, volume, "axial", healthy, diameter_mm=BRUSH_MM - 4)
    reader.until(SAVED)
    kept = drafted(world, number, volume.shape)
    assert kept.sum() < painted.sum()  # the stroke in the last plane is undone
    assert not (kept & ~painted).any()

    reader.page.reload()
    reader.mark("volume")
    reader.page.wait_for_selector(".lesions.added li")
    reader.press("Escape", "x")  # the machine's first lesion is chosen
    reader.page.click(".review .rest")
    reader.page.click(".review .answers button >> text=Positive")
    reader.page.click(".review .confirm")
    reader.until(
        "() => document.querySelector('.review').innerText.includes('Confirmed: positive')"
    )
    with world.database.snapshot() as db:
        (review,) = db.scalars(select(Review)).all()
        assert db.scalars(select(ReviewDraft)).all() == []
    (mark,) = review.marks
    assert (mark["number"], mark["grown"], review.rejected) == (number, False, [1])
    np.testing.assert_array_equal(mask_of(world, mark["digest"], volume.shape), kept)
    assert f"Added: lesion {number}" in reader.page.inner_text(".review")


def test_a_region_grows_from_a_seed_inside_the_lungs_and_its_limits(
    reader: Reader, world: World, chest: tuple[CTVolume, Analysis], healthy: Voxel
):
    volume, found = chest
    go_to(reader, volume, healthy)
    reader.press("a")
    point = on_screen(reader.page, volume, "axial", healthy)
    reader.press("m")  # what a thick slab shows lies in several slices
    reader.page.mouse.click(point.x, point.y)
    reader.page.wait_for_selector(".edit-options .message >> text=show single slices")
    assert reader.page.locator(".lesions.added li").count() == 0
    reader.press("m", "m", "m")

    reader.page.mouse.click(point.x, point.y)
    reader.until(SAVED)
    first = drafted(world, len(found.lesions) + 1, volume.shape)
    reader.page.get_by_label("Largest radius").fill("8")
    reader.until(SAVED)
    second = drafted(world, len(found.lesions) + 1, volume.shape)

    for grown, radius_mm in ((first, 20), (second, 8)):
        assert grown[healthy]
        assert (found.lung_mask[grown] > 0).all()
        assert (found.lesion_labels[grown] == 0).all()
        away = (np.argwhere(grown) - healthy) * volume.spacing
        assert np.linalg.norm(away, axis=1).max() <= radius_mm + 1e-6
        z, y, x = healthy
        level = volume.hu[z, y - 1 : y + 2, x - 1 : x + 2].mean()
        assert np.abs(volume.hu[grown] - level).max() <= 150
    assert second.sum() < first.sum()
    assert reader.page.locator(".lesions.added li").count() == 1
    walked = []
    for _ in range(len(found.lesions) + 1):  # round the machine's lesions and back to the added one
        reader.press("n")
        walked.append(reader.page.inner_text(".lesion[aria-current=true] .number").split()[0])
    assert walked == [str(number + 1) for number in range(len(found.lesions) + 1)]
    reader.press("x")
    reader.until("() => document.querySelectorAll('.lesions.added li').length === 0")


def test_a_lesion_of_the_machine_is_outlined_anew_with_its_signs(
    reader: Reader, world: World, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    lesion = found.lesions[0]
    machine = found.lesion_labels == lesion.id
    z, y, x = np.argwhere(machine)[machine.sum() // 2]
    voxel = (int(z), int(y), int(x))
    go_to(reader, volume, voxel)
    reader.press("e")

    erased = dab(reader, volume, "axial", voxel)

    reader.page.click(".lesions li >> nth=0 >> .signs summary")
    reader.page.get_by_label("Crazy paving").first.check()
    reader.until(SAVED)
    assert (machine & erased).any()
    np.testing.assert_array_equal(drafted(world, lesion.id, volume.shape), machine & ~erased)
    row = reader.page.inner_text(".lesions li >> nth=0")
    assert f"Outlined by {NAME}" in row
    assert "Signs: Crazy paving" in row
    with world.database.snapshot() as db:
        (draft,) = db.scalars(select(ReviewDraft)).all()
    assert draft.judged["lesions"] == {"1": True}
    assert draft.judged["signs"] == {"1": ["crazy paving"]}


def test_the_end_of_the_session_in_the_middle_of_an_edit_loses_nothing(
    reader: Reader, world: World, chest: tuple[CTVolume, Analysis], healthy: Voxel
):
    volume, found = chest
    number = len(found.lesions) + 1
    # What meets the end of the session is the outline, not the note that the pointer was used.
    reader.page.route("**/api/session/active", lambda route: route.fulfill(status=204))
    go_to(reader, volume, healthy)
    reader.press("b")
    painted = dab(reader, volume, "axial", healthy)
    reader.until(SAVED)

    end_session(reader)
    painted |= dab(reader, volume, "coronal", healthy)
    reader.page.wait_for_selector(LOCK)
    with world.database.snapshot() as db:
        assert len(db.scalars(select(MarkedRegion)).all()) == 1
    reader.page.fill("#lock-password", PASSWORD)
    reader.page.click(f"{LOCK} button")
    reader.until(SAVED)
    np.testing.assert_array_equal(drafted(world, number, volume.shape), painted)

    end_session(reader)
    painted |= dab(reader, volume, "sagittal", healthy)
    reader.page.click(f"{LOCK} a")  # sign in again, on another page
    reader.page.fill("#name", NAME)
    reader.page.fill("#password", PASSWORD)
    reader.page.click("text=Sign in >> nth=-1")
    reader.page.wait_for_selector(".lesions.added li")
    reader.until(SAVED)
    np.testing.assert_array_equal(drafted(world, number, volume.shape), painted)
    # The browser itself reports the refusals.
    assert [text for text in reader.troubles if "401" in text] == reader.troubles
    reader.troubles.clear()


def test_of_two_windows_of_one_person_none_overwrites_the_other_unseen(
    reader: Reader,
    browser: Browser,
    address: str,
    study_id: int,
    world: World,
    chest: tuple[CTVolume, Analysis],
    healthy: Voxel,
):
    volume, found = chest
    second = looking(browser, address, study_id)
    go_to(reader, volume, healthy)
    reader.press("b")
    painted = dab(reader, volume, "axial", healthy)
    reader.until(SAVED)

    second.press("x")
    second.page.wait_for_selector(".review .take-other")
    np.testing.assert_array_equal(drafted(world, len(found.lesions) + 1, volume.shape), painted)
    second.page.click(".review .take-other")
    second.page.click(".lesions.added .remove")
    second.until(SAVED)
    with world.database.snapshot() as db:
        assert db.scalars(select(MarkedRegion)).all() == []
    reader.press("n", "y")
    reader.page.wait_for_selector(".review .keep-here")
    reader.page.click(".review .keep-here")
    reader.until(SAVED)

    with world.database.snapshot() as db:
        (draft,) = db.scalars(select(ReviewDraft)).all()
    assert set(draft.judged["marks"]) == {str(len(found.lesions) + 1)}
    np.testing.assert_array_equal(drafted(world, len(found.lesions) + 1, volume.shape), painted)
    assert True in draft.judged["lesions"].values()
    assert False not in draft.judged["lesions"].values()
    for each in (reader, second):
        # The browser itself reports the refusals.
        assert all("409" in text for text in each.troubles)
        each.troubles.clear()
    second.page.close()


def test_two_people_see_each_other_and_what_the_other_began(
    reader: Reader,
    browser: Browser,
    address: str,
    study_id: int,
    chest: tuple[CTVolume, Analysis],
    healthy: Voxel,
):
    bob = looking(browser, address, study_id, name="bob")
    others = "(text) => document.querySelector('.review .others').innerText.includes(text)"
    reader.until(others, "bob is here.")
    go_to(bob, chest[0], healthy)
    bob.press("b")
    dab(bob, chest[0], "axial", healthy)

    reader.until(others, "bob is here and has begun a review.")
    bob.until(others, f"{NAME} is here.")
    assert reader.page.locator(".lesions.added li").count() == 0
    assert bob.troubles == []
    bob.page.close()


def test_who_amends_with_their_marks_keeps_what_another_person_confirmed(
    reader: Reader,
    browser: Browser,
    address: str,
    study_id: int,
    world: World,
    chest: tuple[CTVolume, Analysis],
    healthy: Voxel,
    elsewhere: Voxel,
):
    volume, found = chest
    number = len(found.lesions) + 1
    bob = looking(browser, address, study_id, name="bob")
    for each, place, sign in (
        (reader, healthy, "Crazy paving"),
        (bob, elsewhere, "Honeycomb lung"),
    ):
        go_to(each, volume, healthy)
        each.press("b")
        dab(each, volume, "axial", place)
        each.page.click(".lesions.added li .signs summary")
        each.page.get_by_label(sign).last.check()
        each.until(SAVED)
    reader.page.click(".review .rest")
    reader.page.click(".review .answers button >> text=Positive")
    reader.page.fill(".review textarea", "On both sides.")
    reader.page.click(".review .confirm")

    bob.page.click(".review .amend")
    bob.page.click(".review .confirm")
    bob.page.wait_for_selector(".review .history")

    with world.database.snapshot() as db:
        first, second = db.scalars(select(Review).order_by(Review.version)).all()
    (anns,) = first.marks
    assert [mark["number"] for mark in second.marks] == [number, number + 1]
    assert second.marks[0] == anns
    assert second.signs == {str(number): ["crazy paving"], str(number + 1): ["honeycomb lung"]}
    assert (second.reviewer, second.comment) == ("bob", "On both sides.")
    assert bob.troubles == []
    bob.page.close()


def test_nothing_is_painted_before_all_that_the_analysis_found_is_there(
    browser: Browser,
    address: str,
    study_id: int,
    world: World,
    chest: tuple[CTVolume, Analysis],
    healthy: Voxel,
):
    reader = Reader.signed_in(browser, address)
    facts = open_result(world.settings.data_dir / "analyses" / f"{study_id}-1").facts
    held: list[Route] = []
    last = f"**/{facts['lesions'][-1]['mask']['file']}"

    def hold(route: Route) -> None:
        held.append(route)

    reader.page.route(last, hold)
    reader.page.goto(f"{address}/studies/{study_id}")
    reader.page.wait_for_selector(".review .form")
    go_to(reader, chest[0], healthy)
    reader.press("b")

    dab(reader, chest[0], "axial", healthy)

    assert "Wait until" in reader.page.inner_text(".edit-options .message")
    assert reader.page.locator(".lesions.added li").count() == 0
    held[0].continue_()
    reader.mark("volume")
    dab(reader, chest[0], "axial", healthy)
    reader.page.wait_for_selector(".lesions.added li")
    assert reader.troubles == []
    reader.page.close()
