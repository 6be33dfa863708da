"""DCMTK's tools as the peers: software that nobody here wrote."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from appliance import collection, studies
from appliance.database import Database
from appliance.store import Store
from dicom_node import scu
from dicom_node.scp import Listener
from tests.support.instances import (
    REAL_STUDY,
    SIXTEEN_SYNTAXES,
    Names,
    as_file,
    ct_instance,
    dataset_bytes,
    needs_real_data,
)
from tests.support.pacs import HOST, await_port, dcmtk, free_port

# How storescu names the transfer syntaxes; it has no word for 53, 55 and 57.
PROPOSALS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.5": "-xr",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
}


def storescu(port: int, *arguments: str | Path):
    return dcmtk("storescu", "-aec", "CHESTCT", *arguments[:-1], HOST, str(port), arguments[-1])


def test_echoscu_is_answered(listener: Listener):
    assert dcmtk("echoscu", "-aec", "CHESTCT", HOST, str(listener.port)).returncode == 0


def test_echoscu_reads_why_it_is_refused(listener: Listener):
    result = dcmtk("echoscu", "-aec", "OTHER", HOST, str(listener.port))

    assert result.returncode != 0
    assert "Called AE Title Not Recognized" in result.stderr


def test_storescu_reads_why_an_instance_is_refused(listener: Listener, tmp_path: Path):
    path = as_file(ct_instance(Names.fresh(), StudyInstanceUID=""), tmp_path / "a.dcm")

    result = storescu(listener.port, "-v", path)

    assert "DataSetDoesNotMatchSOPClass" in result.stderr


@needs_real_data
@pytest.mark.parametrize(("transfer_syntax_uid", "proposal"), PROPOSALS.items())
def test_storescu_delivers_a_real_slice_in_its_transfer_syntax(
    listener: Listener, store: Store, transfer_syntax_uid: str, proposal: str
):
    (path,) = SIXTEEN_SYNTAXES.glob(f"*_{transfer_syntax_uid}.dcm")
    original = pydicom.dcmread(path)

    result = storescu(listener.port, proposal, path)

    assert result.returncode == 0, result.stderr
    (file,) = store.objects_dir.rglob("*.dcm")
    stored = pydicom.dcmread(file)
    assert stored.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
    # storescu counts group lengths anew and calls encapsulated pixel data OB.
    assert values(stored) == values(original)


def values(ds: Dataset) -> dict[int, object]:
    return {element.tag: element.value for element in ds if element.tag.element != 0}


@needs_real_data
def test_four_storescu_at_once_make_the_study_that_we_send(
    listener: Listener, database: Database, tmp_path: Path
):
    """Whatever brings the study, in whatever order, it is the same instances."""
    collected = collection.collect(REAL_STUDY, scratch=tmp_path)
    folders = []
    for number in range(4):
        folder = tmp_path / f"share{number}"
        folder.mkdir()
        for instance in collected.instances[number::4]:
            shutil.copy(instance.path, folder)
        folders.append(folder)

    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda folder: storescu(listener.port, "-xs", "+sd", folder), folders)
        )

    assert [result.returncode for result in results] == [0, 0, 0, 0]
    with database.snapshot() as db:
        study = studies.named(db, "896911bf-1143-4c8d-8f04-f3cd1a7f6204")[0]
        assert study.revision == 133
        assert {found.sop_instance_uid for found in studies.instances_of(db, study.id)} == {
            instance.sop_instance_uid for instance in collected.instances
        }


def test_our_sender_is_understood_by_storescp(tmp_path: Path):
    program = shutil.which("storescp")
    if program is None:
        pytest.skip("DCMTK's storescp is not installed")
    received = tmp_path / "received"
    received.mkdir()
    port = free_port()
    ds = ct_instance(Names.fresh())
    path = as_file(ds, tmp_path / "a.dcm")
    with subprocess.Popen(
        [program, "--bit-preserving", "-od", received, "-aet", "STORESCP", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        await_port(port)
        destination = scu.Destination(
            host=HOST, port=port, called_ae="STORESCP", calling_ae="CHESTCT"
        )
        sent = scu.send(collection.collect(path, scratch=tmp_path).instances, destination)
        process.terminate()

    assert [result.problem for result in sent] == [""]
    (file,) = received.iterdir()
    assert dataset_bytes(file) == dataset_bytes(path)
