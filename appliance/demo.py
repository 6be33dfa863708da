"""`appliance demo`: the whole way of one study, from C-STORE to the viewer, in plain words.

It starts `appliance serve` on a folder of its own, sends a study with `appliance send` as any
scanner would, follows it in the database, and ends with one line `RESULT {json}` for scripts.
"""

import json
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import pydicom
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError

from appliance import accounts, lifecycle, queue, studies, supervisor
from appliance.config import Settings, to_toml
from appliance.database import Database, open_database, upgrade
from appliance.errors import ApplianceError
from appliance.lifecycle import State
from appliance.studies import WorklistRow
from appliance.supervisor import PYTHON, Report

USER: Final = "radiologist"
QUIET_S: Final = 5.0
START_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.25
FINAL: Final = frozenset({State.READY, State.REJECTED, State.FAILED})


@dataclass(frozen=True)
class Source:
    """What the demo sends: a file or folder, its DICOM files, and the study most belong to."""

    path: Path
    files: int
    study_uid: str


@dataclass(frozen=True)
class Outcome:
    """Where the demo's study ended and how long the parts took, in seconds."""

    row: WorklistRow
    seconds: dict[str, float]
    viewer_url: str

    @property
    def ready(self) -> bool:
        """Whether there is a result to look at."""
        return self.row.state is State.READY

    def as_json(self) -> dict[str, Any]:
        """The content of the RESULT line."""
        result = {
            "study_uid": self.row.study_uid,
            "state": str(self.row.state),
            "probability": self.row.probability,
            "positive": self.row.positive,
            "lesions": self.row.lesion_count,
            "lesion_volume_ml": self.row.lesion_volume_ml,
            "seconds": self.seconds,
            "viewer_url": self.viewer_url,
        }
        return result if self.ready else {**result, "reason": self.row.state_reason}


def run(folder: Path, *, study: Path | None, once: bool, timeout_s: float) -> int:
    """Run the demo in `folder`; the exit status: 0 when the study ended READY."""
    deadline = time.monotonic() + timeout_s
    with _stop_signals():
        try:
            return _run(folder, study, once=once, deadline=deadline)
        except KeyboardInterrupt:
            click.echo("Stopped.")
            return 130


def _run(folder: Path, study: Path | None, *, once: bool, deadline: float) -> int:
    given = _study_in(study) if study else None  # nothing starts for a folder without a study
    settings = _prepare(folder)
    started = time.monotonic()
    with _serving(folder) as server:
        report = _await_ready(server, settings, folder)
        seconds = {"start": _since(started)}
        click.echo(f"Started in {seconds['start']:.1f} s: DICOM node {report.dicom_address}.")
        upgrade(settings)
        database = open_database(settings)
        try:
            _say_sign_in(database, report)
            source = given or _study_in(_phantom(folder))
            outcome = _one_study(database, settings, source, report, seconds, server, deadline)
        finally:
            database.dispose()
        _say_outcome(outcome)
        stays = (
            f"It stays up: open {outcome.viewer_url} (Ctrl-C ends it)."
            f" `appliance --settings {_settings_file(folder)} status` tells how it is."
        )
        click.echo("Stopping." if once else stays)
        click.echo(f"RESULT {json.dumps(outcome.as_json())}")
        if not once:
            server.wait()
    return 0 if outcome.ready else 1


def _prepare(folder: Path) -> Settings:
    """The demo's settings, written to its folder; the usual ports if they are free."""
    click.echo(f"Keeping everything in {folder}.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    default = Settings.parse({"data_dir": str(folder)})
    with supervisor.locked(default):
        document = {
            "data_dir": str(folder),
            "receive": {"quiet_s": QUIET_S},
            "dicom": {"port": _port(default.dicom.port)},
            "web": {"port": _port(default.web.port)},
        }
        _settings_file(folder).write_text(to_toml(document), encoding="utf-8")
    return Settings.load(_settings_file(folder))


def _settings_file(folder: Path) -> Path:
    return folder / "settings.toml"


def _port(wanted: int) -> int:
    """`wanted` if it is free, else any that is."""
    host = "127.0.0.1"
    if supervisor.port_trouble("", host, wanted) is None:
        return wanted
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    click.echo(f"Another program uses port {wanted}; taking {port}.")
    return port


@contextmanager
def _serving(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The appliance in a process of its own, ended with the block, and with us if we are killed."""
    click.echo("Starting broker, workers, listener and pages …")
    with _log_file(folder).open("wb") as log:
        server = subprocess.Popen(  # noqa: S603 - our own command
            [*_command(folder), "serve", "--logs", str(folder / "logs")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with_us,  # noqa: PLW1509 - no other thread exists
        )
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _end_with_us() -> None:
    supervisor.die_with_parent(signal.SIGTERM)


def _command(folder: Path) -> list[str]:
    return [*PYTHON, "appliance.cli", "--settings", str(_settings_file(folder))]


def _log_file(folder: Path) -> Path:
    return folder / "serve.log"


def _await_ready(server: subprocess.Popen[bytes], settings: Settings, folder: Path) -> Report:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ApplianceError(f"the appliance did not start: {_last_line(_log_file(folder))}")
        report = supervisor.read_report(settings)
        if report is not None and report.ready:
            return report
        time.sleep(POLL_S)
    raise ApplianceError(
        f"the appliance was not ready within {START_TIMEOUT_S:.0f} s;"
        f" see {folder / 'logs'} and run `appliance --settings {_settings_file(folder)} doctor`"
    )


def _say_sign_in(database: Database, report: Report) -> None:
    """Give the demo's user a new password at every start, and show it once."""
    password = accounts.new_password()
    with database.transaction() as db:
        if accounts.named(db, USER) is None:
            role = accounts.Role.RADIOLOGIST
            accounts.add(db, USER, password=password, role=role, actor="demo")
        else:
            accounts.set_password(db, USER, password=password, actor="demo")
    click.echo(f"Sign in at {report.viewer_url} as {USER} with the password {password}")
    click.echo("(a new one at each start of the demo; earlier ones no longer work)")


def _phantom(folder: Path) -> Path:
    """The synthetic chest, made once, so that a second demo sends the same study."""
    target = folder / "phantom"
    if target.is_dir():
        click.echo("Taking the synthetic chest of the last demo.")
        return target
    click.echo("Making a synthetic chest CT …")
    aside = folder / "phantom.new"
    _call(folder, "phantom", str(aside))
    return aside.rename(target)


def _one_study(
    database: Database,
    settings: Settings,
    source: Source,
    report: Report,
    seconds: dict[str, float],
    server: subprocess.Popen[bytes],
    deadline: float,
) -> Outcome:
    before = _images(database, source.study_uid)
    dicom = settings.dicom
    click.echo(f"Sending {source.files} files to {report.dicom_address} by C-STORE …")
    started = time.monotonic()
    address = ("--host", dicom.host, "--port", str(dicom.port), "--called-ae", dicom.ae_title)
    _call(settings.data_dir, "send", str(source.path), *address)
    seconds["send"] = _since(started)
    study_id, grown = _sent_study(before, _images(database, source.study_uid))
    if not grown:
        _try_again(database, settings, study_id)
    else:
        click.echo(f"Sent in {seconds['send']:.1f} s. Waiting for {QUIET_S:.0f} s of quiet …")
    row = _follow(database, study_id, settings, server, deadline)
    seconds.update(_waits(database, row))
    with database.snapshot() as db:
        analysis = studies.current_analysis(db, row.study_id)
    if analysis is not None:
        seconds.update({step: round(float(s), 3) for step, s in analysis.timings.items()})
    return Outcome(row, seconds, f"{report.viewer_url}studies/{row.study_id}")


def _images(database: Database, study_uid: str) -> dict[int, int]:
    """How many images each study under this UID has, one for each person named with it."""
    with database.snapshot() as db:
        return {study.id: study.revision for study in studies.named(db, study_uid)}


def _sent_study(before: dict[int, int], after: dict[int, int]) -> tuple[int, bool]:
    """The study that was sent, by the images each had before and after, and whether it grew.

    Raises:
        ApplianceError: there is none, or nothing says which.
    """
    if not after:
        raise ApplianceError("the study was sent, but it is not in the worklist: see the logs")
    grown = {study_id: n - before.get(study_id, 0) for study_id, n in after.items()}
    if len(after) > 1 and not any(grown.values()):
        raise ApplianceError(
            "this study was sent before, and images of several people are kept under its UID:"
            " delete the demo's folder to begin anew"
        )
    study_id = max(after, key=lambda each: (grown[each], after[each]))
    return study_id, grown[study_id] > 0


def _try_again(database: Database, settings: Settings, study_id: int) -> None:
    """Have an unchanged study analysed anew when it came to no result the last time."""
    with database.snapshot() as db:
        row = studies.worklist_row(db, study_id)
    if row is None or row.state not in FINAL:
        return
    if row.state is State.READY:
        click.echo("This study was sent before, and nothing new came; this is its result.")
        return
    click.echo(f"This study was sent before and ended {row.state}: {row.state_reason}")
    click.echo("Trying it again …")
    doorbell = queue.Queue(queue.make_app(settings))
    lifecycle.requeue(database, row.study_id, actor="demo", doorbell=doorbell)


def _waits(database: Database, row: WorklistRow) -> dict[str, float]:
    """How long the study last waited: until it counted as complete, and for a worker."""
    with database.snapshot() as db:
        moves = studies.events_of(db, row.study_id)
        entered = {move.target: move.at for move in moves if move.source != move.target}
    queued, claimed = entered.get(State.QUEUED), entered.get(State.ANALYSING)
    if queued is None or claimed is None:
        return {}
    return {
        "quiet": round((queued - row.last_received_at).total_seconds(), 3),
        "queue": round((claimed - queued).total_seconds(), 3),
    }


def _follow(
    database: Database,
    study_id: int,
    settings: Settings,
    server: subprocess.Popen[bytes],
    deadline: float,
) -> WorklistRow:
    """Say what happens to the study until it is in a final state."""
    said: tuple[object, ...] = ()
    steps = 0
    while time.monotonic() < deadline:
        with database.snapshot() as db:
            row, progress = studies.worklist_row(db, study_id), studies.progress(db, study_id)
        if row is None or server.poll() is not None:
            raise ApplianceError(f"the appliance ended; see {_log_file(settings.data_dir)}")
        done = progress.steps if progress and row.state is not State.RECEIVING else ()
        for step in done[steps:]:
            click.echo(f"  {step.step}: {step.seconds:.1f} s")
        steps = len(done)
        if (row.state, row.attempts) != said:
            said = (row.state, row.attempts)
            if (sentence := _sentence(row)) is not None:
                click.echo(sentence)
        if row.state in FINAL:
            return row
        time.sleep(POLL_S)
    raise ApplianceError(
        "no result in time; the logs and"
        f" `appliance --settings {_settings_file(settings.data_dir)} status` say what it waits for"
    )


def _sentence(row: WorklistRow) -> str | None:
    match row.state:
        case State.QUEUED:
            again = f" again ({row.state_reason})" if row.attempts else ""
            return f"Waiting for a worker{again} …"
        case State.ANALYSING:
            return f"Analysing{f', try {row.attempts}' if row.attempts > 1 else ''} …"
        case _:
            return None


def _say_outcome(outcome: Outcome) -> None:
    row = outcome.row
    if outcome.ready:
        click.echo(
            f"Result: {'suspicious' if row.positive else 'not suspicious'}"
            f" (probability {row.probability or 0:.2f}), {row.lesion_count} lesions,"
            f" {row.lesion_volume_ml or 0:.1f} ml. Research use only, not for primary diagnosis."
        )
    else:
        click.echo(f"The study ended {row.state}: {row.state_reason}")
    click.echo(f"Viewer: {outcome.viewer_url}")


def _study_in(path: Path) -> Source:
    """What there is to send at `path`. Raises ApplianceError when there is no DICOM file."""
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found: Counter[str] = Counter()
    for file in paths:
        try:
            with disable_value_validation():  # a warning would quote the UID that is none
                tags = ["StudyInstanceUID"]
                ds = pydicom.dcmread(file, specific_tags=tags, stop_before_pixels=True)
                uid = str(ds.get("StudyInstanceUID", "")).strip("\0 ")
        except (InvalidDicomError, OSError):
            continue
        if uid:
            found[uid] += 1
    if not found:
        raise ApplianceError(f"{path} holds no DICOM file; name a folder with one study")
    if len(found) > 1:
        click.echo(f"{path} holds {len(found)} studies; following the one with most files.")
    return Source(path, found.total(), found.most_common(1)[0][0])


def _call(folder: Path, *arguments: str) -> None:
    """Run another command to its end. Raises ApplianceError with its last words."""
    done = subprocess.run(  # noqa: S603 - our own command
        [*_command(folder), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_end_with_us,
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise ApplianceError(f"`appliance {arguments[0]}` failed: {words[-1]}")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Take SIGTERM and SIGHUP as Ctrl-C, so that everything is stopped in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
