import hashlib
import socket
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from appliance import accounts, cli, doctor, lifecycle, status, supervisor
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import Database
from appliance.lifecycle import State
from appliance.studies import PatientAttributes
from appliance.supervisor import ChildReport, Report
from appliance.tables import ROLES
from tests.appliance import world
from tests.support.databases import settings_in
from tests.support.pacs import free_port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(
        tmp_path,
        dicom={"port": free_port(), "min_free_bytes": 0},
        web={"port": free_port()},
        analysis={"weights_dir": str(tmp_path / "weights")},
    )


@pytest.fixture(autouse=True)
def settings_file(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands read these settings as any process does."""
    file = tmp_path / "settings.toml"
    document = {
        "data_dir": str(settings.data_dir),
        "dicom": {"port": settings.dicom.port, "min_free_bytes": 0},
        "web": {"port": settings.web.port},
        "analysis": {"weights_dir": str(settings.analysis.weights_dir)},
    }
    file.write_text(to_toml(document))
    monkeypatch.setenv(SETTINGS_VARIABLE, str(file))


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, list(arguments), input=typed)


def test_every_command_of_the_other_packages_is_mounted():
    mounted = {entry.name for entry in metadata.entry_points(group=cli.COMMANDS)}

    assert {"listen", "send", "analyse", "phantom", "train"} <= mounted
    for name in mounted:
        assert run(name, "--help").exit_code == 0


def test_a_package_that_cannot_be_loaded_costs_its_own_commands_alone(
    monkeypatch: pytest.MonkeyPatch,
):
    broken = metadata.EntryPoint("broken", "no_such_package:command", cli.COMMANDS)
    monkeypatch.setattr(cli, "_mounted", lambda: [broken])

    assert "doctor" in run("--help").output
    said = run("broken")
    assert said.exit_code == 1
    assert "No module named 'no_such_package'" in said.output


def test_roles_are_those_of_the_table():
    assert cli.ROLES == ROLES


def test_a_user_is_added_with_a_password_that_is_shown_once(database: Database):
    said = run("user", "add", "ann", "--role", "viewer")

    password = said.output.rpartition(" ")[2].strip()
    account = accounts.authenticate(database, name="ann", password=password)
    assert account is not None
    assert account.role == "viewer"


def test_a_password_from_the_standard_input_is_not_shown(database: Database):
    said = run("user", "add", "ann", "--password-stdin", typed="a long enough one\n")

    assert "long enough" not in said.output
    assert accounts.authenticate(database, name="ann", password="a long enough one") is not None


def test_users_are_listed_changed_and_shut_out(database: Database):
    run("user", "add", "ann")
    changed = run("user", "password", "ann", "--password-stdin", typed="another long one\n")
    run("user", "disable", "ann")

    assert changed.exit_code == 0
    assert run("user", "list").output == "ann  radiologist  disabled\n"
    assert accounts.authenticate(database, name="ann", password="another long one") is None


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("user", "disable", "bob"), "Error: there is no user bob"),
        (("--settings", "/nowhere.toml", "status"), "does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(command: tuple[str, ...], said: str):
    done = run(*command)

    assert done.exit_code != 0
    assert said in done.output
    assert "Traceback" not in done.output


def test_status_says_that_nothing_runs():
    said = run("status")

    assert said.exit_code == 3
    assert "does not run. Start it with `appliance serve`" in said.output


def test_status_shows_what_waits_and_what_failed_with_the_reason_and_no_name(database: Database):
    patient = PatientAttributes(name="Secret^Ann", patient_id="S-1")
    world.receive(database, world.instance(study_uid="2.25.3", patient=patient))
    claim = world.claimed(database, study_uid="2.25.4")
    lifecycle.fail(database, claim, reason="the files are damaged", transient=False)
    world.claimed(database, study_uid="2.25.5")

    said = run("status").output

    assert "RECEIVING 1  QUEUED 0  ANALYSING 1  READY 0  REJECTED 0  FAILED 1" in said
    assert "the files are damaged" in said
    assert "starting (0 of 0), try 1" in said
    assert "Secret" not in said
    assert "2.25." not in said


@pytest.mark.parametrize("state", sorted(set(State) - {State.READY}))
def test_a_study_without_a_result_is_in_the_status(database: Database, state: State):
    study_id = world.in_state(database, state)

    assert f"study {study_id}  {state.lower()}" in "\n".join(status.work(database))


def test_status_shows_each_process_and_why_it_fell():
    children = (
        ChildReport("listener", 17, 0.0, 2, "killed by SIGKILL"),
        ChildReport("web", None, 0.0, 1, "exit status 1"),
    )
    report = Report(1, True, "CHESTCT@127.0.0.1:1", "http://127.0.0.1:2/", children)  # noqa: FBT003

    lines = status.processes(report)

    assert "process 17" in lines[1]
    assert "2 restarts  last ended by killed by SIGKILL" in lines[1]
    assert "waits to be started again" in lines[2]


def bundle(settings: Settings, content: bytes = b"{}") -> Path:
    folder = settings.analysis.weights_dir / "lungs"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(content)
    digest = hashlib.sha256(b"{}").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  config.json\n")
    return folder


def findings(settings: Settings) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(settings)}


@pytest.fixture
def fast_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.ENGINE_PROBES, "torch", "print('PyTorch')")
    monkeypatch.setitem(doctor.ENGINE_PROBES, "openvino", "import no_such_engine")


def test_the_doctor_finds_nothing_where_nothing_is_wrong(
    settings: Settings, database: Database, fast_engines: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(doctor.ENGINE_PROBES, "openvino", "print('OpenVINO')")
    bundle(settings)

    said = run("doctor")

    assert said.exit_code == 0, said.output
    assert said.output.endswith("All is well.\n")


def test_the_doctor_names_what_is_wrong_and_what_to_do(
    settings: Settings, database: Database, fast_engines: None
):
    bundle(settings, b"{changed}")
    with socket.socket() as taken:
        taken.bind((settings.web.host, settings.web.port))
        taken.listen()
        said = run("doctor")

    assert said.exit_code == 1
    assert "web port" in said.output
    assert "set another [web] port" in said.output
    assert "missing or changed: config.json" in said.output
    assert "No module named 'no_such_engine'" in said.output
    assert "3 to mend." in said.output


def test_the_doctor_sees_a_broken_audit(settings: Settings, database: Database, fast_engines: None):
    run("user", "add", "ann")
    with database.transaction() as db:
        db.execute(text("DROP TRIGGER audit_entry_no_update"))
        db.execute(text("UPDATE audit_entry SET actor = 'nobody'"))

    assert not findings(settings)["audit"].well


def test_every_trouble_comes_with_advice(tmp_path: Path, fast_engines: None):
    settings = settings_in(
        tmp_path,
        database={"url": f"postgresql+psycopg://nobody@/nothing?host={tmp_path}"},
        broker={"url": f"redis+socket://{tmp_path}/none.sock"},
        dicom={"min_free_bytes": 2**62, "port": free_port()},
        web={"port": free_port()},
        analysis={"weights_dir": str(tmp_path / "none")},
    )

    bad = {name: found for name, found in findings(settings).items() if not found.well}

    assert set(bad) == {"disk", "database", "broker", "weights", "engine openvino"}
    assert all(found.mend for found in bad.values())


def test_the_lock_is_looked_at_without_being_taken(settings: Settings):
    with supervisor.locked(settings):
        run("status")
        assert supervisor.lock_file(settings).exists()
