"""The images of an analysis among other files; what does not belong to it is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dicom_node.errors import ObjectError
from dicom_node.objects.source import read_source
from pipelines.series import load_input
from tests.dicom_node.objects.conftest import Study
from tests.support import ct_series
from tests.support.instances import as_file


def test_other_series_and_other_files_do_no_harm(study, tmp_path):
    others = ct_series.write(ct_series.renamed(ct_series.slices(5)), tmp_path)
    (tmp_path / "notes.txt").write_text("no DICOM")

    source = read_source(study.analysis, [*others, tmp_path / "notes.txt", *study.paths])

    uids = tuple(image.sop_instance_uid for image in source.images)
    assert uids == study.analysis.sop_instance_uids


def test_a_slice_reads_as_the_analysis_saw_it(tmp_path):
    series = ct_series.turned(ct_series.slices(), rows=True, columns=True)
    study = Study.of(series, tmp_path)
    volume, _ = load_input(tmp_path)

    source = read_source(study.analysis, study.paths)

    np.testing.assert_array_equal(source.hounsfield(40), volume.hu[40])


def test_a_missing_image_is_one_sentence(study):
    with pytest.raises(ObjectError, match="96 images were analysed, 95 of their series are here"):
        read_source(study.analysis, study.paths[1:])


def test_images_that_moved_since_are_refused(study, tmp_path):
    moved = ct_series.slices()
    for ds in moved:
        ds.ImagePositionPatient[2] += 1
    paths = ct_series.write(moved, tmp_path)

    with pytest.raises(ObjectError, match="lie elsewhere"):
        read_source(study.analysis, paths)


def test_of_two_acquisitions_at_one_place_the_analysed_one_is_taken(study, tmp_path):
    """A series with two phases: the analysis says which images it used."""
    phase = [ct_series.copied(ds, AcquisitionNumber=2) for ds in ct_series.slices()]
    second = ct_series.write(phase, tmp_path)

    source = read_source(study.analysis, [*second, *study.paths])

    uids = tuple(image.sop_instance_uid for image in source.images)
    assert uids == study.analysis.sop_instance_uids


def test_images_that_had_no_uid_when_they_were_analysed_are_found_by_place(study):
    unnamed = replace(study.analysis, sop_instance_uids=("",) * study.analysis.shape[0])

    source = read_source(unnamed, study.paths)

    uids = tuple(image.sop_instance_uid for image in source.images)
    assert uids == study.analysis.sop_instance_uids


def test_images_without_a_uid_cannot_be_referred_to(study, tmp_path):
    paths = []
    for number, ds in enumerate(ct_series.slices()):
        ds.SOPInstanceUID = ""
        paths.append(as_file(ds, tmp_path / f"{number}.dcm"))

    with pytest.raises(ObjectError, match="no SOP Instance UID"):
        read_source(study.analysis, paths)


def test_nothing_of_the_series_is_one_sentence(study):
    with pytest.raises(ObjectError, match="96 images were analysed, 0 of"):
        read_source(study.analysis, [])
