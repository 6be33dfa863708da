"""A worker whose broker gives a message to somebody else after a second (F5).

What it was given that somebody else has not acknowledged is a line of `redelivered`: the task's
name.
"""

from typing import Any, Final

from celery.signals import task_prerun

from appliance.config import Settings
from appliance.worker import app

NAME: Final = "redelivered"

app.conf.update(
    broker_transport_options={
        **app.conf.broker_transport_options,
        "visibility_timeout": 1,
        "unacked_restore_interval": 1,
    }
)


def redelivered(settings: Settings) -> list[str]:
    """The names of the tasks that were delivered again, in order."""
    path = settings.run_dir / NAME
    return path.read_text().split() if path.exists() else []


@task_prerun.connect
def note(task: Any, **_arguments: Any) -> None:
    """Note a task that came again."""
    if (task.request.delivery_info or {}).get("redelivered"):
        with (app.settings.run_dir / NAME).open("a") as file:
            file.write(f"{task.name}\n")
