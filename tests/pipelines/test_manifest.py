import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipelines.analysis import Models, analyse
from pipelines.engines.choice import EngineChoice
from pipelines.errors import ManifestError
from pipelines.manifest import Case, Domain, Part, Split, open_manifest, with_parts
from pipelines.phantom import write_dicom
from pipelines.series import load_input
from tests.support.phantom import small_chest
from tests.support.tiny_models import write_models

SPACING = [2.5, 1.4, 1.4]


def write(folder: Path, *cases: dict, **top: object) -> Path:
    path = folder / "set.json"
    whole = {"name": "set", "source": "here", "licence": "none", "cases": list(cases)}
    path.write_text(json.dumps({**whole, **top}))
    return path


def case(name: str = "a", **changes: object) -> dict:
    row = {
        "id": name,
        "group": name,
        "domain": "display",
        "image": "a.npz#image",
        "spacing_mm": SPACING,
        "part": "train",
    }
    return {**row, **changes}


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    image = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)
    np.savez(tmp_path / "a.npz", image=image, mask=image > 20, small=image[:, :2] > 0)
    for z, plane in enumerate(image):
        Image.fromarray(plane).save(tmp_path / f"{z}.png")
    return tmp_path


def test_an_npz_a_list_of_pictures_and_one_picture_are_stacks(arrays):
    path = write(
        arrays,
        case("npz", lung="a.npz#mask"),
        case("pictures", image=["0.png", "1.png"]),
        case("picture", image="1.png"),
    )
    data = open_manifest(path)

    npz, pictures, picture = (data.load(c) for c in data.cases)

    assert npz.image.shape == (2, 4, 6)
    assert npz.spacing == (2.5, 1.4, 1.4)
    assert npz.lung is not None
    assert npz.lung.sum() == 27
    assert npz.lesion is None
    assert (pictures.image == npz.image).all()
    assert (picture.image == npz.image[1:]).all()


def test_a_dicom_folder_brings_its_own_geometry(tmp_path):
    chest = small_chest()
    write_dicom(chest, tmp_path / "chest")
    path = write(tmp_path, case(domain="hu", image="chest", spacing_mm=[9, 9, 9]))
    data = open_manifest(path)

    stack = data.load(data.cases[0])

    assert stack.image.shape == chest.volume.shape
    assert stack.spacing == pytest.approx(chest.volume.spacing)


def test_a_result_of_the_appliance_can_be_the_mask_of_its_input(tmp_path):
    chest = small_chest()
    write_dicom(chest, tmp_path / "chest")
    volume, _ = load_input(tmp_path / "chest")
    models = Models.open(write_models(tmp_path / "models"), EngineChoice.TORCH)
    found = replace(analyse(volume, models), lung_mask=chest.lungs)
    found.save(tmp_path / "result", volume)
    path = write(
        tmp_path, case(domain="hu", image="chest", lung="result/lungs.nii.gz", lesion=None)
    )
    data = open_manifest(path)

    stack = data.load(data.cases[0])

    assert stack.lung is not None
    assert 0 < stack.lung.sum() < stack.lung.size
    assert (stack.lung == (chest.lungs > 0)).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imgae": "x"}, " has an unknown key 'imgae'; did you mean 'image'"),
        ({"image": None}, " lacks image"),
        ({"image": 5}, ": image is 5; it is the name of a file, or a list of such names"),
        ({"image": []}, r": image is \[\]; it is the name of a file"),
        ({"image": ["0.png", None]}, r": image is \[\"0.png\", null\]; it is the name"),
        ({"image": "#image"}, ": image is .*; it is the name of a file"),
        ({"lesion": {"file": "0.png"}}, ": lesion is .*; it is the name of a file"),
        ({"image": "b.npz#image"}, ": .*b.npz is missing"),
        ({"group": ["p", "q"]}, r": group is \[\"p\", \"q\"\]; it is a text"),
        ({"label": ["covid"], "label_source": "NAT"}, r": label is .*; it is a text"),
        ({"domain": "grey"}, ': domain is "grey"; it is one of hu, display'),
        ({"domain": ["hu"]}, ": domain is .*; it is one of hu, display"),
        ({"part": "exam"}, ': part is "exam"; it is one of train, validation, test'),
        ({"label": "covid"}, " has a label but no label_source"),
        (
            {"spacing_mm": [1, 0, 1]},
            r": spacing_mm is \[1, 0, 1\]; it is three numbers, .* above 0",
        ),
        ({"spacing_mm": [1, float("nan"), 1]}, ": spacing_mm is .*NaN.*; it is three numbers"),
        ({"spacing_mm": [1, 1, float("inf")]}, ": spacing_mm is .*Infinity.*; it is three numbers"),
        ({"spacing_mm": [1, 1]}, ": spacing_mm is .*; it is three numbers"),
        ({"spacing_mm": 1.5}, ": spacing_mm is 1.5; it is three numbers"),
        ({"spacing_mm": ["1", "1", "1"]}, ": spacing_mm is .*; it is three numbers"),
        ({"lesion_slices": [1.5]}, ": lesion_slices is .*; it is a list of whole numbers"),
        ({"lesion_slices": 3}, ": lesion_slices is 3; it is a list of whole numbers"),
    ],
)
def test_a_wrong_case_is_named_when_the_manifest_is_opened(arrays, change, said):
    with pytest.raises(ManifestError, match=rf"set\.json: case 'a'{said}"):
        open_manifest(write(arrays, case(**change)))


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ({"cases": 3}, "cases is 3; it is a list"),
        ({"name": ["a"]}, r"name is \[\"a\"\]; it is a text"),
        ({"cases": [{"id": ["a", "b"]}]}, "case 0 lacks domain, group, image"),
        ({"cases": [case(["a"])]}, "case 0: id is .*; it is a text"),
        ({"cases": ["a"]}, "case 0 is no JSON object"),
        ({"split": {"seed": 1.5, "validation": 0.1, "test": 0.1}}, "seed is a whole number"),
        ({"split": {"seed": 1, "validation": "few", "test": 0.1}}, "validation and test are"),
    ],
)
def test_a_wrong_head_is_one_sentence(arrays, top, said):
    with pytest.raises(ManifestError, match=rf"set\.json: .*{said}"):
        open_manifest(write(arrays, **{"cases": [case()], **top}))


def test_null_is_as_good_as_left_out(arrays):
    nothing = dict.fromkeys(("lung", "lesion", "label", "label_source", "site", "lesion_slices"))
    data = open_manifest(write(arrays, case(**nothing), root=None, split=None))

    assert data.cases == open_manifest(write(arrays, case())).cases
    assert data.load(data.cases[0]).lesion is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lung": "a.npz#small"}, r"the mask a.npz#small is \(2, 2, 6\), its image \(2, 4, 6\)"),
        ({"image": "a.npz#ct"}, "a.npz holds no array 'ct': name one of image, mask, small"),
        ({"spacing_mm": None}, "spacing_mm is missing"),
        ({"image": ["0.png", "wide.png"]}, r"wide.png is \(4, 8\), the slices before it \(4, 6\)"),
    ],
)
def test_a_case_whose_files_do_not_fit_is_named_when_it_is_loaded(arrays, change, said):
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(arrays / "wide.png")
    data = open_manifest(write(arrays, case(**change)))

    with pytest.raises(ManifestError, match=f"Case 'a' of 'set': .*{said}"):
        data.load(data.cases[0])


BAD_VALUES = {
    "fractions": np.linspace(0, 1, 48).reshape(2, 4, 6),
    "negative": np.full((2, 4, 6), -1000, np.int16),
    "nothing": np.full((2, 4, 6), np.nan),
    "bright": np.full((4, 6), 256, np.int32),
    "deep": np.full((2, 4, 6), 1e6, np.float32),
    "four": np.zeros((1, 2, 4, 6), np.uint8),
    "empty": np.zeros((0, 4, 6), np.uint8),
    "words": np.full((4, 6), "white"),
}


@pytest.mark.parametrize(
    ("key", "domain", "said"),
    [
        ("fractions", "display", "no whole numbers from 0 to 255"),
        ("negative", "display", "from -1000 to -1000, those of 'display' from 0 to 255"),
        ("nothing", "display", "from nan to nan"),
        ("bright", "display", "from 256 to 256"),
        ("deep", "hu", "from 1e.06 to 1e.06, those of 'hu' from -32768 to 32767"),
        ("four", "hu", r"bad.npz#four is uint8 \(1, 2, 4, 6\), no slice or stack"),
        ("empty", "hu", r"bad.npz#empty is uint8 \(0, 4, 6\), no slice or stack"),
        ("words", "hu", r"bad.npz#words is <U5 \(4, 6\), no slice or stack"),
    ],
)
def test_values_that_do_not_fit_the_domain_are_refused(tmp_path, key, domain, said):
    np.savez(tmp_path / "bad.npz", **BAD_VALUES)
    data = open_manifest(write(tmp_path, case(image=f"bad.npz#{key}", domain=domain)))

    with pytest.raises(ManifestError, match=f"Case 'a' of 'set': .*{said}"):
        data.load(data.cases[0])


def test_values_that_fit_are_taken_as_they_are_whatever_their_type(tmp_path):
    grey, hu = np.array([[0.0, 255.0]]), np.array([[-1023.6, 40.4]])
    np.savez(tmp_path / "a.npz", grey=grey, hu=hu)
    rows = [case("grey", image="a.npz#grey"), case("hu", image="a.npz#hu", domain="hu")]
    data = open_manifest(write(tmp_path, *rows))

    found = [data.load(c).image.tolist() for c in data.cases]

    assert found == [[[[0, 255]]], [[[-1024, 40]]]]


def test_a_picture_holds_no_hu(arrays):
    data = open_manifest(write(arrays, case(image=["0.png", "1.png"], domain="hu")))

    with pytest.raises(ManifestError, match="a picture holds no HU: its domain is 'display'"):
        data.load(data.cases[0])


@pytest.mark.parametrize("marks", [[2], [-1], [0, 7]])
def test_a_marked_slice_that_is_none_is_refused(arrays, marks):
    data = open_manifest(write(arrays, case(lesion_slices=marks)))

    with pytest.raises(ManifestError, match=f"lesion_slices names {marks[-1]}; the slices are 0"):
        data.load(data.cases[0])


@pytest.fixture
def damaged(arrays: Path) -> Path:
    """Every kind of file, cut short, emptied or of another kind than its name says."""
    whole = (arrays / "a.npz").read_bytes()
    (arrays / "short.npz").write_bytes(whole[: len(whole) // 2])
    # The directory of the archive is there, what it points at is damaged.
    np.savez_compressed(arrays / "packed.npz", image=np.arange(48, dtype=np.uint8).reshape(2, 4, 6))
    packed = bytearray((arrays / "packed.npz").read_bytes())
    packed[60:90] = bytes(30)
    (arrays / "packed.npz").write_bytes(packed)
    np.save(arrays / "array.npy", np.zeros((4, 6), np.uint8))
    mask = nib.Nifti1Image(np.ones((6, 4, 2), np.uint8), np.diag([1.0, 1, 2, 1]))
    nib.save(mask, arrays / "mask.nii.gz")
    content = (arrays / "mask.nii.gz").read_bytes()
    (arrays / "short.nii.gz").write_bytes(content[:-20])
    plain = bytearray(gzip.decompress(content))
    (arrays / "header.nii").write_bytes(plain[:200])
    plain[70:72] = (9999).to_bytes(2, "little")  # no such data type
    (arrays / "type.nii").write_bytes(plain)
    (arrays / "noise.nii.gz").write_bytes(content[:12] + bytes(range(200)))
    picture = (arrays / "0.png").read_bytes()
    (arrays / "short.png").write_bytes(picture[:50])
    for name in ("empty.npz", "empty.png", "empty.nii.gz"):
        (arrays / name).touch()
    (arrays / "folder").mkdir()
    return arrays


@pytest.mark.parametrize(
    "change",
    [
        {"image": "short.npz#image"},
        {"image": "packed.npz#image"},
        {"image": "empty.npz#image"},
        {"image": "array.npy#image"},
        {"image": "short.png"},
        {"image": "empty.png"},
        {"image": "short.nii.gz", "domain": "hu"},
        {"lesion": "short.nii.gz"},
        {"lesion": "empty.nii.gz"},
        {"lesion": "noise.nii.gz"},
        {"lesion": "header.nii"},
        {"lesion": "type.nii"},
        {"lesion": "folder"},
    ],
    ids=lambda change: str(next(iter(change.values()))),
)
def test_a_damaged_file_is_one_sentence_with_its_case(damaged, change):
    data = open_manifest(write(damaged, case(**change)))

    with pytest.raises(ManifestError, match=r"^Case 'a' of 'set': .+"):
        data.load(data.cases[0])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', '{"cases": 3}'])
def test_a_corrupt_manifest_is_one_sentence_with_its_path(tmp_path, content):
    path = tmp_path / "set.json"
    path.write_text(content)

    with pytest.raises(ManifestError, match=r"set\.json"):
        open_manifest(path)


@pytest.mark.parametrize("name", ["mask.jpg", "renamed.png"])
def test_a_jpeg_is_no_mask_for_its_noise_would_be_truth(arrays, name):
    drawn = np.zeros((1, 64, 64), np.uint8)
    drawn[:, 20:40, 20:44] = 255
    np.savez(arrays / "large.npz", image=drawn)
    Image.fromarray(drawn[0]).save(arrays / name, format="JPEG")
    data = open_manifest(write(arrays, case(image="large.npz#image", lesion=name)))

    with pytest.raises(ManifestError, match=f"Case 'a' of 'set': the mask {name} is a JPEG.*PNG"):
        data.load(data.cases[0])


def test_the_digest_is_of_what_the_files_hold_wherever_they_lie(arrays, tmp_path_factory):
    rows = [case("npz", lung="a.npz#mask"), case("pictures", image=["0.png", "1.png"])]
    data = open_manifest(write(arrays, *rows))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    absolute = json.loads(json.dumps(rows).replace('": "a.npz', f'": "{arrays}/a.npz'))
    moved = open_manifest(write(elsewhere, *absolute[:1], rows[1], root=str(arrays)))
    before = data.digest

    assert absolute != rows
    assert moved.digest == before
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(arrays / "1.png")
    assert open_manifest(arrays / "set.json").digest != before


@pytest.mark.parametrize(
    "change",
    [{"lung": "a.npz#mask"}, {"image": "a.npz#small"}, {"spacing_mm": [1, 1, 1]}, {"part": "test"}],
)
def test_the_digest_is_of_how_the_files_are_read_too(arrays, change):
    digests = [open_manifest(write(arrays, case(**said))).digest for said in ({}, change)]

    assert digests[0] != digests[1]


def test_a_slice_more_in_a_folder_is_other_data(tmp_path):
    write_dicom(small_chest(), tmp_path / "chest")
    path = write(tmp_path, case(domain="hu", image="chest"))
    before = open_manifest(path).digest
    next((tmp_path / "chest").iterdir()).unlink()

    assert open_manifest(path).digest != before


def test_two_cases_of_one_name_and_a_torn_group_are_refused(arrays):
    with pytest.raises(ManifestError, match="two cases are called 'a'"):
        open_manifest(write(arrays, case(), case()))
    with pytest.raises(ManifestError, match="group 'p' stands in two parts"):
        open_manifest(write(arrays, case("a", group="p"), case("b", group="p", part="test")))


def test_a_case_without_a_part_needs_a_split(arrays):
    row = {k: v for k, v in case().items() if k != "part"}

    with pytest.raises(ManifestError, match="case 'a' has no part, and there is no split"):
        open_manifest(write(arrays, row))


def test_groups_are_split_whole_and_every_label_goes_everywhere():
    cases = [
        Case(f"{label}-{n}", f"{label}/paper-{n // 3}", Domain.DISPLAY, "x.png", label=label)
        for label in ("covid", "other")
        for n in range(90)
    ]

    split = list(with_parts(cases, Split(seed=0, validation=0.1, test=0.2)))

    by_part = {part: [c for c in split if c.part is part] for part in Part}
    groups = [{c.group for c in found} for found in by_part.values()]
    assert sum(len(group) for group in groups) == len(set.union(*groups)) == 60
    assert all({c.label for c in found} == {"covid", "other"} for found in by_part.values())
    assert [round(len(by_part[part]) / 180, 1) for part in Part] == [0.7, 0.1, 0.2]
    assert split == list(with_parts(cases, Split(seed=0, validation=0.1, test=0.2)))
    assert split != list(with_parts(cases, Split(seed=1, validation=0.1, test=0.2)))


def parts_of(groups: int, split: Split) -> list[int]:
    cases = [Case(str(n), str(n), Domain.DISPLAY, "x.png", label="covid") for n in range(groups)]
    counts = Counter(c.part for c in with_parts(cases, split))
    return [counts[part] for part in Part]


@pytest.mark.parametrize(
    ("groups", "validation", "test", "expected"),
    [
        (10, 0.1, 0.2, [7, 1, 2]),
        (10, 0.2, 0.1, [7, 2, 1]),
        (10, 0.3, 0.3, [4, 3, 3]),
        (1, 0.1, 0.8, [1, 0, 0]),
        (2, 0.1, 0.2, [1, 0, 1]),  # 1.4, 0.2, 0.4: the tie is the test part's
        (3, 0.25, 0.25, [1, 1, 1]),
        (3, 0.1, 0.2, [2, 0, 1]),
        (5, 0.0, 0.0, [5, 0, 0]),
    ],
)
def test_few_groups_are_shared_out_by_the_largest_remainder(groups, validation, test, expected):
    assert parts_of(groups, Split(seed=0, validation=validation, test=test)) == expected


def test_the_groups_tested_are_among_those_an_older_release_tested():
    cases = [Case(str(n), str(n), Domain.DISPLAY, "x.png", label="covid") for n in range(23)]
    older = [sorted(map(str, range(23)))[n] for n in np.random.default_rng(3).permutation(23)[:5]]

    split = with_parts(cases, Split(seed=3, validation=0.1, test=0.2))

    tested = {c.group for c in split if c.part is Part.TEST}
    assert len(tested) == 5
    assert tested <= set(older)


@pytest.mark.parametrize(
    "shares", [(0.5, 0.5), (1.5, 0.0), (-0.1, 0.2), (0.1, -0.2), (float("nan"), 0.1)]
)
def test_shares_that_leave_nothing_for_training_are_refused(arrays, shares):
    split = dict(zip(("validation", "test"), shares, strict=True))

    with pytest.raises(ManifestError, match="are from 0 and together below 1"):
        open_manifest(write(arrays, case(), split={"seed": 1, **split}))


def test_labels_with_a_group_each_do_not_all_land_in_one_fold(arrays):
    cases = [case(f"c{n}", label=f"label {n}", label_source="made") for n in range(10)]
    data = open_manifest(write(arrays, *cases))

    folds = [data.fold(number, 5, seed=3).of(Part.VALIDATION) for number in range(5)]

    assert [len(fold) for fold in folds] == [2] * 5


def test_folds_take_turns_and_leave_the_test_part_alone(arrays):
    cases = [case(f"c{n}", group=f"g{n // 2}") for n in range(20)]
    cases += [case("t", part="test")]
    data = open_manifest(write(arrays, *cases))

    folds = [data.fold(number, 5, seed=3) for number in range(5)]

    validation = [{c.group for c in fold.of(Part.VALIDATION)} for fold in folds]
    assert [len(groups) for groups in validation] == [2] * 5
    assert len(set.union(*validation)) == 10
    assert all([c.id for c in fold.of(Part.TEST)] == ["t"] for fold in folds)
    assert all(len(fold.of(Part.TRAIN)) == 16 for fold in folds)
