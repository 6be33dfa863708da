"""What `celery --app appliance.worker` loads: this process's settings, application and logging."""

import os
from typing import Any

from celery.signals import setup_logging, worker_process_init

from appliance import logs, queue, supervisor
from appliance.config import Settings

settings = Settings.load()
app = queue.make_app(settings)


@setup_logging.connect
def configure_logging(**_arguments: Any) -> None:
    """Log as every other process does; being connected keeps Celery from its own way."""
    logs.configure(os.environ.get(supervisor.NAME_VARIABLE, "worker"))


@worker_process_init.connect
def follow_parent(**_arguments: Any) -> None:
    """End a pool process with its worker, also when that is killed in the middle of a task."""
    supervisor.die_with_parent()
