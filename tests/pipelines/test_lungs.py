import dataclasses

import cc3d
import numpy as np
import pytest
import SimpleITK as sitk

from pipelines.engines.choice import EngineChoice
from pipelines.errors import NoUsableSeriesError, Rule
from pipelines.evaluation.metrics import dice
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG
from pipelines.inference import Model
from pipelines.lungs import (
    cut_off,
    keep_lungs,
    measure_lungs,
    segment_lungs,
    split_sides,
    without_domes,
)
from pipelines.volume import CTVolume
from pipelines.weights import open_bundle, shipped_weights
from tests.support.phantom import small_chest

GRID_MM = (2.5, 2.0, 2.0)
AFFINE = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1.0]])
"""Index (z, y, x) of an array on that grid to LPS mm."""


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.open(open_bundle(shipped_weights() / "lungs"), EngineChoice.AUTO)


@pytest.fixture(scope="module")
def found(model: Model) -> np.ndarray:
    return segment_lungs(small_chest().volume, model)


def test_the_shipped_net_finds_the_lungs_of_the_phantom(found):
    assert dice(found > 0, small_chest().lungs > 0) > 0.93


def test_lesions_belong_to_the_lungs_even_a_consolidation_at_the_pleura(found):
    lesions = small_chest().lesions

    for number in range(1, int(lesions.max()) + 1):
        assert (found[lesions == number] > 0).mean() > 0.95


def test_left_is_the_patients_left(found):
    truth = small_chest().lungs

    for side in (LEFT_LUNG, RIGHT_LUNG):
        assert dice(found == side, truth == side) > 0.9


def test_the_volumes_of_the_lungs_are_in_ml(found):
    chest = small_chest()
    measured = measure_lungs(found, chest.volume.voxel_ml)

    truth_ml = (chest.lungs > 0).sum() * chest.volume.voxel_ml
    assert measured.total_ml == pytest.approx(truth_ml, rel=0.1)


def test_a_series_without_lungs_is_refused_with_what_to_do(model):
    water = np.zeros((32, 128, 128), dtype=np.int16)
    volume = CTVolume.from_input(
        water,
        np.array([[0, 0, 2.8, 0], [0, 2.8, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1.0]]),
        series_uid="1.2.3",
    )

    with pytest.raises(NoUsableSeriesError, match="Send a series that covers the lungs") as error:
        segment_lungs(volume, model)

    assert error.value.refusals[0].rule is Rule.NOT_CHEST
    assert error.value.refusals[0].series_uid == "1.2.3"


def test_small_islands_go_and_holes_are_filled():
    mask = np.zeros((20, 40, 40), dtype=bool)
    mask[2:18, 5:35, 2:18] = True
    mask[8:10, 10:12, 8:10] = False  # a vessel inside
    mask[1:3, 36:38, 36:38] = True  # bowel gas

    kept = keep_lungs(mask)

    assert kept[8:10, 10:12, 8:10].all()
    assert not kept[:, :, 36:].any()


def lung_with_dome(*, seen_as_lung: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a lung's mask, its HU and where the liver's top lies; the net takes some for lung."""
    z, y, x = np.ogrid[:16, :60, :60]
    hu = np.full((16, 60, 60), -850, np.float32)
    dome = (y - 30) ** 2 + (x - 30) ** 2 < 30 * (10 - z).clip(0)
    hu[dome] = 40
    lungs = np.zeros(hu.shape, dtype=bool)
    lungs[:, 5:55, 5:55] = True
    lungs &= ~dome
    lungs[seen_as_lung] |= dome[seen_as_lung]
    return lungs, hu, dome


def test_the_top_of_the_diaphragm_is_no_lung():
    lungs, hu, dome = lung_with_dome(seen_as_lung=slice(6, 10))

    found = without_domes(lungs, hu, (2.5, 2.0, 2.0))

    assert (lungs & dome).any()
    assert not (found & dome).any()
    np.testing.assert_array_equal(found[~dome], lungs[~dome])


def test_a_consolidation_on_lung_stays_lung():
    lungs, hu, _ = lung_with_dome(seen_as_lung=slice(0, 16))

    np.testing.assert_array_equal(without_domes(lungs, hu, (2.5, 2.0, 2.0)), lungs)


def test_a_consolidation_on_the_diaphragm_stays_lung():
    lungs, hu, _ = lung_with_dome(seen_as_lung=slice(0, 0))
    hu[5:8, 20:55, 40:55] = 40  # reaches the chest wall
    lungs[:5, 20:55, 40:55] = False  # below it the diaphragm
    lungs[5:8, 20:55, 40:55] = True

    found = without_domes(lungs, hu, (2.5, 2.0, 2.0))

    np.testing.assert_array_equal(found, lungs)


@pytest.mark.parametrize("aerated", [0, 8])
def test_a_lobe_without_air_stays_lung(aerated: int):
    z, y, x = np.ogrid[:24, :60, :60]
    lungs = np.broadcast_to((y - 30) ** 2 + (x - 30) ** 2 < 25**2, (24, 60, 60)) & (z >= 4)
    hu = np.where(lungs, -850, 40).astype(np.float32)
    hu[4:16, 5 + aerated :] = 40  # the lower lobe, resting on the diaphragm

    np.testing.assert_array_equal(without_domes(lungs, hu, (2.5, 2.0, 2.0)), lungs)


def test_a_consolidation_that_the_net_misses_in_one_slice_stays_lung_above_it():
    z, y, x = np.ogrid[:24, :60, :60]
    lungs = np.broadcast_to((y - 30) ** 2 + (x - 30) ** 2 < 25**2, (24, 60, 60)).copy()
    dense = ((y - 30) ** 2 + (x - 30) ** 2 < 20**2) & (z >= 2) & (z < 16)
    hu = np.where(dense, 40, -850).astype(np.float32)
    lungs[6] &= ~dense[6]

    np.testing.assert_array_equal(without_domes(lungs, hu, (2.5, 2.0, 2.0)), lungs)


def shapeless(seed: int) -> np.ndarray:
    """Return a mask of large and small parts with holes in them."""
    noise = np.random.default_rng(seed).normal(size=(12, 40, 60))
    return sitk.GetArrayFromImage(
        sitk.DiscreteGaussian(sitk.GetImageFromArray(noise), 3.0)
    ) > 0.03  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_large_parts_are_kept_and_filled_wherever_they_lie(seed: int):
    mask = shapeless(seed)
    labels = cc3d.connected_components(mask, connectivity=6)
    sizes = [(labels == part).sum() for part in range(1, labels.max() + 1)]
    large = [part for part, size in enumerate(sizes, start=1) if size >= 0.05 * max(sizes)]
    filled = sitk.BinaryFillhole(sitk.GetImageFromArray(np.isin(labels, large).astype(np.uint8)))

    np.testing.assert_array_equal(keep_lungs(mask), sitk.GetArrayFromImage(filled) > 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_sides_do_not_depend_on_how_much_air_is_around_the_lungs(seed: int):
    mask = np.pad(shapeless(seed), 1)
    around = np.pad(mask, ((0, 0), (9, 4), (7, 11)))

    near, far = split_sides(mask, GRID_MM, middle=31), split_sides(around, GRID_MM, middle=38)

    for tight, wide in zip(near, far, strict=True):
        np.testing.assert_array_equal(wide[:, 9:-4, 7:-11], tight)
        assert wide.sum() == tight.sum()


@pytest.mark.parametrize("seed", range(5))
def test_every_voxel_of_the_lungs_lies_on_one_side(seed: int):
    mask = shapeless(seed)

    right, left = split_sides(mask, GRID_MM, middle=30)

    np.testing.assert_array_equal(right | left, mask)
    assert not (right & left).any()


def test_the_volume_of_each_lung_is_its_voxels():
    lungs = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)

    measured = measure_lungs(lungs, 0.5)

    assert measured.left_ml == (lungs == LEFT_LUNG).sum() / 2
    assert measured.right_ml == (lungs == RIGHT_LUNG).sum() / 2


def test_lungs_that_touch_are_told_apart():
    mask = np.zeros((24, 40, 60), dtype=bool)
    mask[2:22, 5:35, 4:28] = True
    mask[2:22, 5:35, 32:56] = True
    mask[10:13, 6:8, 28:32] = True  # the anterior junction

    right, left = split_sides(mask, GRID_MM, middle=mask.shape[2] / 2)

    assert not (right & left).any()
    assert (right | left).sum() == mask.sum()
    assert right[:, :, :28].sum() == mask[:, :, :28].sum()
    assert left[:, :, 32:].sum() == mask[:, :, 32:].sum()


def test_how_deep_lungs_are_eroded_does_not_depend_on_the_grid():
    fine = np.zeros((48, 80, 120), dtype=bool)
    fine[4:44, 10:70, 8:56] = fine[4:44, 10:70, 64:112] = True
    fine[16:32, 12:22, 56:64] = True  # they touch in 10 mm

    right, left = split_sides(fine, (1.25, 1.0, 1.0), middle=52)

    assert right[:, :, :56].sum() == fine[:, :, :56].sum()
    assert left[:, :, 64:].sum() == fine[:, :, 64:].sum()


@pytest.mark.parametrize("window_hu", [(-1024, 350), (-150, 350), (-1200, 600)])
def test_the_sides_do_not_depend_on_the_window_of_the_network(model, window_hu):
    shape = (40, 96, 112)
    lungs = np.zeros(shape, dtype=bool)
    lungs[5:35, 20:80, 8:36] = lungs[5:35, 20:80, 42:72] = True
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[:, 10:90, 2:78] = 40  # a body that is not in the middle of the image
    hu[lungs] = -850
    volume = CTVolume.from_input(hu, AFFINE, series_uid="1.2.3")
    preprocessing = {**model.config.preprocessing, "window_hu": window_hu}
    config = dataclasses.replace(model.config, preprocessing=preprocessing)
    bundle = dataclasses.replace(model.bundle, config=config)

    found = segment_lungs(volume, Model(bundle, (Blind(lungs, np.zeros(shape, dtype=bool)),)))

    assert set(np.unique(found[:, :, :39])) == {0, RIGHT_LUNG}
    assert set(np.unique(found[:, :, 39:])) == {0, LEFT_LUNG}


def test_a_single_lung_lies_on_the_side_of_the_image_it_is_on():
    mask = np.zeros((8, 20, 40), dtype=bool)
    mask[1:7, 5:15, 24:36] = True

    right, left = split_sides(mask, GRID_MM, middle=mask.shape[2] / 2)

    assert not right.any()
    assert left.sum() == mask.sum()


def test_one_lung_with_a_waist_stays_on_its_side():
    mask = np.zeros((24, 40, 80), dtype=bool)
    mask[2:22, 5:35, 4:16] = mask[2:22, 5:35, 20:32] = True
    mask[10:13, 18:22, 16:20] = True

    right, left = split_sides(mask, GRID_MM, middle=40)

    assert right.sum() == mask.sum()
    assert not left.any()


def test_gas_beside_lungs_that_touch_does_not_make_both_the_right_one():
    mask = np.zeros((40, 40, 80), dtype=bool)
    mask[20:38, 5:35, 10:38] = mask[20:38, 5:35, 42:70] = True
    mask[28:31, 6:8, 38:42] = True  # the anterior junction
    mask[2:14, 5:25, 48:68] = True  # the stomach

    right, left = split_sides(mask, GRID_MM, middle=40)

    assert right[20:, :, 10:38].all(axis=2).sum() == 18 * 30
    assert left[20:, :, 42:70].all(axis=2).sum() == 18 * 30


class Blind:
    """A net that is sure of the lungs but for a block in their middle."""

    description = "blind"

    def __init__(self, lungs: np.ndarray, opacity: np.ndarray) -> None:
        self.answer = np.where(lungs & ~opacity, 0.95, 0.05).astype(np.float32)
        self.first = 0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        part = self.answer[self.first : self.first + len(batch)]
        self.first += len(batch)
        padded = np.zeros((len(batch), 1, *batch.shape[2:]), dtype=np.float32)
        padded[:, 0, : part.shape[1], : part.shape[2]] = part
        return padded


def test_a_consolidation_inside_the_lung_stays_in_the_lung(model):
    shape = (40, 96, 112)
    lungs = np.zeros(shape, dtype=bool)
    lungs[5:35, 20:80, 10:50] = lungs[5:35, 20:80, 62:102] = True
    opacity = np.zeros(shape, dtype=bool)
    opacity[15:25, 40:60, 20:36] = True
    hu = np.where(lungs & ~opacity, -850, 40).astype(np.int16)
    volume = CTVolume.from_input(hu, AFFINE, series_uid="1.2.3")

    found = segment_lungs(volume, Model(model.bundle, (Blind(lungs, opacity),)))

    assert (found[opacity] == RIGHT_LUNG).mean() > 0.9


def test_a_scan_that_ends_inside_the_lungs_is_noticed():
    lungs = np.zeros((10, 8, 8), dtype=np.uint8)
    lungs[2:8, 2:6, 2:6] = 1

    assert not cut_off(lungs)
    assert cut_off(lungs[4:])
