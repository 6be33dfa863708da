import json
import threading
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event

from appliance import studies, web_server
from tests.webui.world import World
from webui import live, upload
from webui.dicomweb.services import UPLOADS_AT_ONCE
from webui.live import LiveFeed
from webui.resources import resources


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def queries(world: World):
    seen = []
    event.listen(world.database.engine, "begin", seen.append)
    return seen


def test_many_readers_ask_the_database_once_a_second(world: World, queries: list[Any]):
    clock = Clock()
    feed = LiveFeed(world.database, clock=clock)
    readers = [threading.Thread(target=feed.latest) for _ in range(20)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(queries) == 1

    clock.now = 0.9
    feed.latest()
    assert len(queries) == 1

    clock.now = 1.0
    feed.latest()
    assert len(queries) == 2


def test_the_pulse_tells_steps_as_they_come(world: World):
    feed = LiveFeed(world.database, interval_s=0)
    claim = world.claim(world.receive("1.1"))
    before = json.loads(feed.latest())

    studies.record_step(
        world.database,
        claim,
        step="lungs",
        position=0,
        total=3,
        seconds=1.5,
        summary={"left_ml": 2},
    )

    after = json.loads(feed.latest())
    (moving,) = after["moving"]
    assert after["marker"] == before["marker"]
    assert {stage: count for stage, count in after["counts"].items() if count} == {"running": 1}
    assert (moving["step"], moving["step_done"], moving["step_total"]) == ("lungs", 1, 3)
    assert moving["steps"] == [{"step": "lungs", "seconds": 1.5, "summary": {"left_ml": 2}}]


def test_the_marker_changes_with_every_move_and_every_conflict(world: World):
    feed = LiveFeed(world.database, interval_s=0)

    def marker() -> str:
        return json.loads(feed.latest())["marker"]

    seen = [marker()]
    study_id = world.receive("1.1")
    seen.append(marker())
    world.receive("1.1", digest="2" * 64)
    seen.append(marker())
    world.queue(study_id)
    seen.append(marker())

    assert len(set(seen)) == 4


def test_a_stream_sends_what_changed_and_nothing_twice(world: World):
    feed = LiveFeed(world.database, interval_s=0)
    stream = feed.open()
    events = iter(stream)
    retry, first = islice(events, 2)
    world.receive("1.1")
    second = next(events)

    assert retry.startswith("retry: ")
    assert first.startswith("data: {")
    assert first != second
    assert second.endswith("\n\n")


def test_a_quiet_stream_writes_every_few_seconds_and_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    time = SimpleNamespace(monotonic=clock, sleep=clock.sleep)
    monkeypatch.setattr(live, "time", time)
    stream = LiveFeed(world.database, clock=clock).open()
    written = [(clock.now, text.partition("\n")[0]) for text in stream]

    silences = [after - before for (before, _), (after, _) in pairwise(written)]
    assert {kind for _, kind in written[2:]} == {"event: alive"}
    assert max(silences) <= live.KEEP_ALIVE_S + 2 * live.INTERVAL_S
    assert live.STREAM_S - 5 <= clock.now <= live.STREAM_S + 5


def test_streams_leave_threads_for_pages_and_give_their_place_back(world: World):
    feed = LiveFeed(world.database)
    streams = [feed.open() for _ in range(live.MOST_STREAMS)]

    assert feed.open() is None

    streams[0].close()
    streams[0].close()
    assert feed.open() is not None
    assert feed.open() is None


def test_a_stream_too_many_is_no_fault(app: Flask, client: FlaskClient):
    with app.app_context():
        streams = [resources().feed.open() for _ in range(live.MOST_STREAMS)]

    assert client.get("/api/live").status_code == 204

    streams[0].close()
    with client.get("/api/live") as answer:
        assert answer.status_code == 200


def test_the_stream_is_an_event_stream_that_nobody_buffers(client: FlaskClient):
    with client.get("/api/live") as answer:
        assert answer.mimetype == "text/event-stream"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert next(iter(answer.response)).startswith(b"retry")


def test_the_web_server_has_a_thread_for_all_that_lasts_and_some_for_pages():
    uploads = upload.AT_ONCE + 1  # one is taken in
    held = live.MOST_STREAMS + uploads + UPLOADS_AT_ONCE

    assert web_server.threads >= held + 8
