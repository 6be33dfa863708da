import numpy as np

from pipelines.display import THICK_SLICES, lesion_mask

MM = (1.0, 1.0, 1.0)
DECISION = {"threshold": 0.4, "peak": 0.9}
FAINT, SURE = (slice(5, 10), slice(5, 10)), (slice(20, 25), slice(20, 25))


def stack(slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lungs as dark as in windowed HU with two lesions in each slice, and their mask."""
    image = np.full((slices, 32, 32), 0.12, dtype=np.float32)
    image[:, *FAINT] = 0.6
    image[:, *SURE] = 0.95
    lung = np.zeros(image.shape, dtype=bool)
    lung[:, 2:-2, 2:-2] = True
    return image, lung


class Brightness:
    """A network for which what is bright is a lesion; it notes what it was given."""

    def __init__(self) -> None:
        self.depths: list[int] = []

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.depths.append(len(image))
        return np.where(image > 0.3, image, 0)


def test_a_stack_keeps_the_regions_that_reach_the_peak():
    image, lung = stack(4)

    found = lesion_mask(image, lung, MM, MM, Brightness(), DECISION)

    assert found[:, *SURE].all()
    assert found.sum() == found[:, *SURE].sum()


def test_a_lone_slice_keeps_its_faint_regions_too():
    image, lung = stack(1)

    found = lesion_mask(image, lung, MM, MM, Brightness(), DECISION)

    assert found[:, *SURE].all()
    assert found[:, *FAINT].all()


def test_a_fine_stack_is_read_in_two_halves_that_cover_it():
    image, lung = stack(THICK_SLICES + 1)
    network = Brightness()

    found = lesion_mask(image, lung, MM, MM, network, DECISION)

    assert network.depths == [31, 30]
    assert found[:, *SURE].all()


def test_nothing_outside_the_lungs_is_a_lesion():
    image, lung = stack(4)
    lung[:, 22:] = False

    found = lesion_mask(image, lung, MM, MM, Brightness(), DECISION)

    assert found.any()
    assert not (found & ~lung).any()
