"""All objects of a study together: what they are, what checkers say, what a PACS makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from appliance import collection
from pipelines.findings import Analysis
from pipelines.lesions import label_regions
from pipelines.series import load_input
from tests.dicom_node.objects.conftest import Study
from tests.support import ct_series
from tests.support.archives import orthanc
from tests.support.results import analysis_of
from tests.support.validators import dcentvfy_errors, dciodvfy_errors, dcmqi_segments, on_grid


def test_they_come_in_the_order_in_which_they_refer_to_each_other(files):
    written = [dcmread(path) for path in files]

    first, second, *captures, last = [ds.SOPClassUID for ds in written]
    assert (first, second, last) == (
        SegmentationStorage,
        Comprehensive3DSRStorage,
        EncapsulatedPDFStorage,
    )
    assert captures
    assert set(captures) == {SecondaryCaptureImageStorage}
    for ds in written:
        assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_dicom3tools_finds_no_error(study, files):
    for path in files:
        assert dciodvfy_errors(path) == [], path.name
    assert dcentvfy_errors([*files, *study.paths]) == []


def test_dicom3tools_finds_no_error_without_lesions(healthy, tmp_path):
    for path in healthy.write(tmp_path):
        assert dciodvfy_errors(path) == [], path.name


def test_orthanc_takes_each_and_gives_it_back_byte_for_byte(files, tmp_path):
    with orthanc(tmp_path) as running:
        for path in files:
            stored = running.post("/instances", path.read_bytes())

            assert stored["Status"] == "Success"
            assert running.get(f"/instances/{stored['ID']}/file") == path.read_bytes()
            again = running.post("/instances", path.read_bytes())
            assert again["Status"] == "AlreadyStored"


@pytest.fixture
def real_study(tmp_path: Path) -> Study:
    """P002 with masks that are shapes alone; its files have no SOP Instance UID of their own."""
    folder = ct_series.real("dicom/chest_covid_P002")
    volume, _ = load_input(folder)
    lungs = np.zeros(volume.shape, np.uint8)
    lungs[20:110, 150:400, 60:240], lungs[20:110, 150:400, 270:450] = 1, 2
    lungs[volume.hu > -500] = 0
    dense = np.zeros(volume.shape, bool)
    dense[60:75, 250:330, 100:180] = volume.hu[60:75, 250:330, 100:180] > -700
    analysis: Analysis = analysis_of(volume, lungs, label_regions(dense, smallest=300))
    collected = collection.collect(folder, scratch=tmp_path)
    return Study(tuple(instance.path for instance in collected.instances), analysis)


def test_a_real_study_without_uids_of_its_own_is_referred_to_by_those_it_is_sent_under(
    real_study, tmp_path
):
    files = real_study.write(tmp_path / "objects")

    with disable_value_validation():
        segmentation = dcmread(files[0])
        sent = {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in real_study.paths}
        named = {
            item.ReferencedSOPInstanceUID
            for item in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        }
        study_uid = dcmread(real_study.paths[0], stop_before_pixels=True).StudyInstanceUID
        assert {dcmread(path).StudyInstanceUID for path in files} == {study_uid}
    assert named == sent
    found = real_study.analysis
    read = dcmqi_segments(files[0], tmp_path / "read")
    for number, mask in enumerate((found.lung_mask == 1, found.lung_mask == 2), start=1):
        seen = on_grid(read[number][1], found.affine, found.shape)
        np.testing.assert_array_equal(seen, mask)


def test_a_real_study_passes_but_for_the_uids_it_came_with(real_study, tmp_path):
    for path in real_study.write(tmp_path / "objects"):
        errors = dciodvfy_errors(path)
        assert [line for line in errors if "UID(" not in line] == [], path.name
