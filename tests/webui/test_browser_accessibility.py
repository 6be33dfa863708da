"""WCAG 2.2 AA: every page of the route table, and what axe does not see by itself.

The pixels of the viewer are left out; everything around them is held to it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from flask import Flask
from flask.testing import FlaskClient
from playwright.sync_api import Browser, Page, ViewportSize
from werkzeug.routing import Map, Rule

from appliance import accounts
from appliance.accounts import Role
from appliance.config import DestinationSettings
from appliance.studies import SeriesAttributes, StudyAttributes
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.support.instances import Names, as_file, ct_instance
from tests.webui.browser import WINDOW, Reader, needs_chromium, serving
from tests.webui.test_browser_lock import LOCK, left_alone, unlock
from tests.webui.world import NAME, PASSWORD, PATIENT, World, sign_in
from webui import auth
from webui.errors import FOR_PROGRAMS
from webui.permissions import GRANTED, RULES, Permission

pytestmark = [needs_chromium, pytest.mark.timeout(600)]

CRITERIA: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
NARROW: Final = ViewportSize(width=320, height=640)
"""1.4.10, Reflow: a window of 1280 pixels at 400 %."""

LEAST_TARGET_PX: Final = 24
"""2.5.8, Target Size (Minimum)."""

LEAST_CONTRAST: Final = 3.0
"""1.4.11, Non-text Contrast."""

KEEPER: Final = "keeper"
NEWCOMER: Final = "newcomer"
PEOPLE: Final = MappingProxyType({Role.RADIOLOGIST: NAME, Role.ADMINISTRATOR: KEEPER})

ARGUMENTS: Final = MappingProxyType({"number": (1,), "suffix": ("csv",), "purpose": ("lungs",)})
"""What stands in addresses, besides the rows of a `Scene`."""

ELSEWHERE: Final = MappingProxyType(
    {
        "language.words": "is for scripts, at an address that names its content",
        "openid.start": "leads to the identity provider",
        "openid.back": "leads from the identity provider",
    }
)
"""Addresses without a page of their own, which asking them here does not tell."""

QUIET: Final = """
() => new Promise((resolve) => {
  const done = () => { observer.disconnect(); resolve(); };
  let timer = setTimeout(done, 300);
  const observer = new MutationObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(done, 300);
  });
  observer.observe(document, { subtree: true, childList: true, attributes: true });
})
"""

COMMON: Final = """
  const seen = (one) => one.checkVisibility({ visibilityProperty: true });
  const named = (one) => {
    const own = one.id ? `#${one.id}` : [...one.classList].map((name) => `.${name}`).join("");
    const text = one.ariaLabel || one.name || one.innerText || "";
    return `${one.localName}${own} "${text.trim().replace(/\\s+/g, " ").slice(0, 30)}"`;
  };
"""

SMALL_TARGETS: Final = (
    "(least) => {"
    + COMMON
    + """
  return [...document.querySelectorAll("button, .button, select, input, textarea, summary")]
    .filter((one) => seen(one) && one.type !== "hidden" && !one.closest("label.button > input"))
    .flatMap((one) => {
      const boxes = [one, one.closest("label") ?? one].map((each) => each.getBoundingClientRect());
      const width = Math.max(...boxes.map((box) => box.width));
      const height = Math.max(...boxes.map((box) => box.height));
      return width < least || height < least ? [`${named(one)} is ${width} x ${height} px`] : [];
    });
}"""
)

BEYOND_THE_WINDOW: Final = (
    "() => {"
    + COMMON
    + """
  const scrolls = (one) => one.closest("table, .viewport") !== null;
  const out = (one) => {
    const { left, right, width } = one.getBoundingClientRect();
    return width > 1 && (right > innerWidth + 1 || left < -1);
  };
  const beyond = [...document.body.querySelectorAll("*")]
    .filter((one) => seen(one) && !scrolls(one) && out(one) && ![...one.children].some(out))
    .map((one) => `${named(one)} is beyond the window`);
  const { scrollWidth } = document.documentElement;
  return scrollWidth > innerWidth ? [`the page is ${scrollWidth} px wide`, ...beyond] : beyond;
}"""
)

FAINT_FIELDS: Final = (
    "(least) => {"
    + COMMON
    + """
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [red, green, blue] = channels(colour).map((value) => linear(value / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    const covers = (channels(colour)[3] ?? 1) === 1 || one.parentElement === null;
    return covers ? colour : ground(one.parentElement);
  };
  return [...document.querySelectorAll("select, textarea, input")]
    .filter((one) => seen(one) && !["hidden", "file", "checkbox", "radio"].includes(one.type))
    .flatMap((one) => {
      const colours = [getComputedStyle(one).borderTopColor, ground(one.parentElement)];
      const [low, high] = colours.map(light).sort((a, b) => a - b);
      const contrast = ((high + 0.05) / (low + 0.05)).toFixed(2);
      return contrast < least ? [`the border of ${named(one)} has a contrast of ${contrast}`] : [];
    });
}"""
)

FOCUSABLE: Final = """() => {
  const kinds = "a[href], button, input, select, textarea, summary, [tabindex]";
  const open = (one) => one.checkVisibility({ visibilityProperty: true }) && !one.disabled;
  window.order = [...document.querySelectorAll(kinds)]
    .filter((one) => open(one) && one.tabIndex >= 0);
  return window.order.length;
}"""

FOCUSED: Final = (
    "() => {"
    + COMMON
    + """
  const one = document.activeElement;
  if (one === null || one === document.body) return null;
  // What moved since it was focused, as rows came in, a reader can scroll to (2.4.11).
  one.scrollIntoView({ block: "nearest", inline: "nearest" });
  const { outlineStyle, outlineWidth } = getComputedStyle(one);
  const { left, top, width, height } = one.getBoundingClientRect();
  const part = (x, y) => {
    const over = document.elementFromPoint(left + x * width, top + y * height);
    return one.contains(over);
  };
  return {
    name: named(one),
    number: window.order.indexOf(one),
    outlined: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2,
    covered: ![0.1, 0.5, 0.9].some((x) => [0.1, 0.5, 0.9].some((y) => part(x, y))),
  };
}"""
)


@dataclass(frozen=True)
class Scene:
    """An appliance with studies in every state."""

    app: Flask
    world: World
    address: str
    studies: Mapping[str, int]
    analyses: tuple[int, ...]


@pytest.fixture(scope="module")
def scene(
    browser: Browser,
    template: Path,
    tmp_path_factory: pytest.TempPathFactory,
    chest: tuple[CTVolume, Analysis],
) -> Iterator[Scene]:
    made = World.copied(template, tmp_path_factory.mktemp("accessibility") / "data")
    node = DestinationSettings(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, query=True)
    dicom = replace(made.settings.dicom, destinations=(node,), min_free_bytes=0)
    world = replace(made, settings=replace(made.settings, dicom=dicom))
    with world.database.transaction() as db:
        accounts.add(db, KEEPER, password=PASSWORD, role=Role.ADMINISTRATOR, actor="test")
        role = Role.RADIOLOGIST
        accounts.add(db, NEWCOMER, password=PASSWORD, role=role, actor="test", temporary=True)
    studies: dict[str, int] = {}

    def receive(state: str, *, patient_id: str | None = None, date: str = "20260305") -> int:
        studies[state] = world.receive(
            f"1.{len(studies)}",
            patient=replace(PATIENT, patient_id=patient_id or state),
            study=StudyAttributes(description="Thorax", study_date=date, accession_number="A1"),
            series=SeriesAttributes(modality="CT", description="Lung 1.0", series_number="2"),
            instances=3,
        )
        return studies[state]

    volume, found = chest
    warned = replace(found, warnings=("The slices are 5 mm thick.",))
    clear = replace(found, probability=0.08, positive=False, lesions=())
    results = {
        receive("prior", patient_id=PATIENT.patient_id, date="20251101"): found,
        receive("ready", patient_id=PATIENT.patient_id): warned,
        receive("negative"): clear,
        receive("reviewed"): found,
    }
    analyses = tuple(world.finish(study, volume, result) for study, result in results.items())
    world.fail(world.claim(receive("failed")), "quarantined after 3 tries")
    reason = "Series 2 is a localiser, not a stack of slices."
    world.reject(receive("refused"), reason, {f"1.{len(studies) - 1}.series": reason})
    world.claim(receive("running"))
    receive("waiting")

    app = world.app()
    with serving(app) as address:
        reader = Reader.signed_in(browser, address)
        confirm(reader, studies["reviewed"])
        reader.page.close()
        yield Scene(app, world, address, MappingProxyType(studies), analyses)
    world.database.dispose()


@pytest.fixture(autouse=True)
def nobody_signed_in_lately(scene: Scene) -> None:
    """Sign in more often in a minute than an address may."""
    auth.limiter.reset()


def confirm(reader: Reader, study_id: int) -> None:
    reader.page.goto(f"{reader.address}/studies/{study_id}")
    reader.page.click(".review .rest")
    reader.page.click(".review .answers button >> text=Positive")
    reader.page.click(".review .confirm")
    reader.page.wait_for_selector(".review .confirmed")


# What is wrong on a page


def violations(page: Page) -> list[str]:
    """What axe has to say: the rule, the element and what to do."""
    asked = {
        "runOnly": {"type": "tag", "values": CRITERIA},
        "rules": {"target-size": {"enabled": True}},  # axe leaves it out unless asked
        "resultTypes": ["violations"],
    }
    return [
        f"{rule['id']} at {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in Axe().run(page, options=asked).response["violations"]
        for node in rule["nodes"]
    ]


def troubles(page: Page) -> list[str]:
    """Whatever is wrong on a page as it is now."""
    small: list[str] = page.evaluate(SMALL_TARGETS, LEAST_TARGET_PX)
    faint: list[str] = page.evaluate(FAINT_FIELDS, LEAST_CONTRAST)
    found = [*violations(page), *small, *faint]
    if page.viewport_size == NARROW:
        found += page.evaluate(BEYOND_THE_WINDOW)
    return found


def said(found: list[str]) -> str:
    return "\n".join(found)


def settle(reader: Reader) -> None:
    """Wait until a page has filled itself."""
    page = reader.page
    if page.query_selector("#viewer"):
        reader.mark("volume")
        page.wait_for_selector(".review h2")
    if page.query_selector("#rows"):
        page.wait_for_selector("#rows tr")
    page.evaluate(QUIET)


# Every page


def pages(scene: Scene) -> dict[str, Role | None]:
    """The paths of all pages, each with a role that sees it, or none for strangers."""
    clients: dict[Role | None, FlaskClient] = {None: scene.app.test_client()}
    for role, name in PEOPLE.items():
        clients[role] = scene.app.test_client()
        assert sign_in(clients[role], name=name).status_code == 302
    known: dict[str, tuple[int | str, ...]] = {
        **ARGUMENTS,
        "study_id": tuple(scene.studies.values()),
        "analysis_id": scene.analyses,
    }
    found: dict[str, Role | None] = {}
    for rule in scene.app.url_map.iter_rules():
        if "GET" not in (rule.methods or ()) or rule.endpoint in {"static", *ELSEWHERE}:
            continue
        if rule.rule.startswith(FOR_PROGRAMS):
            continue
        role = who_sees(rule)
        answers = {path: clients[role].get(path) for path in paths(rule, known)}
        opened = {path: answer for path, answer in answers.items() if answer.status_code < 400}
        assert opened, f"{rule.endpoint} opens with none of {list(answers)}: add to the scene"
        found |= {path: role for path, answer in opened.items() if is_page(answer)}
    return found


def who_sees(rule: Rule) -> Role | None:
    permission = RULES[rule.endpoint]
    if permission is Permission.PASS:
        return None
    return next(role for role in PEOPLE if role in GRANTED[permission])


def paths(rule: Rule, known: Mapping[str, tuple[int | str, ...]]) -> list[str]:
    """The addresses of a rule, for everything that may stand in it."""
    names = sorted(rule.arguments)
    for name in names:
        assert name in known, f"say in ARGUMENTS what <{name}> of {rule.rule} may be"
    built = [
        rule.build(dict(zip(names, values, strict=True)))
        for values in product(*(known[name] for name in names))
    ]
    return [one[1] for one in built if one is not None]


def is_page(answer: Any) -> bool:
    return bool(answer.status_code == 200 and answer.mimetype == "text/html")


def opened(browser: Browser, scene: Scene, role: Role | None) -> Reader:
    if role is not None:
        return Reader.signed_in(browser, scene.address, name=PEOPLE[role])
    return Reader(browser.new_context(viewport=WINDOW).new_page(), scene.address)


@pytest.mark.parametrize("window", [WINDOW, NARROW], ids=["wide", "narrow"])
def test_every_page_keeps_the_criteria(browser: Browser, scene: Scene, window: ViewportSize):
    listed = pages(scene)
    assert {"/", "/sign-in", "/upload", "/fetch", "/account", "/audit"} <= listed.keys()
    found = []
    for role in (None, *PEOPLE):
        reader = opened(browser, scene, role)
        reader.page.set_viewport_size(window)
        for path in (path for path, sees in listed.items() if sees is role):
            reader.page.goto(f"{scene.address}{path}")
            settle(reader)
            found += [f"{path}: {each}" for each in troubles(reader.page)]
        assert reader.troubles == []
        reader.page.context.close()

    assert found == [], said(found)


def test_what_the_table_of_addresses_cannot_tell_has_to_be_said(scene: Scene):
    assert set(ELSEWHERE) <= {rule.endpoint for rule in scene.app.url_map.iter_rules()}
    unknown = Rule("/models/<colour>", endpoint="models")
    Map([unknown])

    with pytest.raises(AssertionError, match="say in ARGUMENTS what <colour>"):
        paths(unknown, ARGUMENTS)


def test_faults_are_seen(browser: Browser, scene: Scene):
    """A page with one fault of each kind: nothing here is silent because nobody looks."""
    reader = opened(browser, scene, None)
    reader.page.goto(f"{scene.address}/sign-in")
    reader.page.set_viewport_size(NARROW)
    assert troubles(reader.page) == []
    reader.page.evaluate(
        """() => {
          document.documentElement.lang = "";
          document.querySelector("label[for=name]").remove();
          document.querySelector("h1").style.color = "#333";
          document.querySelector("button").style.cssText = "min-height: 0; height: 20px";
          document.querySelector("#password").style.borderColor = "#222";
          document.querySelector("main").style.marginLeft = "100px";
        }"""
    )

    found = said(troubles(reader.page))
    reader.page.context.close()

    for fault in ("html-has-lang at html", "label at #name", "color-contrast at h1"):
        assert fault in found
    for fault in (
        'button.primary "Sign in" is',
        "the border of input#password",
        "beyond the window",
    ):
        assert fault in found


# What appears only when somebody does something


def help_open(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/studies/{scene.studies['ready']}")
    settle(reader)
    reader.press("?")
    reader.page.wait_for_selector("#help[open]")


def key_refused(reader: Reader, scene: Scene) -> None:
    help_open(reader, scene)
    reader.page.click(".help .key >> nth=0")
    reader.page.wait_for_selector(".help .key.asking")
    reader.press("Tab")
    reader.page.wait_for_selector(".help .message >> text=choose another one")


def prior_beside(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/studies/{scene.studies['ready']}")
    settle(reader)
    reader.page.click("#prior-button")
    reader.page.wait_for_selector("#prior .viewport.axial")
    reader.frames()


def measured(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/studies/{scene.studies['ready']}")
    settle(reader)
    reader.page.click("#tools >> text=Distance")
    box = reader.page.locator(".viewport.axial").bounding_box()
    assert box is not None
    mouse = reader.page.mouse
    mouse.move(box["x"] + 80, box["y"] + 80)
    mouse.down()
    mouse.move(box["x"] + 140, box["y"] + 160)
    mouse.up()
    reader.page.wait_for_selector("#measurements .remove")


def overridden(reader: Reader, scene: Scene) -> None:
    """The chosen lesion is rejected and the case decided otherwise."""
    reader.page.goto(f"{scene.address}/studies/{scene.studies['ready']}")
    settle(reader)
    reader.press("n", "x")
    reader.page.click(".review .answers button >> text=Negative")
    reader.page.wait_for_selector(".review .why")


def amending(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/studies/{scene.studies['reviewed']}")
    settle(reader)
    reader.page.click(".review .amend")
    reader.page.wait_for_selector(".review .cancel")


def locked(reader: Reader, scene: Scene) -> None:
    left_alone(scene.world)
    reader.page.evaluate("() => { void fetch('/api/worklist'); }")
    reader.page.wait_for_selector(LOCK)
    unlock(reader, "not the password")
    reader.page.wait_for_selector(f"{LOCK} .problem:has-text('wrong')")


def files_chosen(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/upload")
    files = [("IM1", b"x"), ("chest.nii.gz", b"x")]
    reader.page.set_input_files(
        "#files",
        [{"name": name, "mimeType": "x/x", "buffer": content} for name, content in files],
    )
    reader.page.wait_for_selector("#person")


def files_taken(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/upload")
    image = as_file(ct_instance(Names.fresh()), scene.world.settings.data_dir / "IM1")
    reader.page.set_input_files("#files", [image, Path(__file__)])
    reader.page.click("#start")
    reader.page.wait_for_selector("#left-out")


def nothing_found(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/?q=nobody&period=dates&from=2026-01-01")
    reader.page.wait_for_selector("#none")


def lines_opened(reader: Reader, scene: Scene) -> None:
    """The worklist with all that its lines unfold, a filter set and a study that is urgent."""
    reader.page.select_option("[name=period]", "dates")
    reader.page.wait_for_selector(".dates")
    for summary in reader.page.locator("summary").all():
        summary.click()
    reader.page.click(f"tr[data-study='{scene.studies['waiting']}'] >> text=Urgent")
    reader.page.wait_for_selector(".urgent")


def pacs_asked(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/fetch")
    reader.page.fill("[name=patient_id]", "7")
    reader.page.click("form.search button")
    reader.page.wait_for_selector("#told >> text=Asking pacs")


def pacs_asked_for_everything(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/fetch")
    reader.page.click("form.search button")
    reader.page.wait_for_selector(".problem")


def password_wrong(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/account")
    for field in ("old", "new", "again"):
        reader.page.fill(f"#{field}", "x" * 20)
    reader.page.click("text=Change the password")
    reader.page.wait_for_selector(".problem")


def names_hidden(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/account")
    reader.page.click("text=Hide the names")
    reader.page.wait_for_selector(".names-hidden")


def report_unfolded(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/studies/{scene.studies['reviewed']}/report")
    reader.page.click("summary")
    reader.page.wait_for_selector("#text")


def nothing_there(reader: Reader, scene: Scene) -> None:
    reader.page.goto(f"{scene.address}/nothing")


STATES: Final[tuple[Callable[[Reader, Scene], None], ...]] = (
    help_open,
    key_refused,
    prior_beside,
    measured,
    overridden,
    amending,
    locked,
    files_chosen,
    files_taken,
    nothing_found,
    lines_opened,
    pacs_asked,
    pacs_asked_for_everything,
    password_wrong,
    names_hidden,
    report_unfolded,
    nothing_there,
)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_what_appears_keeps_the_criteria(
    browser: Browser, scene: Scene, state: Callable[[Reader, Scene], None]
):
    reader = Reader.signed_in(browser, scene.address)
    state(reader, scene)

    found = troubles(reader.page)
    reader.page.set_viewport_size(NARROW)
    reader.frames()
    found += [f"narrow: {each}" for each in troubles(reader.page)]
    reader.page.context.close()

    assert found == [], said(found)


def test_the_lines_of_an_administrator_keep_the_criteria(browser: Browser, scene: Scene):
    reader = opened(browser, scene, Role.ADMINISTRATOR)
    reader.page.wait_for_selector("[data-retry]")

    found = troubles(reader.page)
    reader.page.context.close()

    assert found == [], said(found)


@pytest.mark.parametrize(
    ("name", "password", "shown"),
    [(NAME, "not the password", "#name"), (NEWCOMER, PASSWORD, "#old")],
    ids=["wrong password", "password of another"],
)
def test_a_sign_in_that_goes_no_further_keeps_the_criteria(
    browser: Browser, scene: Scene, name: str, password: str, shown: str
):
    page = browser.new_context(viewport=WINDOW).new_page()
    page.goto(scene.address)
    page.fill("#name", name)
    page.fill("#password", password)
    page.click("text=Sign in >> nth=-1")
    page.wait_for_selector(".problem")
    page.wait_for_selector(shown)

    found = troubles(page)
    page.context.close()

    assert found == [], said(found)


# The keyboard


def walk(page: Page) -> list[dict[str, Any]]:
    """Where Tab leads, once round the page, from its first element on."""
    stops: list[dict[str, Any]] = []
    for _ in range(4 * page.evaluate(FOCUSABLE)):  # a date field has stops of its own inside
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop is None or (stops and stop["number"] == stops[-1]["number"]):
            continue
        if stops and stop["number"] == stops[0]["number"]:
            first = min(range(len(stops)), key=lambda i: stops[i]["number"])
            return stops[first:] + stops[:first]
        stops.append(stop)
    pytest.fail(f"Tab does not come round: {[stop['name'] for stop in stops]}")


def lines_of_the_worklist(reader: Reader, scene: Scene) -> None:
    reader.page.select_option("[name=period]", "dates")
    reader.page.wait_for_selector(".dates")


@pytest.mark.parametrize("window", [WINDOW, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize(
    "state",
    [lines_of_the_worklist, prior_beside, overridden, amending],
    ids=lambda state: state.__name__,
)
def test_tab_visits_everything_in_order_and_shows_where_it_is(
    browser: Browser,
    scene: Scene,
    state: Callable[[Reader, Scene], None],
    window: ViewportSize,
):
    reader = Reader.signed_in(browser, scene.address)
    settle(reader)
    state(reader, scene)
    reader.page.evaluate(QUIET)
    reader.page.set_viewport_size(window)
    reader.frames()

    stops = walk(reader.page)

    assert [stop["number"] for stop in stops] == list(range(reader.page.evaluate(FOCUSABLE)))
    assert [stop["name"] for stop in stops if not stop["outlined"]] == []
    assert [stop["name"] for stop in stops if stop["covered"]] == []
    reader.page.context.close()


def test_in_colours_of_the_readers_own_what_is_chosen_can_be_told(browser: Browser, scene: Scene):
    """Forced colours take the grounds away, by which a pressed button is known otherwise."""
    reader = Reader.signed_in(browser, scene.address)
    reader.page.emulate_media(forced_colors="active")
    overridden(reader, scene)
    border = "(one) => getComputedStyle(one).borderTopColor"
    for buttons in ("#tools button", "#presets button", ".review .answers button"):
        pressed = reader.page.eval_on_selector(f"{buttons}[aria-pressed=true]", border)
        other = reader.page.eval_on_selector(f"{buttons}[aria-pressed=false]", border)
        assert pressed != other
    chosen = reader.page.eval_on_selector(".lesion[aria-current=true]", border)
    other = reader.page.eval_on_selector(".lesion[aria-current=false]", border)
    reader.page.context.close()

    assert chosen != other
