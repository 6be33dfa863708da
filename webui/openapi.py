"""``/api/openapi.json``: the JSON API that the pages use, as OpenAPI 3.1.

Paths, methods and parameters of the path are read from the application's own routes, summaries from
the docstrings of their views. What cannot be read there, `DESCRIBED` says: a row for each view. The
tests hold it against the routes and against real answers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

from flask import Blueprint, Flask, Response, current_app, jsonify
from werkzeug.routing import Rule

from appliance import measurements
from appliance.lifecycle import State
from appliance.measurements import Kind
from appliance.retrievals import RetrievalState, Why
from appliance.reviews import Sign
from appliance.worklist import Mine, Order, Outcome, Rank, Stage
from webui import permissions, preferences, worklist_address

PREFIX: Final = "/api/"
CONVERTERS: Final = {"int": {"type": "integer", "minimum": 0}, "default": {"type": "string"}}

SAFE: Final = frozenset({"GET"})
"""Methods that change nothing, and so need no form token."""
FORM_TOKEN: Final = "X-CSRFToken"  # noqa: S105 - a header's name

Schema = Mapping[str, Any]

TEXT: Final[Schema] = {"type": "string"}
MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
YES_OR_NO: Final[Schema] = {"type": "boolean"}
MAYBE: Final[Schema] = {"type": ["boolean", "null"]}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
SECONDS: Final[Schema] = {"type": "number", "minimum": 0}
MAYBE_NUMBER: Final[Schema] = {"type": ["number", "null"]}
MOMENT: Final[Schema] = {"type": "string", "format": "date-time"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _choice(values: Iterable[str]) -> Schema:
    return {"enum": list(values)}


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a route's rule and docstring do not say.

    Attributes:
        answer: Of a success, None for no content; `media` says of what type.
        status: Of a success.
        path: Parameters of the path by name, where more is known of them than their converter.
        query: Parameters of the query by name.
        headers: That must be sent, by name.
        body: What is sent, by its media type.
        refusals: Further statuses, each with a JSON object that says why.
    """

    answer: Schema | None
    media: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK
    path: Mapping[str, Schema] = field(default_factory=dict)
    query: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)
    body: tuple[str, Schema] | None = None
    refusals: tuple[HTTPStatus, ...] = ()


DONE: Final = Described(answer=None, status=HTTPStatus.NO_CONTENT)
FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"

POINT: Final[Schema] = {"type": "array", "items": NUMBER, "minItems": 3, "maxItems": 3}
VOXEL: Final[Schema] = {"type": "array", "items": COUNT, "minItems": 3, "maxItems": 3}
VIEW: Final[Mapping[str, Schema]] = {
    **dict.fromkeys(worklist_address.KEYS, TEXT),
    "state": _choice(Stage),
    "period": _choice((*worklist_address.PERIODS, worklist_address.DATES)),
    "from": {"type": "string", "format": "date"},
    "to": {"type": "string", "format": "date"},
    "result": _choice(Outcome),
    "mine": _choice(Mine),
    "order": _choice(f"{turned}{order}" for order in Order for turned in ("", "-")),
}
"""The worklist's filters, search and order."""

STUDY: Final[Mapping[str, Schema]] = {
    "study_id": COUNT,
    "url": TEXT,
    "description": TEXT,
    "study_date": TEXT,
    "state": _choice(State),
    "state_word": TEXT,
    "has_result": YES_OR_NO,
    "probability": MAYBE_NUMBER,
    "positive": MAYBE,
    "lesion_count": _or_null(COUNT),
    "lesion_volume_ml": MAYBE_NUMBER,
    "review": _or_null(
        _object(by=TEXT, at=MOMENT, positive=YES_OR_NO, overridden=YES_OR_NO, lesion_count=COUNT)
    ),
}
"""What is told of a study wherever it is named."""

WORKLIST_ROW: Final = _object(
    **STUDY,
    rank=_choice(rank.name.lower() for rank in Rank),
    earlier=COUNT,
    later=COUNT,
    others_url=TEXT,
    patient=TEXT,
    patient_id=TEXT,
    birth_date=TEXT,
    sex=TEXT,
    accession_number=TEXT,
    study_time=TEXT,
    source_ae=TEXT,
    urgent=YES_OR_NO,
    priority_reason=MAYBE_TEXT,
    priority_url=MAYBE_TEXT,
    retry_url=MAYBE_TEXT,
    arrived_at=MOMENT,
    reason=MAYBE_TEXT,
    images=COUNT,
    conflicts=COUNT,
    shares_uid=YES_OR_NO,
    step=MAYBE_TEXT,
    step_done=COUNT,
    step_total=COUNT,
    stale=YES_OR_NO,
    waits_for_review=YES_OR_NO,
    refused_series=_list(_object(series=TEXT, images=COUNT, reason=MAYBE_TEXT)),
)
CHOICES: Final = _list(_object(value=TEXT, text=TEXT))
REGION: Final = _object(
    digest=TEXT,
    by=TEXT,
    side=TEXT,
    volume_ml=NUMBER,
    diameter_mm=NUMBER,
    mean_hu=NUMBER,
    mask_url=TEXT,
    first=VOXEL,
    last=VOXEL,
    look_at=VOXEL,
)
"""What a person outlined, measured; `first` and `last` are corners of its box."""
JUDGED: Final[Mapping[str, Schema]] = {
    "marks": _map(_object(digest=TEXT, grown=YES_OR_NO)),
    "signs": _map(_list(_choice(Sign))),
}
"""Outlines and signs by the number of their lesion."""
DRAFT: Final = _object(revision=COUNT, judged={"type": "object", "required": ["marks"]})
REVIEW: Final = _object(
    version=COUNT,
    history=_list(
        _object(
            version=COUNT,
            reviewer=TEXT,
            at=MOMENT,
            positive=YES_OR_NO,
            reason=MAYBE_TEXT,
            reason_text=TEXT,
            rejected=_list(COUNT),
            comment=TEXT,
            **JUDGED,
        )
    ),
    draft=_or_null(DRAFT),
    regions=_map(REGION),
    lungs=_list(_object(mask_url=TEXT, first=VOXEL, last=VOXEL)),
    you=TEXT,
    may_confirm=YES_OR_NO,
    problem=MAYBE_TEXT,
    lesion_count=COUNT,
    reasons=_map(TEXT),
    signs=_map(TEXT),
    csrf_token=TEXT,
)
JUDGEMENT: Final = _object(
    seen=COUNT,
    positive=YES_OR_NO,
    lesions=_map(YES_OR_NO),
    reason=MAYBE_TEXT,
    reason_text=TEXT,
    comment=TEXT,
    **JUDGED,
)
PIECE: Final = _object(url=TEXT, first=COUNT, count=COUNT)
MANIFEST: Final = _object(
    size=VOXEL,
    spacing_mm=POINT,
    image_numbers=_list({"type": ["integer", "null"]}),
    key_slabs=_list(PIECE),
    slabs=_list(PIECE),
    lesions=_list(
        _object(
            id=COUNT,
            side=TEXT,
            volume_ml=NUMBER,
            diameter_mm=NUMBER,
            mean_hu=NUMBER,
            probability=MAYBE_NUMBER,
            mask_url=TEXT,
            first=VOXEL,
            last=VOXEL,
            look_at=VOXEL,
        )
    ),
    lungs=_or_null(_object(first=VOXEL, last=VOXEL)),
    measurements_url=TEXT,
    heat_maps=_list(_object(answer=TEXT, url=TEXT, first=VOXEL, last=VOXEL)),
)
MEASURED: Final[Mapping[str, Schema]] = {
    "kind": _choice(Kind),
    "plane": _choice(sorted(measurements.PLANES)),
    "points": _list(POINT),
    "text": {"type": "string", "maxLength": measurements.TEXT_LIMIT},
    "values": {
        "type": "object",
        "properties": dict.fromkeys(sorted(measurements.VALUES), NUMBER),
        "additionalProperties": False,
    },
}
MEASUREMENT_KEY: Final[Mapping[str, Schema]] = {
    "key": {"type": "string", "pattern": f"^{measurements.KEY.pattern}$"}
}
PREFERENCES: Final[Mapping[str, Schema]] = {"key": _choice(sorted(preferences.KEYS))}
FETCHING: Final = _object(
    query=_or_null(
        {
            "type": "object",
            "required": ["state", "problem"],
            "properties": {
                "state": _choice(RetrievalState),
                "problem": MAYBE_TEXT,
                "destination": TEXT,
                "cut_off": YES_OR_NO,
                "studies": _list(
                    _object(
                        fetch_url=TEXT,
                        patient=TEXT,
                        patient_id=TEXT,
                        birth_date=TEXT,
                        description=TEXT,
                        accession_number=TEXT,
                        study_date=TEXT,
                        study_time=TEXT,
                        modalities=TEXT,
                        images=COUNT,
                    )
                ),
            },
        }
    ),
    retrievals=_list(
        _object(
            retrieval_id=COUNT,
            destination=TEXT,
            study_uid=TEXT,
            why=_choice(Why),
            state=_choice(RetrievalState),
            state_word=TEXT,
            problem=MAYBE_TEXT,
            attempts=COUNT,
            images=COUNT,
            expected=COUNT,
            patients=_list(_object(name=TEXT, url=TEXT)),
            retry_url=MAYBE_TEXT,
            give_up_url=MAYBE_TEXT,
        )
    ),
)
ANNOUNCED: Final[Mapping[str, Schema]] = {
    "name": TEXT,
    "size": COUNT,
    "modified": {"type": "integer"},
}
UPLOAD: Final[Mapping[str, Schema]] = {
    "name": TEXT,
    "url": TEXT,
    "take_url": TEXT,
    "files": _list(_object(**ANNOUNCED, offset=COUNT, url=TEXT)),
    "outcome": _or_null(
        _object(
            new=COUNT,
            duplicate=COUNT,
            conflict=COUNT,
            left_out=_list(_object(name=TEXT, reason=TEXT)),
            left_out_count=COUNT,
            studies=_list(
                _object(url=TEXT, patient=TEXT, patient_id=TEXT, study_date=TEXT, description=TEXT)
            ),
        )
    ),
}

DESCRIBED: Final[Mapping[str, Described]] = {
    "auth.state GET": Described(
        answer=_object(account_id=_or_null(COUNT), seconds_left=SECONDS, csrf_token=TEXT)
    ),
    "auth.unlock POST": Described(
        answer=_object(csrf_token=TEXT, seconds_left=SECONDS),
        body=(JSON, _object(account_id=COUNT, password=TEXT)),
        refusals=(HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS),
    ),
    "auth.active POST": DONE,
    "worklist.rows GET": Described(
        answer=_object(
            marker=TEXT,
            page=COUNT,
            pages=COUNT,
            total=COUNT,
            newest=COUNT,
            arrived=COUNT,
            rows=_list(WORKLIST_ROW),
        ),
        query={**VIEW, "page": COUNT, "since": COUNT},
        refusals=(HTTPStatus.BAD_REQUEST,),
    ),
    "worklist.next_to_review GET": Described(
        answer=_object(study_id=_or_null(COUNT), url=MAYBE_TEXT),
        query={**VIEW, "after": COUNT},
        refusals=(HTTPStatus.BAD_REQUEST,),
    ),
    "worklist.choices GET": Described(
        answer=_object(source=CHOICES, station=CHOICES, device=CHOICES)
    ),
    "worklist.keep_view POST": replace(DONE, body=(FORM, _object(address=TEXT))),
    "worklist.others GET": Described(answer=_object(studies=_list(_object(**STUDY)))),
    "worklist.live GET": Described(
        answer=TEXT, media="text/event-stream", refusals=(HTTPStatus.NO_CONTENT,)
    ),
    "worklist.set_priority POST": replace(
        DONE,
        body=(FORM, _object(urgent=_choice(("true", "false")))),
        refusals=(HTTPStatus.NOT_FOUND,),
    ),
    "worklist.retry POST": replace(DONE, refusals=(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)),
    "viewer.state GET": Described(
        answer=_object(state=_choice(State), analysis_id=_or_null(COUNT)),
        refusals=(HTTPStatus.NOT_FOUND,),
    ),
    "viewer.manifest GET": Described(
        answer=MANIFEST, query={"view": TEXT}, refusals=(HTTPStatus.NOT_FOUND,)
    ),
    "viewer.piece GET": Described(
        answer={"type": "string", "format": "binary"},
        media="application/octet-stream",
        refusals=(HTTPStatus.NOT_FOUND,),
    ),
    "measurements.index GET": Described(
        answer=_object(measurements=_list(_object(key=TEXT, **MEASURED)), csrf_token=TEXT),
        refusals=(HTTPStatus.NOT_FOUND,),
    ),
    "measurements.save PUT": replace(
        DONE,
        path=MEASUREMENT_KEY,
        body=(JSON, _object(**MEASURED)),
        refusals=(HTTPStatus.NOT_FOUND,),
    ),
    "measurements.remove DELETE": replace(
        DONE, path=MEASUREMENT_KEY, refusals=(HTTPStatus.NOT_FOUND,)
    ),
    "preferences.show GET": Described(
        answer=_object(value={"type": ["object", "null"]}, csrf_token=TEXT),
        path=PREFERENCES,
        refusals=(HTTPStatus.NOT_FOUND,),
    ),
    "preferences.put PUT": replace(
        DONE,
        path=PREFERENCES,
        body=(JSON, {"type": "object"}),
        refusals=(HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    ),
    "reviews.state GET": Described(answer=REVIEW, refusals=(HTTPStatus.NOT_FOUND,)),
    "reviews.confirm POST": Described(
        answer=REVIEW,
        status=HTTPStatus.CREATED,
        body=(JSON, JUDGEMENT),
        refusals=(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    ),
    "drafts.save PUT": Described(
        answer=_object(revision=COUNT), body=(JSON, DRAFT), refusals=(HTTPStatus.CONFLICT,)
    ),
    "drafts.discard DELETE": DONE,
    "drafts.others GET": Described(
        answer=_object(present=_list(TEXT), drafts=_list(_object(name=TEXT, at=MOMENT))),
        refusals=(HTTPStatus.NOT_FOUND,),
    ),
    "marks.keep POST": Described(
        answer=REGION,
        status=HTTPStatus.CREATED,
        query={"box": {"type": "string", "pattern": r"^\d+(,\d+){5}$"}},
        body=("application/octet-stream", {"type": "string", "format": "binary"}),
        refusals=(HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    ),
    "marks.piece GET": Described(
        answer={"type": "string", "format": "binary"},
        media="application/octet-stream",
        refusals=(HTTPStatus.NOT_FOUND,),
    ),
    "upload.mine GET": Described(answer=_object(uploads=_list(_object(**UPLOAD)), csrf_token=TEXT)),
    "upload.begin POST": Described(
        answer=_object(**UPLOAD),
        status=HTTPStatus.CREATED,
        body=(JSON, _object(files=_list(_object(**ANNOUNCED)))),
        refusals=(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.INSUFFICIENT_STORAGE,
        ),
    ),
    "upload.state GET": Described(
        answer=_object(**UPLOAD, csrf_token=TEXT), refusals=(HTTPStatus.NOT_FOUND,)
    ),
    "upload.append PATCH": replace(
        DONE,
        headers={"Upload-Offset": COUNT},
        body=("application/offset+octet-stream", {"type": "string", "format": "binary"}),
        refusals=(
            HTTPStatus.NOT_FOUND,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.INSUFFICIENT_STORAGE,
        ),
    ),
    "upload.take POST": Described(
        answer=_object(**UPLOAD),
        body=(JSON, _object(patient_name=TEXT, patient_id=TEXT, study_date=TEXT)),
        refusals=(
            HTTPStatus.NOT_FOUND,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.INSUFFICIENT_STORAGE,
        ),
    ),
    "upload.discard DELETE": replace(
        DONE, refusals=(HTTPStatus.NOT_FOUND, HTTPStatus.TOO_MANY_REQUESTS)
    ),
    "fetching.rows GET": Described(answer=FETCHING, query={"query": COUNT}),
    "openapi.document GET": Described(answer={"type": "object"}),
}
"""By view and method."""

blueprint = Blueprint("openapi", __name__)


@blueprint.get("/api/openapi.json")
def document() -> Response:
    """This description of the JSON API."""
    return jsonify(describe(current_app))


def describe(app: Flask) -> dict[str, Any]:
    """The OpenAPI document of an application's JSON API."""
    paths: dict[str, dict[str, Any]] = {}
    for rule, method in api_routes(app):
        path = re.sub(r"<(?:[^:<>]*:)?(\w+)>", r"{\1}", rule.rule)
        paths.setdefault(path, {})[method.lower()] = _operation(app, rule, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Chest CT appliance",
            "version": version("chest-ct-appliance"),
            "description": (
                "What the pages ask for. Sign in at /sign-in; what changes something needs the form"
                f" token of the session in the header {FORM_TOKEN}. Images and results for"
                " programs: DICOMweb below /dicom-web."
            ),
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": "chest_ct_session"}
            },
            "schemas": {"Refusal": _object(error=TEXT)},
        },
        "security": [{"session": []}],
    }


def api_routes(app: Flask) -> Iterator[tuple[Rule, str]]:
    """Each route of the JSON API with each of its methods."""
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.rule.startswith(PREFIX):
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield rule, method


def _operation(app: Flask, rule: Rule, method: str) -> dict[str, Any]:
    said = DESCRIBED[f"{rule.endpoint} {method}"]
    summary = (app.view_functions[rule.endpoint].__doc__ or "").partition("\n")[0]
    answer: dict[str, Any] = {"description": "Done."}
    if said.answer is not None:
        answer["content"] = {said.media: {"schema": said.answer}}
    operation: dict[str, Any] = {
        "operationId": f"{rule.endpoint}.{method.lower()}",
        "summary": summary,
        "parameters": [*_path_parameters(rule, said), *_query_parameters(said)],
        "responses": {str(said.status.value): answer},
    }
    is_public = permissions.is_public(rule.endpoint)
    refusals = set(said.refusals)
    if is_public:
        operation["security"] = []
    else:
        refusals |= {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    if method not in SAFE:
        operation["parameters"] += _headers({FORM_TOKEN: TEXT, **said.headers})
        refusals.add(HTTPStatus.BAD_REQUEST)
    operation["responses"] |= _refusals(refusals)
    if said.body is not None:
        media, schema = said.body
        operation["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    return operation


def _path_parameters(rule: Rule, said: Described) -> Iterator[dict[str, Any]]:
    for converter, name in re.findall(r"<(?:([^:<>]*):)?(\w+)>", rule.rule):
        schema = said.path.get(name, CONVERTERS[converter or "default"])
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(said: Described) -> Iterator[dict[str, Any]]:
    for name, schema in said.query.items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _headers(headers: Mapping[str, Schema]) -> Iterator[dict[str, Any]]:
    for name, schema in headers.items():
        yield {"name": name, "in": "header", "required": True, "schema": schema}


def _refusals(statuses: Iterable[HTTPStatus]) -> dict[str, Any]:
    """What else may be answered, each with a sentence but the one without content."""
    reason = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    found: dict[str, Any] = {}
    for status in sorted(statuses):
        found[str(status.value)] = {"description": f"{status.phrase}."}
        if status != HTTPStatus.NO_CONTENT:
            found[str(status.value)]["content"] = reason
    return found
