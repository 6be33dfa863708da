"""The whole appliance as `appliance serve` runs it, on free ports in a temporary folder."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance import studies, supervisor
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import Database, open_database
from appliance.lifecycle import State
from appliance.studies import WorklistRow
from tests.support.pacs import free_port

FINAL = (State.READY, State.REJECTED, State.FAILED)


@dataclass(frozen=True)
class Served:
    """A running appliance."""

    settings: Settings
    settings_file: Path
    database: Database

    @property
    def environment(self) -> dict[str, str]:
        """For the console commands that shall speak to it."""
        return {**os.environ, SETTINGS_VARIABLE: str(self.settings_file)}

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `appliance ARGUMENTS` against it."""
        command = [sys.executable, "-m", "appliance.cli", *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )

    def ended(self, study_uid: str, *, timeout_s: float = 240.0) -> WorklistRow:
        """The study's row once it has come to an end, whichever; of several the one with most."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self.database.snapshot() as db:
                under_uid = studies.named(db, study_uid)
                rows = [studies.worklist_row(db, study.id) for study in under_uid]
            if rows and all(row.state in FINAL for row in rows):
                return max(rows, key=lambda row: row.instance_count)
            time.sleep(0.3)
        raise TimeoutError(f"the study is {[row.state for row in rows] or 'unknown'}")


@contextmanager
def served(folder: Path, **tables: object) -> Iterator[Served]:
    """Start the appliance, wait until it is ready for studies, stop it in good order."""
    settings_file = folder / "settings.toml"
    document = {
        "data_dir": str(folder / "data"),
        "receive": {"quiet_s": 2.0},
        "dicom": {"port": free_port(), "min_free_bytes": 0},
        "web": {"port": free_port()},
        **tables,
    }
    settings_file.write_text(to_toml(document))
    settings = Settings.load(settings_file)
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "serve"],
            env={**os.environ, SETTINGS_VARIABLE: str(settings_file)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _until_ready(settings, process)
        database = open_database(settings)
        yield Served(settings, settings_file, database)
        database.dispose()
    finally:
        process.terminate()
        process.wait(60)


def _until_ready(settings: Settings, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        report = supervisor.read_report(settings)
        if report is not None and report.ready:
            return
        if process.poll() is not None:
            raise RuntimeError(f"appliance serve ended with {process.returncode}")
        time.sleep(0.2)
    raise TimeoutError("appliance serve did not get ready")
