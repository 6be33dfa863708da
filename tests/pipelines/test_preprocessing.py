import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import PipelineError
from pipelines.preprocessing import (
    bounding_box,
    dilate,
    extract_lungs,
    nearest,
    pad_to_multiple,
    resampled_shape,
    resize,
    resize_above,
    slice_input,
    window,
)


def test_the_lesion_window_takes_its_limits_to_zero_and_one():
    hu = np.array([-2000, -1024, -337, 350, 3000], dtype=np.int16)

    assert window(hu, (-1024, 350)).tolist() == [0, 0, 0.5, 1, 1]


def test_resampling_covers_the_same_box():
    assert resampled_shape((133, 512, 512), (2.0, 0.7, 0.7), (2.5, 1.0, 1.0)) == (106, 358, 358)


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(2, 40))
def test_a_linear_ramp_stays_a_ramp_at_voxel_centres(have: int, want: int):
    ramp = np.tile(np.arange(have, dtype=np.float32)[:, None, None], (1, 2, 2))

    out = resize(ramp, (want, 2, 2))[:, 0, 0]

    centres = (np.arange(want) + 0.5) * have / want - 0.5
    np.testing.assert_allclose(out, np.clip(centres, 0, have - 1), atol=1e-4)


def test_resizing_to_the_same_shape_changes_nothing():
    volume = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)

    np.testing.assert_array_equal(resize(volume, volume.shape), volume)


shapes = st.tuples(st.integers(1, 20), st.integers(2, 9), st.integers(2, 9))


def interpolated(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the definition: each line of each axis interpolated between voxel centres."""
    out = volume.astype(np.float64)
    for axis, new in enumerate(shape):
        old = out.shape[axis]
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        out = np.apply_along_axis(
            lambda line, c=centres: np.interp(c, range(len(line)), line), axis, out
        )
    return out


@settings(deadline=None, max_examples=30)
@given(shapes, shapes, st.integers(0, 9))
def test_a_volume_is_interpolated_along_each_axis(have, want, seed):
    volume = np.random.default_rng(seed).integers(-1024, 3000, have).astype(np.int16)

    np.testing.assert_allclose(resize(volume, want), interpolated(volume, want), atol=0.05)


@settings(deadline=None, max_examples=30)
@given(shapes, shapes, st.integers(0, 9))
def test_a_resized_mask_is_where_the_resized_values_are_above_the_threshold(have, want, seed):
    volume = np.random.default_rng(seed).random(have, dtype=np.float32)
    volume[: have[0] // 2] = 0

    np.testing.assert_array_equal(resize_above(volume, want, 0.5), resize(volume, want) > 0.5)


def test_a_slice_is_resized_as_a_volume_of_one():
    image = np.random.default_rng(2).random((7, 9), dtype=np.float32)

    np.testing.assert_array_equal(resize(image, (13, 5)), resize(image[None], (1, 13, 5))[0])


@settings(deadline=None, max_examples=30)
@given(shapes, shapes, st.integers(0, 9))
def test_the_nearest_voxel_is_the_one_a_centre_lies_in(have, want, seed):
    mask = np.random.default_rng(seed).integers(0, 3, have).astype(np.uint8)

    places = [((np.arange(n) + 0.5) * o / n).astype(int) for o, n in zip(have, want, strict=True)]
    np.testing.assert_array_equal(nearest(mask, want), mask[np.ix_(*places)])


def test_resizing_agrees_with_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    volume = np.random.default_rng(1).normal(size=(9, 12, 14)).astype(np.float32)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((0.7, 0.7, 2.0))
    shape = resampled_shape(volume.shape, (2.0, 0.7, 0.7), (2.5, 1.0, 1.0))
    step = [
        n * s / m for n, s, m in zip(image.GetSize(), image.GetSpacing(), shape[::-1], strict=True)
    ]
    origin = [(new - old) / 2 for new, old in zip(step, image.GetSpacing(), strict=True)]

    theirs = sitk.GetArrayFromImage(
        sitk.Resample(
            image, shape[::-1], sitk.Transform(), sitk.sitkLinear, origin, step,
            image.GetDirection(), 0.0, sitk.sitkFloat32,
        )
    )  # fmt: skip

    inner = (slice(1, -1),) * 3  # SimpleITK leaves the rim outside the first centres empty
    np.testing.assert_allclose(resize(volume, shape)[inner], theirs[inner], atol=1e-4)


def test_a_box_is_cut_at_the_edge_of_the_volume():
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[0, 2, 5] = True

    assert bounding_box(mask, (1, 1, 1)) == (slice(0, 2), slice(1, 4), slice(4, 6))


@pytest.mark.parametrize("seed", range(8))
def test_a_box_holds_all_of_the_mask_and_no_more(seed: int):
    mask = np.random.default_rng(seed).random((7, 8, 9)) > 0.99
    mask[3, 4, 5] = True

    box = bounding_box(mask.astype(np.uint8))

    places = np.argwhere(mask)
    assert [side.start for side in box] == places.min(axis=0).tolist()
    assert [side.stop for side in box] == (places.max(axis=0) + 1).tolist()


def test_an_empty_mask_has_no_box():
    with pytest.raises(PipelineError, match="nothing in the mask"):
        bounding_box(np.zeros((2, 2, 2), dtype=bool))


def test_padding_reaches_the_next_multiple_and_keeps_the_values():
    image = np.ones((16, 17, 3), dtype=np.float32)

    padded = pad_to_multiple(image)

    assert padded.shape == (16, 32, 16)
    assert padded.sum() == image.sum()


def test_dilation_grows_by_the_radius_of_each_axis():
    mask = np.zeros((5, 5, 9), dtype=bool)
    mask[2, 2, 4] = True

    grown = dilate(mask, (0, 1, 2))

    assert grown.sum() == 1 * 3 * 5
    assert grown[2, 1:4, 2:7].all()


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(0, 5)] * 3), st.integers(0, 9))
def test_dilation_takes_what_lies_within_the_box_of_a_voxel(radius, seed):
    mask = np.random.default_rng(seed).random((4, 6, 8)) > 0.97

    wide = np.pad(mask, [(r, r) for r in radius])
    windows = np.lib.stride_tricks.sliding_window_view(wide, [2 * r + 1 for r in radius])
    np.testing.assert_array_equal(dilate(mask, radius), windows.any(axis=(3, 4, 5)))


def test_extracted_lungs_keep_their_extent_in_mm():
    hu = np.full((20, 40, 40), -1000, dtype=np.int16)
    lungs = np.zeros(hu.shape, dtype=np.uint8)
    lungs[5:15, 15:25, 15:25] = 1

    extraction = extract_lungs(hu, lungs, (2.0, 1.0, 1.0), target=(2.5, 1.0, 1.0), margin_mm=0.0)

    volume_mm3 = extraction.lung.sum() * np.prod(extraction.spacing)
    assert volume_mm3 == pytest.approx(lungs.sum() * 2.0, rel=0.15)
    assert extraction.hu.shape == extraction.lung.shape


def test_the_box_shows_where_the_lungs_end_and_stays_in_the_volume():
    hu = np.zeros((40, 60, 60), dtype=np.int16)
    lungs = np.zeros(hu.shape, dtype=np.uint8)
    lungs[2:15, 20:30, 20:58] = 1

    box = extract_lungs(hu, lungs, (2.0, 1.0, 1.0), target=(2.0, 1.0, 1.0), margin_mm=0.0).box

    assert box == (slice(0, 20), slice(17, 33), slice(17, 60))


def test_the_classifier_sees_the_square_around_the_lungs_and_nothing_outside_them():
    image = np.full((100, 60), 0.5, dtype=np.float32)
    lung = np.zeros(image.shape, dtype=bool)
    lung[10:90, 20:40] = True
    regions = np.zeros_like(lung)
    regions[10:50, 20:40] = True

    seen = slice_input(image, lung, regions, 80)

    assert seen.shape == (2, 80, 80)
    assert seen[0, 40, :25].max() == 0
    assert seen[0, 40, 40] == pytest.approx(0.5)
    assert seen[1, 20, 40] == pytest.approx(1)
    assert seen[1, 60, 40] == pytest.approx(0)
