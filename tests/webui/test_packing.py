import gzip
from pathlib import Path

import pytest
import zstandard
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import webui
from webui.packing import without_comments

STATIC = Path(webui.__file__).parent / "static"
VIEWER = [
    *(STATIC / "viewer").glob("*.js"),
    *(STATIC / f"{name}.js" for name in ("dom", "live", "words")),
]
BUDGET_BYTES = 60_000
UNPACK = {
    "zstd": zstandard.ZstdDecompressor().decompress,
    "gzip": gzip.decompress,
    "identity": bytes,
}


def fetched(client: FlaskClient, address: str, encoding: str) -> TestResponse:
    return client.get(address, headers={"Accept-Encoding": encoding}, buffered=True)


def test_comments_go_and_lines_stay():
    text = b"""/**
 * A module.
 */
import { x } from "./x.js"; // stays
  // goes
const a = /** @type {A} */ (b); /* stays */
    /** @type {C} */ (c).d();
const e = "/* no comment */";
"""

    assert without_comments(text) == (
        b"\n\n\n"
        b'import { x } from "./x.js"; // stays\n'
        b"\n"
        b"const a = /** @type {A} */ (b); /* stays */\n"
        b" (c).d();\n"
        b'const e = "/* no comment */";\n'
    )


@pytest.mark.parametrize("encoding", UNPACK)
@pytest.mark.parametrize("name", ["viewer/viewport.js", "viewer/viewer.css"])
def test_what_arrives_is_the_file_without_its_comments(
    app: Flask, stranger: FlaskClient, name: str, encoding: str
):
    address = f"{app.static_url_path}/{name}"

    answer = fetched(stranger, address, encoding)

    expected = without_comments((STATIC / name).read_bytes())
    assert answer.headers["Content-Encoding"] == encoding
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert int(answer.headers["Content-Length"]) == len(answer.data)
    assert UNPACK[encoding](answer.data) == expected


def test_the_viewers_scripts_keep_within_their_budget(app: Flask, stranger: FlaskClient):
    addresses = [f"{app.static_url_path}/{path.relative_to(STATIC)}" for path in VIEWER]
    sizes = [len(fetched(stranger, address, "gzip").data) for address in addresses]

    assert len(sizes) > 20
    assert sum(sizes) <= BUDGET_BYTES


def test_pictures_are_sent_as_they_are(app: Flask, stranger: FlaskClient):
    answer = fetched(stranger, f"{app.static_url_path}/icon.svg", "gzip")

    assert "Content-Encoding" not in answer.headers
    assert answer.data == (STATIC / "icon.svg").read_bytes()
