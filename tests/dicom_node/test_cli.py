from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance import logs
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.errors import ApplianceError
from appliance.reception import Reception
from dicom_node.cli import send
from dicom_node.scp import Listener
from tests.support.instances import Names, as_file, ct_instance
from tests.support.pacs import free_port


@pytest.fixture
def invoke(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run `appliance send` with this test's settings."""

    def run(*arguments: object, port: int) -> Result:
        file = tmp_path / "settings.toml"
        file.write_text(to_toml({"data_dir": str(settings.data_dir), "dicom": {"port": port}}))
        monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
        monkeypatch.setattr(logs, "configure", lambda _process: None)  # for this process alone
        return CliRunner().invoke(send, list(map(str, arguments)))

    return run


@pytest.fixture
def study(tmp_path: Path):
    folder = tmp_path / "study"
    folder.mkdir()
    names = Names.fresh()
    for number in range(5):
        as_file(ct_instance(names), folder / f"{number}.dcm")
    return folder


def test_send_sends_to_this_appliance_by_default(
    invoke: Callable[..., Result], listener: Listener, study: Path
):
    (study / "notes.txt").write_text("no instance")

    result = invoke(study, "--associations", "2", "--shuffle", port=listener.port)

    assert result.exit_code == 0, result.output
    assert "5 of 5 instances taken" in result.output
    assert "notes.txt: no DICOM file" in result.output


def test_send_fails_with_the_reasons(
    invoke: Callable[..., Result],
    listen: Callable[..., Listener],
    reception: Reception,
    study: Path,
):
    listener = listen()
    reception._min_free_bytes = 1 << 60

    result = invoke(study, port=listener.port)

    assert result.exit_code == 1
    assert "0 of 5 instances taken" in result.output
    assert "5 × 0xA700" in result.output
    assert "watermark" in result.output


def test_send_refuses_a_folder_without_instances(invoke: Callable[..., Result], tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()

    result = invoke(empty, port=free_port())

    assert result.exit_code == 1
    assert "holds no DICOM instance" in result.output


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_send_says_when_nobody_listens(invoke: Callable[..., Result], study: Path):
    result = invoke(study, port=free_port())

    assert isinstance(result.exception, ApplianceError)  # appliance.cli prints it
    assert "nothing listens there" in str(result.exception)
