"""What is wrong now and what to do about it, and how the last day was."""

import threading
import time
from typing import Final

from flask import Blueprint, current_app, render_template

from appliance import activity, doctor, quality_report, space, supervisor, worklist
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.doctor import Finding
from appliance.worklist import Stage
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

blueprint = Blueprint("overview", __name__)

SOON_DAYS: Final = 14
EXAMINED_S: Final = 15.0
EXTENSION: Final = "examination"

WHERE: Final = {
    "disk": "admin.storage.index",
    "failed studies": "admin.queues.index",
    "queue": "admin.queues.index",
    "deliveries": "admin.queues.index",
    "retrievals": "fetching.index",
}
"""The pages on which what a check found can be mended."""


STAGE_WORDS: Final = {
    Stage.WAITING: marked("Waiting"),
    Stage.RUNNING: marked("Running"),
    Stage.REVIEW: marked("To review"),
    Stage.CONFIRMED: marked("Confirmed"),
    Stage.FAILED: marked("Failed"),
    Stage.REFUSED: marked("Refused"),
}
"""As the worklist calls them."""


class Examination:
    """What is wrong, asked once in a while however many pages are open."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._lock = threading.Lock()
        self._found: tuple[list[Finding], tuple[str, ...]] = ([], ())
        self._at = float("-inf")

    def latest(self) -> tuple[list[Finding], tuple[str, ...]]:
        """What is not well, and the warnings about quality, as of `EXAMINED_S` ago at most."""
        with self._lock:
            if time.monotonic() - self._at > EXAMINED_S:
                found = doctor.examine(self._settings, quickly=True)
                wrong = [each for each in found if not each.well]
                weights = doctor.weights_dir(self._settings)
                with self._database.snapshot() as db:
                    report = quality_report.make(db, weights, now=utc_now())
                self._found = wrong, report.warnings
                self._at = time.monotonic()
            return self._found


@blueprint.get("/admin")
def index() -> str:
    """The page."""
    settings, now = resources().settings, utc_now()
    examination: Examination = current_app.extensions.setdefault(
        EXTENSION, Examination(settings, resources().database)
    )
    wrong, quality = examination.latest()
    with resources().database.snapshot() as db:
        room = space.measure(db, settings, now=now)
        counts = worklist.counts(db)
        return render_template(
            "admin/overview.html",
            wrong=wrong,
            where=WHERE,
            room=room,
            soon_full=room.days_left is not None and room.days_left < SOON_DAYS,
            quality=quality,
            counts=[(_(STAGE_WORDS[stage]), count) for stage, count in counts.items()],
            hours=activity.hours(db, now=now),
            report=supervisor.read_report(settings),
            now=now,
        )
