"""Pages in English and Chinese: who gets which, that no sentence is missing, and what stays."""

import ast
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from babel.messages.catalog import Message
from babel.messages.pofile import read_po
from flask import Flask
from flask.testing import FlaskClient

import appliance
import pipelines
from appliance import accounts, preferences
from appliance.accounts import Role
from appliance.database import Database
from pipelines import quality
from pipelines.findings import Flaw, Quality
from tests.webui.translations import WEBUI, extracted, updated
from tests.webui.world import NAME, PASSWORD, World, sign_in
from webui import fixed_texts, language
from webui.fixed_texts import told

CHINESE = {"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.5"}
PLACES = re.compile(r"%\((\w+)\)s")

SAME = frozenset(
    """
    AI AE C-ECHO C-MOVE C-FIND CSV Chest COVID CT DICOM Enter English HU JSON MIP MinIP NIfTI
    Newcombe PACS PDF SHA sha Shewhart TLS UID UTC Wilson zip ml mm ms GiB
    CHESTCT EfficientNet-Lite auto Phantom Thorax PHANTOM ResNet U-Net reader keeper test Lung
    """.split()  # noqa: SIM905 - read as a paragraph
)
"""Words that a Chinese page has in Latin letters: names, units, formats, and those of the world."""


class Visible(HTMLParser):
    """The text of a page that a reader sees or hears, without what says that it is English."""

    UNSEEN = frozenset({"script", "style", "code", "title"})
    VOID = frozenset({"meta", "link", "input", "img", "br", "progress"})

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._left_out: list[bool] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        left_out = any(self._left_out[-1:]) or tag in self.UNSEEN
        left_out |= tag != "html" and (given.get("lang") or "").startswith("en")
        if not left_out:
            names = ("aria-label", "title", "placeholder", "alt")
            self.texts += [given[name] or "" for name in names if name in given]
        if tag not in self.VOID:
            self._left_out.append(left_out)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            self._left_out.pop()

    def handle_data(self, data: str) -> None:
        if not any(self._left_out[-1:]):
            self.texts.append(data)


def english_in(page: str) -> list[str]:
    """What is left of English in a page."""
    reader = Visible()
    reader.feed(page)
    return [" ".join(text.split()) for text in reader.texts if is_english(text)]


def is_english(text: str) -> bool:
    """Whether a text has a Latin word that is none of `SAME`; keys of settings are none."""
    said = re.sub(r"\[+[^\]]*\]+(?: \w+)?|\w+ = true|`[^`]*`|/\S+", " ", text)
    return bool(set(re.findall(r"[A-Za-z][A-Za-z-]*[A-Za-z]", said)) - SAME)


def speak(database: Database, name: str, chosen: str) -> None:
    """Give a person's account a language."""
    with database.transaction() as db:
        known = {account.name: account.id for account in accounts.everyone(db)}
        preferences.put(db, known[name], language.KEY, chosen)


@pytest.fixture
def reader(world: World, app: Flask) -> FlaskClient:
    """A signed-in radiologist whose account is Chinese."""
    speak(world.database, NAME, language.CHINESE)
    client = app.test_client()
    assert sign_in(client).status_code == 302
    return client


@pytest.fixture
def keeper(world: World, app: Flask) -> FlaskClient:
    """A signed-in administrator whose account is Chinese."""
    with world.database.transaction() as db:
        accounts.add(db, "keeper", password=PASSWORD, role=Role.ADMINISTRATOR, actor="test")
    speak(world.database, "keeper", language.CHINESE)
    client = app.test_client()
    assert sign_in(client, name="keeper").status_code == 302
    return client


@pytest.fixture
def study(world: World, chest: Any) -> int:
    volume, found = chest
    study_id = world.receive("1.1")
    world.finish(study_id, volume, found)
    return study_id


def messages() -> Iterator[Message]:
    with language.CATALOGUE.open("rb") as file:
        yield from (message for message in read_po(file, locale="zh_Hans_CN") if message.id)


def forms(text: Any) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


# --- The catalogue


def test_the_catalogue_has_what_the_code_says_and_nothing_else():
    assert language.CATALOGUE.read_text(encoding="utf-8") == updated(), "run `make translations`"


def test_no_sentence_is_missing_or_guessed():
    said = list(messages())

    assert len(said) > 800
    assert [message.id for message in said if not all(forms(message.string))] == []
    assert [message.id for message in said if message.fuzzy] == []


def test_a_translation_has_the_places_of_its_sentence():
    wrong = [
        message.id
        for message in messages()
        if {frozenset(PLACES.findall(text)) for text in forms(message.string)}
        != {frozenset().union(*(PLACES.findall(text) for text in forms(message.id)))}
        or any(("%%" in text) != ("%%" in forms(message.id)[0]) for text in forms(message.string))
    ]

    assert wrong == []


def test_scripts_say_whole_sentences_that_can_be_found():
    for script in (WEBUI / "static").rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"\$\{[^}]*\b_n?\(", text), f"{script}: Babel looks in no template"
        assert not re.search(r"(?<![\w.])_n?\(`", text), f"{script}: a sentence is no template"


def test_what_the_packages_below_say_is_still_said_there():
    said = "\n".join(
        text
        for package in (appliance, pipelines)
        for path in Path(*package.__path__).rglob("*.py")
        for text in literals(ast.parse(path.read_text(encoding="utf-8")))
    )

    lower = said.lower()
    gone = [
        text
        for text in (*fixed_texts.SENTENCES, *fixed_texts.WORDS)
        if PLACES.sub("\0", text.replace("%%", "%")).rstrip(".").lower() not in lower
    ]

    assert gone == []


def literals(tree: ast.AST) -> Iterator[str]:
    """Every text of a module; what is put into one is a NUL."""
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in values)
                yield "".join(map(str, parts))
            case ast.Constant(value=str(text)):
                yield text


def test_every_text_of_a_module_below_is_found_by_its_own_words(app: Flask):
    measured = Quality(
        metal_ml=1.5,
        motion_mm=4.2,
        motion_steps=2,
        noise_hu=61.0,
        body_cut=0.12,
        lungs_cut_cm2=7.0,
        flaws=tuple(Flaw),
    )
    with app.test_request_context(headers=CHINESE):
        metal, motion, noise, lungs, body = map(told, quality.warnings(measured))

    assert metal.startswith("肺部层面内有金属")
    assert "1.5 ml" in metal
    assert "4.2 mm，共 2 处" in motion
    assert "61 HU" in noise
    assert "磨玻璃影" in noise
    assert "7 cm²" in lungs
    assert "12 %" in body


def test_what_nobody_translated_stays_as_it_is(app: Flask):
    with app.test_request_context(headers=CHINESE):
        assert told("A sentence of tomorrow.") == "A sentence of tomorrow."
        assert told(None) == ""
        assert told("rule 50 % off") == "规则 50 % off"


# --- Who gets which


def test_a_stranger_gets_the_language_of_the_browser(stranger: FlaskClient):
    english, chinese = stranger.get("/sign-in"), stranger.get("/sign-in", headers=CHINESE)
    french = stranger.get("/sign-in", headers={"Accept-Language": "fr"})

    assert '<html lang="en">' in english.text
    assert "Password" in english.text
    assert '<html lang="zh-Hans-CN"' in chinese.text
    assert "密码" in chinese.text
    assert '<html lang="en">' in french.text


def test_a_stranger_chooses_at_the_sign_in_and_keeps_it(stranger: FlaskClient):
    assert 'hreflang="zh-Hans-CN"' in stranger.get("/sign-in").text

    stranger.get("/sign-in?language=zh")
    assert "密码" in stranger.get("/sign-in").text
    assert sign_in(stranger).status_code == 302
    assert "工作列表" in stranger.get("/").text


@pytest.mark.parametrize("path", ["/sign-in?language=tlh", "/sign-in?language="])
def test_a_language_that_nobody_speaks_here_is_refused(stranger: FlaskClient, path: str):
    assert stranger.get(path).status_code == 400


def test_an_account_keeps_its_language_wherever_its_person_signs_in(app: Flask):
    first, other = app.test_client(), app.test_client()
    sign_in(first)
    page = first.get("/account").text
    token = page.split('name="csrf_token" value="')[1].split('"')[0]

    answer = first.post("/account/language", data={"csrf_token": token, "language": "zh"})

    assert answer.location == "/account"
    assert '<html lang="zh-Hans-CN"' in first.get("/account").text
    sign_in(other)
    assert '<html lang="zh-Hans-CN"' in other.get("/", headers={"Accept-Language": "en"}).text


def test_nobody_gets_the_language_of_whoever_was_there_before(world: World, app: Flask):
    with world.database.transaction() as db:
        accounts.add(db, "second", password=PASSWORD, role=Role.VIEWER, actor="test")
    speak(world.database, NAME, language.CHINESE)
    client = app.test_client()
    sign_in(client)
    assert "工作列表" in client.get("/").text

    sign_in(client, name="second")

    assert '<html lang="en">' in client.get("/").text


def test_programs_get_english_unless_they_ask(stranger: FlaskClient):
    assert stranger.get("/api/worklist").get_json() == {"error": "Sign in first."}
    asked = stranger.get("/api/worklist", headers=CHINESE)
    assert asked.get_json() == {"error": "请先登录。"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("order=height", "地址有误：order 只能是 "),
        ("period=year", "地址有误：period 只能是 today, 7, 30, dates 之一。"),
        ("period=dates&from=May", "地址有误：from 应写成 2026-03-05 的格式。"),
    ],
)
def test_a_wrong_address_of_the_worklist_is_told_in_chinese(
    reader: FlaskClient, wrong: str, said: str
):
    answer = reader.get(f"/api/worklist?{wrong}")

    assert answer.status_code == 400
    assert answer.get_json()["error"].startswith(said)


def test_an_error_speaks_without_the_database(world: World, reader: FlaskClient):
    found = reader.get("/nowhere")
    assert found.status_code == 404
    assert "此地址没有内容。" in found.text
    assert english_in(found.text) == []


# --- What is Chinese


def test_the_sign_in_is_chinese(stranger: FlaskClient):
    assert english_in(stranger.get("/sign-in", headers=CHINESE).text) == []


@pytest.mark.parametrize("path", ["/", "/account", "/upload", "/fetch"])
def test_a_readers_page_is_chinese(reader: FlaskClient, path: str):
    page = reader.get(path).text

    assert '<html lang="zh-Hans-CN" data-words="/words/' in page
    assert "仅供研究使用。AI 结果，不得作为主要诊断依据。" in page
    assert english_in(page) == []


@pytest.mark.parametrize("path", ["", "/report"])
def test_a_study_is_chinese(reader: FlaskClient, study: int, path: str):
    page = reader.get(f"/studies/{study}{path}").text

    assert "不得作为主要诊断依据" in page
    assert "检查号" in page
    assert english_in(page) == []


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (lambda world, study: None, "图像仍在接收"),
        (lambda world, study: world.fail(world.claim(study), "no"), "管理员可重新启动"),
        (lambda world, study: world.reject(study, "no", {}), "没有可分析的序列"),
    ],
)
def test_a_study_without_a_result_is_chinese(
    world: World, reader: FlaskClient, arrange: Callable[[World, int], None], said: str
):
    study_id = world.receive("1.1")
    arrange(world, study_id)

    assert said in reader.get(f"/studies/{study_id}").text


@pytest.mark.parametrize(
    "page",
    ["", "/queues", "/peers", "/routing", "/storage", "/quality", "/models", "/users", "/settings"],
)
def test_an_administrators_page_is_chinese(keeper: FlaskClient, world: World, page: str):
    claim = world.claim(world.receive("1.1"))
    world.fail(claim, "the worker stopped answering")

    answer = keeper.get(f"/admin{page}")

    assert answer.status_code == 200
    assert english_in(answer.text) == []


def test_a_models_card_is_found_in_chinese(keeper: FlaskClient):
    page = keeper.get("/admin/models").text

    assert 'href="/admin/models/lungs">肺：模型卡' in page
    assert 'lang="en"' in keeper.get("/admin/models/lungs").text


def test_the_audit_is_searched_in_chinese_and_stays_what_it_is(keeper: FlaskClient):
    page = keeper.get("/audit").text

    assert "accounts:session:opened" in page
    assert english_in(page) == []


def test_the_documents_stay_english(reader: FlaskClient, study: int):
    page = reader.get(f"/studies/{study}/report").text

    report = page.split('<div lang="en">')[1]
    assert "Research use only, not for primary diagnosis." in report


def test_the_answers_for_scripts_are_chinese(world: World, reader: FlaskClient, study: int):
    failed = world.claim(world.receive("1.2"))
    world.fail(failed, "the worker stopped answering")

    rows = reader.get("/api/worklist").get_json()["rows"]

    assert {row["state_word"] for row in rows} == {"就绪", "失败"}
    assert {row["reason"] for row in rows} == {None, "分析进程无响应"}
    review = reader.get("/api/analyses/1/review").get_json()
    assert review["signs"]["crazy paving"] == "铺路石征"


# --- What scripts say


def test_scripts_get_their_words_once_and_no_others(reader: FlaskClient):
    page = reader.get("/").text
    address = page.split('data-words="')[1].split('"')[0]

    answer = reader.get(address, headers={"Accept-Encoding": "gzip"})
    words = reader.get(address).get_json()

    assert answer.headers["Content-Encoding"] == "gzip"
    assert "immutable" in answer.headers["Cache-Control"]
    assert words["Next lesion"] == "下一病灶"
    assert words["Analysing"] == "分析中", "of the live feed"
    assert words["%(num)s lesion"] == "%(num)s 个病灶"
    assert "Add a user" not in words
    assert f'<link rel="preload" as="fetch" crossorigin href="{address}">' in page


def test_words_of_another_release_are_not_there(stranger: FlaskClient):
    assert stranger.get("/words/000000000000/zh.json").status_code == 404


def test_every_sentence_of_a_script_is_among_its_words(reader: FlaskClient):
    address = reader.get("/").text.split('data-words="')[1].split('"')[0]
    words = reader.get(address).get_json()

    said = [
        forms(message.id)[0]
        for message in extracted()
        if any(place.startswith("webui/static/") for place, _ in message.locations)
    ]
    assert len(said) > 300
    assert set(said) <= words.keys()


def test_an_english_page_asks_for_no_words(client: FlaskClient):
    page = client.get("/").text

    assert '<html lang="en">' in page
    assert "/words/" not in page
