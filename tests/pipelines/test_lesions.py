import dataclasses

import cc3d
import numpy as np
import pytest

from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Side
from pipelines.inference import Model
from pipelines.lesions import label_regions, measure_lesions, segment_lesions, without_faint
from pipelines.measures import ANGLES, axial_diameter_mm
from pipelines.preprocessing import LungExtraction
from pipelines.volume import CTVolume
from pipelines.weights import Bundle, Precision
from tests.support.tiny_models import CONFIGS

# Index (z, y, x) of the array to LPS mm, at 2 x 1 x 1 mm.
AFFINE = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])


def volume(hu: np.ndarray) -> CTVolume:
    return CTVolume.from_input(hu.astype(np.int16), AFFINE, series_uid="1.2.3")


def test_regions_are_numbered_by_size_and_small_ones_go():
    mask = np.zeros((4, 20, 20), dtype=bool)
    mask[1, 1:3, 1:3] = True  # 4
    mask[1:3, 10:14, 10:14] = True  # 32
    mask[0, 19, 19] = True  # 1

    labels = label_regions(mask, smallest=2)

    assert np.bincount(labels.ravel())[1:].tolist() == [32, 4]


def test_regions_that_nowhere_reach_the_peak_go():
    probability = np.zeros((3, 12, 12), dtype=np.float32)
    probability[1, 1:4, 1:4] = 0.6
    probability[1, 2, 2] = 0.9
    probability[1, 7:10, 7:10] = 0.8
    probability[0, 0, 11] = 0.3

    likely = without_faint(probability, {"threshold": 0.4, "peak": 0.9})

    expected = probability.copy()
    expected[1, 7:10, 7:10] = 0
    np.testing.assert_array_equal(likely, expected)


class Echo:
    """An engine whose probability is the image."""

    description = "echo"
    precision = Precision.FP32
    bytes_a_voxel = 1_000

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return batch


def test_what_is_faint_throughout_is_no_lesion_of_a_study():
    low, high = 0, 100
    hu = np.zeros((16, 48, 48), dtype=np.int16)
    hu[4:10, 4:10, 4:10] = 60
    hu[4:10, 30:40, 30:40] = 60
    hu[6, 35, 35] = 95
    config = dataclasses.replace(
        CONFIGS["lesions"],
        preprocessing={"spacing_mm": [2.0, 1.0, 1.0], "window_hu": [low, high]},
        decision={"threshold": 0.4, "peak": 0.9, "minimum_ml": 0.0},
    )
    box = (slice(0, 16), slice(0, 48), slice(0, 48))
    extraction = LungExtraction(
        box, hu.astype(np.float32), np.ones(hu.shape, bool), (2.0, 1.0, 1.0)
    )

    labels = segment_lesions(volume(hu), extraction, Model(Bundle(config, "", {}), (Echo(),)))

    expected = np.zeros(hu.shape, dtype=np.uint16)
    expected[4:10, 30:40, 30:40] = 1
    np.testing.assert_array_equal(labels, expected)


def test_regions_that_touch_at_a_corner_are_one():
    mask = np.zeros((2, 4, 4), dtype=bool)
    mask[0, 1, 1] = mask[1, 2, 2] = True

    assert label_regions(mask, smallest=1).max() == 1


@pytest.mark.parametrize("seed", range(5))
def test_every_region_is_one_connected_part(seed: int):
    mask = np.random.default_rng(seed).random((6, 20, 20)) > 0.93

    labels = label_regions(mask, smallest=3)

    parts = cc3d.connected_components(mask, connectivity=26)
    sizes = np.bincount(parts.ravel())[1:]
    assert np.bincount(labels.ravel())[1:].tolist() == sorted(sizes[sizes >= 3], reverse=True)
    for number in range(1, labels.max() + 1):
        (part,) = np.unique(parts[labels == number])
        np.testing.assert_array_equal(labels == number, parts == part)


@pytest.mark.parametrize("seed", range(3))
def test_each_region_has_its_own_box(seed: int):
    mask = np.zeros((9, 30, 30), dtype=bool)
    mask[2:8, 5:25, 7:28] = np.random.default_rng(seed).random((6, 20, 21)) > 0.95
    labels = label_regions(mask, smallest=1)

    found = measure_lesions(volume(np.zeros(mask.shape)), labels, np.ones(mask.shape, np.uint8))

    assert len(found) == labels.max()
    for lesion in found:
        places = np.argwhere(labels == lesion.id)
        assert lesion.bbox == (tuple(places.min(axis=0)), tuple(places.max(axis=0) + 1))
        start = places.min(axis=0)
        assert lesion.centroid == tuple((places - start).mean(axis=0) + start)
        assert lesion.lung_share == len(places) / mask.size


@pytest.mark.parametrize("seed", range(20))
def test_the_diameter_is_that_of_all_pixels(seed: int):
    rng = np.random.default_rng(seed)
    plane = rng.random(rng.integers(1, 30, 2)) > rng.random()
    plane[tuple(rng.integers(0, plane.shape))] = True
    dy, dx = rng.uniform(0.4, 2.0, 2)
    y, x = np.nonzero(plane)
    along = np.outer(np.cos(ANGLES), x * dx) + np.outer(np.sin(ANGLES), y * dy)
    pixel = np.abs(np.cos(ANGLES)) * dx + np.abs(np.sin(ANGLES)) * dy

    diameter = axial_diameter_mm(plane, (dy, dx))

    assert diameter == (along.max(axis=1) - along.min(axis=1) + pixel).max()


@pytest.mark.parametrize("angle", [0, 15, 30, 45, 75])
def test_the_diameter_of_a_bar_is_its_length_at_any_angle(angle: int):
    yy, xx = np.mgrid[-60:61, -60:61]
    turn = np.deg2rad(angle)
    along, across = xx * np.cos(turn) + yy * np.sin(turn), yy * np.cos(turn) - xx * np.sin(turn)
    bar = (np.abs(along) <= 50) & (np.abs(across) <= 3)

    assert axial_diameter_mm(bar, (1.0, 1.0)) == pytest.approx(101, abs=2.5)


def test_the_diameter_follows_pixels_that_are_not_square():
    plane = np.zeros((10, 10), dtype=bool)
    plane[2:8, 5] = True

    assert axial_diameter_mm(plane, (2.0, 0.5)) == pytest.approx(12.0, rel=0.01)


def test_the_measures_of_a_region_are_those_of_its_box():
    labels = np.zeros((10, 20, 40), dtype=np.uint16)
    labels[3:6, 5:9, 10:20] = 1
    labels[4, 9, 10:20] = 1  # the largest slice
    hu = np.where(labels == 1, -500, -850)
    lungs = np.zeros(labels.shape, dtype=np.uint8)
    lungs[:, :, :20], lungs[:, :, 20:] = RIGHT_LUNG, LEFT_LUNG

    (lesion,) = measure_lesions(volume(hu), labels, lungs)

    voxels = 3 * 4 * 10 + 10
    assert lesion.volume_ml == pytest.approx(voxels * 2.0 / 1000)
    assert lesion.mean_hu == -500
    assert lesion.side is Side.RIGHT
    assert (lesion.first_slice, lesion.last_slice, lesion.key_slice) == (3, 5, 4)
    assert lesion.bbox == ((3, 5, 10), (6, 10, 20))
    assert lesion.lung_share == pytest.approx(voxels / labels.size)
    assert lesion.diameter_mm == pytest.approx(np.hypot(10, 5), rel=0.01)


@pytest.mark.parametrize(
    ("columns", "side"),
    [(slice(2, 8), Side.RIGHT), (slice(30, 38), Side.LEFT), (slice(14, 26), Side.BOTH)],
)
def test_the_side_is_the_lung_it_lies_in(columns: slice, side: Side):
    labels = np.zeros((4, 8, 40), dtype=np.uint16)
    labels[1:3, 2:6, columns] = 1
    lungs = np.full(labels.shape, RIGHT_LUNG, dtype=np.uint8)
    lungs[:, :, 20:] = LEFT_LUNG

    (lesion,) = measure_lesions(volume(np.zeros(labels.shape)), labels, lungs)

    assert lesion.side is side


def test_a_volume_without_regions_has_no_lesions():
    empty = np.zeros((4, 8, 8), dtype=np.uint16)

    assert measure_lesions(volume(empty), empty, empty.astype(np.uint8)) == ()
