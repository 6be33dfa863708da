import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from PIL import Image

from pipelines.findings import (
    LEFT_LUNG,
    RIGHT_LUNG,
    Analysis,
    HeatMap,
    Lesion,
    LungMeasures,
    ModelRef,
    Side,
)
from pipelines.presentation import (
    NOTICE,
    VIEWER_FILE,
    bounding_box,
    contact_sheet,
    decode_slab,
    encode_slab,
    write_viewer,
)
from pipelines.severity import measure_burden
from tests.support.phantom import small_chest


def lesion_of(number: int) -> Lesion:
    """The phantom's own opacity as a lesion."""
    chest = small_chest()
    region = chest.lesions == number
    box = bounding_box(region)
    assert box is not None
    areas = region.sum(axis=(1, 2))
    z, y, x = (float(axis.mean()) for axis in np.nonzero(region))
    return Lesion(
        id=number,
        volume_ml=float(region.sum()) * chest.volume.voxel_ml,
        diameter_mm=40.0,
        mean_hu=float(chest.volume.hu[region].mean()),
        side=Side.RIGHT if x < chest.volume.shape[2] / 2 else Side.LEFT,
        first_slice=box[0][0],
        last_slice=box[1][0] - 1,
        key_slice=int(areas.argmax()),
        centroid=(z, y, x),
        bbox=box,
        lung_share=0.01,
        probability=0.8,
    )


@cache
def analysis() -> Analysis:
    chest = small_chest()
    return Analysis(
        series_uid=chest.volume.series_uid,
        shape=chest.volume.shape,
        spacing=chest.volume.spacing,
        affine=chest.volume.affine,
        lungs=LungMeasures(left_ml=3000.0, right_ml=3200.0),
        lesions=tuple(lesion_of(n) for n in range(1, len(chest.opacities) + 1)),
        probability=0.93,
        positive=True,
        threshold=0.5,
        models=(ModelRef("lesions", "unetplusplus", "1", "ab" * 32),),
        engine="torch fp32",
        timings_s={},
        warnings=(),
        refused_series=(),
        lung_mask=chest.lungs,
        lesion_labels=chest.lesions,
    )


def healthy() -> Analysis:
    empty = np.zeros_like(small_chest().lesions)
    return replace(analysis(), lesions=(), lesion_labels=empty, probability=0.02, positive=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_viewer(small_chest().volume, analysis(), tmp_path)
    return tmp_path


def describe(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / VIEWER_FILE).read_text("utf-8"))
    return found


def inflate(folder: Path, entry: dict[str, Any]) -> bytes:
    frame = (folder / entry["file"]).read_bytes()
    assert len(frame) == entry["bytes"]
    return zstandard.ZstdDecompressor().decompress(frame)


def read_mask(folder: Path, mask: dict[str, Any], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Decode a mask as the browser does, bit by bit."""
    x0, y0, z0, x1, y1, z1 = mask["box"]
    content = inflate(folder, mask)
    size = (z1 - z0) * (y1 - y0) * (x1 - x0)
    bits = [content[i >> 3] >> (i & 7) & 1 for i in range(size)]
    region = np.zeros(shape, bool)
    region[z0:z1, y0:y1, x0:x1] = np.reshape(bits, (z1 - z0, y1 - y0, x1 - x0))
    return region


def test_slabs_hold_every_voxel(folder: Path):
    hu = small_chest().volume.hu
    next_slice = 0

    for slab in describe(folder)["slabs"]:
        shape = (slab["count"], *hu.shape[1:])
        assert slab["first"] == next_slice
        next_slice += slab["count"]
        assert (decode_slab(inflate(folder, slab), shape) == hu[slab["first"] : next_slice]).all()

    assert next_slice == hu.shape[0]


def test_the_documented_loop_decodes_a_slab(folder: Path):
    hu = small_chest().volume.hu
    slab = describe(folder)["key_slabs"][0]
    content = inflate(folder, slab)
    ny, nx = hu.shape[1:]
    voxels = ny * nx

    row = 70
    value, found = 0, []
    for p in range(row * nx, (row + 1) * nx):
        u = content[p] | content[voxels + p] << 8
        value += (u >> 1) ^ -(u & 1)
        found.append(value)

    assert found == hu[slab["first"], row].tolist()


def test_every_lesion_has_its_key_slice_in_a_slab_of_its_own(folder: Path):
    described = describe(folder)
    firsts = [slab["first"] for slab in described["key_slabs"]]

    assert set(firsts) == {lesion.key_slice for lesion in analysis().lesions}
    assert len(firsts) == len(set(firsts))
    assert all(slab["count"] == 1 for slab in described["key_slabs"])


def test_extreme_steps_survive():
    hu = np.array([[[-32768, 32767, -1, 0, 32767, -32768]]], np.int16)

    assert (decode_slab(encode_slab(hu), (1, 1, 6)) == hu).all()


def test_masks_are_crops_of_lesions_and_lungs(folder: Path):
    chest = small_chest()
    described = describe(folder)

    for number, lesion in enumerate(described["lesions"], start=1):
        region = read_mask(folder, lesion["mask"], chest.lesions.shape)
        assert (region == (chest.lesions == number)).all()
    for side, label in (("right", RIGHT_LUNG), ("left", LEFT_LUNG)):
        region = read_mask(folder, described["lungs"][side], chest.lungs.shape)
        assert (region == (chest.lungs == label)).all()


def test_a_heat_map_is_a_crop_of_its_bytes_and_is_listed_only_where_there_is_one(tmp_path: Path):
    heat = np.zeros_like(small_chest().lungs)
    heat[40:44, 50:60, 30:45] = np.arange(1, 16)
    maps = (
        HeatMap("screening", "COVID-likeness", 0.25, heat),
        HeatMap("pneumonia", "bacterial", None, np.zeros_like(heat)),
    )

    write_viewer(small_chest().volume, replace(analysis(), heat_maps=maps), tmp_path)

    first, second = describe(tmp_path)["heat_maps"]
    assert first["map"]["box"] == [30, 50, 40, 45, 60, 44]
    content = np.frombuffer(inflate(tmp_path, first["map"]), np.uint8).reshape(4, 10, 15)
    assert (content == heat[40:44, 50:60, 30:45]).all()
    assert (first["answer"], first["lesion_share"]) == ("COVID-likeness", 0.25)
    assert (second["answer"], second["map"]) == ("bacterial", None)


def test_a_result_without_burden_opinion_or_heat_says_so(folder: Path):
    described = describe(folder)

    assert described["heat_maps"] == []
    assert (described["burden"], described["second_opinion"]) == (None, None)


def test_the_burden_adds_a_line_to_the_contact_sheet():
    chest = small_chest()
    burden = measure_burden(chest.lungs, chest.lesions, chest.volume.voxel_ml)
    without = contact_sheet(chest.volume, analysis())

    sheet = contact_sheet(chest.volume, replace(analysis(), burden=burden))

    assert sheet.size == without.size
    below_the_score = (0, 62, 700, 84)
    different = np.asarray(sheet) != np.asarray(without)
    assert different[62:114].any()
    assert not different[114:].any()
    assert colours(sheet.crop(below_the_score)).sum() == 0


def test_the_description_has_the_patients_sides(folder: Path):
    described = describe(folder)
    nx, ny, nz = described["size"]
    right = described["lungs"]["right"]["box"]
    left = described["lungs"]["left"]["box"]

    assert (nz, ny, nx) == small_chest().volume.shape
    assert right[0] < nx / 2 < left[3]
    assert described["labels"]["axial"] == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert described["instance_numbers"] == list(small_chest().volume.instance_numbers)
    assert described["notice"] == NOTICE


def test_files_are_named_by_their_content(folder: Path):
    for path in folder.iterdir():
        if path.name != VIEWER_FILE:
            assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def test_the_same_result_makes_the_same_files(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    other = tmp_path_factory.mktemp("other")

    write_viewer(small_chest().volume, analysis(), other)

    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in other.iterdir()
    }


def test_no_identifier_is_written(folder: Path):
    text = (folder / VIEWER_FILE).read_text("utf-8")

    assert small_chest().volume.series_uid not in text
    assert "Phantom" not in text


def test_a_result_without_lesions_or_lungs_is_written_too(tmp_path: Path):
    nothing = replace(healthy(), lung_mask=np.zeros_like(small_chest().lungs))

    write_viewer(small_chest().volume, nothing, tmp_path)

    described = describe(tmp_path)
    assert described["lesions"] == described["key_slabs"] == []
    assert described["lungs"]["right"] is None


def test_a_bounding_box_is_half_open():
    region = np.zeros((4, 5, 6), bool)
    region[1, 2, 3] = region[2, 2, 5] = True

    assert bounding_box(region) == ((1, 2, 3), (3, 3, 6))
    assert bounding_box(np.zeros((2, 2, 2), bool)) is None


def colours(image: Image.Image) -> npt.NDArray[np.bool_]:
    """Where a picture is neither grey nor black."""
    pixels = np.asarray(image).astype(int)
    return np.ptp(pixels, axis=2) > 90


@pytest.mark.parametrize("make", [analysis, healthy])
def test_a_contact_sheet_is_drawn_with_and_without_lesions(make: Any):
    sheet = contact_sheet(small_chest().volume, make())

    assert sheet.mode == "RGB"
    assert 600 < sheet.width < 1600
    assert 400 < sheet.height < 1200


def test_lesions_are_outlined_on_their_own_side():
    # The largest lesion alone lies in the right lung: left of the middle of the picture.
    only = replace(analysis(), lesions=(lesion_of(1),))
    sheet = contact_sheet(small_chest().volume, only)
    axial = sheet.crop((360, 150, 690, 430))

    outline = colours(axial)
    outline[:, :40] = outline[:, -40:] = False  # the marks at the edges

    assert outline.any()
    assert np.nonzero(outline)[1].max() < axial.width / 2
