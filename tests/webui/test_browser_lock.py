"""A page that was left: it locks, and nothing of what was done in it is lost or somebody else's."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from playwright.sync_api import Browser
from sqlalchemy import select

from appliance.tables import Review, WebSession
from tests.webui.browser import WINDOW, Reader, needs_chromium, serving
from tests.webui.world import NAME, PASSWORD, World

pytestmark = needs_chromium

LOCK = "dialog.lock"
ACCOUNT = "() => document.body.dataset.account"
DRAFTS_OF = """(account) => Object.keys(sessionStorage)
  .filter((key) => key.startsWith('review:') && key.endsWith(`:${account}`)).length"""


@pytest.fixture
def reader(browser: Browser, world: World, study_id: int) -> Iterator[Reader]:
    """A reader in the middle of a judgement."""
    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address)
        reader.open_study(study_id)
        reader.page.wait_for_selector(".review .answers")
        reader.press("y", "n", "x")
        reader.page.click(".review .answers button >> text=Positive")
        reader.page.fill(".review textarea", "The second is a vessel.")
        reader.page.click(".review .rest")
        yield reader
        # The browser itself reports what the server refused.
        assert [said for said in reader.troubles if "401" not in said] == []
        reader.page.close()


def left_alone(world: World) -> None:
    with world.database.transaction() as db:
        for row in db.scalars(select(WebSession)):
            row.active_at -= timedelta(minutes=16)


def unlock(reader: Reader, password: str) -> None:
    reader.page.fill("#lock-password", password)
    reader.page.click(f"{LOCK} button")


def reviews(world: World) -> list[tuple[str, list[int], str]]:
    with world.database.snapshot() as db:
        return [(one.reviewer, one.rejected, one.comment) for one in db.scalars(select(Review))]


def test_a_session_that_expires_in_the_middle_of_a_judgement_costs_nothing(
    world: World, reader: Reader
):
    left_alone(world)
    reader.page.click(".review .confirm")

    reader.page.wait_for_selector(LOCK)
    assert reader.page.title() == "Locked · Chest CT"
    assert not reader.page.is_visible(".banner")
    assert not reader.page.is_visible("canvas")
    reader.press("Escape", "Escape", "Tab", "y", "x", "Tab", "Tab", "x")
    assert reader.page.is_visible(LOCK)
    unlock(reader, "not the password")
    reader.page.wait_for_selector(f"{LOCK} .problem:has-text('wrong')")
    assert reviews(world) == []
    unlock(reader, PASSWORD)

    reader.until(
        "() => document.querySelector('.review').innerText.includes('Confirmed: positive')"
    )
    assert reviews(world) == [(NAME, [2], "The second is a vessel.")]
    assert reader.page.is_visible(".banner")
    assert "Phantom" in reader.page.title()


def test_who_signs_in_instead_gets_nothing_of_the_judgement(
    world: World, reader: Reader, study_id: int
):
    left_alone(world)
    reader.page.click(".review .confirm")
    first = reader.page.evaluate(ACCOUNT)
    reader.page.click(f"{LOCK} a")
    reader.page.fill("#name", "bob")
    reader.page.fill("#password", PASSWORD)
    reader.page.click("text=Sign in >> nth=-1")

    reader.page.wait_for_selector(".review .answers")

    assert reader.page.url.endswith(f"/studies/{study_id}")
    second = reader.page.evaluate(ACCOUNT)
    assert second != first
    assert reader.page.evaluate(DRAFTS_OF, first) == 1  # kept for whom it belongs to
    assert reader.page.evaluate(DRAFTS_OF, second) == 0
    assert reader.page.input_value(".review textarea") == ""
    assert reader.page.locator(".mark[aria-pressed=true]").count() == 0
    assert reviews(world) == []


def test_who_signs_in_in_another_tab_does_not_sign_the_judgement(world: World, reader: Reader):
    other = reader.page.context.new_page()
    other.goto(f"{reader.address}/sign-in")
    other.fill("#name", "bob")
    other.fill("#password", PASSWORD)
    other.click("text=Sign in >> nth=-1")
    other.wait_for_selector("#worklist")

    reader.page.bring_to_front()
    # By script: the page may have noticed already that somebody else is there, and be black.
    reader.page.evaluate("() => document.querySelector('.review .confirm').click()")
    reader.page.wait_for_selector(LOCK)
    assert reviews(world) == []
    assert NAME in reader.page.inner_text(LOCK)
    unlock(reader, PASSWORD)

    reader.until(
        "() => document.querySelector('.review').innerText.includes('Confirmed: positive')"
    )
    assert [name for name, *_ in reviews(world)] == [NAME]


def test_a_page_locks_by_itself_and_a_live_stream_does_not_keep_it_open(
    browser: Browser, world: World
):
    web = replace(world.settings.web, idle_minutes=0.1)
    app = replace(world, settings=replace(world.settings, web=web)).app()
    with serving(app) as address:
        page = browser.new_context(viewport=WINDOW).new_page()
        page.goto(address)
        page.fill("#name", NAME)
        page.fill("#password", PASSWORD)
        page.click("text=Sign in >> nth=-1")

        page.wait_for_selector(LOCK, timeout=60_000)

        assert not page.is_visible("#worklist")
        page.fill("#lock-password", PASSWORD)
        page.click(f"{LOCK} button")
        page.wait_for_selector("#worklist")
        page.close()
