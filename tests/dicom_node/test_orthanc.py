"""Orthanc as the PACS that pushes."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.store import Store
from dicom_node.scp import Listener
from tests.support.instances import Names, as_file, ct_instance, dataset_bytes
from tests.support.pacs import DCMTK_ENVIRONMENT, HOST, await_port, free_port


@pytest.fixture
def orthanc(listener: Listener, tmp_path: Path) -> Iterator[str]:
    """The address of an Orthanc that knows our listener as the modality "box"."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("Orthanc is not installed")
    web, dicom = free_port(), free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": web,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
        "DicomModalities": {"box": ["CHESTCT", HOST, listener.port]},
    }
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps(settings))
    with subprocess.Popen(
        [program, str(path)],
        env=DCMTK_ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        await_port(web)
        yield f"http://{HOST}:{web}"
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


def test_orthanc_pushes_an_instance_that_arrives_byte_for_byte(
    orthanc: str, store: Store, tmp_path: Path
):
    path = as_file(ct_instance(Names.fresh()), tmp_path / "a.dcm")
    uploaded = post(f"{orthanc}/instances", path.read_bytes())

    sent = post(f"{orthanc}/modalities/box/store", str(uploaded["ID"]).encode())

    assert sent["FailedInstancesCount"] == 0
    (file,) = store.objects_dir.rglob("*.dcm")
    assert dataset_bytes(file) == dataset_bytes(path)
