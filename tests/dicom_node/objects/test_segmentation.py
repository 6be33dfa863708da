"""The Segmentation as an independent reader sees it: every voxel where the analysis has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from tests.dicom_node.objects.conftest import Study
from tests.support import ct_series
from tests.support.validators import dciodvfy_errors, dcmqi_segments, on_grid

Series = list[Dataset]


def as_scanned(series: Series) -> Series:
    return series


def flipped(series: Series) -> Series:
    return ct_series.turned(series, rows=True, columns=True)


def feet_first(series: Series) -> Series:
    """Into the gantry with the feet ahead: stored from foot to head, left and right reversed."""
    for number, ds in enumerate(reversed(series), start=1):
        ds.PatientPosition, ds.InstanceNumber = "FFS", number
    return ct_series.turned(series, rows=False, columns=True)


def transposed(series: Series) -> Series:
    """Rows run to the back."""
    for ds in series:
        ds.PixelData = np.ascontiguousarray(ds.pixel_array.T).tobytes()
        ds.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
        ds.PixelSpacing = ds.PixelSpacing[::-1]
        ds.Rows, ds.Columns = ds.Columns, ds.Rows
    return series


def thick(series: Series) -> Series:
    """Slices with a gap between them."""
    kept = series[::3]
    for ds in kept:
        ds.SliceThickness = 5
    return kept


def cropped(series: Series) -> Series:
    """Rows and columns whose product no byte divides."""
    for ds in series:
        ds.PixelData = np.ascontiguousarray(ds.pixel_array[:127, :125]).tobytes()
        ds.Rows, ds.Columns = 127, 125
    return series


@pytest.mark.parametrize("arrange", [as_scanned, flipped, feet_first, transposed, thick])
def test_dcmqi_reads_the_masks_of_the_analysis_voxel_by_voxel(
    arrange: Callable[[Series], Series], tmp_path: Path
):
    study = Study.of(arrange(ct_series.slices()), tmp_path / "study")
    path, *_ = study.write(tmp_path / "objects")

    read = dcmqi_segments(path, tmp_path / "read")

    found = study.analysis
    truth = [found.lung_mask == 1, found.lung_mask == 2]
    truth += [found.lesion_labels == lesion.id for lesion in found.lesions]
    assert len(found.lesions) >= 3
    assert sorted(read) == list(range(1, len(truth) + 1))
    for number, mask in enumerate(truth, start=1):
        _described, image = read[number]
        seen = on_grid(image, found.affine, found.shape)
        np.testing.assert_array_equal(seen, mask, err_msg=f"segment {number}")
    assert dciodvfy_errors(path) == []


def test_frames_need_not_end_with_a_byte(tmp_path: Path):
    study = Study.of(cropped(ct_series.slices()), tmp_path / "study")
    path, *_ = study.write(tmp_path / "objects")

    read = dcmqi_segments(path, tmp_path / "read")

    found = study.analysis
    assert found.shape[1:] == (127, 125)
    for number, lesion in enumerate(found.lesions, start=3):
        seen = on_grid(read[number][1], found.affine, found.shape)
        np.testing.assert_array_equal(seen, found.lesion_labels == lesion.id)


def test_each_frame_names_the_one_image_that_lies_where_it_lies(study, objects):
    positions = {}
    for path in study.paths:
        image = dcmread(path, stop_before_pixels=True)
        positions[image.SOPInstanceUID] = image.ImagePositionPatient
    segmentation = objects[0]

    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (derivation,) = frame.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        (position,) = frame.PlanePositionSequence
        np.testing.assert_allclose(
            position.ImagePositionPatient, positions[source.ReferencedSOPInstanceUID], atol=1e-6
        )
        assert source.SpatialLocationsPreserved == "YES"


def test_lungs_come_first_and_every_segment_says_what_it_is(study, objects):
    described = objects[0].SegmentSequence

    digests = {model.purpose: model.digest for model in study.analysis.models}
    assert [item.SegmentLabel for item in described[:3]] == ["Right lung", "Left lung", "Lesion 1"]
    assert len(described) == 2 + len(study.analysis.lesions)
    sides = [
        item.SegmentedPropertyTypeCodeSequence[0]
        .SegmentedPropertyTypeModifierCodeSequence[0]
        .CodeMeaning
        for item in described[:2]
    ]
    assert sides == ["Right", "Left"]
    assert len({item.TrackingUID for item in described}) == len(described)
    for item, network in zip(described, ("lungs", "lungs", "lesions"), strict=False):
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert algorithm.AlgorithmName == f"tiny {network}"
        assert digests[network] in algorithm.AlgorithmParameters


def test_frames_without_a_voxel_are_left_out(objects):
    segmentation = objects[0]

    frames = segmentation.pixel_array

    assert frames.any(axis=(1, 2)).all()


def test_a_study_without_lesions_has_its_lungs_alone(healthy):
    segmentation = healthy.objects()[0]

    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == [
        "Right lung",
        "Left lung",
    ]
    assert segmentation.SegmentsOverlap == "NO"


def test_a_lung_that_was_not_found_has_no_segment(healthy):
    one_lung = np.where(healthy.analysis.lung_mask == 1, 1, 0).astype(np.uint8)
    segmentation = healthy.objects(analysis=replace(healthy.analysis, lung_mask=one_lung))[0]

    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == ["Right lung"]
