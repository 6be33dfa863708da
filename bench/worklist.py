"""Time the worklist with many studies: its pages, filters and search, and the pulse of live pages.

Usage: python -m bench.worklist [--studies N] [--rounds N] [--place FOLDER]. Studies, patients and
reviews are made up and written into the real tables: four events and 1.2 analyses for each study,
nine of ten results confirmed, three series of twelve scanners, a look at every second study in the
audit. The web server is the real one (Gunicorn, as `appliance serve` starts it) in a process of its
own, asked by one reader over one connection; each question is asked once before it is timed.

Printed and kept in `bench/results/worklist.json`: the medians in milliseconds, on SQLite and on
PostgreSQL (a private one without fsync, which reading does not need).
"""

import argparse
import datetime as dt
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import insert

from appliance import accounts
from appliance.config import Settings
from appliance.database import Database, open_database, upgrade
from appliance.tables import (
    Analysis,
    AuditEntry,
    Base,
    Patient,
    Review,
    Series,
    Study,
    StudyEvent,
)
from bench.inference import machine
from tests.support.databases import private_postgresql
from tests.support.pacs import await_port, free_port
from webui.live import LiveFeed

RESULT = Path(__file__).parent / "results" / "worklist.json"
NAME, PASSWORD = "reader", "correct horse battery"
TARGET_MS = 200
FAMILIES = ("Mueller", "Smith", "García", "Rossi", "Kowalski", "Nguyen", "Wang", "Okafor")
GIVEN = ("Anna", "Ben", "Chen", "Dora", "Emil", "Fatma", "Georg", "Hana", "Ivan", "Julia")
SCANNERS = [(maker, f"Model {n}") for maker in ("Alpha", "Beta", "Gamma") for n in range(4)]
"""Made-up."""

QUESTIONS = {
    "first page": "",
    "page 100": "page=100",
    "by arrival": "order=arrival",
    "by patient, page 100": "order=patient&page=100",
    "by study date": "order=date",
    "to review": "state=review",
    "confirmed": "state=confirmed",
    "failed": "state=failed",
    "last 7 days": "period=7",
    "source": "source=CT3",
    "device": "device=Beta%5CModel+2",
    "suspicious": "result=suspicious",
    "opened by me": "mine=opened",
    "confirmed by me": "mine=confirmed",
    "name": "q=MUELLER%5EANNA",
    "part of a name": "q=garc",
    "number": "q=P004711",
    "accession number": "q=A0004711",
    "UID": "q=2.25.1004711",
    "nobody": "q=Nobodywiththisname",
    "everything at once": "q=anna&state=confirmed&period=30&source=CT3&result=lesions&order=-date",
}


def fill(database: Database, studies: int) -> None:
    """Write the made-up studies, half of them of patients with several."""
    rng = random.Random(0)  # noqa: S311 - the same studies each time
    now = dt.datetime.now(tz=dt.UTC)
    tables: dict[type[Base], list[dict[str, Any]]] = {}

    def add(table: type[Base], **values: Any) -> None:
        tables.setdefault(table, []).append(values)

    with database.transaction() as db:
        roles = {NAME: accounts.Role.RADIOLOGIST, "other": accounts.Role.RADIOLOGIST}
        ids = [
            accounts.add(db, n, password=PASSWORD, role=r, actor="bench") for n, r in roles.items()
        ]
    people = max(1, studies * 6 // 10)
    for number in range(1, people + 1):
        name = f"{rng.choice(FAMILIES)}^{rng.choice(GIVEN)} {number}"
        if number % 10 == 0:
            name += "=王^小东=ワン^ショウトウ"
        born = f"{rng.randint(1930, 2005)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
        add(
            Patient,
            id=number,
            patient_id=f"P{number:06}",
            issuer="",
            name=name,
            birth_date=born,
            sex=rng.choice("MF"),
        )
    analyses = 0
    for number in range(1, studies + 1):
        came = now - dt.timedelta(minutes=10 * (studies - number) + rng.randint(0, 9))
        state = rng.choices(("READY", "FAILED", "REJECTED", "QUEUED"), weights=(94, 2, 3.8, 0.2))[0]
        add(
            Study,
            id=number,
            study_uid=f"2.25.{1000000 + number}",
            part=0,
            patient_key=rng.randint(1, people),
            accession_number=f"A{number:07}",
            description="CT thorax",
            study_date=f"{came:%Y%m%d}",
            study_time=f"{came:%H%M%S}",
            referring_physician="",
            source_ae=f"CT{rng.randint(1, 6)}",
            state=state,
            state_reason="The disk is full." if state == "FAILED" else None,
            state_since=came,
            first_received_at=came,
            last_received_at=came,
            priority="URGENT" if number % 40 == 0 else "ROUTINE",
            revision=300,
        )
        for series in range(3):
            maker, model = rng.choice(SCANNERS)
            add(
                Series,
                study_id=number,
                series_uid=f"2.25.{1000000 + number}.{series}",
                modality="CT",
                description="Lung 1.0",
                manufacturer=maker,
                model=model,
                station_name=f"STATION{rng.randint(1, 12)}",
                instance_count=100,
            )
        path = (None, "RECEIVING", "QUEUED", "ANALYSING", state if state != "QUEUED" else "READY")
        for source, target in pairwise(path):
            add(StudyEvent, study_id=number, source=source, target=target, at=came)
        if state != "READY":
            continue
        for current in (False, True) if number % 5 == 0 else (True,):
            analyses += 1
            lesions = rng.choice((0, 0, 1, 3, 9))
            probability = rng.random()
            add(
                Analysis,
                id=analyses,
                study_id=number,
                revision=300,
                current=current,
                folder=f"analyses/{number}/{analyses}",
                probability=probability,
                positive=probability > 0.7,
                lesion_count=lesions,
                lesion_volume_ml=10.0 * lesions,
                models=[],
                timings={},
                created_at=came,
            )
        if rng.random() < 0.9:
            who = rng.randint(0, 1)
            add(
                Review,
                analysis_id=analyses,
                version=1,
                account_id=ids[who],
                reviewer=list(roles)[who],
                organisation="Bench",
                positive=probability > 0.7,
                at=came,
            )
        if number % 2 == 0:
            add(
                AuditEntry,
                at=came,
                actor=NAME,
                tag="web:study:viewed",
                subject=f"study {number}",
                detail={},
                previous_hash="0" * 64,
                hash="0" * 64,
            )
    with database.transaction() as db:
        for table in (Patient, Study, Series, StudyEvent, Analysis, Review, AuditEntry):
            db.execute(insert(table), tables[table])
    if database.engine.dialect.name == "postgresql":  # as its autovacuum does within a minute
        with database.engine.connect() as connection:
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            alone.exec_driver_sql("VACUUM ANALYZE")


@contextmanager
def served(settings: Settings, folder: Path) -> Iterator[str]:
    """The address of the real web server on this database."""
    port = free_port()
    written = folder / "settings.toml"
    written.write_text(
        f'data_dir = "{settings.data_dir}"\n[database]\nurl = "{settings.database_url}"\n'
    )
    environment = {**os.environ, "APPLIANCE_SETTINGS": str(written)}
    command = [sys.executable, "-m", "gunicorn", "-c", "python:appliance.web_server"]
    server = subprocess.Popen(
        [*command, "-b", f"127.0.0.1:{port}", "webui.app:create_app()"], env=environment
    )
    try:
        await_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def signed_in(address: str) -> requests.Session:
    """A session of the reader."""
    session = requests.Session()
    page = session.get(f"{address}/sign-in").text
    token = page.split('name="csrf_token" value="')[1].split('"')[0]
    form = {"name": NAME, "password": PASSWORD, "csrf_token": token}
    session.post(f"{address}/sign-in", data=form).raise_for_status()
    return session


def median_ms(rounds: int, ask: Callable[[], object]) -> float:
    """How long it takes in the middle, after one time that does not count."""
    ask()
    spans = []
    for _ in range(rounds):
        began = time.perf_counter()
        ask()
        spans.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(spans), 1)


def measured(settings: Settings, folder: Path, studies: int, rounds: int) -> dict[str, float]:
    """The medians on one database."""
    upgrade(settings)
    database = open_database(settings)
    try:
        fill(database, studies)
        found = {}
        with served(settings, folder) as address:
            session = signed_in(address)

            def ask(path: str) -> dict[str, Any]:
                answer = session.get(f"{address}/api/{path}")
                answer.raise_for_status()
                told: dict[str, Any] = answer.json()
                return told

            for name, query in QUESTIONS.items():
                found[name] = median_ms(rounds, lambda query=query: ask(f"worklist?{query}"))
            last = ask("worklist?state=review")["rows"][0]["study_id"]
            for name, path in {
                "next to review": f"worklist/next?after={last}",
                "what filters offer": "worklist/choices",
                "other studies of a patient": f"studies/{last}/others",
            }.items():
                found[name] = median_ms(rounds, lambda path=path: ask(path))
        feed = LiveFeed(database, interval_s=0)
        found["pulse, nothing new"] = median_ms(rounds, feed.latest)
        found["pulse, counted anew"] = median_ms(
            rounds, lambda: LiveFeed(database, interval_s=0).latest()
        )
        return found
    finally:
        database.dispose()


def main() -> None:
    """Measure both databases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--place", type=Path, help="a folder on the disk to measure")
    asked = parser.parse_args()
    medians: dict[str, dict[str, float]] = {}
    load = round(os.getloadavg()[0], 1)  # what else computes makes every figure worse
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=asked.place)))
        server = stack.enter_context(private_postgresql())
        for name, database in {"SQLite": {}, "PostgreSQL": {"url": server.create()}}.items():
            folder = place / name
            folder.mkdir()
            settings = Settings.parse({"data_dir": str(folder / "data"), "database": database})
            medians[name] = measured(settings, folder, asked.studies, asked.rounds)
    for question in medians["SQLite"]:
        shown = "".join(f"{name} {medians[name][question]:8.1f} ms   " for name in medians)
        print(f"{question:28} {shown}")
    over = [q for found in medians.values() for q, ms in found.items() if ms > TARGET_MS]
    print(f"over {TARGET_MS} ms: {', '.join(over) or 'none'}")
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    about = {"date": today, "studies": asked.studies, "rounds": asked.rounds, "load_before": load}
    report = {**about, "machine": machine(), "target_ms": TARGET_MS, "median_ms": medians}
    RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
