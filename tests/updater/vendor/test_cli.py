import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.vendor import PASSPHRASE, Appliance, new_vendor, weights
from updater.vendor.cli import PASSPHRASE_VARIABLE, main

WITHOUT_AN_APPLIANCE = """
import sys
absent = ("appliance", "webui", "dicom_node", "torch", "sqlalchemy", "celery", "flask", "pydicom")
sys.modules.update(dict.fromkeys(absent))  # importing one of them fails
from updater.vendor.cli import main
main()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    return tmp_path


def run(*arguments: str, typed: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments), input=typed)
    return result.exit_code, result.output


def test_three_commands_from_nothing_to_an_update_without_an_appliance_installed(place: Path):
    root = Path(__file__).parents[3]
    weights(place / "weights" / "lungs", "1.0.0")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}

    for arguments in (
        ["init"],
        ["publish", "weights/lungs", "--minimum-software", "0.1.0", "--channel", "stable"],
        ["refresh"],
    ):
        subprocess.run(
            [sys.executable, "-c", WITHOUT_AN_APPLIANCE, *arguments],
            env=environment,
            check=True,
            capture_output=True,
        )

    served = place / "repository"
    appliance = Appliance(place / "site", (served / "metadata" / "1.root.json").read_bytes())
    assert appliance.versions(served) == ["1.0.0"]


def test_status_shows_what_is_published_and_warns_by_its_exit_status(place: Path):
    vendor = new_vendor(place)
    vendor.publish("1.0.0", share_percent=25)
    vendor.publish("1.1.0")
    vendor.repository.recall("lungs", "1.1.0", "misses lesions")

    status, shown = run("status")

    assert status == 0
    assert "lungs        1.0.0      25 % of stable\n" in shown
    assert "lungs        1.1.0      100 % of stable  recalled: misses lesions" in shown
    for role in ("root", "targets", "models", "software", "snapshot", "timestamp"):
        assert f"\n{role} " in shown
    assert "SOON" not in shown


def test_status_says_what_to_sign_anew(place: Path):
    new_vendor(place, lambda: datetime.now(UTC) - timedelta(days=8))

    status, shown = run("status")

    assert status == 1
    assert "SOON: appliance-vendor refresh timestamp" in shown
    assert "SOON: appliance-vendor refresh root" not in shown


def test_a_rotation_says_which_files_to_destroy(place: Path):
    vendor = new_vendor(place)
    (old,) = vendor.keys.glob("timestamp-*.pem")

    status, shown = run("rotate", "timestamp")

    assert status == 0
    assert f"destroy it: keys/{old.name}" in shown


def test_a_passphrase_is_asked_for_each_key_and_not_shown(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    one_each = [f"passphrase number {n}" for n in range(8)]

    status, shown = run("init", typed="".join(f"{p}\n{p}\n" for p in one_each))
    assert status == 0, shown
    assert "New passphrase for root-" in shown
    assert "number" not in shown

    wrong, said = run("refresh", typed="passphrase number 0\n" * 2)
    assert wrong == 1
    assert "does not open: is this its passphrase?" in said
    right, _ = run("refresh", typed=f"{one_each[4]}\n{one_each[5]}\n")
    assert right == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "There is no repository in repository"),
        (["recall", "lungs", "1.0.0", "--reason", "x"], "There is no repository in repository"),
        (["publish", "weights", "--minimum-software", "x"], "'x' is no release such as 0.1.0."),
        (["publish", "weights", "--minimum-software", "0.1.0"], "config.json cannot be read"),
        (["publish", "weights"], "Missing option '--minimum-software'"),
        (["rotate", "everything"], "'everything' is not one of"),
    ],
)
def test_what_is_wrong_is_one_sentence(place: Path, arguments: list[str], said: str):
    (place / "weights").mkdir()

    status, shown = run(*arguments)

    assert status != 0
    assert said in shown
    assert "Traceback" not in shown


def test_a_disk_that_cannot_be_written_is_one_sentence(place: Path):
    new_vendor(place)
    (place / "file").write_text("no folder")

    status, shown = run("--repository", "file", "init")

    assert status == 1
    assert shown == "Error: file/metadata: Not a directory.\n"
