"""Fetch from PACS as a radiologist uses it, against a real Orthanc."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from pydicom.uid import ExplicitVRLittleEndian

from appliance.config import DestinationSettings
from dicom_node import tasks
from tests.support import archives
from tests.support.archives import ORTHANC_AE, Orthanc
from tests.support.instances import Names, ct_instance
from tests.support.pacs import HOST, free_port
from tests.webui.browser import Reader, needs_chromium, serving
from tests.webui.world import World
from webui import fetching

pytestmark = [
    needs_chromium,
    # pynetdicom 3.0.4 drops the socket of a refused connection without closing it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    # It answers whom it knows; studies come by C-GET, so nobody listens at that port.
    with archives.orthanc(tmp_path, box_port=free_port()) as running:
        yield running


@pytest.fixture
def world(world: World, orthanc: Orthanc) -> World:
    """The appliance knows a PACS that is there and one that is away."""
    nodes = [("pacs", orthanc.dicom_port), ("away", free_port())]
    destinations = tuple(
        DestinationSettings(name=name, ae_title=ORTHANC_AE, host=HOST, port=port, query=True)
        for name, port in nodes
    )
    dicom = replace(world.settings.dicom, destinations=destinations, min_free_bytes=0)
    return replace(world, settings=replace(world.settings, dicom=dicom))


@pytest.fixture
def reader(browser: Browser, world: World) -> Iterator[Reader]:
    with serving(world.app()) as address:
        signed_in = Reader.signed_in(browser, address)
        signed_in.page.click("text=Fetch from PACS")
        signed_in.page.wait_for_selector("#fetching")
        yield signed_in
        assert signed_in.troubles == []
        signed_in.page.close()


def search(reader: Reader, world: World, *, destination: str = "pacs", patient_id: str) -> None:
    """Ask, and let the worker put the question to the node."""
    reader.page.select_option("[name=destination]", destination)
    reader.page.fill("[name=patient_id]", patient_id)
    reader.page.click("form.search button")
    reader.page.wait_for_selector(f"#told >> text=Asking {destination}")
    assert tasks.answer_queries(world.settings, world.database) == 1


def fetch(reader: Reader, world: World, orthanc: Orthanc, folder: Path) -> None:
    """Order the only study of a patient, which is one of three images."""
    names = Names.fresh()
    images = [
        ct_instance(names, PatientID="P-7", PatientName="<b>Muster^Anna", InstanceNumber=number)
        for number in range(3)
    ]
    orthanc.keep(images, folder, ExplicitVRLittleEndian)
    search(reader, world, patient_id="P-7")
    reader.page.click("#studies >> text=Fetch")


def shows(reader: Reader, *texts: str) -> None:
    """Wait until the only retrieval shows these texts."""
    for text in texts:
        reader.page.wait_for_selector(f"#retrievals tr:has-text('{text}')")


def test_a_study_is_found_fetched_and_opened(
    reader: Reader, world: World, orthanc: Orthanc, tmp_path: Path
):
    fetch(reader, world, orthanc, tmp_path)
    found = reader.page.inner_text("#studies tr")
    shows(reader, "Waiting", "0 of 3", "by hand")

    assert tasks.retrieve_waiting(world.settings, world.database) == 1

    shows(reader, "Done", "3 of 3")
    assert reader.page.inner_text("#told") == "1 study at pacs."
    assert "<b>Muster, Anna" in found
    assert "P-7" in found
    reader.page.click("#retrievals >> text=<b>Muster, Anna")
    reader.page.wait_for_selector("#status")
    assert reader.page.url.endswith("/studies/1")


def test_a_retrieval_is_given_up_and_tried_again(
    reader: Reader, world: World, orthanc: Orthanc, tmp_path: Path
):
    fetch(reader, world, orthanc, tmp_path)
    reader.page.click("#retrievals >> text=Give up")
    shows(reader, "Given up", "given up by reader")
    assert tasks.retrieve_waiting(world.settings, world.database) == 0

    reader.page.click("#retrievals >> text=Retry")
    shows(reader, "Waiting")
    assert tasks.retrieve_waiting(world.settings, world.database) == 1

    shows(reader, "Done", "3 of 3")


def test_a_pacs_that_is_away_and_one_that_has_nothing_are_told_apart(reader: Reader, world: World):
    search(reader, world, destination="away", patient_id="P-7")
    reader.page.wait_for_selector("#told >> text=nothing listens there")
    assert reader.page.query_selector("#studies tr") is None

    search(reader, world, patient_id="NOBODY")
    reader.page.wait_for_selector("#told >> text=0 studies at pacs.")


def test_a_search_without_a_key_says_what_to_give(reader: Reader):
    reader.page.click("form.search button")

    assert reader.page.inner_text("[role=alert]") == fetching.NO_KEY
    # The browser tells of the answer 400 by itself.
    assert [trouble for trouble in reader.troubles if "400" not in trouble] == []
    reader.troubles.clear()
