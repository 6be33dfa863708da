"""What a DICOMweb client is told when a request cannot be answered: a status and one sentence."""

from http import HTTPStatus

from flask import Blueprint, Response, jsonify, make_response

from appliance.errors import QueryError, SharedUIDError
from pipelines.errors import DecodeError
from webui.dicomweb.stored import NoSuchFrameError, PixelError


class RequestProblem(Exception):  # noqa: N818 - the client's, and no fault here
    """A request that is refused; the text says what to ask for instead."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def register(blueprint: Blueprint) -> None:
    """Answer what the functions of a blueprint raise."""

    @blueprint.errorhandler(RequestProblem)
    def refused(problem: RequestProblem) -> Response:
        return _answer(problem.status, problem)

    @blueprint.errorhandler(QueryError)
    def malformed(error: QueryError) -> Response:
        return _answer(HTTPStatus.BAD_REQUEST, error)

    @blueprint.errorhandler(SharedUIDError)
    def ambiguous(error: SharedUIDError) -> Response:
        return _answer(HTTPStatus.CONFLICT, error)

    @blueprint.errorhandler(NoSuchFrameError)
    def missing(error: NoSuchFrameError) -> Response:
        return _answer(HTTPStatus.NOT_FOUND, error)

    @blueprint.errorhandler(DecodeError)
    @blueprint.errorhandler(PixelError)
    def undecodable(error: DecodeError | PixelError) -> Response:
        return _answer(HTTPStatus.NOT_ACCEPTABLE, error)


def bad_request(sentence: str) -> RequestProblem:
    """A request that contradicts the standard or this service's limits."""
    return RequestProblem(HTTPStatus.BAD_REQUEST, sentence)


def not_found() -> RequestProblem:
    """Nothing is held under these UIDs."""
    return RequestProblem(HTTPStatus.NOT_FOUND, "Nothing is held under this address.")


def not_acceptable(sentence: str) -> RequestProblem:
    """None of the media types and transfer syntaxes of the Accept header can be given."""
    return RequestProblem(HTTPStatus.NOT_ACCEPTABLE, sentence)


def _answer(status: HTTPStatus, error: Exception) -> Response:
    return make_response(jsonify(error=str(error)), status)
