"""Gunicorn's settings: threads, because an event stream holds one for as long as a page is open."""

import os
from typing import Any

from appliance import logs, supervisor
from appliance.config import PROCESS_VARIABLE

worker_class = "gthread"
workers = 1
threads = 32
timeout = 60
graceful_timeout = 3
keepalive = 5
accesslog = None


def post_fork(_server: Any, _worker: Any) -> None:
    """End a worker with its master, and log as every other process does."""
    supervisor.die_with_parent()
    logs.configure(os.environ.get(PROCESS_VARIABLE, "web"))
