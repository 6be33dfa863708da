"""Celery's programs on this test's settings."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from appliance.config import SETTINGS_VARIABLE
from appliance.queue import DICOM

WORKER = ("worker", "--queues", DICOM, "--concurrency", "2", "--include", "dicom_node.tasks")
BEAT = ("beat", "--scheduler", "celery.beat:Scheduler", "--pidfile", "")


@contextmanager
def running(
    settings_file: Path,
    *arguments: str,
    app: str = "appliance.worker:app",
    log: IO[bytes] | None = None,
) -> Iterator[None]:
    """One of Celery's programs, ended with its pool by the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "--app", app, *arguments],
        env={**os.environ, SETTINGS_VARIABLE: str(settings_file)},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
