"""What a person or a script sees when something is wrong: a page, or JSON for programs."""

from http import HTTPStatus
from typing import Final

import structlog
from flask import Flask, Response, current_app, jsonify, make_response, request
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import Forbidden, HTTPException

from webui.language import gettext as _
from webui.language import marked

log = structlog.get_logger()

FOR_PROGRAMS: Final = ("/api/", "/dicom-web/")
"""Below these addresses nobody reads a page."""

SENTENCES: Final = {
    HTTPStatus.BAD_REQUEST: marked("The browser sent something that could not be understood."),
    HTTPStatus.UNAUTHORIZED: marked("Sign in first."),
    HTTPStatus.FORBIDDEN: marked("Your account may not do this. Ask an administrator."),
    HTTPStatus.NOT_FOUND: marked("There is nothing at this address."),
    HTTPStatus.METHOD_NOT_ALLOWED: marked("This address does not take that kind of request."),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: marked("The request is too large."),
    HTTPStatus.TOO_MANY_REQUESTS: marked("Too many attempts. Wait a minute and try again."),
    HTTPStatus.INTERNAL_SERVER_ERROR: marked(
        "Something failed. Try again; the fault has been logged."
    ),
}
FORM_TOO_OLD: Final = marked(
    "The form was open for too long. Go back, reload the page and try again."
)


TITLES: Final = {
    HTTPStatus.BAD_REQUEST: marked("Bad Request"),
    HTTPStatus.UNAUTHORIZED: marked("Unauthorized"),
    HTTPStatus.FORBIDDEN: marked("Forbidden"),
    HTTPStatus.NOT_FOUND: marked("Not Found"),
    HTTPStatus.METHOD_NOT_ALLOWED: marked("Method Not Allowed"),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: marked("Request Entity Too Large"),
    HTTPStatus.TOO_MANY_REQUESTS: marked("Too Many Requests"),
    HTTPStatus.INTERNAL_SERVER_ERROR: marked("Internal Server Error"),
}
"""The phrases of RFC 9110, for people."""


class Refusal(Forbidden):
    """Whoever asks may not; the text says why, or what to do first."""


def register(app: Flask) -> None:
    """Answer every error in one way; what is not an HTTP error ends here and nowhere else."""

    @app.errorhandler(CSRFError)
    def form_refused(error: CSRFError) -> Response:
        return _answer(error.code or HTTPStatus.BAD_REQUEST, FORM_TOO_OLD)

    @app.errorhandler(Refusal)
    def not_allowed(error: Refusal) -> Response:
        return _answer(HTTPStatus.FORBIDDEN, error.description)

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response | HTTPException:
        if error.code is None or error.code < HTTPStatus.BAD_REQUEST:
            return error
        return _answer(error.code)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        # The text of an error may name a patient: its type and place must do.
        log.error("request_failed", endpoint=request.endpoint, error=_trace(error))
        return _answer(HTTPStatus.INTERNAL_SERVER_ERROR)


def _answer(code: int, sentence: str | None = None) -> Response:
    status = HTTPStatus(code)
    said = _(sentence or SENTENCES.get(status, status.phrase))
    if request.path.startswith(FOR_PROGRAMS):
        return make_response(jsonify(error=said), code)
    # Not render_template: its context asks the database who is signed in, and may fail again.
    template = current_app.jinja_env.get_template("errors/error.html")
    return make_response(
        template.render(title=_(TITLES.get(status, status.phrase)), sentence=said), code
    )


def _trace(error: BaseException) -> str:
    """Where an error arose, without its text: the innermost places of the traceback."""
    places = []
    frame = error.__traceback__
    while frame is not None:
        places.append(f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}")
        frame = frame.tb_next
    return f"{type(error).__name__} at {' < '.join(reversed(places[-4:]))}"
