"""Orthanc as the PACS that pushes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.store import Store
from dicom_node.scp import Listener
from tests.support import orthanc as pacs
from tests.support.instances import Names, as_file, ct_instance, dataset_bytes
from tests.support.pacs import HOST


@pytest.fixture
def orthanc(listener: Listener, tmp_path: Path) -> Iterator[str]:
    """The address of an Orthanc that knows our listener as the modality "box"."""
    modalities: dict[str, list[object]] = {"box": ["CHESTCT", HOST, listener.port]}
    with pacs.orthanc(tmp_path, modalities=modalities) as address:
        yield address


def test_orthanc_pushes_an_instance_that_arrives_byte_for_byte(
    orthanc: str, store: Store, tmp_path: Path
):
    path = as_file(ct_instance(Names.fresh()), tmp_path / "a.dcm")
    uploaded = pacs.post(f"{orthanc}/instances", path.read_bytes())

    sent = pacs.post(f"{orthanc}/modalities/box/store", str(uploaded["ID"]).encode())

    assert sent["FailedInstancesCount"] == 0
    (file,) = store.objects_dir.rglob("*.dcm")
    assert dataset_bytes(file) == dataset_bytes(path)
