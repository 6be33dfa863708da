"""The Celery application: two queues, and settings under which a message may be lost or come twice.

`task_acks_late` keeps a message until its task is done; alone it still acknowledges when the
process is killed, hence `task_reject_on_worker_lost`, which in turn would run a task that kills its
worker for ever: the count of tries is ours, in `Study.attempts`.

The visibility timeout is above the longest task, or Redis would deliver a running task again.

A worker that loses the broker goes on with its analysis instead of cancelling it
(`worker_cancel_long_running_tasks_on_connection_loss`): its right to the study is the lease in the
database, which it keeps renewing. The message that comes again afterwards finds nothing to claim.
"""

import os
from collections.abc import Collection
from fnmatch import fnmatchcase
from importlib import metadata
from typing import Final, cast

import structlog
from celery import Celery, current_app
from kombu import Queue as BrokerQueue
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from appliance import broker
from appliance.config import Settings
from appliance.database import Database, open_database

log = structlog.get_logger()

GPU: Final = "gpu"
DICOM: Final = "dicom"
QUEUES: Final = (GPU, DICOM)

ROUTES: Final = {"pipelines.*": {"queue": GPU}, "*": {"queue": DICOM}}

TASK_MODULES: Final = "appliance.tasks"
"""The entry-point group in which the other packages name their task modules."""

OWN_TASKS: Final = ("appliance.maintenance", "appliance.retention", "appliance.quality_watch")
"""The core's own tasks; every worker knows them."""

VISIBILITY_MARGIN_S: Final = 600
ORPHANS_EVERY_S: Final = 900.0
RETENTION_EVERY_S: Final = 600.0
UNNAMED_EVERY_S: Final = 21600.0
RETRIEVE_EVERY_S: Final = 10.0
ASKED_EVERY_S: Final = 2.0  # a person waits
DELIVER_EVERY_S: Final = 5.0
COMMITMENTS_EVERY_S: Final = 10.0
QUALITY_EVERY_S: Final = 60.0


class Application(Celery):
    """Celery with the settings and the database of this process."""

    settings: Settings
    _database: tuple[int, Database] | None = None

    @property
    def database(self) -> Database:
        """This process's own: a connection must not be shared across the fork of a pool."""
        if self._database is None or self._database[0] != os.getpid():
            self._database = (os.getpid(), open_database(self.settings))
        return self._database[1]


class Queue:
    """What rings; a broker that is away is no reason to fail, since the sweep rings again."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def send(self, name: str, study_id: int) -> bool:
        """Whether the broker took a message that says no more than: look at this study."""
        try:
            self._app.send_task(name, args=(study_id,), retry=False, ignore_result=True)
        except (KombuError, OperationalError, RedisError, OSError):
            log.warning("queue.not_rung", task=name, study_id=study_id)
            return False
        return True


def make_app(settings: Settings) -> Application:
    """The Celery application of this process; becomes the current one."""
    app = Application("appliance", broker=broker.url_of(settings), include=OWN_TASKS)
    app.settings = settings
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_queues=[BrokerQueue(name) for name in QUEUES],
        task_default_queue=DICOM,
        task_create_missing_queues=False,
        task_routes=ROUTES,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_time_limit=settings.lifecycle.task_time_limit_s,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_transport_options={
            "visibility_timeout": settings.lifecycle.task_time_limit_s + VISIBILITY_MARGIN_S,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "health_check_interval": 10,
            "socket_connect_timeout": 5,
            "socket_timeout": 10,
            "connect_retries_timeout": 1,
            "retry_on_timeout": True,
        },
        beat_schedule=_schedule(settings),
    )
    return app


def current() -> Application:
    """The application whose task is running."""
    return cast("Application", current_app)  # a proxy of it


def queue_of(task: str) -> str:
    """The queue that the tasks of this name or module go to."""
    for pattern, route in ROUTES.items():
        if fnmatchcase(task, pattern):
            return route["queue"]
    return DICOM


def task_modules(queues: Collection[str]) -> list[str]:
    """The other packages' modules with tasks for these queues, by name: the core imports none.

    Only a worker of queue `gpu` loads the science; the others stay small.
    """
    named = [entry.value for entry in metadata.entry_points(group=TASK_MODULES)]
    return [name for name in named if queue_of(name) in queues]


def _schedule(settings: Settings) -> dict[str, dict[str, object]]:
    """The periodic tasks; each message expires before it could pile up behind a dead worker."""
    quiet_s = [settings.receive.quiet_s]
    if settings.priority.quiet_s is not None:
        quiet_s.append(settings.priority.quiet_s)
    closing_s = min(2.0, max(0.5, min(quiet_s) / 5))
    sweep_s = settings.lifecycle.sweep_s
    return {
        "close quiet studies": {
            "task": "appliance.close_quiet_studies",
            "schedule": closing_s,
            "options": {"expires": 5 * closing_s},
        },
        "sweep": {
            "task": "appliance.sweep",
            "schedule": sweep_s,
            "options": {"expires": 5 * sweep_s},
        },
        "remove orphans": {
            "task": "appliance.remove_orphans",
            "schedule": ORPHANS_EVERY_S,
            "options": {"expires": ORPHANS_EVERY_S},
        },
        "retention": {
            "task": "appliance.retention",
            "schedule": RETENTION_EVERY_S,
            "options": {"expires": RETENTION_EVERY_S},
        },
        "discard unnamed": {
            "task": "appliance.discard_unnamed",
            "schedule": UNNAMED_EVERY_S,
            "options": {"expires": UNNAMED_EVERY_S},
        },
        "answer commitments": {
            "task": "dicom_node.answer_commitments",
            "schedule": COMMITMENTS_EVERY_S,
            "options": {"expires": COMMITMENTS_EVERY_S},
        },
        **_retrieve_schedule(settings),
        # Also without a node to ask: what the rules say is asked as well.
        "answer queries": {
            "task": "dicom_node.answer_queries",
            "schedule": ASKED_EVERY_S,
            "options": {"expires": 5 * ASKED_EVERY_S},
        },
        "record quality": {
            "task": "appliance.record_quality",
            "schedule": QUALITY_EVERY_S,
            "options": {"expires": QUALITY_EVERY_S},
        },
        # Also without rules: what ends now is not to be sent by a rule that is made later.
        "deliver waiting": {
            "task": "dicom_node.deliver_waiting",
            "schedule": DELIVER_EVERY_S,
            "options": {"expires": DELIVER_EVERY_S},
        },
        **{
            f"hear {queue}": {
                "task": "appliance.hear",
                "schedule": sweep_s,
                "options": {"queue": queue, "expires": sweep_s},
            }
            for queue in QUEUES
        },
    }


def _retrieve_schedule(settings: Settings) -> dict[str, dict[str, object]]:
    """What asks other nodes for studies, where the settings want it."""
    if not settings.asks_others:
        return {}
    standing = {
        f"standing query {number}": {
            "task": "dicom_node.run_standing_query",
            "args": (number,),
            "schedule": query.every_s,
            "options": {"expires": query.every_s},
        }
        for number, query in enumerate(settings.retrieve.standing_queries)
    }
    waiting = {
        "task": "dicom_node.retrieve_waiting",
        "schedule": RETRIEVE_EVERY_S,
        "options": {"expires": RETRIEVE_EVERY_S},
    }
    return {**standing, "retrieve waiting": waiting}
