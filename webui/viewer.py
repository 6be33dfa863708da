"""One study: the viewer with its result, or a page that follows it until there is one.

The pixel data travels as `pipelines.presentation` stored it, lossless and compressed by zstd; a
browser without zstd gets gzip. Names carry the hash of their content: what was fetched is kept.
"""

import gzip
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import zstandard
from flask import (
    Blueprint,
    Response,
    abort,
    jsonify,
    render_template,
    request,
    url_for,
)
from flask_login import current_user

from appliance import preferences, prior_results, studies
from appliance.lifecycle import State
from appliance.tables import Analysis
from webui import display, views
from webui.fixed_texts import told
from webui.language import marked
from webui.preferences import VIEWER
from webui.resources import resources
from webui.results import Result, open_result

IMMUTABLE: Final = "private, max-age=31536000, immutable"
GZIP_LEVEL: Final = 1  # on the fly: a level more costs more time than the bytes it saves

EXPLANATIONS: Final = {
    State.RECEIVING: marked(
        "Images are still arriving. The analysis starts by itself when they stop."
    ),
    State.QUEUED: marked(
        "All images are here. The analysis starts as soon as the one before it ends."
    ),
    State.ANALYSING: marked(
        "The analysis is running. This page turns into the viewer when it is done."
    ),
    State.READY: marked("The analysis is done, but its result cannot be found."),
    State.REJECTED: marked("This study has no series that can be analysed."),
    State.FAILED: marked(
        "The analysis failed and is not tried again. An administrator can start it anew."
    ),
}

REPLACEMENT_FAILED: Final = {
    State.REJECTED: marked("They were refused as a whole, so this older result stays:"),
    State.FAILED: marked("Their analysis failed, so this older result stays:"),
}
"""What to say over a result when the analysis that should have replaced it came to nothing."""

MODULES: Final = tuple(
    sorted(
        path.name
        for path in (Path(__file__).parent / "static" / "viewer").glob("*.js")
        if path.name != "slab_worker.js"
    )
)
"""The viewer's modules, named in the page so that the browser fetches them all at once."""


def _as_stored(stored: bytes) -> bytes:
    return stored


def _as_gzip(stored: bytes) -> bytes:
    return gzip.compress(_plain(stored), GZIP_LEVEL, mtime=0)


def _plain(stored: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(stored)


ENCODINGS: Final = {"zstd": _as_stored, "gzip": _as_gzip, "identity": _plain}
"""How a stored piece is sent, the best first, by its Content-Encoding."""

blueprint = Blueprint("viewer", __name__)


@blueprint.get("/studies/<int:study_id>")
def show(study_id: int) -> str:
    """The study's current result, or how far it is."""
    with resources().database.snapshot() as db:
        analysis = studies.current_analysis(db, study_id)
    return _status_page(study_id) if analysis is None else _viewer_page(study_id, analysis)


@blueprint.get("/studies/<int:study_id>/analyses/<int:analysis_id>")
def show_version(study_id: int, analysis_id: int) -> str:
    """One result of the study, marked when a newer one superseded it."""
    analysis = _analysis(analysis_id)
    if analysis.study_id != study_id:
        abort(HTTPStatus.NOT_FOUND)
    return _viewer_page(study_id, analysis)


@blueprint.get("/api/studies/<int:study_id>")
def state(study_id: int) -> Response:
    """Where the study stands."""
    row = _study(study_id)
    return jsonify(state=row.state.value, analysis_id=row.analysis_id)


@blueprint.get("/api/analyses/<int:analysis_id>/manifest")
def manifest(analysis_id: int) -> Response:
    """Geometry, addresses and lesions in (x, y, z), as static/viewer/manifest.js describes."""
    analysis = _analysis(analysis_id)
    response = jsonify(_manifest(analysis_id, _result(analysis).facts))
    if not views.is_noted(request.args.get("view", ""), analysis_id=analysis_id):
        views.note(analysis.study_id, analysis_id=analysis_id)
    response.headers["Cache-Control"] = "private, no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response


@blueprint.get("/api/analyses/<int:analysis_id>/files/<name>")
def piece(analysis_id: int, name: str) -> Response:
    """One slab, mask or heat map; only names that the result lists are looked for on disk."""
    path = _result(_analysis(analysis_id)).files.get(name)
    if path is None:
        abort(HTTPStatus.NOT_FOUND)
    encoding = request.accept_encodings.best_match(ENCODINGS, default="identity")
    response = Response(mimetype="application/octet-stream")
    response.headers["Content-Encoding"] = encoding
    response.headers["Cache-Control"] = IMMUTABLE
    response.vary.add("Accept-Encoding")
    response.set_etag(f"{name}.{encoding}")
    if not request.if_none_match.contains(f"{name}.{encoding}"):
        stored = path.read_bytes()
        response.set_data(ENCODINGS[encoding](stored))
    response.make_conditional(request)
    return response


def _study(study_id: int) -> studies.WorklistRow:
    with resources().database.snapshot() as db:
        row = studies.worklist_row(db, study_id)
    return row or abort(HTTPStatus.NOT_FOUND)


def _analysis(analysis_id: int) -> Analysis:
    with resources().database.snapshot() as db:
        analysis = studies.analysis(db, analysis_id)
    return analysis or abort(HTTPStatus.NOT_FOUND)


def _result(analysis: Analysis) -> Result:
    return open_result(resources().settings.data_dir / analysis.folder)


def _viewer_page(study_id: int, analysis: Analysis) -> str:
    views.note(study_id, analysis_id=analysis.id)
    study = _study(study_id)
    with resources().database.snapshot() as db:
        versions = studies.analyses_of(db, study_id)
        earlier = prior_results.last(db, study_id)
        prior = earlier and studies.worklist_row(db, earlier.study_id)
        settings = preferences.get(db, current_user.account_id, VIEWER)
    result = _result(analysis)
    return render_template(
        "viewer/show.html",
        study=study,
        analysis=analysis,
        versions=versions,
        replacement_failed=REPLACEMENT_FAILED.get(study.state),
        result=result.facts,
        manifest=url_for(
            "viewer.manifest", analysis_id=analysis.id, view=views.noted_pass(analysis.id)
        ),
        prior=prior,
        preferences=settings or {},
        preferences_url=url_for("preferences.show", key=VIEWER),
        modules=MODULES,
        review=url_for("reviews.state", analysis_id=analysis.id),
        first_pieces=_first_pieces(analysis.id, result.facts),
    )


def _first_pieces(analysis_id: int, facts: Mapping[str, Any]) -> list[str]:
    """The addresses of the first lesion's slice and mask: what the reader waits for."""
    if not facts["lesions"]:
        return []
    pieces = (facts["key_slabs"][0], facts["lesions"][0]["mask"])
    return [_address(analysis_id, piece) for piece in pieces]


def _status_page(study_id: int) -> str:
    study = _study(study_id)
    views.note(study_id)
    with resources().database.snapshot() as db:
        series = studies.series_of(db, study_id)
    return render_template(
        "viewer/status.html",
        study=study,
        series=series,
        word=display.STATE_WORDS[study.state],
        explanation=EXPLANATIONS[study.state],
    )


def _manifest(analysis_id: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    def slab(piece: Mapping[str, Any]) -> dict[str, Any]:
        url = _address(analysis_id, piece)
        return {"url": url, "first": piece["first"], "count": piece["count"]}

    return {
        "size": facts["size"],
        "spacing_mm": facts["spacing_mm"],
        "image_numbers": facts["instance_numbers"],
        "key_slabs": [slab(piece) for piece in facts["key_slabs"]],
        "slabs": [slab(piece) for piece in facts["slabs"]],
        "lesions": [
            _lesion(lesion) | {"mask_url": _address(analysis_id, lesion["mask"])}
            for lesion in facts["lesions"]
        ],
        "lungs": _lungs(facts),
        "measurements_url": url_for("measurements.index", analysis_id=analysis_id),
        "heat_maps": [
            {"answer": told(heat_map["answer"]), "url": _address(analysis_id, piece)} | _ends(piece)
            for heat_map in facts.get("heat_maps", ())
            if (piece := heat_map["map"]) is not None
        ],
    }


def _lungs(facts: Mapping[str, Any]) -> dict[str, list[int]] | None:
    """The box around both lungs."""
    found = [_ends(lung) for side in ("right", "left") if (lung := facts["lungs"][side])]
    if not found:
        return None
    return {
        "first": [min(axis) for axis in zip(*(lung["first"] for lung in found), strict=True)],
        "last": [max(axis) for axis in zip(*(lung["last"] for lung in found), strict=True)],
    }


def _address(analysis_id: int, piece: Mapping[str, Any]) -> str:
    return url_for("viewer.piece", analysis_id=analysis_id, name=piece["file"])


def _lesion(lesion: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("id", "side", "volume_ml", "diameter_mm", "mean_hu", "probability")
    _, y, x = lesion["centroid"]
    return {
        **{name: lesion[name] for name in shown},
        **_ends(lesion["mask"]),
        "look_at": [round(x), round(y), lesion["key_slice"]],
    }


def _ends(piece: Mapping[str, Any]) -> dict[str, list[int]]:
    """The lowest and the highest voxel of a piece's box, both inclusive."""
    return {"first": piece["box"][:3], "last": [end - 1 for end in piece["box"][3:]]}
