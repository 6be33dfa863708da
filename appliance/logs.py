"""Logging: one line per event with a constant name, JSON for machines, plain for a terminal.

A study appears as its row id, never by a name or a UID of a person. Records of the libraries below
us go through the same renderer; those that speak of every message are turned down.
"""

import logging
import os
import sys
import traceback
from typing import Final

import structlog

from appliance.errors import ApplianceError

LOG_VARIABLE: Final = "APPLIANCE_LOG"
"""`json` or `console`; absent: console on a terminal, JSON elsewhere."""

QUIET: Final = (
    "celery.app.trace",
    "celery.beat",
    "celery.worker.strategy",
    "kombu",
    "alembic",
    "pynetdicom",
)
"""Libraries heard from WARNING on; below it some of them print what they were given."""

MUTE: Final = ("pydicom",)
"""Libraries whose warnings, too, quote what they were given."""


TELLING: Final = (ApplianceError, OSError)
"""Errors whose text may be written: it names keys, files and row ids, and no patient."""


def configure(process: str, *, level: int = logging.INFO) -> None:
    """Set logging up for this process; every line carries `process`."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Process(process),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            where_it_failed,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, where_it_failed],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in MUTE:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def where_it_failed(
    _logger: object, _method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Put the kinds and places of an exception and its causes in place of the exception.

    Its text stays away, unless it is ours or the operating system's: those of libraries quote the
    value that they could not read, and that may be a name.
    """
    given = event.pop("exc_info", None)
    if not given:
        return event
    error = given[1] if isinstance(given, tuple) else given
    if not isinstance(error, BaseException):
        error = sys.exc_info()[1]
    told = []
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        places = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
        text = f": {error}" if isinstance(error, TELLING) else ""
        told.append(f"{type(error).__name__}{text} at {places}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return {**event, "exception": told}


class _Process:
    """Adds the process's name to every line."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(
        self, _logger: object, _method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        return {"process": self._name, **event}


def _renderer() -> structlog.types.Processor:
    wanted = os.environ.get(LOG_VARIABLE) or ("console" if sys.stderr.isatty() else "json")
    if wanted == "console":
        return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return structlog.processors.JSONRenderer()
