"""`appliance dicom`, asking an Orthanc."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydicom.uid import ExplicitVRLittleEndian

from appliance import deliveries, lifecycle, logs, retrievals
from appliance.config import SETTINGS_VARIABLE
from appliance.database import Database
from appliance.errors import ConfigError
from dicom_node.cli import dicom
from dicom_node.scp import Listener
from tests.appliance import world
from tests.support import archives
from tests.support.archives import Orthanc
from tests.support.instances import Names, ct_instance
from tests.support.pacs import HOST, free_port

SETTINGS = """
data_dir = "data"
[dicom]
min_free_bytes = 0
[[dicom.destinations]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
[[routing.rules]]
name = "all"
destinations = ["pacs"]
objects = ["seg", "sr"]
[[routing.rules]]
name = "lungs"
destinations = ["pacs"]
objects = ["images"]
when = "request"
modality = "MR"
"""


@pytest.fixture
def orthanc(listener: Listener, tmp_path: Path) -> Iterator[Orthanc]:
    with archives.orthanc(tmp_path, box_port=listener.port) as running:
        yield running


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `appliance dicom` with a PACS at a port."""

    def run(*arguments: str, port: int) -> Result:
        file = tmp_path / "settings.toml"
        file.write_text(SETTINGS.format(port=port))
        monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
        monkeypatch.setattr(logs, "configure", lambda _process: None)  # for this process alone
        return CliRunner().invoke(dicom, list(arguments))

    return run


def test_an_echo_and_a_table_of_studies(
    invoke: Callable[..., Result], orthanc: Orthanc, tmp_path: Path
):
    names = Names.fresh()
    orthanc.keep(
        [ct_instance(names, PatientName="Zoë^\x07Bell", SpecificCharacterSet="ISO_IR 192")],
        tmp_path,
        ExplicitVRLittleEndian,
    )

    echoed = invoke("echo", "pacs", port=orthanc.dicom_port)
    found = invoke(
        "find", "pacs", "--patient-id", "P-1", "--modality", "CT", "--date", "20260101-20260103",
        "--description", "*horax*", port=orthanc.dicom_port,
    )  # fmt: skip

    assert echoed.output == "pacs answers\n"
    header, line, total = found.output.splitlines()
    assert header.startswith("date      time    modality  images  patient  name")
    assert "20260102  030405  CT        1       P-1" in line
    assert "Zoë^" in line
    assert line.isprintable()
    assert names.study_uid in line
    assert total == "1 studies"


def test_a_find_without_keys_is_refused(invoke: Callable[..., Result]):
    assert "name at least one key" in invoke("find", "pacs", port=free_port()).output


@pytest.mark.parametrize("date", ["2026-11-23", "today", "2026", "-"])
def test_a_date_that_is_none_is_refused(invoke: Callable[..., Result], date: str):
    result = invoke("find", "pacs", "--date", date, port=1)

    assert "--date is a day, 20260131, or a range" in result.output


def test_a_fetch_brings_the_study_and_its_prior(
    invoke: Callable[..., Result], orthanc: Orthanc, database: Database, tmp_path: Path
):
    new, prior, other = (Names.fresh() for _ in range(3))
    orthanc.keep(
        [
            *(ct_instance(new, AccessionNumber="N1") for _ in range(3)),
            ct_instance(prior, StudyDate="20250102"),
            ct_instance(other, StudyDate="20240102"),
        ],
        tmp_path,
        ExplicitVRLittleEndian,
    )

    result = invoke("fetch", "pacs", "--accession", "N1", "--prior", "1", port=orthanc.dicom_port)

    assert result.exit_code == 0, result.output
    assert "C-GET, 3 instances are here; the node has 3" in result.output
    assert "C-GET, 1 instances are here; the node has 1" in result.output
    with database.snapshot() as db:
        held = [retrievals.held(db, names.study_uid) for names in (new, prior, other)]
    assert held == [3, 1, 0]


def test_a_fetch_of_what_is_not_there_says_so(
    invoke: Callable[..., Result], orthanc: Orthanc, database: Database
):
    result = invoke("fetch", "pacs", "--study-uid", "1.2.3", port=orthanc.dicom_port)

    assert result.exit_code == 1
    assert "pacs holds no such study" in result.output


def test_what_did_not_come_is_told_and_what_to_do(
    invoke: Callable[..., Result],
    orthanc: Orthanc,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    names = Names.fresh()
    orthanc.keep([ct_instance(names) for _ in range(2)], tmp_path, ExplicitVRLittleEndian)
    monkeypatch.setattr("appliance.store.Store.free_bytes", lambda _store: -1)

    result = invoke("fetch", "pacs", "--study-uid", names.study_uid, port=orthanc.dicom_port)

    assert result.exit_code == 1
    assert "2 instances did not come" in result.output
    assert "0 of 1 studies came whole" in result.output
    assert "run the command again" in result.output


def test_an_unknown_node_is_refused_with_the_nearest(invoke: Callable[..., Result]):
    result = invoke("echo", "pasc", port=free_port())

    assert isinstance(result.exception, ConfigError)
    assert "no destination is called 'pasc': did you mean pacs?" in str(result.exception)


def test_what_waits_is_listed(invoke: Callable[..., Result], database: Database):
    with database.transaction() as db:
        retrievals.ask(
            db,
            destination="pacs",
            aim=retrievals.Aim.STUDY,
            study_uid="1.2.3",
            why=retrievals.Why.PRIOR,
        )

    result = invoke("retrievals", port=free_port())

    assert "WAITING  pacs  study (prior)  1.2.3  try 0" in result.output
    assert HOST not in result.output


def test_what_people_do_with_deliveries(invoke: Callable[..., Result], database: Database):
    lifecycle.finish(database, world.claimed(database), world.result())

    def run(*arguments: str) -> str:
        return invoke(*arguments, port=free_port()).output

    assert run("route", "1").splitlines() == [
        "all: seg, sr to pacs when analysed",
        "lungs: no, no series has modality 'MR'",
    ]
    assert "there is no study 2" in str(invoke("route", "2", port=free_port()).exception)
    nobodys = invoke("deliver", "2", "pacs", "--objects", "sr", port=free_port())
    assert "there is no study 2" in str(nobodys.exception)
    refused = invoke("deliver", "1", "pacs", port=free_port())
    assert "name what to send with --objects" in str(refused.exception)
    assert "did you mean pacs?" in str(invoke("deliver", "1", "pasc", port=1).exception)
    assert run("deliver", "1", "pacs", "--objects", "pdf") == (
        "Delivery 1 waits to be sent to pacs.\n"
    )
    order = deliveries.claim_next(database, "pacs", lease_s=60)
    assert order is not None
    deliveries.fail(database, order, "0xA900\x07 no")

    (line, total) = run("deliveries", "--failed").splitlines()
    assert line.startswith("1  FAILED  study 1  pdf to pacs  queued 20")
    assert line.endswith("  failures 0: 0xA900? no")
    assert total == "1 deliveries"
    assert "name a delivery, or --all" in run("retry")
    assert run("retry", "--all") == "1 deliveries wait to be sent.\n"
    assert run("drop", "1") == "Delivery 1 is dropped.\n"
    assert run("deliveries") == "0 deliveries\n"


def test_what_was_delivered_is_listed_with_its_times(
    invoke: Callable[..., Result], database: Database
):
    lifecycle.finish(database, world.claimed(database), world.result())
    invoke("deliver", "1", "pacs", "--objects", "sr", port=1)
    order = deliveries.claim_next(database, "pacs", lease_s=60)
    assert order is not None
    made = deliveries.ObjectFile(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid="2.25.5",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        file="results/x.dcm",
    )
    deliveries.note_objects(database, order, [made])
    sent = deliveries.ObjectState.SENT
    deliveries.note_answer(database, order, 1, sent, problem=None, lease_s=60)
    deliveries.sent(database, order, commitment=False)

    assert invoke("deliveries", port=1).output == "0 deliveries\n"
    for chosen in (["--all"], ["--study", "1"]):
        line, each, total = invoke("deliveries", *chosen, port=1).output.splitlines()
        assert line.startswith("1  SENT  study 1  sr to pacs  queued 20")
        assert re.fullmatch(
            r"    SENT  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  Comprehensive 3D SR Storage  2\.25\.5",
            each,
        )
        assert total == "1 deliveries"
    assert invoke("deliveries", "--study", "2", port=1).output == "0 deliveries\n"
