"""How much memory the real web server takes for a large study, out and in."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import compress
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from appliance.config import SETTINGS_VARIABLE, to_toml
from tests.support.figures import FIGURE
from tests.support.instances import Names, as_file, ct_instance
from tests.support.pacs import HOST, await_port, free_port
from tests.webui.dicomweb.conftest import Archive
from tests.webui.world import NAME, PASSWORD

INSTANCES = 300
SIDE = 512
MIB = 2**20
ALLOWED_MIB = 48
"""A study of 300 has 150 MiB."""


@contextmanager
def gunicorn(data_dir: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """The address of the web server as the appliance runs it, and its worker's process."""
    settings_file = folder / "settings.toml"
    settings_file.write_text(to_toml({"data_dir": str(data_dir)}))
    port = free_port()
    command = ["-m", "gunicorn", "--config", "python:appliance.web_server"]
    command += ["--bind", f"{HOST}:{port}", "webui.app:create_app()"]
    with subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, SETTINGS_VARIABLE: str(settings_file)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as master:
        try:
            await_port(port)
            address = f"http://{HOST}:{port}"
            assert requests.get(f"{address}/healthz", timeout=60).ok
            children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text()
            yield f"{address}/dicom-web", int(children.split()[0])
        finally:
            master.terminate()


def peak_growth_mib(process: int, work: Callable[[], object]) -> float:
    """How far the memory of a process rose above where it was, at most, during some work."""
    Path(f"/proc/{process}/clear_refs").write_text("5")  # begins a new VmHWM, proc(5)
    before = _status(process, "VmRSS")
    work()
    return (_status(process, "VmHWM") - before) / 1024


def _status(process: int, name: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def slice_of(names: Names, syntax: str) -> Dataset:
    pixels = np.random.default_rng(1).integers(-1000, 1000, (SIDE, SIDE), np.int16)
    dataset = ct_instance(names, Rows=SIDE, Columns=SIDE, PixelData=pixels.tobytes())
    if syntax == RLELossless:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        compress(dataset, RLELossless, generate_instance_uid=False)
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=["plain", "rle"])
def test_a_large_study_is_retrieved_in_little_memory(
    archive: Archive, tmp_path: Path, record_property: Callable[..., None], syntax: str
):
    names = Names.fresh()
    dataset = slice_of(names, syntax)
    for _ in range(INSTANCES):
        dataset.SOPInstanceUID = generate_uid()
        archive.take(dataset, transfer_syntax_uid=syntax)
    session = requests.Session()
    session.auth = (NAME, PASSWORD)

    def fetched(url: str, accept: str) -> int:
        with session.get(url, headers={"Accept": accept}, stream=True, timeout=120) as answer:
            answer.raise_for_status()
            return sum(len(chunk) for chunk in answer.iter_content(MIB))

    with gunicorn(archive.world.settings.data_dir, tmp_path) as (address, worker):
        study = f"{address}/studies/{names.study_uid}"
        dicom = 'multipart/related; type="application/dicom"'
        fetched(f"{study}/instances?limit=1", "*/*")  # imports what it needs, and signs in
        for what, url, accept, least in (
            ("as stored", study, f"{dicom}; transfer-syntax=*", 100 * MIB),
            ("explicit little endian", study, dicom, 100 * MIB),
            ("metadata", f"{study}/metadata", "*/*", 100_000),
            ("search", f"{study}/instances", "*/*", 100_000),
        ):
            sizes: list[int] = []

            def work(url: str = url, accept: str = accept, sizes: list[int] = sizes) -> None:
                sizes.append(fetched(url, accept))

            grown = peak_growth_mib(worker, work)
            told = f"{sizes[0] / MIB:.1f} MiB out, {grown:.1f} MiB of memory"
            record_property(FIGURE, f"DICOMweb, {INSTANCES} instances, {what}: {told}")
            assert sizes[0] > least
            assert grown < ALLOWED_MIB


def test_a_large_message_is_stored_in_little_memory(
    archive: Archive, tmp_path: Path, record_property: Callable[..., None]
):
    names = Names.fresh()
    dataset = slice_of(names, ExplicitVRLittleEndian)

    def message() -> Iterator[bytes]:
        for _ in range(INSTANCES):
            dataset.SOPInstanceUID = generate_uid()
            yield b"--b0undary\r\nContent-Type: application/dicom\r\n\r\n"
            yield as_file(dataset, tmp_path / "sent.dcm").read_bytes()
            yield b"\r\n"
        yield b"--b0undary--"

    answers = []

    def stored(address: str) -> None:
        content_type = 'multipart/related; type="application/dicom"; boundary=b0undary'
        answers.append(
            requests.post(
                f"{address}/studies",
                data=message(),
                headers={"Content-Type": content_type},
                auth=(NAME, PASSWORD),
                timeout=250,
            )
        )

    with gunicorn(archive.world.settings.data_dir, tmp_path) as (address, worker):
        requests.get(f"{address}/studies", auth=(NAME, PASSWORD), timeout=60)
        grown = peak_growth_mib(worker, lambda: stored(address))

    assert answers[0].status_code == 200
    assert len(answers[0].json()["00081199"]["Value"]) == INSTANCES
    record_property(FIGURE, f"DICOMweb, {INSTANCES} instances stored: {grown:.1f} MiB of memory")
    assert grown < ALLOWED_MIB


def test_a_large_instance_is_stored_in_little_memory(
    archive: Archive, tmp_path: Path, record_property: Callable[..., None]
):
    names = Names.fresh()
    large = ct_instance(names, Rows=8192, Columns=8192, PixelData=bytes(2 * 8192**2))
    file = as_file(large, tmp_path / "sent.dcm").read_bytes()
    message = b"--b0undary\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n--b0undary--"
    content_type = 'multipart/related; type="application/dicom"; boundary=b0undary'
    answers = []

    def stored(address: str) -> None:
        answers.append(
            requests.post(
                f"{address}/studies",
                data=message,
                headers={"Content-Type": content_type},
                auth=(NAME, PASSWORD),
                timeout=250,
            )
        )

    with gunicorn(archive.world.settings.data_dir, tmp_path) as (address, worker):
        requests.get(f"{address}/studies", auth=(NAME, PASSWORD), timeout=60)
        grown = peak_growth_mib(worker, lambda: stored(address))

    assert answers[0].status_code == 200
    told = f"{len(file) / MIB:.0f} MiB, {grown:.1f} MiB of memory"
    record_property(FIGURE, f"DICOMweb, one instance stored: {told}")
    assert grown < ALLOWED_MIB
