"""A worker whose analysis does nothing, slowly, for tests that kill it.

celery --app tests.appliance.pretend:app worker --queues gpu
"""

import os
import time
from pathlib import Path

from appliance import lifecycle, logs, priority, queue
from appliance.config import Settings
from tests.appliance import world

LEASE_S = 1.0

settings = Settings.load()
app = queue.make_app(settings)
logs.configure("pretend")


def hangs(settings: Settings) -> Path:
    """While this file is there, analyses do not end."""
    return settings.data_dir / "hangs"


def pid_of(settings: Settings, attempt: int) -> Path:
    """Where try number `attempt` says which process it runs in."""
    return settings.data_dir / f"pid-{attempt}"


@app.task(name="pipelines.analyse_study", shared=False)
def analyse_study(study_id: int) -> None:
    database = queue.current().database
    claim = priority.claim_next(
        database,
        study_id,
        owner="pretend",
        lease_s=LEASE_S,
        in_a_row=settings.priority.in_a_row,
    )
    if claim is None:
        return
    with lifecycle.keep(database, claim, lease_s=LEASE_S):
        pid_of(settings, claim.attempt).write_text(str(os.getpid()))
        while hangs(settings).exists():
            time.sleep(0.05)
    lifecycle.finish(database, claim, world.result(f"analyses/{claim.study_id}/{claim.attempt}"))
