"""A real worker on a real broker, with everything killed that can be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path

import pytest

from appliance import lifecycle, maintenance, studies
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import Database
from appliance.lifecycle import ON_ENTER, State
from appliance.queue import ROUTES, Queue, make_app, queue_of, task_modules
from tests.appliance import pretend, world
from tests.support import brokers
from tests.support.databases import settings_in


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = settings_in(tmp_path)
    document = {"data_dir": str(settings.data_dir)}
    (tmp_path / "settings.toml").write_text(to_toml(document))
    return settings


@pytest.fixture
def queue(settings: Settings) -> Queue:
    return Queue(make_app(settings))


@contextmanager
def working(settings: Settings, *, at_once: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, ended with its pool by the end of the block."""
    command = [sys.executable, "-m", "celery", "--app", "tests.appliance.pretend:app", "worker"]
    options = ["--queues", "gpu", "--concurrency", str(at_once)]
    options += ["--without-gossip", "--without-mingle"]
    worker = subprocess.Popen(
        [*command, *options],
        env={**os.environ, SETTINGS_VARIABLE: str(settings.data_dir.parent / "settings.toml")},
        start_new_session=True,
    )
    try:
        yield worker
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def analysing(settings: Settings, attempt: int) -> int:
    """The process of a try, once it is under way."""
    path = pretend.pid_of(settings, attempt)
    until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def results(database: Database, study_id: int) -> list[tuple[str, bool]]:
    with database.snapshot() as db:
        return [(found.folder, found.current) for found in studies.analyses_of(db, study_id)]


def test_a_killed_analysis_is_tried_again_and_leaves_one_result(
    settings: Settings, database: Database, queue: Queue
):
    study_id = world.queued(database)
    pretend.hangs(settings).touch()

    with brokers.running(settings), working(settings):
        lifecycle.ring(database, queue, study_id, State.QUEUED)
        os.kill(analysing(settings, 1), signal.SIGKILL)
        pretend.hangs(settings).unlink()
        until(lambda: maintenance.sweep(database, queue, settings).given_back)
        until(lambda: world.state_of(database, study_id) is State.READY)

    assert results(database, study_id) == [("analyses/1/2", True)]


def test_an_analysis_outlives_the_broker_and_the_worker_comes_back_by_itself(
    settings: Settings, database: Database, queue: Queue
):
    first, second = (world.queued(database, study_uid=uid) for uid in ("2.25.1", "2.25.2"))
    pretend.hangs(settings).touch()

    with working(settings):
        with brokers.running(settings):
            lifecycle.ring(database, queue, first, State.QUEUED)
            analysing(settings, 1)
        time.sleep(1)
        pretend.hangs(settings).unlink()
        with brokers.running(settings):
            until(lambda: world.state_of(database, first) is State.READY)
            lifecycle.ring(database, queue, second, State.QUEUED)
            until(lambda: world.state_of(database, second) is State.READY)

    assert results(database, first) == [("analyses/1/1", True)]
    assert results(database, second) == [("analyses/2/1", True)]


def test_two_studies_are_analysed_at_once_and_a_third_waits(
    settings: Settings, database: Database, queue: Queue
):
    waiting = [world.queued(database, study_uid=f"2.25.{number}") for number in range(3)]
    pretend.hangs(settings).touch()

    with brokers.running(settings), working(settings, at_once=2):
        for study_id in waiting:
            lifecycle.ring(database, queue, study_id, State.QUEUED)
        until(lambda: states(database, waiting).count(State.ANALYSING) == 2)
        time.sleep(1)
        assert states(database, waiting).count(State.QUEUED) == 1
        pretend.hangs(settings).unlink()
        until(lambda: set(states(database, waiting)) == {State.READY})

    assert all(len(results(database, study_id)) == 1 for study_id in waiting)


def states(database: Database, study_ids: Sequence[int]) -> list[State]:
    return [world.state_of(database, study_id) for study_id in study_ids]


def test_a_message_that_comes_twice_is_analysed_once(
    settings: Settings, database: Database, queue: Queue
):
    study_id = world.queued(database)

    with brokers.running(settings), working(settings):
        for _ in range(10):
            lifecycle.ring(database, queue, study_id, State.QUEUED)
        until(lambda: world.state_of(database, study_id) is State.READY)
        other = world.queued(database, study_uid="2.25.2")
        lifecycle.ring(database, queue, other, State.QUEUED)
        until(lambda: world.state_of(database, other) is State.READY)

    assert len(results(database, study_id)) == 1


def test_a_backlog_is_a_sign_of_life(settings: Settings, database: Database, queue: Queue):
    """Nothing is heard but the analyses themselves; each of them counts, start and end."""
    settings.prepare()
    heard = maintenance.heard_file(settings, "gpu")
    first, second = (world.queued(database, study_uid=uid) for uid in ("2.25.1", "2.25.2"))
    pretend.hangs(settings).touch()

    with brokers.running(settings), working(settings):
        lifecycle.ring(database, queue, first, State.QUEUED)
        analysing(settings, 1)
        assert heard.exists()
        os.utime(heard, (1, 1))
        pretend.hangs(settings).unlink()
        until(lambda: heard.stat().st_mtime > 1)
        os.utime(heard, (1, 1))
        lifecycle.ring(database, queue, second, State.QUEUED)
        until(lambda: world.state_of(database, second) is State.READY)
        until(lambda: heard.stat().st_mtime > 1)


def test_every_task_that_is_rung_exists():
    for entry in metadata.entry_points(group="appliance.tasks"):
        import_module(entry.value)
    app = make_app(Settings.parse({}))
    app.finalize()

    assert set(ON_ENTER.values()) <= set(app.tasks)
    assert {plan["task"] for plan in app.conf.beat_schedule.values()} <= set(app.tasks)


def test_every_route_leads_to_a_queue_that_a_worker_has():
    app = make_app(Settings.parse({}))

    assert {route["queue"] for route in ROUTES.values()} == {q.name for q in app.conf.task_queues}


def test_only_the_gpu_worker_loads_the_science():
    assert queue_of("pipelines.analyse_study") == "gpu"
    assert "pipelines.tasks" in task_modules(["gpu"])
    assert "pipelines.tasks" not in task_modules(["dicom"])


def test_a_running_task_is_not_delivered_again():
    settings = Settings.parse({"lifecycle": {"task_time_limit_s": 7200}})
    conf = make_app(settings).conf

    assert conf.broker_transport_options["visibility_timeout"] > conf.task_time_limit == 7200
    assert (conf.task_acks_late, conf.task_reject_on_worker_lost) == (True, True)
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_connection_max_retries is None
