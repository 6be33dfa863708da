"""A server that is killed in the middle of an upload loses only what it did not acknowledge."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from sqlalchemy import select

from appliance.config import SETTINGS_VARIABLE, to_toml
from appliance.store import Store
from appliance.tables import Instance
from tests.support.instances import Names, as_file, ct_instance, dataset_bytes
from tests.support.pacs import free_port
from tests.webui.world import NAME, PASSWORD, World


class Browser:
    """One that keeps its cookie, and says nothing by itself."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = self.token = ""

    def ask(self, method: str, path: str, body: bytes | str = b"", **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        own = {"Cookie": self.cookie, "X-CSRFToken": self.token}
        connection.request(method, path, body, {**own, **given})
        answer = connection.getresponse()
        content = answer.read()
        if cookie := answer.headers.get("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        connection.close()
        return answer, content

    def sign_in(self) -> None:
        _, page = self.ask("GET", "/sign-in")
        (token,) = re.findall(rb'name="csrf_token" value="([^"]+)"', page)
        form = urlencode({"name": NAME, "password": PASSWORD, "csrf_token": token.decode()})
        self.ask("POST", "/sign-in", form, Content_Type="application/x-www-form-urlencoded")
        self.token = json.loads(self.ask("GET", "/api/uploads")[1])["csrf_token"]

    def post(self, path: str, content: object):
        return self.ask("POST", path, json.dumps(content), Content_Type="application/json")

    def begin_piece(
        self, path: str, offset: int, length: int, begun: bytes
    ) -> http.client.HTTPConnection:
        """Announce a piece, and send only its beginning."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest("PATCH", path)
        for name, value in {
            "Cookie": self.cookie,
            "X-CSRFToken": self.token,
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(length),
            "Upload-Offset": str(offset),
        }.items():
            connection.putheader(name, value)
        connection.endheaders(begun)
        return connection


@contextmanager
def served(settings_file: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The web server as `appliance serve` starts it."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "gunicorn", "--config", "python:appliance.web_server",
            "--bind", f"127.0.0.1:{port}", "webui.app:create_app()",
        ],
        env={**os.environ, SETTINGS_VARIABLE: str(settings_file)},
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                Browser(port).ask("GET", "/healthz")
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_what_was_acknowledged_is_there_after_a_kill_and_the_upload_goes_on(
    world: World, tmp_path: Path
):
    settings_file = tmp_path / "settings.toml"
    settings_file.write_text(
        to_toml({"data_dir": str(world.settings.data_dir), "dicom": {"min_free_bytes": 0}})
    )
    pixels = {"Rows": 2048, "Columns": 2048, "PixelData": bytes(range(256)) * (8 << 12)}
    source = as_file(ct_instance(Names.fresh(), **pixels), tmp_path / "i")
    content = source.read_bytes()
    port, half = free_port(), len(content) // 2
    browser = Browser(port)
    with served(settings_file, port) as server:
        browser.sign_in()
        listed = [{"name": "IM1", "size": len(content), "modified": 1}]
        begun = json.loads(browser.post("/api/uploads", {"files": listed})[1])
        (place,) = begun["files"]
        patch = {"Content_Type": "application/offset+octet-stream", "Upload_Offset": "0"}
        assert browser.ask("PATCH", place["url"], content[:half], **patch)[0].status == 204
        rest = len(content) - half
        open_piece = browser.begin_piece(place["url"], half, rest, content[half : half + rest // 2])
        (waiting,) = (world.settings.uploads_dir / begun["name"]).glob("0*")
        deadline = time.monotonic() + 60
        while waiting.stat().st_size == half and time.monotonic() < deadline:
            time.sleep(0.01)  # until the server is in the middle of it
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        open_piece.close()

    with served(settings_file, port):
        offset = json.loads(browser.ask("GET", begun["url"])[1])["files"][0]["offset"]
        assert half <= offset < len(content)
        patch["Upload_Offset"] = str(offset)
        assert browser.ask("PATCH", place["url"], content[offset:], **patch)[0].status == 204
        person = {"patient_name": "", "patient_id": "", "study_date": ""}
        outcome = json.loads(browser.post(begun["take_url"], person)[1])["outcome"]

    assert (outcome["new"], outcome["left_out_count"]) == (1, 0)
    with world.database.snapshot() as db:
        (digest,) = db.scalars(select(Instance.digest))
    kept = Store(world.settings.store_dir).path_of(digest)
    assert dataset_bytes(kept) == dataset_bytes(source)
