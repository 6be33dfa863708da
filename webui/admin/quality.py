"""Quality over time: agreement, what comes in and what comes out, week by week."""

from typing import Final

from flask import Blueprint, render_template

from appliance import doctor, quality_report
from appliance.control_limits import LEAST_CASES
from appliance.database import utc_now
from appliance.reviews import Reason
from webui.language import gettext as _
from webui.resources import resources
from webui.reviews import REASON_WORDS

blueprint = Blueprint("quality", __name__)

SHOWN: Final = 8


@blueprint.get("/admin/quality")
def index() -> str:
    """The page."""
    weights = doctor.weights_dir(resources().settings)
    with resources().database.snapshot() as db:
        report = quality_report.make(db, weights, now=utc_now())
    return render_template(
        "admin/quality.html",
        report=report,
        reasons=[(_(REASON_WORDS[Reason(name)]), count) for name, count in report.reasons],
        kernels=report.kernels[:SHOWN],
        recent_weeks=quality_report.RECENT_WEEKS,
        least=LEAST_CASES,
        shown=SHOWN,
    )
