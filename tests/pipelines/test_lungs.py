import numpy as np
import pytest

from pipelines.engines.choice import EngineChoice
from pipelines.errors import NoUsableSeriesError, Rule
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG
from pipelines.inference import Model
from pipelines.lungs import cut_off, keep_lungs, measure_lungs, segment_lungs, split_sides
from pipelines.training.metrics import dice
from pipelines.volume import CTVolume
from pipelines.weights import open_bundle, shipped_weights
from tests.support.phantom import small_chest


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.open(open_bundle(shipped_weights() / "lungs"), EngineChoice.AUTO)


@pytest.fixture(scope="module")
def found(model: Model) -> np.ndarray:
    return segment_lungs(small_chest().volume, model)


def test_the_shipped_net_finds_the_lungs_of_the_phantom(found):
    assert dice(found > 0, small_chest().lungs > 0) > 0.93


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


def test_lungs_that_touch_are_told_apart():
    mask = np.zeros((24, 40, 60), dtype=bool)
    mask[2:22, 5:35, 4:28] = True
    mask[2:22, 5:35, 32:56] = True
    mask[10:13, 6:8, 28:32] = True  # the anterior junction

    right, left = split_sides(mask)

    assert not (right & left).any()
    assert (right | left).sum() == mask.sum()
    assert right[:, :, :28].sum() == mask[:, :, :28].sum()
    assert left[:, :, 32:].sum() == mask[:, :, 32:].sum()


def test_a_single_lung_lies_on_the_side_of_the_image_it_is_on():
    mask = np.zeros((8, 20, 40), dtype=bool)
    mask[1:7, 5:15, 24:36] = True

    right, left = split_sides(mask)

    assert not right.any()
    assert left.sum() == mask.sum()


def test_a_scan_that_ends_inside_the_lungs_is_noticed():
    lungs = np.zeros((10, 8, 8), dtype=np.uint8)
    lungs[2:8, 2:6, 2:6] = 1

    assert not cut_off(lungs)
    assert cut_off(lungs[4:])
