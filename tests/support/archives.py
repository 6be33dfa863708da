"""PACSs made by others, on the loopback: Orthanc and DCMTK's dcmqrscp."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from dicom_node.scu import Destination
from tests.support.instances import as_file
from tests.support.pacs import DCMTK_ENVIRONMENT, HOST, await_port, dcmtk, free_port

ORTHANC_AE = "ORTHANC"
QRSCP_AE = "QRSCP"

QRSCP_SETTINGS = """
NetworkTCPPort = {port}
MaxPDUSize = 65536
MaxAssociations = 16
HostTable BEGIN
box = (CHESTCT, 127.0.0.1, {box})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
QRSCP {folder} RW (1000, 1024mb) ANY
AETable END
"""


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc."""

    web: str
    dicom_port: int

    @property
    def destination(self) -> Destination:
        return Destination(
            host=HOST, port=self.dicom_port, called_ae=ORTHANC_AE, calling_ae="CHESTCT"
        )

    def post(self, path: str, content: bytes) -> dict[str, Any]:
        request = urllib.request.Request(self.web + path, data=content, method="POST")
        for _ in range(50):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return dict(json.loads(answer.read()))
            except urllib.error.HTTPError as error:
                raise AssertionError(error.read().decode()) from error
            except urllib.error.URLError:  # it listens before it answers
                time.sleep(0.1)
        raise AssertionError("Orthanc does not answer")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.web + path, timeout=30) as answer:
            content: bytes = answer.read()
        return content

    def keep(self, instances: Sequence[Dataset], folder: Path, syntax: str) -> None:
        """Give it instances, as files."""
        for ds in instances:
            self.post("/instances", as_file(ds, folder / "given.dcm", syntax).read_bytes())


@contextmanager
def orthanc(
    folder: Path, *, box_port: int = 0, dicom_port: int | None = None, **settings: Any
) -> Iterator[Orthanc]:
    """An Orthanc that knows our listener, if there is one, as the modality "box"; or skips."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("Orthanc is not installed")
    web, dicom = free_port(), dicom_port or free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": web,
        "DicomPort": dicom,
        "DicomAet": ORTHANC_AE,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
        "DicomModalities": {"box": ["CHESTCT", HOST, box_port]} if box_port else {},
        **settings,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    with subprocess.Popen(
        [program, str(path)],
        env=DCMTK_ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        await_port(web)
        try:
            yield Orthanc(f"http://{HOST}:{web}", dicom)
        finally:
            process.terminate()


@contextmanager
def qrscp(folder: Path, instances: Sequence[Dataset], *, box_port: int) -> Iterator[Destination]:
    """A dcmqrscp that holds these instances; skips where it is not installed."""
    program = shutil.which("dcmqrscp")
    if program is None:
        pytest.skip("DCMTK's dcmqrscp is not installed")
    port = free_port()
    kept = folder / "qrscp"
    kept.mkdir()
    config = folder / "qrscp.cfg"
    config.write_text(QRSCP_SETTINGS.format(port=port, box=box_port, folder=kept))
    for number, ds in enumerate(instances):
        as_file(ds, kept / f"{number:04}.dcm")
    index = dcmtk("dcmqridx", kept, *sorted(kept.glob("*.dcm")))
    assert index.returncode == 0, index.stderr
    with subprocess.Popen(
        [program, "--config", str(config)],
        env=DCMTK_ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        await_port(port)
        try:
            yield Destination(host=HOST, port=port, called_ae=QRSCP_AE, calling_ae="CHESTCT")
        finally:
            process.terminate()
