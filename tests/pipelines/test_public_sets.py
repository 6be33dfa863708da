import errno
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.cli import prepare
from pipelines.manifest import Domain, Part, open_manifest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folders of four public sets, in the forms they come in."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    grey = rng.integers(0, 255, (3, 256, 256)).astype(np.uint8)
    lung = np.zeros((3, 256, 256), bool)
    lung[:, 100:200, 50:100] = True
    lesion = np.zeros_like(lung)
    lesion[:, 110:120, 60:70] = lesion[:, 120:125, 95:105] = True  # one reaches out of the lungs
    names = ["v00_0.jpg", "v00_1.jpg", "v10_0.jpg"]
    (root / "lesion_slices" / "ct").mkdir(parents=True)
    for name, plane in zip(names, grey, strict=True):
        Image.fromarray(plane).save(root / "lesion_slices" / "ct" / name)
    packed = {"lung": np.packbits(lung, axis=-1), "lesion": np.packbits(lesion, axis=-1)}
    np.savez(root / "lesion_slices" / "masks.npz", name=np.array(names), **packed)
    for name, plane in (("imgs_binary/7.jpg", grey[0, :200]), ("gt_binary/7.png", lesion[0, :200])):
        path = root / "lesion_medseg" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(plane.astype(np.uint8) * (255 if plane.dtype == bool else 1)).save(path)
    for name in ("COVID/Covid (11).png", "COVID/Covid (12).png", "non-COVID/Non-Covid (3).png"):
        path = root / "slices_sars" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey[0]).save(path)
    hu = np.full((40, 40, 20), -1000, np.int16)
    hu[4:36, 4:36] = 40
    hu[8:18, 8:30, 2:18] = hu[22:32, 8:30, 2:18] = -850
    (root / "volumes").mkdir()
    affine = np.diag([3.0, 3.0, 5.0, 1.0])
    for name in ("covidctmd_covid_P001", "covidctmd_normal_normal001"):
        nibabel.save(nibabel.Nifti1Image(hu, affine), root / "volumes" / f"{name}.nii.gz")
    marks = {"cases": {"covid_P001": {"infected_slices": [0, 4]}}}
    (root / "volumes" / "covidctmd_slice_lobe_labels.json").write_text(json.dumps(marks))
    return root


def test_the_sets_that_are_there_become_manifests_and_the_others_are_named(tmp_path, data):
    done = CliRunner().invoke(prepare, [str(data), "--out", str(tmp_path / "sets")])

    assert done.exit_code == 0, done.output
    assert "ucsd: not there" in done.output
    written = {path.stem for path in (tmp_path / "sets").glob("*.json")}
    assert written == {"covid-volumes", "medseg", "sars", "whole-volumes"}
    assert not list((tmp_path / "sets").rglob(".*"))  # nothing is left of what was written aside


def test_a_manifest_that_cannot_be_written_leaves_the_older_one(tmp_path, data, monkeypatch):
    sets = tmp_path / "sets"
    CliRunner().invoke(prepare, [str(data), "--out", str(sets)])
    older = (sets / "sars.json").read_bytes()
    (data / "slices_sars" / "COVID" / "Covid (11).png").unlink()
    monkeypatch.setattr("os.fsync", _full)

    done = CliRunner().invoke(prepare, [str(data), "--out", str(sets)])

    assert done.exit_code == 1
    assert "There was no room for" in done.output
    assert (sets / "sars.json").read_bytes() == older
    assert not list(sets.rglob(".*"))


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_volumes_stand_upright_and_lungs_hold_their_lesions(tmp_path, data):
    CliRunner().invoke(prepare, [str(data), "--out", str(tmp_path / "sets")])
    volumes = open_manifest(tmp_path / "sets" / "covid-volumes.json")

    coronacases, radiopaedia = (volumes.load(case) for case in volumes.cases)

    assert coronacases.image.shape == (2, 256, 256)
    assert coronacases.lung is not None
    assert radiopaedia.lung is not None
    rows = [np.flatnonzero(stack.lung[0].any(axis=1)) for stack in (coronacases, radiopaedia)]
    assert (rows[0][0], rows[0][-1]) == (100, 199)
    assert (rows[1][0], rows[1][-1]) == (56, 155)  # stored upside down
    assert coronacases.lung[:, 120:125, 95:105].all()
    assert {case.site for case in volumes.cases} == {"coronacases", "radiopaedia"}


def test_medseg_is_turned_back_and_neighbouring_numbers_stay_together(tmp_path, data):
    CliRunner().invoke(prepare, [str(data), "--out", str(tmp_path / "sets")])
    medseg = open_manifest(tmp_path / "sets" / "medseg.json")
    sars = open_manifest(tmp_path / "sets" / "sars.json")

    stack = medseg.load(medseg.cases[0])

    assert stack.image.shape == (1, 256, 200)
    assert stack.lesion is not None
    assert stack.lesion[0, 60:70, 80:90].all()  # from [110:120, 60:70] of 200 rows
    assert stack.lesion[0, 95:105, 75:80].all()
    assert stack.lesion.sum() == 150
    assert [case.group for case in sars.cases] == ["COVID/1", "COVID/1", "non-COVID/0"]
    assert [case.label for case in sars.cases] == ["covid", "covid", "other"]


def test_marks_count_from_the_feet_and_healthy_volumes_get_lungs(tmp_path, data):
    CliRunner().invoke(prepare, [str(data), "--out", str(tmp_path / "sets")])
    volumes = open_manifest(tmp_path / "sets" / "whole-volumes.json")

    marked, healthy = volumes.cases

    assert marked.lesion_slices == (15, 19)
    assert marked.part is Part.TEST
    assert healthy.domain is Domain.HU
    lung = volumes.load(healthy).lung
    assert lung is not None
    assert 0.8 < lung.sum() / (2 * 10 * 22 * 16) < 1.2


def test_a_folder_with_none_of_the_sets_is_refused(tmp_path):
    done = CliRunner().invoke(prepare, [str(tmp_path), "--out", str(tmp_path / "sets")])

    assert done.exit_code == 1
    assert "holds none of the sets" in done.output
