"""QIDO-RS (PS3.18 section 10.6): what is held, as data sets in JSON, a page at a time."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flask import Blueprint, Response, request
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from werkzeug.datastructures import MultiDict

from appliance import holdings, matching
from appliance.holdings import ATTRIBUTES, UNIQUE, Answer, Level, Page
from appliance.store import Store
from appliance.studies import StoredInstance
from pipelines.errors import DecodeError
from webui.dicomweb import json_model
from webui.dicomweb.media import JSON, accepted
from webui.dicomweb.problems import bad_request, not_acceptable, not_found
from webui.dicomweb.services import Addresses, services, unbroken
from webui.dicomweb.stored import HeaderError, opened
from webui.resources import resources

LARGEST_PAGE: Final = 1000
LARGEST_OFFSET: Final = 10**9
MORE: Final = (
    '299 DICOMweb "The number of results exceeded the maximum supported by the server.'
    ' Additional results can be requested."'
)
NOT_FUZZY: Final = (
    '299 DICOMweb "The fuzzymatching parameter is not supported.'
    ' Only literal matching has been performed."'
)
FROM_HEADERS: Final = ("InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames")
"""What table 10.6.3-5 wants of an instance that the database does not hold."""

PLAIN_PARAMETERS: Final = frozenset({"accept", "fuzzymatching", "includefield", "limit", "offset"})
TAG: Final = re.compile(r"[0-9A-Fa-f]{8}")

blueprint = Blueprint("search", __name__)


@dataclass(frozen=True)
class Query:
    """A search as its parameters put it."""

    keys: Mapping[str, str]
    fields: frozenset[str]
    limit: int
    offset: int
    fuzzy: bool


@blueprint.get("/studies")
def search_studies() -> Response:
    """The studies that match."""
    return _search(Level.STUDY)


@blueprint.get("/series")
def search_all_series() -> Response:
    """The series of all studies that match."""
    return _search(Level.SERIES)


@blueprint.get("/studies/<study_uid>/series")
def search_series(study_uid: str) -> Response:
    """The series of a study that match."""
    return _search(Level.SERIES, StudyInstanceUID=study_uid)


@blueprint.get("/instances")
def search_all_instances() -> Response:
    """The instances of all studies that match."""
    return _search(Level.IMAGE)


@blueprint.get("/studies/<study_uid>/instances")
def search_study_instances(study_uid: str) -> Response:
    """The instances of a study that match."""
    return _search(Level.IMAGE, StudyInstanceUID=study_uid)


@blueprint.get("/studies/<study_uid>/series/<series_uid>/instances")
def search_instances(study_uid: str, series_uid: str) -> Response:
    """The instances of a series that match."""
    return _search(Level.IMAGE, StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)


def parsed(parameters: MultiDict[str, str]) -> Query:
    """Return a search's parameters (PS3.18 8.3.4).

    Raises:
        RequestProblem: one is unknown, malformed or given twice.
    """
    keys: dict[str, str] = {}
    for name, values in parameters.lists():
        if name in PLAIN_PARAMETERS:
            continue
        keyword = _keyword(name)
        if len(values) > 1 or keyword in keys:
            raise bad_request(f"{keyword} is given twice.")
        is_uid = keyword in ATTRIBUTES and ATTRIBUTES[keyword].rule is matching.uid
        keys[keyword] = values[0].replace(",", "\\") if is_uid else values[0]
    fuzzy = parameters.get("fuzzymatching", "false").lower()
    if fuzzy not in {"true", "false"}:
        raise bad_request("fuzzymatching must be true or false.")
    return Query(
        keys=keys,
        fields=_fields(parameters.getlist("includefield")),
        limit=min(_whole(parameters, "limit", LARGEST_PAGE), LARGEST_PAGE),
        offset=_whole(parameters, "offset", 0),
        fuzzy=fuzzy == "true",
    )


def _search(level: Level, **in_path: str) -> Response:
    if not any(
        wanted.takes(JSON) or wanted.takes("application/json") for wanted in accepted(request)
    ):
        raise not_acceptable(f"Search results are given as {JSON} alone.")
    query = parsed(request.args)
    if twice := query.keys.keys() & in_path.keys():
        raise bad_request(f"{min(twice)} is in the path already.")
    with resources().database.snapshot() as db:
        if in_path and holdings.owner(db, *in_path.values()) is None:
            raise not_found()
        page = holdings.search(
            db, level, {**query.keys, **in_path}, limit=query.limit, offset=query.offset
        )
    response = Response(
        unbroken(_json(page, level, query, Addresses(), services().store)), mimetype=JSON
    )
    if page.more and query.limit == LARGEST_PAGE:
        response.headers.add("Warning", MORE)
    if query.fuzzy:
        response.headers.add("Warning", NOT_FUZZY)
    return response


def _json(
    page: Page, level: Level, query: Query, addresses: Addresses, store: Store
) -> Iterator[str]:
    opening = "["
    for answer in page.answers:
        model = dict(_attributes(answer, query))
        model.update([json_model.attribute("RetrieveURL", _address(answer, level, addresses))])
        if level is Level.STUDY:
            model.update([json_model.attribute("StudyID", None)])  # not held
        if answer.instance is not None:
            model.update(_from_header(answer.instance, store))
        yield opening + json.dumps(dict(sorted(model.items())), allow_nan=False)
        opening = ","
    yield "]" if page.answers else "[]"


def _attributes(answer: Answer, query: Query) -> Iterator[tuple[str, json_model.Json]]:
    yield json_model.attribute("SpecificCharacterSet", json_model.UTF_8)
    yield json_model.attribute("InstanceAvailability", "ONLINE")
    wanted = query.fields | query.keys.keys()
    for keyword, value in answer.values.items():
        if ATTRIBUTES[keyword].required or keyword in wanted or "all" in wanted:
            yield json_model.attribute(keyword, value)


def _address(answer: Answer, level: Level, addresses: Addresses) -> str:
    named = (one for one in Level if Level.STUDY <= one <= level)
    return addresses.of(*(str(answer.values[UNIQUE[one]]) for one in named))


def _from_header(instance: StoredInstance, store: Store) -> json_model.Json:
    try:
        with opened(instance, store.path_of(instance.digest), only=FROM_HEADERS) as source:
            return json_model.dataset(source.dataset, "")
    except (DecodeError, HeaderError):  # it is held, and listed with what the database has of it
        return {}


def _keyword(name: str) -> str:
    """The keyword of an attribute that is given by keyword or tag."""
    keyword = keyword_for_tag(int(name, 16)) if TAG.fullmatch(name) else name
    if not keyword or (keyword not in ATTRIBUTES and tag_for_keyword(keyword) is None):
        raise bad_request("A query parameter is neither one of PS3.18 nor a DICOM attribute.")
    return keyword


def _fields(given: list[str]) -> frozenset[str]:
    # A path into a sequence names nothing that is held, nor does a tag that only its maker knows.
    names = {name.split(".")[0] for text in given for name in text.split(",") if name}
    known = {name for name in names if not TAG.fullmatch(name) or keyword_for_tag(int(name, 16))}
    return frozenset(name if name == "all" else _keyword(name) for name in known)


def _whole(parameters: MultiDict[str, str], name: str, default: int) -> int:
    text = parameters.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > LARGEST_OFFSET:
        raise bad_request(f"{name} must be a whole number.")
    return int(text)
