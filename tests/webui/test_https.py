"""HTTPS as it is served: Gunicorn with the certificate of our own making."""

import http.client
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path

from appliance import supervisor
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.supervisor import programs
from tests.webui.world import World

PATIENCE_S = 120.0


def test_cookies_stay_on_encrypted_connections_and_browsers_are_told(
    template: Path, tmp_path: Path
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    World.copied(template, tmp_path / "data").database.dispose()
    document = {"data_dir": str(tmp_path / "data"), "web": {"https": "on", "port": port}}
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(document), encoding="utf-8")
    settings = Settings.load(file)
    (program,) = (one for one in programs(settings) if one.name == "web")
    server = subprocess.Popen(
        program.command, env={**os.environ, SETTINGS_VARIABLE: str(file)}, start_new_session=True
    )
    try:
        end = time.monotonic() + PATIENCE_S
        while not supervisor.accepts("127.0.0.1", port):
            assert server.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        trusted = ssl.create_default_context(cafile=tmp_path / "data" / "web" / "certificate.pem")
        connection = http.client.HTTPSConnection("localhost", port, context=trusted)
        connection.request("GET", "/sign-in")
        answer = connection.getresponse()

        assert answer.status == 200
        assert "Secure" in answer.headers["Set-Cookie"]
        assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
        connection.close()
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def test_a_plain_connection_carries_neither(client):
    answer = client.get("/sign-in")

    assert "Strict-Transport-Security" not in answer.headers
    assert "Secure" not in client.get("/account").headers.get("Set-Cookie", "")
