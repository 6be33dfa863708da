"""What people mark: as it travels, where it may lie, and measured as the network's lesions are."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import presentation
from pipelines.errors import RegionError
from pipelines.findings import Analysis
from pipelines.lesions import label_regions
from pipelines.marks import Region, clash, measure
from tests.support.phantom import small_chest
from tests.support.results import analysis_of

SIZE = (8, 7, 6)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    chest = small_chest()
    return analysis_of(chest.volume, chest.lungs, label_regions(chest.lesions > 0, smallest=1))


@pytest.fixture(scope="module")
def viewer(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewer")
    presentation.write_viewer(small_chest().volume, analysis, folder)
    return folder


@pytest.fixture(scope="module")
def facts(viewer: Path) -> Mapping[str, Any]:
    return json.loads((viewer / presentation.VIEWER_FILE).read_text())


def region_of(mask: np.ndarray) -> Region:
    """The region of a volume's voxels."""
    z, y, x = mask.shape
    bits = np.packbits(mask, bitorder="little").tobytes()
    return Region.unpacked((0, 0, 0, x, y, z), bits, (x, y, z))


@pytest.mark.parametrize("seed", range(5))
def test_a_region_is_the_same_voxels_in_the_closest_box(seed: int):
    mask = np.zeros((6, 7, 8), bool)
    mask[2:5, 1:4, 3:7] = np.random.default_rng(seed).random((3, 3, 4)) > 0.5

    region = region_of(mask)

    back = np.zeros_like(mask)
    back[region.place] = region.mask
    np.testing.assert_array_equal(back, mask)
    again = Region.unpacked(region.box, region.bits, SIZE)
    assert (again.box, again.digest) == (region.box, region.digest)
    for axis in range(3):
        planes = np.flatnonzero(region.mask.any(axis=tuple({0, 1, 2} - {axis})))
        assert (planes[0], planes[-1]) == (0, region.mask.shape[axis] - 1)


def test_the_same_shape_elsewhere_has_another_digest():
    one, other = np.zeros((2, 6, 7, 8), bool)
    one[1, 1, 1:3] = True
    other[1, 1, 2:4] = True

    assert region_of(one).digest != region_of(other).digest


@pytest.mark.parametrize(
    ("box", "length", "said"),
    [
        ((0, 0, 0, 9, 2, 2), 5, "does not lie in the volume"),
        ((-1, 0, 0, 2, 2, 2), 2, "does not lie in the volume"),
        ((2, 2, 2, 2, 4, 4), 1, "does not lie in the volume"),
        ((0, 0, 0, 2, 2), 1, "two corners"),
        ((0, 0, 0, 2, 2, 2), 2, "2 bytes"),
        ((0, 0, 0, 3, 3, 3), 3, "3 bytes"),
    ],
)
def test_what_is_no_region_of_the_volume_is_refused(box: tuple[int, ...], length: int, said: str):
    with pytest.raises(RegionError, match=said):
        Region.unpacked(box, b"\xff" * length, SIZE)


def test_a_region_without_a_voxel_is_refused():
    with pytest.raises(RegionError, match="no voxel"):
        Region.unpacked((0, 0, 0, 2, 2, 2), b"\x00", SIZE)


def test_a_region_is_measured_as_the_networks_lesions_are(
    analysis: Analysis, viewer: Path, facts: Mapping[str, Any]
):
    assert len(analysis.lesions) > 2
    for lesion in analysis.lesions:
        measured = measure(region_of(analysis.lesion_labels == lesion.id), viewer, facts)

        assert measured == replace(lesion, id=0, probability=None)


def test_lesions_that_share_a_voxel_are_found(
    analysis: Analysis, viewer: Path, facts: Mapping[str, Any]
):
    first, second = (region_of(analysis.lesion_labels == number) for number in (1, 2))
    standing = [lesion.id for lesion in analysis.lesions]

    assert clash({}, standing, viewer, facts) is None
    assert clash({2: second}, standing, viewer, facts) is None
    assert clash({99: first}, standing, viewer, facts) == (1, 99)
    assert clash({99: first}, standing[1:], viewer, facts) is None
    assert clash({98: first, 99: first}, [], viewer, facts) == (98, 99)
