import json
from pathlib import Path

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
    write_dicom(small_chest(), tmp_path / "chest")
    volume, _ = load_input(tmp_path / "chest")
    models = Models.open(write_models(tmp_path / "models"), EngineChoice.TORCH)
    found = analyse(volume, models)
    found.save(tmp_path / "result", volume)
    path = write(
        tmp_path, case(domain="hu", image="chest", lung="result/lungs.nii.gz", lesion=None)
    )
    data = open_manifest(path)

    stack = data.load(data.cases[0])

    assert (stack.lung == (found.lung_mask > 0)).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imgae": "x"}, "case 0 has an unknown key 'imgae'; did you mean 'image'"),
        ({"domain": "grey"}, "'grey' is not a valid Domain"),
        ({"image": "b.npz#image"}, "b.npz#image is missing"),
        ({"spacing_mm": [1, 0, 1]}, "spacing_mm must be above 0"),
        ({"label": "covid"}, "has a label but no label_source"),
        ({"part": "exam"}, "'exam' is not a valid Part"),
    ],
)
def test_a_wrong_case_is_named_when_the_manifest_is_opened(arrays, change, said):
    with pytest.raises(ManifestError, match=said):
        open_manifest(write(arrays, case(**change)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lung": "a.npz#small"}, r"the mask a.npz#small is \(2, 2, 6\), its image \(2, 4, 6\)"),
        ({"image": "a.npz#ct"}, "ct is not"),
        ({"spacing_mm": None}, "spacing_mm is missing"),
    ],
)
def test_a_case_whose_files_do_not_fit_is_named_when_it_is_loaded(arrays, change, said):
    row = {k: v for k, v in case(**change).items() if v is not None}
    data = open_manifest(write(arrays, row))

    with pytest.raises(ManifestError, match=f"Case 'a' of 'set': .*{said}"):
        data.load(data.cases[0])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', '{"cases": 3}'])
def test_a_corrupt_manifest_is_one_sentence_with_its_path(tmp_path, content):
    path = tmp_path / "set.json"
    path.write_text(content)

    with pytest.raises(ManifestError, match=r"set\.json"):
        open_manifest(path)


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
