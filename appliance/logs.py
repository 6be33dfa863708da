"""Logging: one line per event with a constant name, JSON for machines, plain for a terminal.

A study appears as its row id, never by a name or a UID of a person. Records of the libraries below
us go through the same renderer; those that speak of every message are turned down.
"""

import logging
import os
import sys
from typing import Final

import structlog

LOG_VARIABLE: Final = "APPLIANCE_LOG"
"""`json` or `console`; absent: console on a terminal, JSON elsewhere."""

QUIET: Final = (
    "celery.app.trace",
    "celery.beat",
    "celery.worker.strategy",
    "kombu",
    "alembic",
    "pydicom",
    "pynetdicom",
)
"""Libraries heard from WARNING on; below it some of them print what they were given."""


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
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


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
