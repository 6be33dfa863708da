"""`appliance serve`: starts the processes, watches them, starts the fallen again, ends them all.

One process does one thing, so that a crash of the analysis cannot stop reception. What holds:

- one appliance per data folder: a lock that the kernel frees, however this process ends;
- no child outlives this process, even if it is killed: each asks the kernel for that
  (PR_SET_PDEATHSIG, prctl(2)), and so do the processes that they start themselves;
- a child that ends is started again, at once the first time, then ever later;
- a worker that runs but hears no message any more is started again too.

In production systemd does the same with one unit per process.
"""

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from appliance import broker, database, lifecycle, maintenance, queue, web_certificate
from appliance.config import PROCESS_VARIABLE, Settings
from appliance.errors import ApplianceError, ConfigError, TransientError
from appliance.lifecycle import State
from appliance.tables import Study

log = structlog.get_logger()

BROKER: Final = "broker"

POLL_S: Final = 0.2
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 10.0
STEADY_S: Final = 60.0  # a child that lived this long starts with a clean slate
BROKER_START_S: Final = 15.0
STOP_GRACE_S: Final = 10.0
DEAF_AFTER_S: Final = 120.0
LOCK_PATIENCE_S: Final = 1.0
UNREADABLE_AFTER: Final = 3  # falls in a row after which the broker's file is taken for broken

PYTHON: Final = (sys.executable, "-m")
CELERY: Final = (*PYTHON, "celery", "--app", "appliance.worker:app")

PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel end this process when the one that started it ends, in whatever way."""
    if _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


@dataclass(frozen=True)
class Program:
    """A process to keep running.

    `before` runs before each start and is told how often it fell in a row; `hears` is the queue of
    which it is expected to give signs of life.
    """

    name: str
    command: tuple[str, ...]
    before: Callable[[int], None] = lambda _falls: None
    hears: str | None = None


@dataclass(frozen=True)
class ChildReport:
    """How one process is, as `appliance status` shows it."""

    name: str
    pid: int | None
    started_at: float
    restarts: int
    last_exit: str | None


@dataclass(frozen=True)
class Report:
    """How the whole appliance is: written at every change, and read by `appliance status`."""

    pid: int
    ready: bool
    dicom_address: str
    viewer_url: str
    children: tuple[ChildReport, ...]


class Child:
    """One program, running or waiting to be started again."""

    def __init__(self, program: Program, *, logs: Path | None) -> None:
        self.program = program
        self.started_at = 0.0
        self.restarts = 0
        self.last_exit: str | None = None
        self._environment = {**os.environ, PROCESS_VARIABLE: program.name}
        self._logs = logs
        self._process: subprocess.Popen[bytes] | None = None
        self._falls = 0
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process else None

    def report(self) -> ChildReport:
        """How it is."""
        return ChildReport(
            self.program.name, self.pid, self.started_at, self.restarts, self.last_exit
        )

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches it through us, in order."""
        self.program.before(self._falls)
        parent = os.getpid()

        def follow() -> None:
            die_with_parent()
            if os.getppid() != parent:  # it ended before we asked
                os._exit(1)

        with self._output() as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self.program.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=follow,  # noqa: PLW1509 - before any thread of ours exists
            )
        self.started_at = time.time()

    def tend(self) -> bool:
        """Whether something changed: it fell, or it was time to start it again."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return False
            self._fell(code)
            return True
        if time.monotonic() < self._not_before:
            return False
        self.restarts += 1
        try:
            self.start()
        except (OSError, ApplianceError) as error:
            log.exception("child.not_started", child=self.program.name)
            self.last_exit = str(error)
            self._delay()
        else:
            log.info("child.started_again", child=self.program.name, child_pid=self.pid)
        return True

    def kill(self) -> None:
        """End it and all that it started, now."""
        self._signal(signal.SIGKILL)

    def ask_to_end(self) -> None:
        """Ask it to end in its own way."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def end(self, *, deadline: float) -> None:
        """Wait for it to end, and end it and what it left behind at `deadline` (monotonic)."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("child.killed", child=self.program.name)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _fell(self, code: int) -> None:
        self.last_exit = _spoken(code)
        lived_s = time.time() - self.started_at
        self._falls = 1 if lived_s >= STEADY_S else self._falls + 1
        log.warning("child.fell", child=self.program.name, exit=self.last_exit, lived_s=lived_s)
        self._signal(signal.SIGKILL)  # what it started and left behind
        self._process = None
        self._delay()

    def _delay(self) -> None:
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** max(0, self._falls - 1))
        self._not_before = time.monotonic() + delay_s

    def _signal(self, number: int) -> None:
        """Signal its whole process group."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    @contextmanager
    def _output(self) -> Iterator[Any]:
        if self._logs is None:
            yield None  # ours
            return
        with (self._logs / f"{self.program.name}.log").open("ab") as file:
            yield file


class Supervisor:
    """Runs the appliance of one data folder until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        logs: Path | None = None,
        listed: Sequence[Program] | None = None,
    ) -> None:
        self._settings = settings
        self._database = database.Database(database.create_engine(settings))
        self._logs = logs
        self._listed = listed
        self._stopping = threading.Event()
        self._children: list[Child] = []
        self._ready = False

    def run(self) -> None:
        """Start everything and return when everything has ended.

        Raises:
            ApplianceError: it cannot start: the folder is in use, a port is taken.
        """
        with locked(self._settings):
            check_ports(self._settings)
            self._forget()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, lambda *_: self._stopping.set())
            try:
                self._start()
                self._watch()
            finally:
                self._stop()

    def _start(self) -> None:
        """The tables, then the broker, because the others ask for it, then the rest."""
        database.upgrade(self._settings)
        if self._logs is not None:
            self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for program in programs(self._settings) if self._listed is None else self._listed:
            child = Child(program, logs=self._logs)
            self._children.append(child)
            child.start()
            if program.name == BROKER:
                _await_broker(self._settings, self._stopping)
        self._publish()

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_S):
            changed = [child.tend() for child in self._children]
            for child in self._children:
                if self._deaf(child):
                    log.warning("child.deaf", child=child.program.name)
                    child.kill()
            ready = self._ready or self._answering()
            if any(changed) or ready != self._ready:
                if ready and not self._ready:
                    log.info("appliance.ready")
                self._ready = ready
                self._publish()

    def _stop(self) -> None:
        log.info("appliance.stopping")
        # The broker last: what the others still have to say goes through it.
        brokers = [child for child in self._children if child.program.name == BROKER]
        others = [child for child in self._children if child.program.name != BROKER]
        for children in (others, brokers):
            for child in children:
                child.ask_to_end()
            deadline = time.monotonic() + STOP_GRACE_S
            for child in children:
                child.end(deadline=deadline)
        self._release()
        report_file(self._settings).unlink(missing_ok=True)
        log.info("appliance.stopped")

    def _release(self) -> None:
        """Give back what the stopped workers held, so that a restart costs no study a try."""
        try:
            for child in self._children:
                owner = lifecycle.owner_named(child.program.name)
                lifecycle.release(self._database, owner=owner)
        except SQLAlchemyError:
            log.warning("claims.not_released")  # their leases will expire
        finally:
            self._database.dispose()

    def _forget(self) -> None:
        """Remove what an earlier run left, so that no old sign of life is taken for a new one."""
        report_file(self._settings).unlink(missing_ok=True)
        for name in queue.QUEUES:
            maintenance.heard_file(self._settings, name).unlink(missing_ok=True)

    def _answering(self) -> bool:
        """Whether every port answers and both workers have given a sign of life."""
        files = [maintenance.heard_file(self._settings, name) for name in queue.QUEUES]
        places = addresses(self._settings)
        return all(f.exists() for f in files) and all(
            accepts(host, port) for _, host, port in places
        )

    def _deaf(self, child: Child) -> bool:
        """Whether a worker runs without having heard anything for long, and is not busy either."""
        if child.program.hears is None or child.pid is None:
            return False
        try:
            heard_at = maintenance.heard_file(self._settings, child.program.hears).stat().st_mtime
        except FileNotFoundError:
            heard_at = 0.0
        limit_s = max(DEAF_AFTER_S, 6 * self._settings.lifecycle.sweep_s)
        if time.time() - max(heard_at, child.started_at) < limit_s:
            return False
        return child.program.hears != queue.GPU or not self._analysing()

    def _analysing(self) -> bool:
        """Whether an analysis holds a valid lease: then a busy worker explains the silence."""
        held = select(func.count()).where(
            Study.state == State.ANALYSING, Study.lease_until > database.utc_now()
        )
        try:
            with self._database.snapshot() as db:
                return bool(db.scalar(held))
        except SQLAlchemyError:
            return True  # nobody can work now; starting workers again would mend nothing

    def _publish(self) -> None:
        dicom, web = self._settings.dicom, self._settings.web
        ports = "/".join(map(str, dicom.ports.values()))
        report = Report(
            pid=os.getpid(),
            ready=self._ready,
            dicom_address=f"{dicom.ae_title}@{dicom.host}:{ports}",
            viewer_url=web.address,
            children=tuple(child.report() for child in self._children),
        )
        path = report_file(self._settings)
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(asdict(report)), encoding="utf-8")
        aside.replace(path)


def programs(settings: Settings) -> list[Program]:
    """What runs, in the order in which it is started."""
    web = settings.web
    listed = []
    if settings.broker_url is None:
        listed.append(Program(BROKER, broker.prepare(settings), before=_mend_broker(settings)))
    # Retrieving and delivering take as long as the PACS does; one process does all else meanwhile.
    at_once = {
        queue.GPU: settings.analysis.at_once,
        queue.DICOM: 1 + settings.asks_others + settings.tells_others,
    }
    listed.extend(_worker(name, at_once.get(name, 1)) for name in queue.QUEUES)
    listed += [
        Program("beat", (*CELERY, "beat", "--scheduler", "celery.beat:Scheduler", "--pidfile", "")),
        Program("listener", (*PYTHON, "appliance.cli", "listen")),
        Program(
            "web",
            (
                *PYTHON,
                "gunicorn",
                "--config",
                "python:appliance.web_server",
                "--bind",
                f"{web.host}:{web.port}",
                *_tls(settings),
                "webui.app:create_app()",
            ),
        ),
    ]
    return listed


def _tls(settings: Settings) -> tuple[str, ...]:
    """The web server's options for HTTPS, where it serves that."""
    certificate = web_certificate.prepare(settings)
    if certificate is None:
        return ()
    log.info("web.certificate", fingerprint=certificate.fingerprint, made_here=certificate.is_own)
    return ("--certfile", str(certificate.file), "--keyfile", str(certificate.key))


def _worker(name: str, at_once: int) -> Program:
    """A Celery worker of one queue, with a process for each task at once."""
    options = ("--queues", name, "--concurrency", str(at_once), "--pool", "prefork")
    alone = ("--hostname", f"{name}@%h", "--without-gossip", "--without-mingle")
    command = (*CELERY, "worker", *options, *alone, "--loglevel", "INFO")
    return Program(f"worker-{name}", command, hears=name)


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Keep this data folder to ourselves; the kernel frees it when this process ends.

    Raises:
        ApplianceError: another appliance runs on it.
    """
    settings.prepare()
    with lock_file(settings).open("a+", encoding="ascii") as file:
        if not _lock(file):
            file.seek(0)
            holder = file.read().strip()
            raise ApplianceError(
                f"an appliance runs on {settings.data_dir} already (process {holder or 'unknown'});"
                " stop it first, or give this one another data folder"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str]) -> bool:
    """Whether the lock is ours. `read_report` holds it for a moment, so one refusal is no proof."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def lock_file(settings: Settings) -> Path:
    """The file whose lock says that an appliance runs."""
    return settings.run_dir / "lock"


def report_file(settings: Settings) -> Path:
    """The file in which a running appliance says how it is."""
    return settings.run_dir / "report.json"


def read_report(settings: Settings) -> Report | None:
    """How the appliance of this data folder is, or nothing when none runs."""
    try:
        with lock_file(settings).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # somebody holds it: it runs
    except FileNotFoundError:
        return None
    else:
        return None
    try:
        document = json.loads(report_file(settings).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    children = tuple(ChildReport(**child) for child in document.pop("children"))
    report = Report(**document, children=children)
    # One that is just starting holds the lock while its predecessor's report still lies there.
    return report if Path(f"/proc/{report.pid}").exists() else None


def addresses(settings: Settings) -> tuple[tuple[str, str, int], ...]:
    """What listens on the network: the table of the settings, the host and the port."""
    dicom, web = settings.dicom, settings.web
    listeners = (("dicom", dicom.host, port) for port in dicom.ports.values())
    return (*listeners, ("web", web.host, web.port))


def check_ports(settings: Settings) -> None:
    """Refuse to start when another program has a port. Raises ConfigError."""
    for section, host, port in addresses(settings):
        if (trouble := port_trouble(section, host, port)) is not None:
            raise ConfigError(f"{trouble.text}: {trouble.mend}")


@dataclass(frozen=True)
class PortTrouble:
    """Why no server could listen somewhere, and what to do."""

    text: str
    mend: str


def port_trouble(section: str, host: str, port: int) -> PortTrouble | None:
    """Why the server of a table of the settings could not listen; nothing when it could."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return _why_no_port(error, section, host, port)
    return None


def _why_no_port(error: OSError, section: str, host: str, port: int) -> PortTrouble:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return PortTrouble(
            f"{host} is no address of this machine",
            f"set [{section}] host to one, 127.0.0.1 for itself alone or 0.0.0.0 for all",
        )
    if error.errno == errno.EADDRINUSE:
        return PortTrouble(
            f"another program uses port {port} on {host}",
            f"stop it, or set another [{section}] port",
        )
    if error.errno == errno.EACCES:
        return PortTrouble(
            f"port {port} needs a privilege that this user lacks",
            f"set a [{section}] port from 1024 on, or grant CAP_NET_BIND_SERVICE"
            " (systemd: AmbientCapabilities=)",
        )
    return PortTrouble(
        f"port {port} on {host} cannot be had ({error.strerror})",
        f"set another [{section}] host or port",
    )


def accepts(host: str, port: int) -> bool:
    """Whether something listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared
    try:
        with socket.create_connection((reachable, port), timeout=1.0):
            return True
    except OSError:
        return False


def _await_broker(settings: Settings, stopping: threading.Event) -> None:
    """Wait until the embedded broker answers. A late one is no failure: everybody asks again."""
    deadline = time.monotonic() + BROKER_START_S
    while time.monotonic() < deadline and not stopping.wait(0.05):
        try:
            broker.ping(settings, timeout_s=0.5)
        except TransientError:
            continue
        return


def _mend_broker(settings: Settings) -> Callable[[int], None]:
    def before(falls: int) -> None:
        broker.prepare(settings)
        if falls and falls % UNREADABLE_AFTER == 0 and (aside := broker.set_aside(settings)):
            log.warning("broker.file_set_aside", path=str(aside))

    return before


def _spoken(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"exit status {code}"
    return f"killed by {signal.Signals(-code).name}"
