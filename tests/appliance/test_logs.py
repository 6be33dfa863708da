import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from appliance import logs
from appliance.errors import ConfigError


@pytest.fixture
def restored() -> Iterator[None]:
    """Logging as it was, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_a_constant_event(
    restored: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(logs.LOG_VARIABLE, "json")
    logs.configure("worker-gpu")

    structlog.get_logger().info("study.closed", study_id=7)
    logging.getLogger("library").warning("something of %s", "theirs")

    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["study_id"]) == ("study.closed", 7)
    assert (ours["process"], ours["level"]) == ("worker-gpu", "info")
    assert (theirs["event"], theirs["logger"]) == ("something of theirs", "library")


def test_an_exception_is_written_without_the_text_of_a_library(
    restored: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(logs.LOG_VARIABLE, "json")
    logs.configure("web")

    try:
        int("Secret^Ann")
    except ValueError as error:
        try:
            raise ConfigError("[web] port must be a whole number") from error  # noqa: TRY301
        except ConfigError:
            structlog.get_logger().exception("request.failed")

    line = capsys.readouterr().err
    outer, cause = json.loads(line)["exception"]
    assert outer.startswith("ConfigError: [web] port must be a whole number at ")
    assert cause.startswith("ValueError at ")
    assert "test_logs.py" in cause
    assert "Secret" not in line


@pytest.mark.parametrize("name", logs.MUTE)
def test_libraries_that_quote_values_in_warnings_are_mute(
    restored: None, capsys: pytest.CaptureFixture[str], name: str
):
    logs.configure("worker-gpu")

    logging.getLogger(name).warning("Invalid value for VR UI: '896911bf'")

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", logs.QUIET)
def test_libraries_that_print_what_they_are_given_are_turned_down(
    restored: None, capsys: pytest.CaptureFixture[str], name: str
):
    logs.configure("listener")

    logging.getLogger(name).info("C-STORE of Secret^Ann")

    assert capsys.readouterr().err == ""
