"""Real studies through the whole appliance, as a PACS sends them."""

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from appliance import collection, studies
from appliance.lifecycle import State
from pipelines.findings import Analysis
from tests.support.instances import REAL_DICOM, REAL_STUDY, needs_real_data
from tests.support.pacs import HOST, dcmtk
from tests.support.served import Served, served

pytestmark = [needs_real_data, pytest.mark.timeout(900)]

P002 = "896911bf-1143-4c8d-8f04-f3cd1a7f6204"
PATIENT = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
OTHERS = ("chest_localizer", "chest_sagittal_reformat", "philips_localizer_and_summary")

# What each folder that is no chest volume must be refused for.
REFUSED = {
    "chest_localizer": "localiser",
    "chest_sagittal_reformat": "axial",
    "head_gantry_tilt": "tilt",
    "head_missing_slice": "missing",
    "not_a_volume": "one position",
    "philips_localizer_and_summary": "secondary capture",
}


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("appliance")) as running:
        yield running


def in_study(source: Path, like: Dataset, folder: Path) -> None:
    """Copy a folder's instances into the study of `like`, as new instances of its patient."""
    for path in sorted(source.iterdir()):
        with disable_value_validation():  # P002's UIDs are none
            ds = pydicom.dcmread(path)
            if ds.StudyInstanceUID != like.StudyInstanceUID:
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            for keyword in ("StudyInstanceUID", *PATIENT):
                setattr(ds, keyword, like.get(keyword, ""))
            ds.save_as(folder / f"{source.name}-{path.name}")


def test_a_mixed_study_in_four_shuffled_associations_is_analysed_as_the_console_does(
    appliance: Served, tmp_path: Path
):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    like = pydicom.dcmread(min(REAL_STUDY.iterdir()), stop_before_pixels=True)
    for source in (REAL_STUDY, *(REAL_DICOM / name for name in OTHERS)):
        in_study(source, like, mixed)
    instances = list(collection.collect(mixed, scratch=tmp_path / "mixed").instances)
    random.Random(1).shuffle(instances)
    shares = []
    for number in range(4):
        share = tmp_path / f"share{number}"
        share.mkdir()
        for index, instance in enumerate(instances[number::4]):
            shutil.copy(instance.path, share / f"{index:03d}.dcm")
        shares.append(share)

    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda share: send(appliance, share), shares))
    row = appliance.ended(P002)
    console = tmp_path / "console"
    analysed = appliance.command("analyse", REAL_STUDY, "--out", console)

    assert codes == [0, 0, 0, 0]
    assert row.state == State.READY, row.state_reason
    assert analysed.returncode == 0, analysed.stderr
    with appliance.database.snapshot() as db:
        analysis = studies.current_analysis(db, row.study_id)
        outcomes = [s.outcome for s in studies.series_of(db, row.study_id)]
        folder = appliance.settings.data_dir / analysis.folder
    assert outcomes.count("analysed") == 1
    assert outcomes.count("refused") == len(outcomes) - 1 >= 3
    received, direct = Analysis.load(folder), Analysis.load(console)
    np.testing.assert_array_equal(received.lung_mask, direct.lung_mask)
    np.testing.assert_array_equal(received.lesion_labels, direct.lesion_labels)
    assert received.lesions == direct.lesions
    assert received.probability == direct.probability
    assert len(received.lesions) > 0


def send(appliance: Served, folder: Path) -> int:
    """Send a folder by DCMTK where it is installed, else by our own sender."""
    if shutil.which("storescu") is None:
        return appliance.command("send", folder, "--shuffle").returncode
    # One association for each transfer syntax: storescu proposes one compressed syntax at a time.
    failed = 0
    for syntax, paths in by_syntax(folder).items():
        port = str(appliance.settings.dicom.port)
        done = dcmtk("storescu", "-aec", "CHESTCT", "-R", PROPOSAL[syntax], HOST, port, *paths)
        failed += done.returncode
    return failed


PROPOSAL = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.5": "-xr",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.90": "-xv",
}


def by_syntax(folder: Path) -> dict[str, list[Path]]:
    shares: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        ds: Dataset = pydicom.dcmread(path, stop_before_pixels=True)
        shares.setdefault(str(ds.file_meta.TransferSyntaxUID), []).append(path)
    return shares


def test_anothers_images_under_the_studys_uid_come_first_and_change_nothing(
    appliance: Served, tmp_path: Path
):
    study_uid = generate_uid()
    for name in ("chest_localizer", "chest_covid_P002"):
        folder = tmp_path / name
        folder.mkdir()
        for path in sorted((REAL_DICOM / name).iterdir()):
            with disable_value_validation():
                ds = pydicom.dcmread(path)
                ds.StudyInstanceUID = study_uid
                ds.save_as(folder / path.name)
        assert appliance.command("send", folder).returncode == 0

    row = appliance.ended(study_uid)

    assert row.state == State.READY, row.state_reason
    assert (row.instance_count, row.shares_uid) == (133, True)
    with appliance.database.snapshot() as db:
        states = {study.revision: study.state for study in studies.named(db, study_uid)}
    assert states == {133: State.READY, 1: State.REJECTED}


@pytest.mark.parametrize("name", REFUSED)
def test_a_study_that_is_no_chest_volume_is_refused_with_its_reason(
    appliance: Served, tmp_path: Path, name: str
):
    sent = appliance.command("send", REAL_DICOM / name)
    first = pydicom.dcmread(min((REAL_DICOM / name).iterdir()), stop_before_pixels=True)
    study_uid = str(first.StudyInstanceUID)

    row = appliance.ended(study_uid)

    assert sent.returncode == 0, sent.stderr
    assert row.state == State.REJECTED
    assert row.state_reason
    assert REFUSED[name] in row.state_reason.lower()


def test_status_and_doctor_find_the_appliance_well(appliance: Served):
    status, doctor = appliance.command("status"), appliance.command("doctor")

    assert status.returncode == 0, status.stdout + status.stderr
    assert "listener" in status.stdout
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr


def test_a_second_start_on_the_same_folder_is_refused(appliance: Served):
    second = appliance.command("serve")

    assert second.returncode != 0
    assert str(appliance.settings.data_dir) in second.stdout + second.stderr
