from itertools import permutations, product

import numpy as np
import pytest

from pipelines.volume import Affine, CTVolume, Orientation

SHAPE = (4, 5, 6)
Order = tuple[int, ...]


def affine_of(order: Order, signs: Order) -> Affine:
    """An array whose axis n runs along LPS axis order[n], in direction signs[n]."""
    affine = np.zeros((4, 4))
    for n in range(3):
        affine[order[n], n] = signs[n] * (1.0 + n)
    affine[:, 3] = (10.0, -20.0, 30.0, 1.0)
    return affine


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((-1, 1), repeat=3)))
def test_every_axis_order_becomes_canonical_and_comes_back(order: Order, signs: Order):
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    affine = affine_of(order, signs)

    volume = CTVolume.from_input(array, affine, series_uid="any")

    directions = volume.affine[:3, :3]
    assert (directions == np.diag(np.diag(directions))).all()
    assert (np.diag(directions) > 0).all()
    assert (volume.orientation.to_input(volume.hu) == array).all()


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_a_voxel_keeps_its_place_in_the_patient(order: Order, signs: Order):
    array = np.zeros(SHAPE, np.int16)
    array[1, 2, 5] = 1
    affine = affine_of(order, signs)

    volume = CTVolume.from_input(array, affine, series_uid="any")

    z, y, x = np.argwhere(volume.hu)[0]
    np.testing.assert_allclose(volume.affine @ (x, y, z, 1), affine @ (1, 2, 5, 1))


def test_an_oblique_stack_stays_oblique():
    angle = np.radians(20)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = np.array(
        [[0, 0, 1], [np.sin(angle), np.cos(angle), 0], [np.cos(angle), -np.sin(angle), 0]]
    )

    volume = CTVolume.from_input(np.zeros(SHAPE, np.int16), affine, series_uid="any")

    assert volume.spacing == pytest.approx((1, 1, 1))
    assert volume.orientation.axes == (0, 1, 2)
    assert abs(volume.affine[1, 2]) == pytest.approx(np.sin(angle))


def test_instances_follow_their_slices():
    affine = affine_of((2, 1, 0), (-1, 1, 1))  # first slice at the head
    uids = ("head", "a", "b", "foot")

    volume = CTVolume.from_input(
        np.zeros(SHAPE, np.int16), affine, series_uid="any", sop_instance_uids=uids
    )

    assert volume.sop_instance_uids == ("foot", "b", "a", "head")


def test_voxels_have_a_volume():
    affine = affine_of((2, 1, 0), (1, 1, 1))

    volume = CTVolume.from_input(np.zeros(SHAPE, np.int16), affine, series_uid="any")

    assert volume.voxel_ml == pytest.approx(0.006)
    assert volume.spacing == (1, 2, 3)


def test_a_volume_that_contradicts_itself_is_refused():
    orientation = Orientation.from_affine(np.eye(4))

    with pytest.raises(ValueError, match="int16"):
        CTVolume(
            hu=np.zeros(SHAPE, np.float32),
            spacing=(1, 1, 1),
            affine=np.eye(4),
            series_uid="any",
            frame_of_reference_uid=None,
            sop_instance_uids=(),
            instance_numbers=(),
            orientation=orientation,
        )
