"""What `celery --app appliance.worker` loads: this process's settings, application and logging."""

import os
from importlib import import_module
from typing import Any

from celery.signals import celeryd_init, setup_logging, worker_process_init
from pydicom.config import IGNORE
from pydicom.config import settings as pydicom_settings

from appliance import logs, queue, supervisor
from appliance.config import PROCESS_VARIABLE, Settings

settings = Settings.load()
app = queue.make_app(settings)


@setup_logging.connect
def configure_logging(**_arguments: Any) -> None:
    """Log as every other process does; being connected keeps Celery from its own way."""
    logs.configure(os.environ.get(PROCESS_VARIABLE, "worker"))


@celeryd_init.connect
def load_tasks(options: dict[str, Any], **_arguments: Any) -> None:
    """Load the tasks of the queues that this worker was started for.

    pydicom's warnings about illegal values quote them, on the standard error that is our log.
    """
    pydicom_settings.reading_validation_mode = IGNORE
    pydicom_settings.writing_validation_mode = IGNORE
    named = options.get("queues") or list(queue.QUEUES)
    for module in queue.task_modules(named.split(",") if isinstance(named, str) else named):
        import_module(module)


@worker_process_init.connect
def follow_parent(**_arguments: Any) -> None:
    """End a pool process with its worker, also when that is killed in the middle of a task."""
    supervisor.die_with_parent()
