import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.training import select as select_module
from pipelines.training.select import read_comparison, select
from pipelines.weights import open_bundle, write_bundle
from tests.support.data_sets import write_sets
from tests.support.tiny_models import CONFIGS, write_models

LESIONS = """
name = "tiny"
version = "0"
purpose = "lesions"
precision = "fp32"
network = { architecture = "unet", dimensions = 3, features = [2, 2, 2, 2, 2, 2] }
preprocessing = { spacing_mm = [8.0, 8.0, 8.0], window_hu = [-1024, 350], lung_margin_mm = 0.0 }
decision = { threshold = 0.5, peak = 0.5, minimum_ml = 0.1 }
[training]
seed = 1
steps = 2
batch = 2
learning_rate = 1e-3
weight_decay = 0.0
validate_every = 2
patch = [16, 32, 32]
loss = "dice and cross-entropy"
[data]
manifests = ["volumes", "lungs"]
shares = { "display volumes" = 0.5, "lung slices" = 0.25, "lung volumes" = 0.25 }
"""
LESION_NETWORK = {"architecture": "unet", "dimensions": 3, "features": [2, 2, 2, 2, 2, 2]}
LUNGS = LESIONS.replace('"lesions"', '"lungs"').replace("dimensions = 3", "dimensions = 2")
LUNGS = LUNGS.replace("[16, 32, 32]", "[32, 32]").replace(", lung_margin_mm = 0.0", "")
LUNGS = LUNGS.replace(", peak = 0.5, minimum_ml = 0.1", "")
SCREENING = """
name = "tiny"
version = "0"
purpose = "screening"
precision = "fp32"
network = { architecture = "densenet3d", dimensions = 2, in_channels = 2, out_channels = 1 }
preprocessing = { size = 32, window_hu = [-1024, 350] }
decision = { threshold = 0.5 }
[training]
seed = 1
steps = 2
batch = 2
learning_rate = 1e-3
weight_decay = 0.0
validate_every = 2
patch = [32, 32]
loss = "cross-entropy"
[data]
manifests = ["one", "other"]
positive = "covid"
"""
COMPARISON = """
[evaluation]
contests = ["segmenters", "classifiers"]
manifests = ["volumes", "one"]
positive = "covid"
single_cases = false

[[contests]]
name = "lungs"
title = "Lung nets"
base = "lungs.toml"
folds = 2
[contests.candidates."U-Net"]

[[contests]]
name = "segmenters"
title = "Lesion nets"
base = "lesions.toml"
common = { training = { steps = 3 } }
[contests.candidates."3-D U-Net"]
[contests.candidates."2-D FCN-8s"]
network = { architecture = "fcn8s", dimensions = 2, width = 2, fc = 4 }
training = { patch = [32, 32] }

[[contests]]
name = "classifiers"
title = "Classifiers"
base = "screening.toml"
after = "segmenters"
[contests.candidates."all of both"]
[contests.candidates."half of one"]
data = { train = ["one"], share = 0.5 }

[[contests]]
name = "stages"
title = "Stages"
base = "screening.toml"
after = "segmenters"
[contests.candidates."everything"]
"""


OPINION = """
name = "tiny"
version = "0"
purpose = "pneumonia"
precision = "fp32"
network = { architecture = "densenet3d", dimensions = 3, out_channels = 2 }
[preprocessing]
subsets = 2
slices = 8
size = 16
clip_hu = [-1200, 600]
mean_hu = -600.0
std_hu = 490.0
[decision]
classes = ["healthy", "COVID-19"]
graded = "COVID-19"
validated = false
labels = { well = "healthy", ill = "COVID-19" }
[training]
seed = 1
steps = 2
batch = 2
learning_rate = 1e-2
weight_decay = 0.0
validate_every = 2
patch = [8, 16, 16]
loss = "weighted cross-entropy"
[data]
manifests = ["made"]
class_weights = { healthy = 0.5, COVID-19 = 0.5 }
"""
OPINIONS = """
[[contests]]
name = "opinions"
title = "Second opinion, five-fold"
base = "opinion.toml"
folds = 5
[contests.candidates."DenseNet"]
"""


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    (tmp_path / "lungs.toml").write_text(LUNGS)
    (tmp_path / "lesions.toml").write_text(LESIONS)
    (tmp_path / "screening.toml").write_text(SCREENING)
    path = tmp_path / "comparison.toml"
    path.write_text(COMPARISON)
    return path


def test_contests_are_held_in_turn_and_reported(tmp_path, comparison):
    sets, said = write_sets(tmp_path / "sets"), []

    select(comparison, sets, tmp_path / "work", tmp_path / "out", say=said.append)

    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(figures) == ["lungs", "segmenters", "classifiers", "stages"]
    assert figures["stages"]["everything"] == figures["classifiers"]["all of both"]
    assert sum("trained before" in line for line in said) == 1
    assert set(figures["segmenters"]) == {"3-D U-Net", "2-D FCN-8s"}
    (net,) = figures["segmenters"]["3-D U-Net"]
    assert set(net["lesion_dice"]) == {"volumes-3", "volumes-4"}
    trained = {name: row["train_positives"] for name, (row,) in figures["classifiers"].items()}
    assert trained["all of both"] == 8
    assert 0 < trained["half of one"] < 4
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Lesion nets" in page
    assert "U-Net: 2 folds, validation" in page
    assert len(figures["lungs"]["U-Net"]) == 2
    for picture in ("lungs-dice.png", "segmenters-dice.png", "classifiers-roc.png"):
        assert picture in page
        assert (tmp_path / "out" / picture).stat().st_size > 5000
    (best,) = max(figures["segmenters"].values(), key=lambda folds: folds[0]["validation"])
    used = open_bundle(tmp_path / "work" / "combined" / "classifiers" / "lesions")
    assert used.digest == best["digest"]
    assert used.config.name in figures["segmenters"]
    assert "3 steps of 2 × (16 × 32 × 32)" in page
    assert f"Best on the validation groups: {used.config.name}." in page

    together = json.loads((tmp_path / "out" / "winners" / "metrics.json").read_text())
    run = {model["purpose"]: model["digest"] for model in together["models"]}
    classifiers = figures["classifiers"].values()
    (chosen,) = max(classifiers, key=lambda folds: folds[0]["validation"])
    assert run["lesions"] == best["digest"]
    assert run["screening"] == chosen["digest"]
    assert set(together["sets"]) == {"volumes", "one"}
    assert "each" not in together

    said.clear()
    select(comparison, sets, tmp_path / "work", tmp_path / "again", say=said.append)

    assert sum("trained before" in line for line in said) == 7
    again = (tmp_path / "again" / "metrics.json").read_bytes()
    assert again == (tmp_path / "out" / "metrics.json").read_bytes()


WILD = """
[contests.candidates."wild"]
training = { learning_rate = 1e38, steps = 3 }
"""


def test_a_candidate_that_cannot_be_trained_is_a_line_of_the_report(tmp_path):
    (tmp_path / "lesions.toml").write_text(LESIONS)
    path = tmp_path / "comparison.toml"
    head = '[[contests]]\nname = "nets"\ntitle = "Nets"\nbase = "lesions.toml"\n'
    path.write_text(head + '[contests.candidates."tame"]\n' + WILD)
    sets = write_sets(tmp_path / "sets")

    select(path, sets, tmp_path / "work", tmp_path / "out", say=[].append)

    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(figures["nets"]) == ["tame"]
    assert "wild failed: The loss of wild at step" in (tmp_path / "out/report.html").read_text()

    path.write_text(head + WILD)
    with pytest.raises(PipelineError, match=r"Every candidate of 'nets' failed\. wild failed: The"):
        select(path, sets, tmp_path / "work", tmp_path / "out", say=[].append)


def test_a_second_opinion_is_compared_by_what_each_fold_had_not_learnt(tmp_path):
    sets = tmp_path / "sets"
    sets.mkdir()
    rng = np.random.default_rng(0)
    lung = np.ones((10, 16, 16), bool)
    cases = []
    for number, label in enumerate(["well", "ill"] * 5):
        hu = rng.normal(-850 if label == "well" else -400, 60, lung.shape).astype(np.int16)
        np.savez(sets / f"{number}.npz", hu=hu, lung=lung)
        cases.append(
            {"id": f"{number}", "group": f"{number}", "domain": "hu", "spacing_mm": [8, 8, 8]}
            | {"image": f"{number}.npz#hu", "lung": f"{number}.npz#lung"}
            | {"label": label, "label_source": "made", "part": "train"}
        )
    top = {"name": "made", "source": "made", "licence": "none", "cases": cases}
    (sets / "made.json").write_text(json.dumps(top))
    (tmp_path / "opinion.toml").write_text(OPINION)
    (tmp_path / "comparison.toml").write_text(OPINIONS)

    select(tmp_path / "comparison.toml", sets, tmp_path / "work", tmp_path / "out", say=[].append)

    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    folds = figures["opinions"]["DenseNet"]
    judged = [row[2] for fold in folds for row in fold["scored"]]
    assert sorted(judged, key=int) == [case["id"] for case in cases]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "of 10" in page
    assert "opinions-roc-0.png" in page


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "segmenters"', 'name = "lungs"', "two contests are called 'lungs'"),
        ("folds = 2", "folds = 0", "'lungs' needs candidates, and folds above 0"),
        ('after = "segmenters"', 'after = "segmentors"', "'classifiers' comes after 'segmentors'"),
        ('title = "Lung nets"', "", "a contest lacks title"),
        ('["segmenters", "cl', '["segments", "cl', "names no contest with segments"),
        ('positive = "covid"', "", "has the keys contests, manifests, positive, single"),
        ("steps = 3", "stepps = 3", r"unknown keys \['stepps'\]"),
        ('base = "lungs.toml"', 'base = "lung.toml"', "Cannot read the training file .*lung.toml"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused_before_any_training(
    comparison, old, new, said
):
    comparison.write_text(COMPARISON.replace(old, new))

    with pytest.raises(PipelineError, match=said):
        read_comparison(comparison)


def test_a_winner_that_no_automatic_run_has_a_place_for_is_refused(tmp_path):
    (tmp_path / "opinion.toml").write_text(OPINION)
    path = tmp_path / "comparison.toml"
    path.write_text(
        OPINIONS + '[evaluation]\ncontests = ["opinions"]\nmanifests = ["made"]\npositive = "ill"\n'
    )

    with pytest.raises(PipelineError, match="'opinions' is for pneumonia; others can come after"):
        read_comparison(path)


def test_a_comparison_without_contests_is_refused(tmp_path):
    (tmp_path / "empty.toml").write_text("")

    with pytest.raises(PipelineError, match="holds no contest"):
        read_comparison(tmp_path / "empty.toml")


@pytest.mark.parametrize("asked", [True, False])
def test_the_shipped_model_stands_for_a_winner_of_its_network_only_where_asked_to(
    tmp_path, monkeypatch, asked
):
    shipped = write_models(tmp_path / "shipped")
    monkeypatch.setattr(select_module, "shipped_weights", lambda: shipped)
    same = replace(open_bundle(shipped / "lesions").config, name="mine")
    other = replace(same, preprocessing={**same.preprocessing, "spacing_mm": [9.0, 9.0, 9.0]})
    for name, config in (("brief", same), ("other", other)):
        write_bundle(tmp_path / name, config, config.network_with_random_weights())

    brief, notes = select_module._models(tmp_path / "combined", [tmp_path / "brief"], shipped=asked)
    used = shipped / "lesions" if asked else tmp_path / "brief"
    assert open_bundle(brief / "lesions").digest == open_bundle(used).digest
    assert [note.startswith("Not the winner 'mine' but the shipped tiny") for note in notes] == [
        True
    ] * asked

    models, notes = select_module._models(
        tmp_path / "combined", [tmp_path / "other"], shipped=asked
    )
    assert open_bundle(models / "lesions").digest == open_bundle(tmp_path / "other").digest
    assert notes == []


def test_a_winner_that_gives_way_is_told_in_both_reports_and_on_the_console(tmp_path, monkeypatch):
    shipped = write_models(tmp_path / "shipped")
    config = replace(CONFIGS["lesions"], network=LESION_NETWORK)
    write_bundle(shipped / "lesions", config, config.network_with_random_weights())
    for module in ("select", "run"):
        monkeypatch.setattr(f"pipelines.training.{module}.shipped_weights", lambda: shipped)
    (tmp_path / "lesions.toml").write_text(LESIONS)
    path = tmp_path / "comparison.toml"
    head = '[[contests]]\nname = "nets"\ntitle = "Nets"\nbase = "lesions.toml"\n'
    path.write_text(
        '[evaluation]\ncontests = ["nets"]\nmanifests = ["volumes"]\npositive = "covid"\n'
        f'shipped = true\n{head}[contests.candidates."mine"]\n'
    )
    sets, said = write_sets(tmp_path / "sets"), []

    for _ in range(2):  # the second run takes the first one's place
        select(path, sets, tmp_path / "work", tmp_path / "out", say=said.append)

    note = "Not the winner 'mine' but the shipped tiny lesions 0.1 is used for lesions"
    assert sum(line.startswith(note) for line in said) == 2
    for report in ("report.html", "winners/report.html"):
        page = (tmp_path / "out" / report).read_text()
        assert note.replace("'", "&#39;") in page


def test_a_label_that_no_case_has_is_refused_before_any_training(tmp_path, comparison):
    comparison.write_text(COMPARISON.replace('positive = "covid"', 'positive = "covd"'))
    sets = write_sets(tmp_path / "sets")

    with pytest.raises(PipelineError, match="No case has the label 'covd'; the nearest is 'covid'"):
        select(comparison, sets, tmp_path / "work", tmp_path / "out")
    assert not (tmp_path / "work").exists()
