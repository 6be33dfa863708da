"""Orthanc as the PACS that pushes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.store import Store
from dicom_node.scp import Listener
from tests.support import archives
from tests.support.archives import Orthanc
from tests.support.instances import Names, as_file, ct_instance, dataset_bytes


@pytest.fixture
def orthanc(listener: Listener, tmp_path: Path) -> Iterator[Orthanc]:
    with archives.orthanc(tmp_path, box_port=listener.port) as running:
        yield running


def test_orthanc_pushes_an_instance_that_arrives_byte_for_byte(
    orthanc: Orthanc, store: Store, tmp_path: Path
):
    path = as_file(ct_instance(Names.fresh()), tmp_path / "a.dcm")
    uploaded = orthanc.post("/instances", path.read_bytes())

    sent = orthanc.post("/modalities/box/store", str(uploaded["ID"]).encode())

    assert sent["FailedInstancesCount"] == 0
    (file,) = store.objects_dir.rglob("*.dcm")
    assert dataset_bytes(file) == dataset_bytes(path)
