from collections.abc import Callable
from typing import Any

import pytest
from dicomweb_client.api import DICOMwebClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.holdings import ATTRIBUTES, MODALITIES
from tests.support.instances import Names, ct_instance
from tests.webui.dicomweb.conftest import Archive
from webui.dicomweb.search import PLAIN_PARAMETERS

TAGS = {
    "StudyInstanceUID": "0020000D",
    "PatientName": "00100010",
    "PatientID": "00100020",
    "ModalitiesInStudy": "00080061",
    "RetrieveURL": "00081190",
    "InstanceNumber": "00200013",
}


def uids(answers: list[dict[str, Any]], keyword: str = "StudyInstanceUID") -> list[str]:
    return [answer[TAGS[keyword]]["Value"][0] for answer in answers]


def test_a_study_has_what_the_standard_wants_of_it(archive: Archive, peer: DICOMwebClient):
    names = Names.fresh()
    archive.take(*(ct_instance(names) for _ in range(3)))
    archive.take(ct_instance(Names(names.study_uid, "1.2.3"), Modality="SR"))

    (study,) = peer.search_for_studies(search_filters={"PatientID": "P-1"})

    assert study[TAGS["PatientName"]] == {"vr": "PN", "Value": [{"Alphabetic": "Test^Zoë"}]}
    assert study[TAGS["ModalitiesInStudy"]]["Value"] == ["CT", "SR"]
    assert study["00201206"]["Value"] == [2]
    assert study["00201208"]["Value"] == [4]
    assert study["00080056"]["Value"] == ["ONLINE"]
    # This client's Host field lacks the port, so the address lacks it, too.
    assert study[TAGS["RetrieveURL"]]["Value"][0].endswith(f"/dicom-web/studies/{names.study_uid}")
    for tag in ("00080005", "00080020", "00080030", "00080050", "00080090", "00100030", "00100040"):
        assert tag in study
    assert study["00200010"] == {"vr": "SH"}  # Study ID is not held


def test_an_instance_has_what_the_standard_wants_of_it(archive: Archive, peer: DICOMwebClient):
    names = Names.fresh()
    slice_ = ct_instance(names, InstanceNumber=7)
    archive.take(slice_)

    (series,) = peer.search_for_series(names.study_uid)
    (instance,) = peer.search_for_instances(names.study_uid, names.series_uid)

    assert series["00201209"]["Value"] == [1]
    assert series["00200011"]["Value"] == [3]
    assert instance["00080018"]["Value"] == [slice_.SOPInstanceUID]
    assert instance[TAGS["InstanceNumber"]]["Value"] == [7]
    assert instance["00280010"]["Value"] == instance["00280011"]["Value"] == [8]
    assert instance["00280100"]["Value"] == [16]
    assert instance[TAGS["RetrieveURL"]]["Value"][0].endswith(
        f"/series/{names.series_uid}/instances/{slice_.SOPInstanceUID}"
    )


def test_a_name_in_several_scripts_has_its_groups(archive: Archive, get: Callable[..., Any]):
    archive.take(
        ct_instance(
            Names.fresh(), SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^Tarou=山田^太郎"
        )
    )

    (study,) = get("/studies?PatientName=yamada^*").json

    assert study[TAGS["PatientName"]]["Value"] == [
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}
    ]


@pytest.fixture
def three(archive: Archive) -> dict[str, str]:
    """Three studies by their patients' numbers."""
    found = {}
    for number, date, time, name in (
        ("A_1", "20260101", "080000", "Alpha^Ann"),
        ("A%1", "20260201", "120000.5", "Beta^Bob"),
        ("AB1", "20260301", "", "Gamma_^Carl[x]"),
    ):
        names = Names.fresh()
        archive.take(
            ct_instance(
                names,
                PatientID=number,
                StudyDate=date,
                StudyTime=time,
                PatientName=name,
                Modality="CT" if number != "AB1" else "MR",
            )
        )
        found[names.study_uid] = number
    return found


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("PatientID=A_1", {"A_1"}),
        ("PatientID=a_1", set()),
        ("PatientID=A?1", {"A_1", "A%1", "AB1"}),
        ("PatientID=A%251", {"A%1"}),
        ("PatientID=A%25*", {"A%1"}),
        ("PatientID=a*", set()),
        ("PatientID=[A]*", set()),
        ("PatientID=", {"A_1", "A%1", "AB1"}),
        ("00100020=A_1", {"A_1"}),
        ("PatientName=alpha^ann", {"A_1"}),
        ("PatientName=ALPHA^ANN^^", {"A_1"}),
        ("PatientName=*[x]", {"AB1"}),
        ("PatientName=*a*m*m*a*c*a*r*l*", {"AB1"}),
        ("PatientName=*a*b*c*d*e*f*", set()),
        ("PatientName=Gamma_*", {"AB1"}),
        ("PatientName=_*", set()),
        ("PatientName=' OR 1=1 --", set()),
        ("PatientName=\\", set()),
        ("StudyDate=20260201", {"A%1"}),
        ("StudyDate=20260115-20260228", {"A%1"}),
        ("StudyDate=-20260131", {"A_1"}),
        ("StudyDate=20260201-", {"A%1", "AB1"}),
        ("StudyTime=0800", {"A_1"}),
        ("StudyTime=08-12", {"A_1", "A%1"}),
        ("StudyTime=12-", {"A%1"}),
        ("ModalitiesInStudy=MR", {"AB1"}),
        ("ModalitiesInStudy=C?", {"A_1", "A%1"}),
        ("StudyInstanceUID=1.2.3", set()),
        ("AccessionNumber=A1&PatientID=AB1", {"AB1"}),
    ],
)
def test_keys_match_as_the_standard_says(
    three: dict[str, str], get: Callable[..., Any], question: str, expected: set[str]
):
    answer = get(f"/studies?{question}")

    assert answer.status_code == 200
    assert {three[uid] for uid in uids(answer.json)} == expected


def test_a_list_of_uids_matches_each(three: dict[str, str], get: Callable[..., Any]):
    first, second, _ = three
    for separator in (",", "%5C"):
        found = get(f"/studies?StudyInstanceUID={first}{separator}{second}").json
        assert set(uids(found)) == {first, second}


def test_series_of_all_studies_are_found_with_their_patients(
    three: dict[str, str], get: Callable[..., Any]
):
    (series,) = get("/series?Modality=MR").json
    (instance,) = get("/instances?PatientID=AB1").json

    assert series[TAGS["PatientID"]]["Value"] == instance[TAGS["PatientID"]]["Value"] == ["AB1"]


@pytest.mark.parametrize(
    "question",
    [
        "Nonsense=1",
        "patientid=1",
        "PatientID=1&PatientID=2",
        "PatientID=1&00100020=2",
        "StudyID=1",
        "Modality=CT",
        "NumberOfStudyRelatedSeries=1",
        "StudyDate=yesterday",
        "StudyDate=20260101-20260102-20260103",
        "StudyDate=-",
        "StudyDate=٢٠٢٦٠١٠١",
        "StudyTime=8",
        "PatientName=a%00b",
        "PatientID=" + "1" * 5000,
        "limit=-1",
        "limit=ten",
        "offset=99999999999999999999",
        "fuzzymatching=perhaps",
        "includefield=Nonsense",
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_with_a_sentence(
    three: dict[str, str], get: Callable[..., Any], question: str
):
    answer = get(f"/studies?{question}")

    assert answer.status_code == 400
    assert answer.json["error"].endswith(".")


def test_a_key_of_the_path_is_not_given_again(three: dict[str, str], get: Callable[..., Any]):
    uid = next(iter(three))

    assert get(f"/studies/{uid}/series?StudyInstanceUID=1").status_code == 400
    assert get("/studies/1.2.3/series").status_code == 404


def test_more_fields_come_when_they_are_asked_for(three: dict[str, str], get: Callable[..., Any]):
    described = "00081030"

    assert described not in get("/studies").json[0]
    for wanted in (
        "StudyDescription",
        "00081030",
        "all",
        "PatientAge,StudyDescription",
        "00091001,StudyDescription",  # whatever a maker put there
    ):
        assert described in get(f"/studies?includefield={wanted}").json[0]


def test_only_json_is_given(three: dict[str, str], get: Callable[..., Any]):
    assert get("/studies", accept="application/dicom+json").mimetype == "application/dicom+json"
    assert get("/studies", accept="application/dicom+xml").status_code == 406
    assert get("/studies?accept=application/dicom+json").status_code == 200
    assert get("/studies?accept=application/dicom%2Bxml").status_code == 406


def test_fuzzy_matching_is_literal_and_says_so(three: dict[str, str], get: Callable[..., Any]):
    answer = get("/studies?fuzzymatching=true&PatientName=alpha")

    assert answer.json == []
    assert answer.headers["Warning"].startswith("299 ")


def test_pages_hold_every_study_once(archive: Archive, peer: DICOMwebClient):
    received = [archive.world.receive(f"1.2.{number}") for number in range(120)]

    paged = peer.search_for_studies(limit=50, get_remaining=True)

    assert len(received) == len(paged) == len(set(uids(paged))) == 120
    assert uids(peer.search_for_studies(limit=7, offset=50)) == uids(paged[50:57])


def test_no_page_is_larger_than_the_limit_and_the_client_learns_it(
    archive: Archive, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    for number in range(4):
        archive.world.receive(f"1.2.{number}")
    monkeypatch.setattr("webui.dicomweb.search.LARGEST_PAGE", 3)

    answer = get("/studies?limit=100")

    assert len(answer.json) == 3
    assert "Additional results can be requested" in answer.headers["Warning"]
    assert "Warning" not in get("/studies?offset=1").headers


def test_several_people_under_one_uid_are_apart(archive: Archive, get: Callable[..., Any]):
    shared = Names.fresh()
    other = Names(shared.study_uid, "1.2.3.4")
    archive.take(ct_instance(shared))
    archive.take(ct_instance(other, PatientID="P-2", PatientName="Other^Person"))

    answers = get(f"/studies?StudyInstanceUID={shared.study_uid}").json
    (found,) = get(f"/series?StudyInstanceUID={shared.study_uid}&PatientID=P-2").json

    assert sorted(uids(answers, "PatientID")) == ["P-1", "P-2"]
    assert [answer["00201208"]["Value"] for answer in answers] == [[1], [1]]
    assert found["0020000E"]["Value"] == ["1.2.3.4"]
    refused = get(f"/studies/{shared.study_uid}/series")
    assert refused.status_code == 409
    assert "several people" in refused.json["error"]
    assert get(f"/studies/{shared.study_uid}/metadata").status_code == 409
    assert get(f"/studies/{shared.study_uid}").status_code == 409
    (instance,) = get(f"/studies/{shared.study_uid}/series/1.2.3.4/metadata").json
    assert instance[TAGS["PatientID"]]["Value"] == ["P-2"]


@given(
    st.dictionaries(
        st.sampled_from([*ATTRIBUTES, *PLAIN_PARAMETERS, MODALITIES]) | st.text(max_size=12),
        st.text(
            st.sampled_from("*?%_\\[]^=-.,'\"0129aZü\0\n ") | st.characters(codec="utf-8"),
            max_size=20,
        ),
        max_size=3,
    )
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_question_breaks_the_search(
    three: dict[str, str], get: Callable[..., Any], question: dict[str, str]
):
    for level in ("studies", "series", "instances"):
        assert get(f"/{level}", query_string=question).status_code in {200, 400, 406}
