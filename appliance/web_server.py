"""Gunicorn's settings: threads, because an event stream holds one for as long as a page is open.

The demo runs it as well: one web server to know.
"""

import os
from typing import Any

from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from appliance import logs, supervisor
from appliance.config import PROCESS_VARIABLE


class OneLog(Logger):  # type: ignore[misc]
    """Leaves Gunicorn's messages to our own logging."""

    def setup(self, _cfg: Any) -> None:
        logs.configure(os.environ.get(PROCESS_VARIABLE, "web"))


worker_class = "gthread"
workers = 1
# More than event streams, uploads and STOW-RS together hold for long: the rest is for pages.
threads = 64
timeout = 60
graceful_timeout = 3
keepalive = 5
accesslog = None
logger_class = OneLog
control_socket_disable = True


def post_fork(_server: Any, _worker: Any) -> None:
    """End a worker with its master, also when that is killed."""
    supervisor.die_with_parent()
