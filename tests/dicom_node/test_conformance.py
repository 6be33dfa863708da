"""The conformance statement that is committed is the one that the code has."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner
from pynetdicom.sop_class import Verification

from appliance import logs
from appliance.reception import Reception
from dicom_node import conformance
from dicom_node.cli import dicom
from dicom_node.errors import DicomNodeError
from dicom_node.scp import Listener

ROOT = Path(__file__).parents[2]


def chapters() -> list[str]:
    """What pyproject.toml names, whether the package was installed since or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["entry-points"][conformance.CHAPTERS]
    found = []
    for _, place in sorted(named.items()):
        module, _, function = place.partition(":")
        found.append(getattr(import_module(module), function)())
    return found


def test_the_committed_statement_is_what_the_code_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(conformance, "chapters", chapters)
    monkeypatch.setattr(logs, "configure", lambda _process: None)
    out = tmp_path / "CONFORMANCE.md"

    done = CliRunner().invoke(dicom, ["conformance", "--out", str(out)])

    assert done.exit_code == 0, done.output
    committed = (ROOT / "CONFORMANCE.md").read_text(encoding="utf-8")
    assert out.read_text(encoding="utf-8") == committed, (
        "run `appliance dicom conformance --out CONFORMANCE.md`"
    )


def test_without_what_other_packages_say_nothing_is_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conformance, "CHAPTERS", "nobody")

    with pytest.raises(DicomNodeError, match="install it again"):
        conformance.chapters()


def test_the_overview_has_every_service_of_the_listener(listener: Listener, reception: Reception):
    offered = {str(context.abstract_syntax) for context in listener._server.ae.supported_contexts}

    told = {service.uid for service in conformance.SERVICES if service.scp}

    assert told == offered
    assert Verification in told
