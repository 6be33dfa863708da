import numpy as np
import pytest

from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Grade, Involvement
from pipelines.severity import grade, measure_burden
from tests.support.phantom import small_chest


def masks() -> tuple[np.ndarray, np.ndarray]:
    """A right lung of 9 slices and a left one of 6, 10 voxels in each slice."""
    lungs = np.zeros((12, 4, 10), np.uint8)
    lungs[1:10, 0] = RIGHT_LUNG
    lungs[4:10, 2] = LEFT_LUNG
    return lungs, np.zeros(lungs.shape, np.uint16)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, Grade.CT_0),
        (0.001, Grade.CT_1),
        (0.25, Grade.CT_1),
        (0.251, Grade.CT_2),
        (0.5, Grade.CT_2),
        (0.75, Grade.CT_3),
        (0.76, Grade.CT_4),
        (1.0, Grade.CT_4),
    ],
)
def test_the_grade_changes_at_every_quarter(share: float, expected: Grade):
    assert grade(share) is expected


def test_lesion_is_counted_by_lung_and_by_third_of_its_own_height():
    lungs, labels = masks()
    labels[1:3, 0, :5] = 1  # the lower third of the right lung is slices 1 to 3
    labels[8:10, 2] = 2  # the upper third of the left lung

    burden = measure_burden(lungs, labels, 0.5)

    assert burden.right.lower == Involvement(5.0, pytest.approx(1 / 3))
    assert burden.right.middle == burden.right.upper == Involvement(0.0, 0.0)
    assert burden.right.whole == Involvement(5.0, pytest.approx(1 / 9))
    assert burden.left.upper == Involvement(10.0, 1.0)
    assert burden.left.whole == Involvement(10.0, pytest.approx(1 / 3))
    assert burden.both == Involvement(15.0, pytest.approx(30 / 150))


def test_the_more_affected_lung_gives_the_grade():
    lungs, labels = masks()
    labels[4:9, 2] = 1

    burden = measure_burden(lungs, labels, 1.0)

    assert burden.both.share < 0.5
    assert burden.grade is Grade.CT_4


def test_lesion_outside_the_lungs_is_left_out():
    lungs, labels = masks()
    labels[:, 3] = 1

    burden = measure_burden(lungs, labels, 1.0)

    assert burden.both.lesion_ml == 0
    assert burden.grade is Grade.CT_0


def test_a_lung_that_is_not_there_has_no_lesion():
    lungs, labels = masks()
    lungs[lungs == LEFT_LUNG] = 0

    burden = measure_burden(lungs, labels, 1.0)

    assert burden.left.whole == burden.left.upper == Involvement(0.0, 0.0)


def test_thirds_add_up_to_the_phantoms_lungs():
    chest = small_chest()
    voxel_ml = chest.volume.voxel_ml

    burden = measure_burden(chest.lungs, chest.lesions, voxel_ml)

    inside = float(((chest.lesions > 0) & (chest.lungs > 0)).sum()) * voxel_ml
    assert burden.both.lesion_ml == pytest.approx(inside)
    for lung in (burden.right, burden.left):
        parts = (lung.upper, lung.middle, lung.lower)
        assert sum(part.lesion_ml for part in parts) == pytest.approx(lung.whole.lesion_ml)
