"""Gunicorn's settings: threads, because an event stream holds one for as long as a page is open."""

import os
from typing import Any

from appliance import logs, supervisor

worker_class = "gthread"
workers = 1
threads = 32
timeout = 60
graceful_timeout = 3
keepalive = 5
accesslog = None
# A worker's heartbeat file must not wait for a disk.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None


def post_fork(_server: Any, _worker: Any) -> None:
    """End a worker with its master, and log as every other process does."""
    supervisor.die_with_parent()
    logs.configure(os.environ.get(supervisor.NAME_VARIABLE, "web"))
