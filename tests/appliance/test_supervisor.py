"""The supervisor in a process of its own, with children that do nothing, and everything killed."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance import lifecycle, supervisor
from appliance.config import Settings
from appliance.database import Database
from appliance.lifecycle import State
from appliance.supervisor import Report
from tests.appliance import world
from tests.support.databases import settings_in
from tests.support.pacs import free_port

SCRIPT = """
import sys, logging
from appliance import logs
from appliance.config import Settings
from appliance import supervisor
from appliance.supervisor import Program, Supervisor
supervisor.STOP_GRACE_S = 1.0
logs.configure("supervisor")
settings = Settings.parse({
    "data_dir": sys.argv[1],
    "dicom": {"port": int(sys.argv[2])}, "web": {"port": int(sys.argv[3])},
    "lifecycle": {"sweep_s": 0.1},
})
supervisor.DEAF_AFTER_S = 1.0
Supervisor(settings, listed=[
    Program("plain", ("sleep", "1001"), hears="dicom" if sys.argv[4:] else None),
    Program("parent", ("sh", "-c", "sleep 1002 & wait")),
    Program("stubborn", ("sh", "-c", "trap '' TERM; while true; do sleep 1003; done")),
]).run()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, dicom={"port": free_port()}, web={"port": free_port()})


@contextmanager
def supervising(settings: Settings, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor with three children; what survives it is ended with the block."""
    process = start(settings, *options)
    groups: set[int] = set()
    try:
        until(lambda: (report := supervisor.read_report(settings)) and len(report.children) == 3)
        groups = groups_of(settings)
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in alive(groups):
            os.kill(pid, signal.SIGKILL)


def start(settings: Settings, *options: str) -> subprocess.Popen[bytes]:
    ports = [str(settings.dicom.port), str(settings.web.port)]
    command = [sys.executable, "-c", SCRIPT, str(settings.data_dir), *ports, *options]
    settings.prepare()
    with said_by(settings).open("wb") as log:
        return subprocess.Popen(command, stderr=log)


def said_by(settings: Settings) -> Path:
    """What the last supervisor started wrote."""
    return settings.data_dir / "said"


def until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def report_of(settings: Settings) -> Report:
    report = supervisor.read_report(settings)
    assert report is not None
    return report


def groups_of(settings: Settings) -> set[int]:
    """The process groups of the children: each leads its own."""
    return {child.pid for child in report_of(settings).children if child.pid is not None}


def alive(groups: set[int]) -> list[int]:
    """Every process of these groups that has not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) in groups and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_second_start_on_the_same_folder_is_refused(settings: Settings):
    with supervising(settings) as first:
        second = start(settings)

        assert second.wait(60) != 0
        said = said_by(settings).read_text()
        assert f"already (process {first.pid}); stop it first" in said
        assert first.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_leaves_nothing_running(settings: Settings, number: int):
    with supervising(settings) as process:
        groups = groups_of(settings)
        assert len(alive(groups)) >= 5

        process.send_signal(number)
        process.wait(60)

    assert process.returncode == 0
    assert alive(groups) == []
    assert supervisor.read_report(settings) is None


def test_a_killed_supervisor_takes_its_children_along(settings: Settings):
    with supervising(settings) as process:
        children = groups_of(settings)

        process.kill()
        process.wait()

        # What a child starts itself has to ask for the same, as worker and web server do.
        until(lambda: children.isdisjoint(alive(children)), timeout_s=5)


def test_a_folder_is_free_again_after_a_kill(settings: Settings):
    with supervising(settings):
        pass

    with supervising(settings) as process:
        assert report_of(settings).pid == process.pid


def test_a_child_that_falls_is_started_again(settings: Settings):
    with supervising(settings):
        before = {child.name: child.pid for child in report_of(settings).children}
        os.kill(before["plain"], signal.SIGKILL)

        def again() -> bool:
            plain = report_of(settings).children[0]
            return plain.restarts == 1 and plain.pid not in (None, before["plain"])

        until(again, timeout_s=10)
        after = {child.name: child.pid for child in report_of(settings).children}
        assert report_of(settings).children[0].last_exit == "killed by SIGKILL"
        assert (after["parent"], after["stubborn"]) == (before["parent"], before["stubborn"])


def test_what_a_fallen_child_left_behind_is_ended(settings: Settings):
    with supervising(settings):
        parent = report_of(settings).children[1].pid
        os.kill(parent, signal.SIGKILL)

        until(lambda: not alive({parent}), timeout_s=10)


def test_a_worker_that_hears_nothing_is_started_again(settings: Settings):
    with supervising(settings, "deaf"):
        until(lambda: report_of(settings).children[0].restarts, timeout_s=20)


def test_a_port_of_another_program_is_named(settings: Settings):
    with socket.socket() as taken:
        taken.bind((settings.web.host, settings.web.port))
        taken.listen()
        status = start(settings).wait(60)

    said = said_by(settings).read_text()
    assert status != 0
    assert f"another program uses port {settings.web.port}" in said
    assert "set another [web] port" in said


@pytest.mark.parametrize(
    ("host", "number", "text", "mend"),
    [
        ("127.0.0.1", errno.EADDRINUSE, "another program uses port 104", "another [dicom] port"),
        ("127.0.0.1", errno.EACCES, "port 104 needs a privilege", "CAP_NET_BIND_SERVICE"),
        ("127.0.0.1", errno.EMFILE, "cannot be had (Too many open files)", "[dicom] host or port"),
        ("192.0.2.1", errno.EADDRNOTAVAIL, "192.0.2.1 is no address of this", "set [dicom] host"),
    ],
)
def test_a_port_that_cannot_be_had_comes_with_the_reason_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, host: str, number: int, text: str, mend: str
):
    def bind(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", bind)

    trouble = supervisor.port_trouble("dicom", host, 104)

    assert trouble is not None
    assert text in trouble.text
    assert mend in trouble.mend


def test_what_listens_for_tls_alone_is_waited_for_there(tmp_path: Path):
    settings = settings_in(tmp_path, dicom={"port": 104, "tls_port": 2762, "tls_only": True})

    assert supervisor.addresses(settings)[:-1] == (("dicom", "127.0.0.1", 2762),)


def test_a_host_that_nobody_knows_is_named():
    trouble = supervisor.port_trouble("web", "no such host", 8080)

    assert trouble is not None
    assert trouble.text == "no such host is no address of this machine"


def test_an_orderly_stop_gives_studies_back_without_counting_the_try(
    settings: Settings, database: Database
):
    with supervising(settings) as process:
        study_id = world.queued(database)
        owner = lifecycle.owner_named("plain")
        assert lifecycle.claim(database, study_id, owner=owner, lease_s=600) is not None

        process.terminate()
        process.wait(60)

    assert world.state_of(database, study_id) is State.QUEUED
    assert world.reclaimed(database, study_id).attempt == 1


def test_nothing_is_reported_where_nothing_ever_ran(settings: Settings):
    assert supervisor.read_report(settings) is None


def test_every_queue_has_a_worker_that_is_watched(settings: Settings):
    settings.prepare()

    hearing = [program.hears for program in supervisor.programs(settings) if program.hears]

    assert hearing == ["gpu", "dicom"]


def test_as_many_studies_are_analysed_at_once_as_the_settings_say(tmp_path: Path):
    settings = settings_in(tmp_path, analysis={"at_once": 3})
    settings.prepare()

    commands = {program.name: program.command for program in supervisor.programs(settings)}

    def processes(name: str) -> str:
        return commands[name][commands[name].index("--concurrency") + 1]

    assert (processes("worker-gpu"), processes("worker-dicom")) == ("3", "1")


def test_no_broker_is_embedded_when_one_is_named(tmp_path: Path):
    settings = settings_in(tmp_path, broker={"url": "redis://broker.example/0"})
    settings.prepare()

    assert [program.name for program in supervisor.programs(settings)] == [
        "worker-gpu",
        "worker-dicom",
        "beat",
        "listener",
        "web",
    ]
