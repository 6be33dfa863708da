"""Time reception beside DCMTK's storescp, Orthanc and plain pynetdicom, on the loopback.

Usage: python -m bench.reception [--instances N] [--rounds N] [--associations 1,4,16,64]. Each
sender is DCMTK's storescu with `TCP_NODELAY=1` and its share of N CT instances of 0.53 MB; each
receiver is a process of its own with an empty folder, the receivers in turn within each round and
every second round in reverse.

Ours, by either setting, has each instance on disk and in its index before it answers Success; so
has Orthanc (`SyncStorageArea`, its default). `storescp, synced` has each on disk, by a library that
is preloaded (built with `cc`); it has no index. storescp by itself and plain pynetdicom leave the
disk to the system and have no index.

Printed and kept in `bench/results/reception.json`: instances/s, MB/s, the receiver's processor time
for an instance, its peak memory, and how long a C-ECHO took meanwhile. What was received is removed
at the end, not in between: ext4 looks at every file removed in the last minute when it makes one.
"""

import argparse
import datetime as dt
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from bench.inference import machine
from tests.support.listeners import listener_process
from tests.support.pacs import DCMTK_ENVIRONMENT, await_port, free_port

RESULT = Path(__file__).parent / "results" / "reception.json"
HOST = "127.0.0.1"
TICKS = os.sysconf("SC_CLK_TCK")
SYNCING = Path(__file__).parent / "fsync_before_close.c"
Figures = dict[str, float]


def write_series(folder: Path, count: int) -> float:
    """Write one CT series of `count` uncompressed slices; returns their MB."""
    rng = np.random.default_rng(0)
    study, series = generate_uid(), generate_uid()
    folder.mkdir(parents=True)
    for number in range(count):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.PatientID, ds.PatientName, ds.Modality = f"P-{study[-8:]}", "Bench^Reception", "CT"
        ds.InstanceNumber = number + 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows = ds.Columns = 512
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelData = rng.integers(-1000, 1000, (512, 512), dtype=np.int16).tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


# --- Receivers: each yields its process and the AE title to call


@contextmanager
def process(command: list[str], port: int, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a receiver for as long as the block."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(command, **{**quiet, **options})
    try:
        await_port(port)
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(timeout=60)


@contextmanager
def ours(folder: Path, port: int, durability: str) -> Iterator[tuple[int, str]]:
    """Our listener, as `appliance listen` runs it."""
    with listener_process(
        folder, port=port, max_associations=128, durability=durability
    ) as running:
        yield running.process.pid, "CHESTCT"


@contextmanager
def storescp(folder: Path, port: int, *, synced: bool = False) -> Iterator[tuple[int, str]]:
    """DCMTK's receiver, a process for each association."""
    environment = dict(DCMTK_ENVIRONMENT)
    if synced:
        library = folder / "fsync_before_close.so"
        compiler = shutil.which("cc") or "cc"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SYNCING, "-ldl"], check=True)
        environment["LD_PRELOAD"] = str(library)
    command = ["storescp", "--fork", "--bit-preserving", "-od", str(folder), str(port)]
    with process(command, port, env=environment) as started:
        yield started.pid, "STORESCP"


@contextmanager
def orthanc(folder: Path, port: int) -> Iterator[tuple[int, str]]:
    """Orthanc with its own SQLite index."""
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "DicomPort": port,
        "DicomAet": "ORTHANC",
        "HttpServerEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomThreadsCount": 64,
        "Plugins": [],
    }
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(settings))
    command = ["Orthanc", str(configuration)]
    environment = {**DCMTK_ENVIRONMENT, "PATH": "/usr/sbin:/usr/bin:/bin"}
    with process(command, port, env=environment) as started:
        yield started.pid, "ORTHANC"


PLAIN = """
import sys, uuid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification
folder, port = sys.argv[1:]
def store(event):
    with open(f"{folder}/{uuid.uuid4().hex}.dcm", "wb") as file:
        file.write(event.encoded_dataset())
    return 0x0000
ae = AE("PLAIN")
ae.maximum_associations, ae.maximum_pdu_size = 128, 0
ae.supported_contexts = AllStoragePresentationContexts
ae.add_supported_context(Verification)
ae.start_server(("127.0.0.1", int(port)), evt_handlers=[(evt.EVT_C_STORE, store)])
"""


@contextmanager
def plain_pynetdicom(folder: Path, port: int) -> Iterator[tuple[int, str]]:
    """What its tutorial recommends for speed."""
    with process([sys.executable, "-c", PLAIN, str(folder), str(port)], port) as started:
        yield started.pid, "PLAIN"


RECEIVERS: dict[str, Callable[[Path, int], object]] = {
    "ours, instance": lambda folder, port: ours(folder, port, "instance"),
    "ours, association": lambda folder, port: ours(folder, port, "association"),
    "storescp": storescp,
    "storescp, synced": lambda folder, port: storescp(folder, port, synced=True),
    "Orthanc": orthanc,
    "plain pynetdicom": plain_pynetdicom,
}


# --- Measuring


def family(pid: int) -> list[int]:
    """Return a process and its living children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


def processor_s(pid: int) -> float:
    """Return the processor time of a process, its threads and its children, ended ones too."""
    total = 0
    for each in family(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def peak_mib(pid: int) -> float:
    """Return the most memory that a process held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


class Echoes:
    """C-ECHO four times a second for as long as the block runs."""

    def __init__(self, port: int, called: str) -> None:
        self.seconds: list[float] = []
        self._command = ["echoscu", "-aec", called, HOST, str(port)]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.25):
            began = time.perf_counter()
            done = subprocess.run(
                self._command, env=DCMTK_ENVIRONMENT, capture_output=True, check=False
            )
            self.seconds.append(
                time.perf_counter() - began if done.returncode == 0 else float("inf")
            )


def send(folders: list[Path], port: int, called: str) -> tuple[float, int]:
    """Send all folders at once, an association each; returns the seconds, and how many failed."""
    command = ["storescu", "-aec", called, "--scan-directories", HOST, str(port)]
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            [*command, str(folder)],
            env=DCMTK_ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for folder in folders
    ]
    failed = sum(sender.wait() != 0 for sender in senders)
    return time.perf_counter() - began, failed


def release_cache(folder: Path) -> None:
    """Give back the memory that holds a folder's files: the next receiver finds as much as this."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measured(name: str, folders: list[Path], mb: float, count: int, place: Path) -> Figures:
    """Return the figures of one receiver on an empty folder."""
    folder = Path(tempfile.mkdtemp(dir=place))
    port = free_port()
    with RECEIVERS[name](folder, port) as (pid, called):
        before = processor_s(pid)
        with Echoes(port, called) as echoes:
            seconds, failed = send(folders, port, called)
        used = processor_s(pid) - before
        memory = peak_mib(pid)
    release_cache(folder)
    echo = sorted(echoes.seconds) or [float("nan")]
    return {
        "instances/s": count / seconds,
        "MB/s": mb / seconds,
        "processor ms/instance": 1000 * used / count,
        "peak MiB": memory,
        "C-ECHO p95 (s)": echo[int(0.95 * (len(echo) - 1))],
        "senders failed": failed,
    }


def main() -> None:
    """Measure all receivers in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--associations", default="1,4,16,64")
    parser.add_argument("--receivers", default=",".join(RECEIVERS), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help="a folder on the disk to measure")
    asked = parser.parse_args()
    names = [name for name in RECEIVERS if name in asked.receivers]
    rows: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory(dir=asked.place) as place:
        series = Path(place) / "series"
        for associations in (int(n) for n in asked.associations.split(",")):
            each = max(1, asked.instances // associations)
            folders = [series / f"{associations}-{n}" for n in range(associations)]
            mb = sum(write_series(folder, each) for folder in folders)
            found: dict[str, list[Figures]] = {name: [] for name in names}
            for number in range(asked.rounds):
                for name in names[:: 1 if number % 2 == 0 else -1]:
                    found[name].append(
                        measured(name, folders, mb, each * associations, Path(place))
                    )
            for name in names:
                figures = {
                    figure: statistics.median(run[figure] for run in found[name])
                    for figure in found[name][0]
                }
                rows.setdefault(str(associations), {})[name] = figures
                shown = "  ".join(f"{key} {value:.2f}" for key, value in figures.items())
                print(f"{associations:3} associations  {name:18} {shown}", flush=True)
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    about = {"date": today, "rounds": asked.rounds, "instances": asked.instances}
    RESULT.write_text(json.dumps({**about, "machine": machine(), "medians": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
