"""Regions that people mark: taken, measured and kept before the answer, and given out again.

They travel as the viewer's masks do: one bit for each voxel of a box (static/viewer/masks.js).
"""

from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, Response, abort, jsonify, make_response, request, url_for
from flask_login import current_user

from appliance import accounts, marks, reviews, studies
from appliance.errors import ReviewForbiddenError
from appliance.tables import Analysis, MarkedRegion
from pipelines.errors import RegionError
from pipelines.marks import Region, measure
from webui.auth import csrf
from webui.fixed_texts import told
from webui.language import marked
from webui.resources import resources
from webui.results import Result, open_result
from webui.viewer import ENCODINGS, IMMUTABLE

NO_BOX: Final = marked("The browser sent no region that could be understood: reload the page.")

blueprint = Blueprint("marks", __name__)


@blueprint.post("/api/analyses/<int:analysis_id>/marks")
def keep(analysis_id: int) -> Response:
    """Keep a region and say what was measured of it; 403 and 400 say in a sentence why not."""
    with resources().database.snapshot() as db:
        analysis = studies.analysis(db, analysis_id) or abort(HTTPStatus.NOT_FOUND)
    result = result_of(analysis)
    nx, ny, nz = result.facts["size"]
    # As many bits as the volume has voxels; only then may the form token's check read the request.
    request.max_content_length = -(-nx * ny * nz // 8)
    csrf.protect()
    try:
        region = Region.unpacked(_box(), request.get_data(), result.facts["size"])
        with resources().database.snapshot() as db:
            account = accounts.find(db, current_user.account_id) or abort(HTTPStatus.UNAUTHORIZED)
        reviews.require_reviewer(account)
        measures = asdict(measure(region, result.folder, result.facts))
        with resources().database.transaction() as db:
            row = marks.keep(
                db,
                analysis_id=analysis_id,
                account_id=account.id,
                digest=region.digest,
                box=region.box,
                bits=region.bits,
                measures=measures,
            )
            db.flush()
            kept = described(row)
    except ReviewForbiddenError as error:
        return make_response(jsonify(error=told(str(error))), HTTPStatus.FORBIDDEN)
    except RegionError as error:
        return make_response(jsonify(error=told(str(error))), HTTPStatus.BAD_REQUEST)
    return make_response(jsonify(kept), HTTPStatus.CREATED)


# It checks the token itself.
csrf.exempt(keep)


@blueprint.get("/api/analyses/<int:analysis_id>/marks/<digest>")
def piece(analysis_id: int, digest: str) -> Response:
    """The bits of a region."""
    with resources().database.snapshot() as db:
        row = marks.regions(db, analysis_id, [digest]).get(digest)
    if row is None:
        abort(HTTPStatus.NOT_FOUND)
    encoding = request.accept_encodings.best_match(ENCODINGS, default="identity")
    response = Response(ENCODINGS[encoding](row.bits), mimetype="application/octet-stream")
    response.headers["Content-Encoding"] = encoding
    response.headers["Cache-Control"] = IMMUTABLE
    response.vary.add("Accept-Encoding")
    return response


def described(row: MarkedRegion) -> dict[str, Any]:
    """A region as the viewer knows lesions (static/viewer/edit_regions.js)."""
    shown = ("side", "volume_ml", "diameter_mm", "mean_hu")
    _, y, x = row.measures["centroid"]
    return {
        **{name: row.measures[name] for name in shown},
        "digest": row.digest,
        "by": row.account.name,
        "first": row.box[:3],
        "last": [end - 1 for end in row.box[3:]],
        "look_at": [round(x), round(y), row.measures["key_slice"]],
        "mask_url": url_for("marks.piece", analysis_id=row.analysis_id, digest=row.digest),
    }


def region_of(row: MarkedRegion) -> Region:
    """A kept region as it is computed with."""
    return Region.unpacked(row.box, marks.bits_of(row), row.box[3:])


def result_of(analysis: Analysis) -> Result:
    """The files of an analysis."""
    return open_result(resources().settings.data_dir / analysis.folder)


def lung_pieces(analysis_id: int, pieces: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The masks of the lungs, inside which a region grows."""
    return [
        {
            "mask_url": url_for("viewer.piece", analysis_id=analysis_id, name=piece["file"]),
            "first": piece["box"][:3],
            "last": [end - 1 for end in piece["box"][3:]],
        }
        for piece in pieces
    ]


def _box() -> list[int]:
    """The corners in the address. Raises RegionError."""
    try:
        return [int(number) for number in request.args.get("box", "").split(",")]
    except ValueError as error:
        raise RegionError(NO_BOX) from error
