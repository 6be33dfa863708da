from pathlib import Path

import pytest
from flask.testing import FlaskClient

import webui.app
from webui.headers import HEADERS

WEBUI = Path(webui.app.__file__).parent


@pytest.mark.parametrize("address", ["/sign-in", "/", "/nothing-here", "/api/worklist", "/healthz"])
def test_every_answer_carries_the_security_headers(client: FlaskClient, address: str):
    headers = client.get(address).headers

    assert {name: headers[name] for name in HEADERS} == HEADERS


def test_the_policy_allows_nothing_inline_and_nothing_foreign():
    policy = HEADERS["Content-Security-Policy"]

    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy


def test_pages_with_patients_are_not_kept_by_the_browser(client: FlaskClient):
    assert client.get("/").headers["Cache-Control"] == "no-store"
    assert client.get("/api/worklist").headers["Cache-Control"] == "no-store"


def test_static_files_are_kept_for_ever_under_an_address_that_changes_with_them(
    client: FlaskClient,
):
    page = client.get("/").get_data(as_text=True)
    address = page.split('rel="stylesheet" href="')[1].split('"')[0]

    with client.get(address) as answer:
        assert answer.status_code == 200
        assert "max-age=31536000" in answer.headers["Cache-Control"]
    assert address.split("/")[2].isalnum()


def test_templates_and_scripts_have_no_inline_code():
    for template in (WEBUI / "templates").rglob("*.html"):
        text = template.read_text()
        assert "style=" not in text, template
        assert " onclick" not in text, template
        assert "|safe" not in text.replace(" ", ""), template
        assert "<script>" not in text, template


def test_no_script_turns_text_into_markup():
    for script in (WEBUI / "static").rglob("*.js"):
        text = script.read_text()
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert sink not in text, (script, sink)
