"""Accept, reject, override, confirm, amend: in front of a real browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Route
from sqlalchemy import select

from appliance.tables import Review, ReviewDraft
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.browser import Reader, looking, needs_chromium
from tests.webui.world import NAME, PASSWORD, World

pytestmark = needs_chromium

PAYLOAD = "<img src=x onerror=pwned()><script>pwned()</script>\"'><svg onload=pwned()>"
MAKE_CONFIRM = ".review .confirm"
UNSAVED = "() => Object.keys(sessionStorage).some((key) => key.startsWith('review:'))"


@pytest.fixture
def reader(browser: Browser, address: str, study_id: int) -> Iterator[Reader]:
    opened = looking(browser, address, study_id)
    yield opened
    assert opened.troubles == []
    opened.page.close()


def said(reader: Reader) -> str:
    return str(reader.page.inner_text(".review"))


def says(reader: Reader, text: str) -> None:
    """Wait until the panel shows a text, without a reload."""
    reader.until("(text) => document.querySelector('.review').innerText.includes(text)", text)


def marked(reader: Reader) -> list[str]:
    """The mark of each lesion in the list: ✓, ✗ or nothing."""
    script = (
        "() => [...document.querySelectorAll('.lesions li')]"
        ".map((row) => row.querySelector('.mark[aria-pressed=true]')?.textContent ?? '')"
    )
    return list(reader.page.evaluate(script))


def answer(reader: Reader, word: str) -> None:
    reader.page.click(f".review .answers button >> text={word}")


def versions(world: World) -> list[Review]:
    with world.database.snapshot() as db:
        return list(db.scalars(select(Review).order_by(Review.id)))


def test_lesions_are_marked_by_keys_and_the_case_confirmed(
    reader: Reader, world: World, chest: tuple[CTVolume, Analysis]
):
    count = len(chest[1].lesions)
    assert "Not confirmed yet." in said(reader)
    assert reader.page.is_disabled(MAKE_CONFIRM)

    reader.press("y", "n", "x", "n", "y", "y")

    assert marked(reader) == ["✓", "✗", *[""] * (count - 2)]
    answer(reader, "Positive")
    assert reader.page.is_disabled(MAKE_CONFIRM)
    reader.page.click(".review .rest")
    reader.page.fill(".review textarea", "The second is a vessel. yxs")
    assert marked(reader) == ["✓", "✗", *["✓"] * (count - 2)]
    reader.page.focus(MAKE_CONFIRM)
    reader.press("Enter")
    says(reader, "Confirmed: positive")

    shown = said(reader)
    for text in (NAME, "version 1", "Rejected: lesion 2", "The second is a vessel. yxs"):
        assert text in shown
    (review,) = versions(world)
    assert (review.positive, review.rejected, review.reviewer) == (True, [2], NAME)
    reader.press("x")
    assert marked(reader) == ["✓", "✗", *["✓"] * (count - 2)]
    reader.page.goto(reader.address)
    reader.page.wait_for_selector("#rows tr")
    assert "confirmed: positive" in reader.page.inner_text("#rows tr")


def test_an_override_needs_its_reason_and_an_amendment_keeps_the_history(
    reader: Reader, world: World
):
    answer(reader, "Negative")
    reader.page.click(".review .rest")
    reader.page.click(MAKE_CONFIRM)
    says(reader, "choose a reason")
    reader.page.select_option(".review select", "artefact")
    reader.page.fill(".review .why input", "breathing")
    reader.page.click(MAKE_CONFIRM)
    says(reader, "Overridden: negative")
    assert "Metal or motion artefact: breathing" in said(reader)

    reader.page.click(".review .amend")
    reader.page.click(".review .cancel")
    reader.page.click(".review .amend")
    assert reader.page.input_value(".review .why input") == "breathing"
    answer(reader, "Positive")
    reader.page.click(MAKE_CONFIRM)
    says(reader, "Confirmed: positive")

    reader.page.click(".review .history summary")
    assert "Overridden: negative" in said(reader)
    assert [(each.version, each.overridden) for each in versions(world)] == [(1, True), (2, False)]
    # The browser itself reports the refusal.
    assert [text for text in reader.troubles if "400" in text] == reader.troubles
    reader.troubles.clear()


def test_another_open_viewer_sees_it_without_a_reload_and_loses_no_marks(
    reader: Reader, browser: Browser, address: str, study_id: int, world: World
):
    bob = looking(browser, address, study_id, name="bob")
    guest = looking(browser, address, study_id, name="guest")
    for each in (reader, bob, guest):
        each.page.evaluate("() => { window.notReloaded = true; }")
    reader.press("x")
    reader.page.fill(".review textarea", "Mine.")

    answer(bob, "Positive")
    bob.page.click(".review .rest")
    bob.page.click(MAKE_CONFIRM)

    for each in (bob, reader, guest):
        says(each, "Confirmed: positive")
        assert "bob" in said(each)
        assert each.page.evaluate("() => window.notReloaded")
    assert "You have marks that were not confirmed; bob confirmed" in said(reader)
    reader.page.click("text=Amend with your marks")
    assert marked(reader)[0] == "✗"
    # The rest stands as bob left it.
    assert set(marked(reader)[1:]) == {"✓"}
    assert reader.page.input_value(".review textarea") == "Mine."
    reader.page.click(MAKE_CONFIRM)
    says(bob, "version 2")
    assert [each.reviewer for each in versions(world)] == ["bob", NAME]
    for each in (bob, guest):
        assert each.troubles == []
        each.page.close()


def test_who_only_looks_has_no_buttons(browser: Browser, address: str, study_id: int, world: World):
    guest = looking(browser, address, study_id, name="guest")

    guest.press("y", "x")

    assert "Not confirmed yet." in said(guest)
    assert guest.page.locator(".review button").count() == 0
    assert guest.page.locator(".lesions .mark:visible").count() == 0
    assert not guest.page.evaluate(UNSAVED)
    assert guest.troubles == []
    guest.page.close()


def test_marks_survive_a_reload_and_the_end_of_the_session(reader: Reader, world: World):
    reader.press("y", "n", "x")
    answer(reader, "Negative")
    reader.page.select_option(".review select", "other")
    reader.page.fill(".review .why input", "an old scar")
    reader.page.fill(".review textarea", "See 2024.")
    reader.page.reload()
    reader.mark("volume")
    reader.page.wait_for_selector(MAKE_CONFIRM)
    assert marked(reader)[:2] == ["✓", "✗"]
    assert reader.page.input_value(".review textarea") == "See 2024."
    assert reader.page.input_value(".review .why input") == "an old scar"
    reader.page.click(".review .rest")

    reader.page.context.clear_cookies()
    reader.page.click(MAKE_CONFIRM)
    reader.page.click("dialog.lock a")
    reader.page.fill("#name", NAME)
    reader.page.fill("#password", PASSWORD)
    reader.page.click("text=Sign in >> nth=-1")
    reader.mark("volume")
    reader.page.wait_for_selector(MAKE_CONFIRM)
    assert versions(world) == []
    reader.page.click(MAKE_CONFIRM)

    says(reader, "Overridden: negative")
    (review,) = versions(world)
    assert (review.rejected, review.reason_text, review.comment) == (
        [2],
        "an old scar",
        "See 2024.",
    )
    assert not reader.page.evaluate(UNSAVED)
    # The browser itself reports the refusals.
    assert [text for text in reader.troubles if "401" in text] == reader.troubles
    reader.troubles.clear()


def test_markup_in_a_comment_stays_text(reader: Reader, browser: Browser, address: str, study_id):
    answer(reader, "Negative")
    reader.page.select_option(".review select", "other")
    reader.page.fill(".review .why input", PAYLOAD)
    reader.page.fill(".review textarea", PAYLOAD)
    reader.page.click(".review .rest")
    reader.page.click(MAKE_CONFIRM)
    says(reader, PAYLOAD)

    bob = looking(browser, address, study_id, name="bob")
    says(bob, PAYLOAD)
    bob.page.click(".review .amend")
    assert bob.page.input_value(".review textarea") == PAYLOAD
    bob.page.goto(address)
    bob.page.wait_for_selector("#rows tr")
    bob.frames()

    assert bob.troubles == []
    bob.page.close()


def test_late_images_close_the_form_of_an_open_viewer(reader: Reader, world: World, study_id: int):
    reader.press("y")
    world.receive("1.1", instance="2")

    says(reader, "a new analysis is on its way")

    assert reader.page.locator(MAKE_CONFIRM).count() == 0
    assert marked(reader)[0] == ""


def test_nothing_changes_while_it_is_being_confirmed(reader: Reader, world: World):
    held: list[Route] = []
    reader.page.route("**/draft", lambda route: route.continue_() if held else held.append(route))
    reader.page.click(".review .rest")
    answer(reader, "Positive")

    reader.page.click(MAKE_CONFIRM)
    reader.until("() => document.querySelector('.review .form').inert")
    reader.press("x")

    assert set(marked(reader)) == {"✓"}
    assert reader.page.is_disabled(MAKE_CONFIRM)
    while not held:
        reader.frames()
    held[0].continue_()
    says(reader, "Confirmed: positive")
    (review,) = versions(world)
    assert review.rejected == []


def test_who_leaves_at_once_is_asked_and_loses_nothing_nor_does_who_was_here_before(
    reader: Reader, world: World
):
    before = "() => ['review:1:4711', 'measurements:/m:4711'].map((key) => sessionStorage[key])"
    reader.page.evaluate(
        "() => { sessionStorage['review:1:4711'] = '{}';"
        " sessionStorage['measurements:/m:4711'] = '[]'; }"
    )
    reader.page.reload()
    reader.mark("volume")
    reader.page.wait_for_selector(".review .form")

    reader.page.keyboard.press("x")
    reader.page.goto(reader.address)

    assert reader.asked_to_stay == 1
    reader.page.wait_for_selector("#worklist")
    drafts = select(ReviewDraft.judged)
    while True:
        with world.database.snapshot() as db:
            if (judged := db.scalar(drafts)) is not None:
                break
        reader.frames()
    assert judged["lesions"] == {"1": False}
    assert reader.page.evaluate(before) == ["{}", "[]"]


def test_a_duplicated_tab_and_the_first_never_overwrite_each_other_unseen(
    reader: Reader, address: str, study_id: int
):
    reader.page.keyboard.press("x")
    unsaved = reader.page.evaluate("() => ({ ...sessionStorage })")
    assert any(key.startswith("review:") for key in unsaved)
    reader.until(f"() => !({UNSAVED})()")

    second = reader.page.context.new_page()
    second.goto(f"{address}/account")
    second.evaluate("(kept) => Object.assign(sessionStorage, kept)", unsaved)
    with second.expect_response(lambda answer: answer.url.endswith("/draft") and answer.ok):
        second.goto(f"{address}/studies/{study_id}")
    reader.press("n", "y")

    reader.page.wait_for_selector(".review .keep-here")
    # The browser itself reports the refusals.
    assert all("409" in text for text in reader.troubles)
    reader.troubles.clear()
    second.close()
