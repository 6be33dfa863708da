"""How much room there is, for how long, and what keeps studies from being removed."""

from flask import Blueprint, render_template

from appliance import retention, space
from appliance.database import utc_now
from webui.resources import resources

blueprint = Blueprint("storage", __name__)


@blueprint.get("/admin/storage")
def index() -> str:
    """The page."""
    settings, database = resources().settings, resources().database
    with database.snapshot() as db:
        room = space.measure(db, settings, now=utc_now())
    held = retention.held(database, settings)
    return render_template(
        "admin/storage.html",
        room=room,
        free_to_go=held.pop(""),
        held=[(reason, count) for reason, count in held.items() if count],
        retention=settings.retention,
        data_dir=settings.data_dir,
    )
