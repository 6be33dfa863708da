"""`/metrics`: what it says, who may read it, and that alerts and dashboard ask for no other."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from appliance import deliveries, lifecycle, maintenance, metrics, queue, vital_signs
from appliance.deliveries import Content, Kind
from appliance.lifecycle import FinishedAnalysis
from appliance.supervisor import ChildReport, Report
from tests.webui.world import World

MONITORING = Path(__file__).parents[2] / "systemd" / "monitoring"
ELSEWHERE = {"REMOTE_ADDR": "10.1.2.3"}
NAME = re.compile(r"\bchestct_\w+")


@pytest.fixture
def busy(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """An appliance of which every metric has something to tell."""
    study_id = world.receive("1.2.3", instances=3)
    finished = FinishedAnalysis(
        folder="analyses/1",
        probability=0.9,
        positive=True,
        lesion_count=0,
        lesion_volume_ml=0.0,
        timings={"lungs": 3.5},
    )
    lifecycle.finish(world.database, world.claim(study_id), finished)
    world.fail(world.claim(world.receive("1.2.4")), "broken")
    with world.database.transaction() as db:
        subject = deliveries.latest(db, study_id)
        assert subject is not None
        deliveries.queue(db, subject, destination="pacs", kind=Kind.DICOM, contents={Content.SR})
    for name in queue.QUEUES:
        maintenance.heard_file(world.settings, name).touch()
    vital_signs.leave(world.settings, 2)
    child = ChildReport("web", 1, 0.0, 4, None)
    report = Report(1, ready=True, dicom_address="", viewer_url="", children=(child,))
    monkeypatch.setattr("appliance.supervisor.read_report", lambda _settings: report)
    return world


def samples(client: FlaskClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_happened_is_told(busy: World):
    told = samples(busy.app().test_client())

    def of(name: str, **labels: str) -> float:
        return told[f"chestct_{name}", tuple(sorted(labels.items()))]

    assert of("studies", state="READY") == 1
    assert of("studies", state="FAILED") == 1
    assert of("studies", state="QUEUED") == 0
    assert of("studies_received_total") == 2
    assert of("instances_received_total") == 4
    assert of("received_bytes_total") == 4
    assert of("analyses_total", answer="positive") == 1
    assert of("failures_total", kind="study failed") == 1
    assert of("analysis_step_seconds_count", step="lungs") == 1
    assert of("analysis_step_seconds_sum", step="lungs") == 3.5
    assert of("analysis_step_seconds_bucket", step="lungs", le="2.0") == 0
    assert of("analysis_step_seconds_bucket", step="lungs", le="5.0") == 1
    assert of("deliveries", destination="pacs", state="WAITING") == 1
    assert of("listener_connections") == 2
    assert of("process_restarts_total", process="web") == 4
    assert of("leases", kind="analysis", standing="held") == 0


def test_a_study_under_way_holds_a_lease(world: World):
    world.claim(world.receive("1.2.3"))

    told = samples(world.app().test_client())

    key = (("kind", "analysis"), ("standing", "held"))
    assert told["chestct_leases", key] == 1


def test_who_asks_often_has_all_rows_read_once_in_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    client = world.app().test_client()
    told = []
    for number in range(2):
        world.receive(f"1.2.{number}")
        told.append(samples(client))
    monkeypatch.setattr(metrics, "KEPT_S", 0)
    told.append(samples(client))

    assert [one["chestct_studies_received_total", ()] for one in told] == [1, 1, 2]
    receiving = "chestct_studies", (("state", "RECEIVING"),)
    assert [one[receiving] for one in told] == [1, 2, 2]


def test_nobody_is_named(busy: World):
    text = busy.app().test_client().get("/metrics").text

    for secret in ("Phantom", "PHANTOM-0001", "1.2.3", "Thorax", "CT1", "reader"):
        assert secret not in text


def test_only_this_machine_reads_them_without_a_token(stranger: FlaskClient):
    assert stranger.get("/metrics").status_code == 200
    assert stranger.get("/metrics", environ_base={"REMOTE_ADDR": "::1"}).status_code == 200
    assert stranger.get("/metrics", environ_base=ELSEWHERE).status_code == 403
    for header in ("X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "Via"):
        assert stranger.get("/metrics", headers={header: "x"}).status_code == 403, header


def test_from_elsewhere_they_are_read_with_the_token(world: World, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("right\n", encoding="utf-8")
    web = replace(world.settings.web, metrics_token_file=file)
    client = replace(world, settings=replace(world.settings, web=web)).app().test_client()

    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return client.get("/metrics", environ_base=ELSEWHERE, headers=headers).status_code

    assert status("right") == 200
    assert status("wrong") == 403
    file.write_text("\n", encoding="utf-8")
    assert status("") == 403
    file.unlink()
    assert status("right") == 403


def expressions() -> Iterator[tuple[str, str]]:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert {"alert", "expr", "labels", "annotations"} <= set(rule)
            assert {"summary", "description"} == set(rule["annotations"])
            yield rule["alert"], rule["expr"]
    board: dict[str, Any] = json.loads(
        (MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8")
    )
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_alerts_and_dashboard_ask_for_what_is_there(busy: World):
    told = samples(busy.app().test_client())
    names = {name for name, _ in told}
    families = set(
        re.findall(r"^# TYPE (\w+)", busy.app().test_client().get("/metrics").text, re.MULTILINE)
    )
    labels = {name: {key for n, pairs in told if n == name for key, _ in pairs} for name in names}

    asked = list(expressions())
    assert len(asked) > 30
    for title, expression in asked:
        for name in NAME.findall(expression):
            assert name in names | families, (title, name)
        for name, conditions in re.findall(r"(chestct_\w+)\{([^}]*)\}", expression):
            for key, value in re.findall(r'(\w+)="([^"]*)"', conditions):
                if name in labels and key != "instance":
                    assert key in labels[name], (title, name, key)
                    assert {value} & {
                        v for n, p in told if n == name for k, v in p if k == key
                    } or (name == "chestct_deliveries"), (title, name, key, value)
    spoken = {name for _, expression in asked for name in NAME.findall(expression)}
    unheard = {family for family in families if not any(n.startswith(family) for n in spoken)}
    assert unheard == set(), "nobody looks at these"
