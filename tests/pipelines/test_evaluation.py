import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.analysis import Models
from pipelines.cli import evaluate as evaluate_command
from pipelines.engines.choice import EngineChoice
from pipelines.errors import ManifestError, PipelineError
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.metrics import (
    Found,
    Interval,
    bootstrap,
    calibration,
    dice,
    false_regions_ml,
    lesions_found,
    roc_auc,
    roc_curve,
    youden_threshold,
)
from pipelines.evaluation.readers import Point, load_readers, reader_points
from pipelines.evaluation.reading import CaseResult, Overlap, SliceMarks
from pipelines.evaluation.summary import opinion_figures, summarise
from pipelines.manifest import Case, Domain, Part, open_manifest
from pipelines.phantom import Phantom, write_dicom
from tests.support.phantom import small_chest
from tests.support.tiny_models import write_models, write_opinion_models


def test_dice_is_twice_the_overlap_over_both():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True

    assert dice(a, b) == 0.5
    assert dice(a & ~a, b & ~b) == 1.0


def test_auc_counts_pairs_and_halves_ties():
    scores = np.array([0.9, 0.5, 0.5, 0.1])
    positive = np.array([True, True, False, False])

    assert roc_auc(scores, positive) == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="both classes"):
        roc_auc(scores, positive | True)


def test_the_curve_goes_from_corner_to_corner_and_holds_the_area():
    rng = np.random.default_rng(0)
    scores = rng.random(60).round(1)  # ties
    positive = rng.random(60) < scores

    false_rate, true_rate = roc_curve(scores, positive)

    assert (false_rate[0], true_rate[0]) == (0, 0)
    assert (false_rate[-1], true_rate[-1]) == (1, 1)
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(roc_auc(scores, positive))


def test_the_youden_point_parts_two_classes_that_can_be_parted():
    scores = np.array([0.1, 0.2, 0.6, 0.7])

    assert youden_threshold(scores, scores > 0.5) == 0.6


def test_the_bootstrap_draws_groups_not_rows():
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 25)
    alone = [str(row) for row in range(100)]
    patients = np.repeat(["a", "b", "c", "d"], 25).tolist()

    narrow = bootstrap(lambda rows: float(values[rows].mean()), alone)
    wide = bootstrap(lambda rows: float(values[rows].mean()), patients)

    assert narrow.value == wide.value == 0.5
    assert 0.08 < narrow.high - 0.5 < 0.12  # 1.96 * 0.5 / sqrt(100)
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_a_figure_that_only_some_draws_define_is_drawn_again():
    scores, positive = np.array([0.2, 0.8, 0.9]), np.array([False, True, True])

    found = bootstrap(lambda rows: roc_auc(scores[rows], positive[rows]), ["a", "b", "c"])

    assert found == Interval(1.0, 1.0, 1.0)


def test_probabilities_that_equal_frequencies_are_calibrated():
    scores = np.repeat([0.25, 0.75], 40)
    positive = np.concatenate([np.arange(40) < 10, np.arange(40) < 30])

    found = calibration(scores, positive)

    assert found.error == pytest.approx(0)
    assert found.brier == pytest.approx(0.1875)
    assert found.bins == ((0.25, 0.25, 40), (0.75, 0.75, 40))
    assert calibration(scores, ~positive).error == pytest.approx(0.5)


def test_lesions_are_found_or_not_each_with_its_diameter():
    truth = np.zeros((3, 20, 20), bool)
    truth[1, 2:6, 2:6] = True
    truth[:, 12:18, 5] = True
    mask = np.zeros_like(truth)
    mask[1, 3, 3] = True

    found = sorted(lesions_found(mask, truth, (2.0, 1.0, 1.0)), key=lambda f: f.diameter_mm)

    assert [f.found for f in found] == [True, False]
    assert found[0].diameter_mm == pytest.approx(np.hypot(4, 4), rel=0.01)
    assert found[1].diameter_mm == pytest.approx(np.hypot(6, 1), rel=0.02)


def test_regions_that_touch_no_truth_are_false():
    truth = np.zeros((2, 10, 10), bool)
    truth[0, :2, :2] = True
    mask = truth.copy()
    mask[1, 5:7, 5:8] = True

    assert false_regions_ml(mask, truth, 0.5) == [3.0]
    assert false_regions_ml(truth, truth, 0.5) == []


SMALL, LARGE = Found(diameter_mm=4, found=False), Found(diameter_mm=20, found=True)


def result(name: str, **values: object) -> CaseResult:
    label = "covid" if name.startswith("c") else "other"
    case = Case(name, name, Domain.HU, "x", label=label, site=name[-1], part=Part.TEST)
    return CaseResult(case, "set", **values)


def test_a_summary_pools_and_splits_what_the_cases_say():
    results = [
        result("c-A", probability=0.9, positive=True, overlap=Overlap(10, 10, 10), lesion_dice=1.0),
        result("c-B", probability=0.6, positive=True, overlap=Overlap(0, 20, 0), lesion_dice=0.0),
        result("o-A", probability=0.7, positive=True, lesions=(SMALL, LARGE)),
        result("o-B", probability=0.1, positive=False, slices=SliceMarks(4, 3, 10, 1)),
    ]

    figures = summarise(results, positive_label="covid")

    whole = figures["all"]
    assert whole["lesion_dice"]["value"] == 0.5
    assert whole["lesion_dice_pooled"] == 0.5
    assert whole["auc"]["value"] == 0.75
    assert whole["sensitivity"]["value"] == 1.0
    assert whole["specificity"]["value"] == 0.5
    assert whole["lesions_found"]["below_10_mm"] == {"lesions": 1, "sensitivity": 0.0}
    assert whole["lesions_found"]["from_10_mm"] == {"lesions": 1, "sensitivity": 1.0}
    assert (whole["slice_sensitivity"], whole["slice_specificity"]) == (0.75, 0.9)
    assert figures["by_site"]["A"]["specificity"]["value"] == 0.0
    assert figures["by_label"]["covid"]["sensitivity"]["value"] == 1.0
    assert json.dumps(figures)


READERS = """reader,case,label
Ada,c1,covid
Ada,c2,covid
Ada,o1,other
Bea,c1,covid
Bea,c2,other
Bea,o1,other
Cyd,c1,other
Cyd,c2,covid
Cyd,o1,covid
Dot,c1,covid
"""
TRUTH = {"c1": "covid", "c2": "covid", "o1": "other"}


def test_readers_are_points_and_so_are_their_mean_and_their_majority(tmp_path):
    path = tmp_path / "readers.csv"
    path.write_text(READERS)

    points = reader_points(load_readers(path), TRUTH, "covid")

    assert points is not None
    assert points.each == {"Ada": Point(1, 1), "Bea": Point(0.5, 1), "Cyd": Point(0.5, 0)}
    assert points.mean == Point(pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert points.majority == Point(1, 1)
    assert reader_points({}, TRUTH, "covid") is None


def test_readers_without_a_column_or_with_two_calls_are_refused(tmp_path):
    path = tmp_path / "readers.csv"
    path.write_text("reader,case\nAda,c1\n")
    with pytest.raises(ManifestError, match="needs the columns reader, case and label"):
        load_readers(path)

    path.write_text("reader,case,label\nAda,c1,covid\nAda,c1,other\n")
    with pytest.raises(ManifestError, match="Ada calls case 'c1' twice"):
        load_readers(path)


@pytest.fixture(scope="module")
def chest() -> Phantom:
    return small_chest()


@pytest.fixture(scope="module")
def data_set(tmp_path_factory, chest) -> Path:
    """A set of a study in DICOM with masks, its 8-bit slices and one slice in HU."""
    folder = tmp_path_factory.mktemp("set")
    write_dicom(chest, folder / "study")
    lung, lesion = chest.lungs > 0, chest.lesions > 0
    z = int(lesion.sum(axis=(1, 2)).argmax())
    grey = np.clip((chest.volume.hu + 1024) / 1374 * 255, 0, 255).astype(np.uint8)
    np.savez(folder / "masks.npz", lung=lung, lesion=lesion)
    np.savez(folder / "slice.npz", hu=chest.volume.hu[z], lung=lung[z], lesion=lesion[z])
    Image.fromarray(grey[z]).save(folder / "slice.png")
    spacing = list(chest.volume.spacing)
    shared = {"label": "covid", "label_source": "NAT", "part": "test"}
    cases = [
        {"id": "study", "group": "a", "domain": "hu", "image": "study", "lung": "masks.npz#lung"}
        | {"lesion": "masks.npz#lesion", "lesion_slices": [z], **shared, "scanner": "one"},
        {"id": "picture", "group": "b", "domain": "display", "image": "slice.png"}
        | {"lung": "slice.npz#lung", "lesion": "slice.npz#lesion", "spacing_mm": spacing, **shared},
        {"id": "slice", "group": "c", "domain": "hu", "image": "slice.npz#hu"}
        | {"lung": "slice.npz#lung", "spacing_mm": spacing, "part": "train"},
        {"id": "healthy", "group": "d", "domain": "display", "image": "slice.png"}
        | {"spacing_mm": spacing, **shared, "label": "healthy"},
    ]
    path = folder / "phantom.json"
    path.write_text(
        json.dumps({"name": "phantom", "source": "made", "licence": "none", "cases": cases})
    )
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    return Models.open(write_models(tmp_path_factory.mktemp("models")), EngineChoice.TORCH)


def test_every_kind_of_case_is_measured_and_reported(tmp_path, data_set, models):
    figures = evaluate(
        [open_manifest(data_set)],
        models,
        tmp_path,
        parts=list(Part),
        positive_label="covid",
        readers={"Ada": {"study": "covid", "healthy": "covid"}},
        say=lambda _: None,
    )

    assert figures["readers"]["mean"] == {"sensitivity": 1.0, "specificity": 0.0}
    each = {row["id"]: row for row in figures["each"]}
    assert {"lung_dice", "lesion_dice", "probability", "slices"} <= set(each["study"])
    assert {"lung_dice", "lesion_dice", "lesion_dice_given_lungs"} <= set(each["picture"])
    assert "lung_dice" in each["slice"]
    assert "probability" not in each["slice"]
    assert figures["all"]["negatives"] == 1
    assert figures["by_scanner"]["one"]["cases"] == 1
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(figures))
    page = (tmp_path / "report.html").read_text()
    assert "Research use only" in page
    for name in ("dice", "roc", "calibration", "lesions", "hits"):
        assert f'src="{name}.png"' in page
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 300


CLASSES = {"healthy": "healthy", "covid": "COVID-19", "pneumonia": "bacterial"}


def opinion(name: str, label: str, **probabilities: float) -> CaseResult:
    said = {"healthy": 0.0, "COVID-19": 0.0, "other viral": 0.0, "bacterial": 0.0}
    case = Case(name, name, Domain.HU, "x", label=label, part=Part.TEST)
    return CaseResult(case, "set", classes={**said, **probabilities})


def test_each_class_that_is_there_stands_against_the_rest():
    results = [
        opinion("a", "healthy", healthy=0.8, bacterial=0.2),
        opinion("b", "healthy", healthy=0.3, bacterial=0.7),
        opinion("c", "pneumonia", healthy=0.1, bacterial=0.9),
        opinion("d", "nodule", healthy=1.0),  # no class of the model's
    ]

    figures = opinion_figures(results, CLASSES)

    assert set(figures) == {"healthy", "bacterial"}
    assert figures["bacterial"]["cases"] == 1
    assert figures["bacterial"]["auc"]["value"] == 1.0
    assert figures["bacterial"]["specificity"] == 0.5
    assert figures["healthy"]["sensitivity"] == 0.5


def test_the_second_opinion_is_measured_where_it_is_asked_for(tmp_path, chest):
    for name in ("one", "other"):
        write_dicom(chest, tmp_path / name)
    cases = [
        {"id": name, "group": name, "domain": "hu", "image": name, "label": label}
        | {"label_source": "NAT", "part": "test"}
        for name, label in (("one", "covid"), ("other", "healthy"))
    ]
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"name": "two", "source": "", "licence": "", "cases": cases}))
    folder = write_opinion_models(write_models(tmp_path / "models"))
    models = Models.open(folder, EngineChoice.TORCH, second_opinion=True)

    figures = evaluate(
        [open_manifest(path)],
        models,
        tmp_path / "out",
        parts=list(Part),
        positive_label="covid",
        readers={"Ada": {"one": "covid", "other": "healthy"}},
        say=lambda _: None,
    )

    assert set(figures["second_opinion"]) == {"COVID-19", "healthy"}
    assert figures["second_opinion"]["healthy"]["auc"]["value"] == 0.5  # the same chest twice
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Second opinion" in page
    assert 'src="class-0.png"' in page


def test_only_the_parts_asked_for_are_read(tmp_path, data_set, models):
    figures = evaluate(
        [open_manifest(data_set)],
        models,
        tmp_path,
        parts=[Part.TRAIN],
        positive_label="covid",
        say=lambda _: None,
    )

    assert [row["id"] for row in figures["each"]] == ["slice"]
    with pytest.raises(PipelineError, match="No case is in the parts validation"):
        evaluate(
            [open_manifest(data_set)],
            models,
            tmp_path,
            parts=[Part.VALIDATION],
            positive_label="covid",
        )


def test_the_command_says_what_is_wrong_with_a_manifest(tmp_path):
    (tmp_path / "bad.json").write_text("{")

    done = CliRunner().invoke(
        evaluate_command, [str(tmp_path / "bad.json"), "--out", str(tmp_path / "out")]
    )

    assert done.exit_code == 1
    assert "bad.json cannot be read as a manifest" in done.output
