import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import APIResponse, Browser, Route

from appliance import accounts, lifecycle, priority, retrievals, studies
from appliance.lifecycle import State
from appliance.studies import PatientAttributes, SeriesAttributes, StudyAttributes
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.appliance.world import Bell
from tests.webui.browser import Reader, needs_chromium, serving
from tests.webui.world import NAME, PASSWORD, World
from webui import live
from webui.live import LiveFeed
from webui.resources import EXTENSION

pytestmark = needs_chromium


@pytest.fixture
def reader(browser: Browser, world: World) -> Iterator[Reader]:
    with serving(world.app()) as address:
        signed_in = Reader.signed_in(browser, address)
        yield signed_in
        assert signed_in.troubles == []
        signed_in.page.close()


def row(reader: Reader, study_id: int) -> str:
    return reader.page.inner_text(f"tr[data-study='{study_id}']")


def shows(reader: Reader, study_id: int, text: str) -> None:
    """Wait until a row shows a text, without a reload."""
    reader.until(
        "([id, text]) =>"
        " document.querySelector(`tr[data-study='${id}']`)?.innerText.includes(text)",
        [study_id, text],
    )


def test_a_study_arrives_moves_on_and_is_done_without_a_reload(
    reader: Reader, world: World, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    reader.page.evaluate("() => { window.notReloaded = true; }")
    reader.page.wait_for_selector("#empty", state="visible")

    study_id = world.receive("1.1")
    shows(reader, study_id, "Receiving")
    claim = world.claim(study_id)
    shows(reader, study_id, "Analysing")
    studies.record_step(world.database, claim, step="lungs", position=0, total=3, seconds=1.0)
    shows(reader, study_id, "lungs")
    lifecycle.fail(world.database, claim, reason="The disk is full.", transient=False)
    shows(reader, study_id, "The disk is full.")

    other = world.receive("1.2")
    world.finish(other, volume, found)
    shows(reader, other, "87 %")
    reader.until("(id) => document.querySelector('tbody tr').dataset.study === String(id)", other)
    assert reader.page.evaluate("() => window.notReloaded")


def test_a_row_fetched_before_its_pulse_does_not_stay_behind(
    browser: Browser,
    world: World,
    chest: tuple[CTVolume, Analysis],
    monkeypatch: pytest.MonkeyPatch,
):
    volume, found = chest
    app = world.app()
    feed = app.extensions[EXTENSION].feed
    study_id = world.receive("1.1")
    claim = world.claim(study_id)
    before = json.loads(feed.latest())
    told = {"pulse": before}
    monkeypatch.setattr(feed, "latest", lambda: json.dumps(told["pulse"]))
    with serving(app) as address:
        reader = Reader.signed_in(browser, address)
        shows(reader, study_id, "Analysing")
        world.finish(study_id, volume, found, claim=claim)
        # The page fetches its rows, which are newer than what the stream says.
        told["pulse"] = before | {"marker": "another"}
        shows(reader, study_id, "87 %")

        told["pulse"] = json.loads(LiveFeed(world.database).latest())

        shows(reader, study_id, "Ready")
        assert "Analysing" not in row(reader, study_id)
        reader.page.close()


def test_rows_that_did_not_come_are_asked_for_again(browser: Browser, world: World):
    study_id = world.receive("1.1")
    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address)
        shows(reader, study_id, "Receiving")
        failed: list[str] = []

        def fail(route: Route) -> None:
            failed.append(route.request.url)
            route.abort()

        reader.page.route("**/api/worklist*", fail)
        reader.page.reload()
        reader.page.wait_for_selector("#connection >> text=Trying again")
        # One by itself, one for the first pulse; after these nothing moves.
        while len(failed) < 2:
            reader.page.wait_for_timeout(20)
        reader.page.unroute("**/api/worklist*")

        shows(reader, study_id, "Receiving")
        assert reader.page.inner_text("#connection") == ""
        reader.page.close()


def test_a_refused_study_says_why_series_by_series(reader: Reader, world: World):
    localiser = SeriesAttributes(modality="CT", description="Topogram", series_number="1")
    study_id = world.receive("1.1", series=localiser)
    world.receive("1.1", digest="2" * 64)
    world.receive("1.1", instance="2", patient=PatientAttributes(patient_id="8", name="Other^Ann"))
    world.reject(study_id, "No series can be analysed.", {"1.1.series": "It is a localiser."})

    shows(reader, study_id, "No series can be analysed.")
    reader.page.click("summary")

    text = row(reader, study_id)
    assert "CT 1 Topogram (1 image): It is a localiser." in text
    assert "1 conflicting image" in text
    assert "also under another patient" in text


def test_a_click_lets_a_study_overtake_and_another_takes_it_back(reader: Reader, world: World):
    first, second = (world.receive(uid) for uid in ("1.1", "1.2"))
    for study_id in (first, second):
        world.queue(study_id)
        lifecycle.ring(world.database, Bell(), study_id, State.QUEUED)
        shows(reader, study_id, "Waiting")

    reader.page.click(f"tr[data-study='{second}'] >> text='Urgent'")
    shows(reader, second, f"urgent: by {NAME}")
    overtaking = next_study(world)
    reader.page.click(f"tr[data-study='{second}'] >> text='Not urgent'")
    reader.page.wait_for_selector(f"tr[data-study='{second}']:not(:has-text('urgent: by'))")

    assert (overtaking, next_study(world)) == (second, first)
    assert "urgent: by" not in row(reader, first)


def next_study(world: World) -> int | None:
    """Whose turn it is."""
    with world.database.snapshot() as db:
        return priority.whose_turn(db, 0, in_a_row=world.settings.priority.in_a_row)


def order_of(reader: Reader) -> list[int]:
    rows = (
        "() => [...document.querySelectorAll('#rows tr')].map((row) => Number(row.dataset.study))"
    )
    found: list[int] = reader.page.evaluate(rows)
    return found


def shows_only(reader: Reader, *study_ids: int) -> None:
    """Wait until these rows are there, in this order, and no other."""
    reader.until(
        "(ids) => ids.join() === [...document.querySelectorAll('#rows tr')]"
        ".map((row) => row.dataset.study).join()",
        list(study_ids),
    )


COUNTS_SIZES = """() => new Set([...document.querySelectorAll('#counts a')]
  .map((link) => getComputedStyle(link).fontSize)).size"""


def test_filters_search_and_order_live_in_the_address(reader: Reader, world: World):
    jane = PatientAttributes(patient_id="17", name="DOE^JANE")
    first = world.receive("1.1", patient=jane, source_ae="CT2")
    second = world.receive("1.2")
    world.fail(world.claim(second), "The disk is full.")
    shows_only(reader, second, first)

    assert reader.page.evaluate(COUNTS_SIZES) == 1
    reader.page.click("#counts >> text=failed")
    shows_only(reader, second)
    assert reader.page.url.endswith("?state=failed")
    reader.page.select_option("[name=state]", "")
    shows_only(reader, second, first)
    reader.page.fill("[name=q]", "jane doe")
    shows_only(reader, first)
    assert reader.page.url.endswith("?q=jane+doe")
    reader.page.reload()
    shows_only(reader, first)
    assert reader.page.input_value("[name=q]") == "jane doe"
    reader.page.fill("[name=q]", "nobody")
    reader.page.wait_for_selector("#none", state="visible")
    reader.page.click("#all")
    shows_only(reader, second, first)
    reader.page.click("th >> text=Arrived")
    reader.page.click("th >> text=Arrived")
    shows_only(reader, first, second)
    assert reader.page.get_attribute("th:has([data-order=arrival])", "aria-sort") == "ascending"

    reader.page.go_back()
    reader.page.go_back()
    reader.page.go_back()
    reader.page.wait_for_selector("#none", state="visible")
    assert reader.page.input_value("[name=q]") == "nobody"


def test_a_person_opens_the_worklist_with_a_view_of_their_own(reader: Reader, world: World):
    kept, other = world.receive("1.1", source_ae="CT2"), world.receive("1.2")
    shows_only(reader, other, kept)
    reader.page.reload()  # what filters offer is asked for once

    reader.page.select_option("[name=source]", "CT2")
    shows_only(reader, kept)
    reader.page.click("#keep")
    reader.page.wait_for_selector("#connection >> text=opens like this")
    reader.page.goto(reader.address)

    shows_only(reader, kept)
    assert reader.page.input_value("[name=source]") == "CT2"
    assert reader.page.inner_text("#keep") == "Forget my default view"
    reader.page.click("#keep")
    reader.page.wait_for_selector("#connection >> text=everything again")
    reader.page.goto(reader.address)
    shows_only(reader, other, kept)


def test_no_row_moves_under_the_pointer_and_what_came_is_announced(reader: Reader, world: World):
    first = world.receive("1.1")
    reader.page.wait_for_selector("#arrivals >> text=1 new study")
    reader.page.click("#show")
    reader.page.hover(f"tr[data-study='{first}'] .state")

    second, third = world.receive("1.2"), world.receive("1.3")
    reader.page.wait_for_selector("#arrivals >> text=2 new studies")
    world.claim(first)
    shows(reader, first, "Analysing")
    assert order_of(reader) == [first]

    reader.page.click("#show")
    shows_only(reader, third, second, first)
    assert reader.page.locator("tr.fresh .new").count() == 2
    assert reader.page.inner_text("#arrivals") == ""

    reader.page.hover(f"tr[data-study='{first}'] .state")
    fourth = world.receive("1.4")
    reader.page.wait_for_selector("#arrivals >> text=1 new study")
    reader.page.mouse.move(5, 5)
    shows_only(reader, fourth, third, second, first)


def test_what_the_reader_took_note_of_is_not_announced_again(reader: Reader, world: World):
    study_id = world.receive("1.1")
    reader.page.wait_for_selector("#arrivals >> text=1 new study")
    late: list[tuple[Route, APIResponse]] = []

    def hold_one(route: Route) -> None:
        if late:
            route.continue_()
        else:
            late.append((route, route.fetch()))

    reader.page.route("**/api/worklist*", hold_one)
    world.claim(study_id)
    while not late:
        reader.page.wait_for_timeout(20)

    reader.page.click("#show")
    with reader.page.expect_response(lambda answer: answer.url.endswith(f"since={study_id}")):
        late[0][0].fulfill(response=late[0][1])
    reader.frames()

    assert reader.page.inner_text("#arrivals") == ""


def test_keys_go_from_line_to_line_and_to_the_search(
    reader: Reader, world: World, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    with world.database.transaction() as db:
        assert retrievals.ask(
            db,
            destination="pacs",
            aim=retrievals.Aim.STUDY,
            study_uid="1.1",
            why=retrievals.Why.PRIOR,
        )
    prior = world.receive("1.1")
    world.finish(prior, volume, found)
    now = world.receive("1.2", study=StudyAttributes(description="New", study_date="20261122"))
    shows_only(reader, now, prior)

    reader.page.click(f"tr[data-study='{now}'] .others summary")
    listed = reader.page.wait_for_selector(f"tr[data-study='{now}'] .others li")
    assert listed is not None
    assert "87 %, suspicious" in listed.inner_text()
    assert listed.query_selector(f"a[href='/studies/{prior}']") is not None
    reader.page.click("h1")
    reader.press("/")
    reader.page.keyboard.type("phantom")
    reader.until("() => location.search === '?q=phantom'")
    reader.press("ArrowDown", "ArrowDown", "ArrowUp", "ArrowDown")
    reader.page.keyboard.press("Enter")
    reader.page.wait_for_url(f"**/studies/{prior}")

    stored = reader.page.evaluate("() => sessionStorage.getItem('worklist.view')")
    assert stored == "q=phantom"


def test_a_viewer_is_shown_what_is_urgent_without_a_button(browser: Browser, world: World):
    study_id = world.receive("1.1")
    with world.database.transaction() as db:
        accounts.add(db, "vera", password=PASSWORD, role=accounts.Role.VIEWER, actor="test")
        priority.mark(db, study_id, priority.Priority.URGENT, actor=NAME, who=NAME)
    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address, name="vera")

        shows(reader, study_id, f"urgent: by {NAME}")

        assert reader.page.query_selector(f"tr[data-study='{study_id}'] button") is None
        reader.page.close()


def test_the_page_of_a_waiting_study_turns_into_the_viewer_by_itself(
    reader: Reader, world: World, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    study_id = world.receive("1.1")
    shows(reader, study_id, "Receiving")
    reader.page.click(f"tr[data-study='{study_id}'] a")
    reader.page.wait_for_selector("#status")

    world.finish(study_id, volume, found)

    reader.page.wait_for_selector(".viewport.axial > canvas")
    reader.mark("volume")


def test_a_waiting_page_shows_each_step_as_it_ends(reader: Reader, world: World):
    study_id = world.receive("1.1")
    claim = world.claim(study_id)
    reader.page.goto(f"{reader.address}/studies/{study_id}")

    for position, step in enumerate(("lungs", "lesions")):
        studies.record_step(
            world.database,
            claim,
            step=step,
            position=position,
            total=3,
            seconds=1.25,
            summary={"volume_ml": 1234.56},
        )
        reader.page.wait_for_selector(f".steps li >> text={step}")

    assert "volume ml 1230" in reader.page.inner_text(".steps")


def test_the_page_says_when_the_server_is_gone_and_goes_on_when_it_is_back(
    browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(live, "STREAM_S", 0.5)  # a stopped process ends its streams at once
    app = world.app()
    with serving(app) as address:
        reader = Reader.signed_in(browser, address)
        reader.page.wait_for_selector("#empty", state="visible")
    port = int(address.rsplit(":", 1)[1])
    reader.until("() => document.querySelector('#connection').innerText.includes('No connection')")

    with serving(app, port=port):
        study_id = world.receive("1.1")
        shows(reader, study_id, "Receiving")
        assert reader.page.inner_text("#connection") == ""
        reader.page.close()


def test_a_session_that_ended_leads_to_the_sign_in(reader: Reader):
    reader.page.wait_for_selector("#empty", state="visible")
    reader.page.context.clear_cookies()

    reader.page.reload()

    reader.page.wait_for_selector("#password")
