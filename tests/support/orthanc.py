"""A real Orthanc on the loopback, gone with the block."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.pacs import DCMTK_ENVIRONMENT, HOST, await_port, free_port


@contextmanager
def orthanc(folder: Path, *, modalities: dict[str, list[object]] | None = None) -> Iterator[str]:
    """The address of an Orthanc that keeps its files in `folder`; skips where there is none."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("Orthanc is not installed")
    web, dicom = free_port(), free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": web,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
        "DicomModalities": modalities or {},
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    with subprocess.Popen(
        [program, str(path)],
        env=DCMTK_ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            await_port(web)
            yield f"http://{HOST}:{web}"
        finally:
            process.terminate()


def post(address: str, content: bytes) -> dict[str, object]:
    request = urllib.request.Request(address, data=content, method="POST")
    for _ in range(50):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except urllib.error.URLError:  # it listens before it answers
            time.sleep(0.1)
    raise AssertionError("Orthanc does not answer")


def get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=30) as answer:
        content: bytes = answer.read()
    return content
