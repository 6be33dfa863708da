import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select, text

from appliance import accounts, cli, doctor, lifecycle, status, supervisor
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import Database
from appliance.lifecycle import State
from appliance.studies import PatientAttributes
from appliance.supervisor import ChildReport, Report
from appliance.tables import ROLES, AuditEntry
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


def test_a_password_from_the_command_line_is_changed_first_unless_it_is_a_programs(
    database: Database,
):
    run("user", "add", "ann")
    run("user", "add", "pacs", "--keep-password")
    with database.snapshot() as db:
        assert [(one.name, one.temporary) for one in accounts.everyone(db)] == [
            ("ann", True),
            ("pacs", False),
        ]

    run("user", "password", "pacs")

    with database.snapshot() as db:
        assert [one.temporary for one in accounts.everyone(db)] == [True, True]


def test_a_user_is_let_in_again_unlocked_and_given_another_role(database: Database):
    run("user", "add", "ann", "--password-stdin", typed="a long enough one\n")
    for _ in range(accounts.MAX_FAILED_LOGINS):
        accounts.authenticate(database, name="ann", password="wrong")
    run("user", "disable", "ann")

    for command in (("enable", "ann"), ("unlock", "ann"), ("role", "ann", "inspector")):
        assert run("user", *command).exit_code == 0

    account = accounts.authenticate(database, name="ann", password="a long enough one")
    assert account is not None
    assert account.role == "inspector"


def test_the_audit_is_verified_and_its_end_named(database: Database):
    run("user", "add", "ann")

    whole = run("audit", "verify")
    with database.transaction() as db:
        entry = db.scalars(select(AuditEntry)).one()
        db.execute(text("DROP TRIGGER audit_entry_no_update"))
        db.execute(text("UPDATE audit_entry SET actor = 'nobody'"))
    broken = run("audit", "verify")

    assert (whole.exit_code, broken.exit_code) == (0, 1)
    assert entry.hash in whole.output
    assert "changed at entry 1" in broken.output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("user", "disable", "bob"), "Error: there is no user bob"),
        (("--settings", "/nowhere.toml", "status"), "does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    database: Database, command: tuple[str, ...], said: str
):
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

    assert lines[0].startswith("The appliance runs, but for what is starting again (web): ")
    assert "process 17" in lines[1]
    assert "2 restarts  last ended by killed by SIGKILL" in lines[1]
    assert "waits to be started again" in lines[2]


def bundles(settings: Settings) -> Path:
    """The folder with every network, whole."""
    digest = hashlib.sha256(b"{}").hexdigest()
    for name in doctor.NETWORKS:
        folder = settings.analysis.weights_dir / name
        folder.mkdir(parents=True)
        for file in doctor.BUNDLE_FILES:
            (folder / file).write_bytes(b"{}")
        sums = [f"{digest}  {file}\n" for file in doctor.BUNDLE_FILES]
        (folder / "SHA256SUMS").write_text("".join(sums))
    return settings.analysis.weights_dir


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
    bundles(settings)

    said = run("doctor")

    assert said.exit_code == 0, said.output
    assert said.output.endswith("All is well.\n")


def test_the_doctor_names_what_is_wrong_and_what_to_do(
    settings: Settings, database: Database, fast_engines: None
):
    (bundles(settings) / "lungs" / "config.json").write_bytes(b"{changed}")
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


def test_the_doctor_misses_hard_links(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:  # as exFAT does
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    (found,) = doctor.check_data_folder(settings)

    assert not found.well
    assert "no hard links" in found.text
    assert list(settings.store_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("lesions", "SHA256SUMS"),
        ("screening/weights.safetensors", "weights.safetensors"),
        ("lungs/SHA256SUMS", "SHA256SUMS"),
    ],
)
def test_the_doctor_misses_each_network_and_each_of_its_files(
    settings: Settings, lost: str, said: str
):
    path = bundles(settings) / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    (bad,) = (found for found in doctor.check_weights(settings) if not found.well)

    assert bad.subject == f"weights {lost.partition('/')[0]}"
    assert said in bad.text


def test_a_file_that_no_checksum_names_is_not_well(settings: Settings):
    sums = bundles(settings) / "lungs" / "SHA256SUMS"
    sums.write_text(sums.read_text().splitlines(keepends=True)[0])

    assert "weights.safetensors" in next(doctor.check_weights(settings)).text


def test_the_doctor_misses_the_second_opinions_network_once_it_is_switched_on(settings: Settings):
    bundles(settings)
    asked = replace(settings, analysis=replace(settings.analysis, second_opinion=True))

    assert all(found.well for found in doctor.check_weights(settings))
    (bad,) = (found for found in doctor.check_weights(asked) if not found.well)
    assert bad.subject == "weights pneumonia"


def test_the_networks_the_doctor_asks_for_are_those_shipped():
    folder = doctor.weights_dir(Settings.parse({}))
    shipped = {path.parent.name for path in folder.glob("*/config.json")}

    assert shipped == set(doctor.NETWORKS)


def test_a_check_that_breaks_keeps_no_other_from_running(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    def check_of_nothing(_settings: Settings) -> Iterator[doctor.Finding]:
        yield doctor._fine("first", "looked at")
        raise RuntimeError("broken")

    monkeypatch.setattr(doctor, "CHECKS", (check_of_nothing, doctor.check_data_folder))

    first, broken, last = doctor.examine(settings)

    assert (first.well, broken.well, last.well) == (True, False, True)
    assert "RuntimeError: broken" in broken.text


@pytest.mark.parametrize("command", [("status",), ("user", "list"), ("doctor",)])
def test_what_only_asks_makes_no_database(
    settings: Settings, command: tuple[str, ...], fast_engines: None
):
    said = run(*command)

    assert not (settings.data_dir / "appliance.db").exists()
    assert ("never started" in said.output) == (command != ("doctor",))
    assert "Traceback" not in said.output


def test_what_only_asks_leaves_tables_of_another_release_alone(
    settings: Settings, database: Database
):
    with database.transaction() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '0000'"))

    said = run("user", "list")

    assert said.exit_code == 1
    assert "run `appliance database upgrade`" in said.output


@pytest.mark.parametrize("state", [State.FAILED, State.REJECTED])
def test_a_study_that_failed_is_tried_again_by_hand(database: Database, state: State):
    study_id = world.in_state(database, state)

    said = run("study", "requeue", str(study_id))

    assert said.exit_code == 0, said.output
    assert world.state_of(database, study_id) is State.QUEUED
    with database.snapshot() as db:
        (entry,) = db.scalars(select(AuditEntry))
    assert (entry.tag, entry.subject) == ("lifecycle:study:requeued", f"study {study_id}")
    assert entry.actor.startswith("command line: ")


def test_a_study_that_waits_or_is_not_there_is_not_requeued(database: Database):
    study_id = world.in_state(database, State.QUEUED)

    assert "study 1 is QUEUED" in run("study", "requeue", str(study_id)).output
    assert "there is no study 9" in run("study", "requeue", "9").output


def test_a_study_is_made_urgent_by_hand_and_routine_again(database: Database):
    study_id = world.in_state(database, State.QUEUED)

    said = run("study", "urgent", str(study_id))
    again = run("study", "urgent", str(study_id), "--off")

    assert said.output == f"Study {study_id} is urgent.\n"
    assert again.output == f"Study {study_id} is routine.\n"
    with database.snapshot() as db:
        entries = db.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [entry.detail["priority"] for entry in entries] == ["URGENT", "ROUTINE"]
    assert "there is no study 9" in run("study", "urgent", "9").output


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

    weights = {f"weights {name}" for name in doctor.NETWORKS}
    assert set(bad) == {"disk", "database", "broker", "engine openvino"} | weights
    assert all(found.mend for found in bad.values())


def test_the_lock_is_looked_at_without_being_taken(settings: Settings):
    with supervisor.locked(settings):
        run("status")
        assert supervisor.lock_file(settings).exists()
