"""Whose the objects are, and which object is which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.errors import ObjectError
from dicom_node.objects.build import build_objects, trace
from dicom_node.objects.provenance import Equipment
from dicom_node.objects.verification import Verification
from pipelines.findings import Analysis
from pipelines.series import load_input
from tests.dicom_node.objects.conftest import ANALYSED_AT, EQUIPMENT, Study
from tests.support import ct_series

PERSON = Verification(
    person_name="Doe^Jane",
    organisation="Hospital",
    verified_at=datetime(2026, 11, 23, 8, 5, tzinfo=UTC),
    positive=True,
)


def uids(objects: tuple[Dataset, ...]) -> list[str]:
    return [ds.SOPInstanceUID for ds in objects]


def own_uids(ds: Dataset) -> Iterator[tuple[str, str]]:
    """Every UID in an object with its keyword, however deep."""
    for element in ds.iterall():
        if element.VR == "UI":
            values = element.value if element.VM > 1 else [element.value]
            yield from ((element.keyword, str(value)) for value in values)


def test_twice_built_is_the_same_bytes(study, files, tmp_path):
    again = study.write(tmp_path, paths=tuple(reversed(study.paths)))

    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


def test_an_analysis_read_back_is_the_same_analysis(study, objects, tmp_path):
    volume, _ = load_input(study.paths[0].parent)
    study.analysis.save(tmp_path / "result", volume)

    again = study.objects(analysis=Analysis.load(tmp_path / "result"))

    assert uids(again) == uids(objects)


@pytest.mark.parametrize(
    "changed",
    [
        lambda found: {"analysis": replace(found, probability=0.9)},
        lambda found: {
            "analysis": replace(
                found, models=(replace(found.models[0], digest="f" * 64), *found.models[1:])
            )
        },
        lambda found: {"analysed_at": ANALYSED_AT + timedelta(seconds=1)},
        # The same moment, but other content: the study does not say in which zone its times are.
        lambda _found: {"analysed_at": ANALYSED_AT.astimezone(timezone(timedelta(hours=1)))},
        lambda found: {"equipment": replace(EQUIPMENT, serial_number="box 2")},
    ],
)
def test_another_analysis_is_other_objects(study, objects, changed):
    others = study.objects(**changed(study.analysis))

    assert not set(uids(objects)) & set(uids(others))
    assert not {ds.SeriesInstanceUID for ds in objects} & {ds.SeriesInstanceUID for ds in others}


def test_how_long_it_took_does_not_make_it_another(study, objects):
    slower = replace(study.analysis, timings_s={"lungs": 99.0})

    assert uids(study.objects(analysis=slower)) == uids(objects)


def test_one_changed_voxel_is_another_analysis(study, objects):
    mask = study.analysis.lung_mask.copy()
    mask[0, 0, 0] = 1

    others = study.objects(analysis=replace(study.analysis, lung_mask=mask))

    assert not set(uids(objects)) & set(uids(others))


def test_a_verification_replaces_report_and_document_alone(study, objects):
    verified = study.objects(verification=PERSON)

    changed = [
        ds.Modality
        for ds, before in zip(verified, objects, strict=True)
        if ds.SOPInstanceUID != before.SOPInstanceUID
    ]
    assert changed == ["SR", "DOC"]


def test_a_rejected_lesion_replaces_the_key_images_too(study, objects):
    verified = study.objects(verification=replace(PERSON, rejected=(1,)))

    before = set(uids(objects))
    kept = [ds.Modality for ds in verified if ds.SOPInstanceUID in before]
    assert kept == ["SEG"]
    assert not {ds.SeriesInstanceUID for ds in objects if ds.Modality == "OT"} & {
        ds.SeriesInstanceUID for ds in verified if ds.Modality == "OT"
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"person_name": "Roe^Jim"},
        {"positive": False, "reason": "artefact"},
        {"comment": "Again."},
        {"rejected": (2,)},
        {"verified_at": PERSON.verified_at + timedelta(microseconds=1)},
        {"amends": PERSON},
    ],
)
def test_a_verification_that_says_anything_else_is_another_report(study, changes):
    one, other = (study.objects(verification=p)[1] for p in (PERSON, replace(PERSON, **changes)))

    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.SeriesInstanceUID == other.SeriesInstanceUID


def test_a_report_is_the_same_wherever_its_verification_is_read(study):
    there = PERSON.verified_at.astimezone(timezone(timedelta(hours=5, minutes=30)))

    one, other = (
        study.objects(verification=replace(PERSON, verified_at=at))[1].SOPInstanceUID
        for at in (PERSON.verified_at, there)
    )

    assert one == other


def test_what_was_made_before_keeps_its_name(study, objects):
    source = trace(study.analysis, study.paths, analysed_at=ANALYSED_AT, equipment=EQUIPMENT)
    later = replace(source, analysis=replace(study.analysis, engine="newer"), named=source.identity)

    assert uids(build_objects(later)) == uids(objects)


def test_every_object_stays_with_its_patient_and_study(study, objects):
    image = dcmread(study.paths[0], stop_before_pixels=True)
    for ds in objects:
        for keyword in (
            "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
            "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription",
        ):  # fmt: skip
            assert ds[keyword].value == image[keyword].value, keyword
        assert ds.DeviceSerialNumber == "box 1"
        assert ds.SoftwareVersions == "0.1.0"
        assert (ds.ContentDate, ds.ContentTime) == ("20261122", "102030")
    assert objects[0].FrameOfReferenceUID == image.FrameOfReferenceUID


@pytest.mark.parametrize("verification", [None, PERSON])
def test_no_object_holds_a_uid_from_elsewhere(study, verification):
    """Each UID is the study's, one of ours, or the standard's."""
    known = set()
    for path in study.paths:
        known |= {uid for _, uid in own_uids(dcmread(path, stop_before_pixels=True))}

    for ds in study.objects(verification=verification):
        for keyword, uid in own_uids(ds):
            standard = uid.startswith("1.2.840.10008.")
            assert uid in known or standard or uid.startswith("2.25."), keyword
            assert len(uid) <= 64


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müßig^Zoë"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Łukasz^Grażyna"),
    ],
)
def test_a_name_survives_whatever_its_character_set(character_set, name, tmp_path):
    series = ct_series.slices(24)
    for ds in series:
        ds.SpecificCharacterSet = character_set
        ds.PatientName = name
        ds.StudyDescription = name.split("=")[-1].replace("^", " ")
    study = Study.of(series, tmp_path / "study", with_lesions=False)

    for path in study.write(tmp_path / "objects"):
        ds = dcmread(path)
        assert str(ds.PatientName) == name
        assert ds.StudyDescription == name.split("=")[-1].replace("^", " ")
        assert ds.SpecificCharacterSet == "ISO_IR 192"


def test_times_are_in_the_zone_that_the_study_names(tmp_path):
    series = ct_series.slices(24)
    for ds in series:
        ds.TimezoneOffsetFromUTC = "+0530"
    study = Study.of(series, tmp_path, with_lesions=False)

    for ds in study.objects():
        assert ds.TimezoneOffsetFromUTC == "+0530"
        assert (ds.ContentDate, ds.ContentTime) == ("20261122", "155030")


@pytest.mark.parametrize("offset", ["+9900", "-2400", "+1401"])
def test_a_zone_that_is_nowhere_on_earth_is_passed_on_and_not_used(tmp_path, offset):
    series = ct_series.slices(24)
    for ds in series:
        ds.TimezoneOffsetFromUTC = offset
    study = Study.of(series, tmp_path, with_lesions=False)

    for ds in study.objects():
        assert (ds.ContentDate, ds.ContentTime) == ("20261122", "102030")


def test_a_time_without_its_zone_is_refused(study):
    with pytest.raises(ValueError, match="zone"):
        study.objects(analysed_at=datetime(2026, 11, 22))  # noqa: DTZ001 - what is refused


def test_a_study_without_a_frame_of_reference_gets_one_for_the_series(tmp_path):
    series = ct_series.slices(24)
    for ds in series:
        del ds.FrameOfReferenceUID
    study = Study.of(series, tmp_path, with_lesions=False)

    first, second = (study.objects(analysed_at=ANALYSED_AT + timedelta(n))[0] for n in (0, 1))

    assert first.FrameOfReferenceUID.startswith("2.25.")
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID


def test_an_analysis_that_does_not_name_a_network_is_refused(study):
    with pytest.raises(ObjectError, match="network for lungs"):
        study.objects(analysis=replace(study.analysis, models=()))


@pytest.mark.parametrize("number", ["", " ", "x" * 65, "a\\b"])
def test_a_serial_number_that_dicom_cannot_hold_is_refused(number):
    with pytest.raises(ObjectError, match=r"dicom\.serial_number"):
        Equipment(number, "1")
