"""The key images: which slices, what is drawn on them, and how they stand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.objects.verification import Verification
from pipelines.report.key_images import MOST_IMAGES, key_slices
from tests.dicom_node.objects.conftest import Study
from tests.support import ct_series

RED = (255, 90, 95)  # of the first lesion


def test_the_largest_lesions_are_shown_each_slice_once(study, objects):
    images = [ds for ds in objects if ds.Modality == "OT"]
    uids = [ds.SourceImageSequence[0].ReferencedSOPInstanceUID for ds in images]

    keys = dict.fromkeys(lesion.key_slice for lesion in study.analysis.lesions)
    expected = [study.analysis.sop_instance_uids[z] for z in keys]
    assert uids == expected[:MOST_IMAGES]
    assert [ds.InstanceNumber for ds in images] == list(range(1, len(images) + 1))
    assert len({ds.SeriesInstanceUID for ds in images}) == 1


def test_a_key_image_is_a_derived_capture_without_the_patients_text(objects):
    image = objects[2]

    assert image.ImageType == ["DERIVED", "SECONDARY"]
    assert image.BurnedInAnnotation == "NO"
    assert image.BodyPartExamined == "CHEST"
    assert image.pixel_array.shape == (image.Rows, image.Columns, 3)


@pytest.mark.parametrize("turn", [False, True])
def test_the_contour_lies_around_the_lesion_however_the_images_were_stored(turn, tmp_path):
    series = ct_series.slices()
    if turn:
        series = ct_series.turned(series, rows=True, columns=True)
    study = Study.of(series, tmp_path / "study")
    largest = study.analysis.lesions[0]

    picture = study.objects()[2].pixel_array

    # The number stands beside the contour, the caption in the corner.
    rows, columns = np.nonzero((picture == RED).all(axis=2))
    seen = rows > 120
    scale = picture.shape[0] / study.analysis.shape[1]
    region = np.nonzero(study.analysis.lesion_labels[largest.key_slice] == largest.id)
    assert abs(rows[seen].max() / scale - region[0].max() - 1) < 1.5
    assert abs(columns[seen].min() / scale - region[1].min()) < 1.5


def test_without_lesions_one_slice_of_the_lungs_says_so(healthy):
    images = [ds for ds in healthy.objects() if ds.Modality == "OT"]

    assert len(images) == 1
    (z,) = key_slices(healthy.analysis)
    assert (healthy.analysis.lung_mask[z] > 0).any()
    source = images[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    assert source == healthy.analysis.sop_instance_uids[z]


def test_images_once_compressed_with_loss_stay_marked(tmp_path: Path):
    series = ct_series.slices(24)
    for ds in series:
        ds.LossyImageCompression = "01"
        ds.LossyImageCompressionRatio = 12.5
        ds.LossyImageCompressionMethod = "ISO_10918_1"
    study = Study.of(series, tmp_path / "study")

    for path in study.write(tmp_path / "objects"):
        ds = dcmread(path)
        if ds.Modality in ("SEG", "OT"):
            assert ds.LossyImageCompression == "01"
            assert ds.LossyImageCompressionRatio == 12.5
            assert ds.LossyImageCompressionMethod == "ISO_10918_1"


def rejecting(*lesions: int) -> Verification:
    return Verification(
        person_name="Doe^Jane",
        organisation="Klinik",
        verified_at=datetime(2026, 11, 23, 8, 5, tzinfo=UTC),
        positive=True,
        rejected=lesions,
    )


def test_a_rejected_lesion_is_on_no_confirmed_key_image(study, objects):
    confirmed = study.objects(verification=rejecting(1))

    images = [ds for ds in confirmed if ds.Modality == "OT"]
    keys = dict.fromkeys(lesion.key_slice for lesion in study.analysis.lesions[1:])
    uids = [ds.SourceImageSequence[0].ReferencedSOPInstanceUID for ds in images]
    assert uids == [study.analysis.sop_instance_uids[z] for z in keys][:MOST_IMAGES]
    assert (objects[2].pixel_array == RED).all(axis=2).any()
    for ds in images:
        assert not (ds.pixel_array == RED).all(axis=2).any()
        assert ds.SeriesDescription == "Chest CT AI confirmed key images, research use only"


def test_when_every_lesion_was_rejected_one_image_of_the_lungs_is_left(study):
    everything = rejecting(*(lesion.id for lesion in study.analysis.lesions))

    images = [ds for ds in study.objects(verification=everything) if ds.Modality == "OT"]

    assert len(images) == 1
