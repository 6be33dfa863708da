"""The listener as a process of its own, watched from outside."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import upgrade
from tests.support.pacs import await_port, free_port


@dataclass(frozen=True)
class ListenerProcess:
    """A running `appliance listen`, and what it holds of the machine."""

    settings: Settings
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return self.settings.dicom.port

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def rss_kib(self) -> int:
        return self._status("VmRSS")

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208 - a count

    def _status(self, key: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


@contextmanager
def listener_process(folder: Path, **dicom: object) -> Iterator[ListenerProcess]:
    """Run `appliance listen` in a folder for as long as the block; `dicom` are its settings."""
    document = {
        "data_dir": str(folder / "data"),
        "dicom": {"port": free_port(), "min_free_bytes": 0, **dicom},
    }
    file = folder / "settings.toml"
    file.write_text(to_toml(document))
    settings = Settings.load(file)
    upgrade(settings)
    with (folder / "listener.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "listen"],
            env={**os.environ, SETTINGS_VARIABLE: str(file)},
            stdout=log,
            stderr=log,
        )
    try:
        await_port(settings.dicom.port)
        yield ListenerProcess(settings, process)
    finally:
        process.terminate()
        process.wait(60)
