import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.analysis import Models
from pipelines.cli import evaluate as evaluate_command
from pipelines.engines.choice import EngineChoice
from pipelines.errors import ManifestError, PipelineError
from pipelines.evaluation.evaluate import caption, evaluate
from pipelines.evaluation.metrics import (
    RESAMPLES,
    Interval,
    Region,
    bootstrap,
    calibration,
    dice,
    proportion,
    regions,
    roc_auc,
    roc_curve,
    youden_threshold,
)
from pipelines.evaluation.readers import Point, load_readers, reader_points
from pipelines.evaluation.reading import CaseResult, Overlap, SliceMarks
from pipelines.evaluation.summary import (
    case_row,
    opinion_figures,
    severity_figures,
    summarise,
)
from pipelines.manifest import Case, Domain, Manifest, Part, open_manifest
from pipelines.phantom import Phantom, write_dicom
from pipelines.weights import write_bundle
from tests.support.phantom import small_chest
from tests.support.tiny_models import (
    CONFIGS,
    OPINION_CONFIGS,
    write_models,
    write_opinion_models,
)


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
    values = np.tile(np.repeat([0.0, 1.0], 10), 5)
    alone = [str(row) for row in range(100)]
    patients = np.repeat(np.arange(10), 10).tolist()

    narrow = bootstrap(lambda rows: float(values[rows].mean()), alone)
    wide = bootstrap(lambda rows: float(values[rows].mean()), patients)

    assert narrow.value == wide.value == 0.5
    assert 0.08 < narrow.high - 0.5 < 0.12  # 1.96 * 0.5 / sqrt(100)
    assert 0.25 < wide.high - 0.5 < 0.35  # of ten


def test_a_figure_that_only_some_draws_define_is_drawn_again_until_there_are_enough():
    positive = np.arange(20) == 0  # a third of the draws lack a class
    defined = []

    def auc(rows: np.ndarray) -> float:
        defined.append(roc_auc(rows / 20, positive[rows]))
        return defined[-1]

    bootstrap(auc, range(20))

    assert len(defined) == 1 + RESAMPLES


@pytest.mark.parametrize(
    ("groups", "classes", "bounds"),
    [(9, (), False), (10, (), True), (20, [0] * 11 + [1] * 9, False), (20, [0, 1] * 10, True)],
)
def test_too_few_groups_have_no_interval(groups, classes, bounds):
    values = np.linspace(0, 1, groups)

    found = bootstrap(lambda rows: float(values[rows].mean()), range(groups), classes=classes)

    assert found.value == pytest.approx(0.5)
    assert (found.low is not None) is (found.high is not None) is bounds
    assert str(found).startswith("0.500 [") is bounds


def test_resamples_that_never_differ_are_no_interval():
    assert bootstrap(lambda _: 1.0, range(30)) == Interval(1.0)


def test_a_proportion_has_wilsons_bounds_with_each_group_once():
    three = proportion(np.ones(3, bool), range(3))
    ten = proportion(np.arange(10) < 8, range(10))
    clustered = proportion(np.arange(40) < 32, np.repeat(np.arange(10), 4).tolist())

    assert (three.value, three.high) == (1.0, 1.0)
    assert three.low == pytest.approx(0.4385, abs=1e-4)  # 3 / (3 + 1.96**2)
    assert (ten.low, ten.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998
    assert clustered == ten


def test_groups_of_one_name_in_two_sets_are_two_groups():
    values = np.repeat([0.0, 1.0], 25)
    groups = [(name, f"p{n // 5}") for name in ("one", "other") for n in range(25)]

    found = bootstrap(lambda rows: float(values[rows].mean()), groups)

    assert 0.25 < found.high - 0.5 < 0.35  # of ten, not of five


def test_probabilities_that_equal_frequencies_are_calibrated():
    scores = np.repeat([0.25, 0.75], 40)
    positive = np.concatenate([np.arange(40) < 10, np.arange(40) < 30])

    found = calibration(scores, positive)

    assert found.error == pytest.approx(0)
    assert found.brier == pytest.approx(0.1875)
    assert found.bins == ((0.25, 0.25, 40), (0.75, 0.75, 40))
    assert calibration(scores, ~positive).error == pytest.approx(0.5)


def test_regions_have_a_volume_a_diameter_and_are_met_or_not():
    truth = np.zeros((3, 20, 20), bool)
    truth[1, 2:6, 2:6] = True
    truth[:, 12:18, 5] = True
    mask = np.zeros_like(truth)
    mask[1, 3, 3] = True

    found = sorted(regions(truth, mask, (2.0, 1.0, 1.0)), key=lambda r: r.diameter_mm)

    assert [r.met for r in found] == [True, False]
    assert [r.volume_ml for r in found] == pytest.approx([0.032, 0.036])
    assert found[0].diameter_mm == pytest.approx(np.hypot(4, 4), rel=0.01)
    assert found[1].diameter_mm == pytest.approx(np.hypot(6, 1), rel=0.02)
    assert [r.met for r in regions(mask, truth, (2.0, 1.0, 1.0))] == [True]
    assert regions(mask & ~mask, truth, (2.0, 1.0, 1.0)) == []


SMALL = Region(volume_ml=0.1, diameter_mm=4, met=False)
LARGE = Region(volume_ml=9, diameter_mm=20, met=True)
FALSE = Region(volume_ml=2.5, diameter_mm=15.4, met=False)


def result(name: str, data_set: str = "set", **values: object) -> CaseResult:
    label = "covid" if name.startswith("c") else "other"
    case = Case(name, name, Domain.HU, "x", label=label, site=name[-1], part=Part.TEST)
    return CaseResult(case, data_set, **values)


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
    assert whole["lesions_found"]["below_10_mm"] == {"lesions": 1, "found": 0, "sensitivity": 0}
    assert whole["lesions_found"]["from_10_mm"] == {"lesions": 1, "found": 1, "sensitivity": 1}
    assert (whole["slice_sensitivity"], whole["slice_specificity"]) == (0.75, 0.9)
    assert figures["by_site"]["A"]["specificity"]["value"] == 0.0
    assert figures["by_label"]["covid"]["sensitivity"]["value"] == 1.0
    assert whole["unanswered"] == 0
    assert json.dumps(figures)


def test_a_case_not_answered_is_an_empty_mask_and_called_wrongly_whatever_it_is():
    results = [
        result("c-A", probability=0.9, positive=True, overlap=Overlap(10, 10, 10), lesion_dice=1.0),
        result("c-B", answered=False, positive=False, overlap=Overlap(0, 30, 0), lesion_dice=0.0),
        result("o-A", probability=0.1, positive=False),
        result("o-B", answered=False, positive=False),
    ]

    whole = summarise(results, positive_label="covid")["all"]

    assert whole["unanswered"] == 2
    assert whole["lesion_dice"]["value"] == 0.5
    assert whole["lesion_dice_pooled"] == 0.4
    assert whole["sensitivity"]["value"] == 0.5
    assert whole["specificity"]["value"] == 0.5
    assert whole["auc"]["value"] == (1 + 0 + 0 + 0) / 4
    assert whole["calibration"]["brier"] == pytest.approx(0.01)  # of the two that were answered


def test_a_model_that_refuses_what_is_healthy_spares_nobody():
    refused = {"answered": False, "positive": False}
    results = [
        result("c-A", probability=1.0, positive=True, overlap=Overlap(9, 9, 9), lesion_dice=1.0),
        *(result(f"o-{n}", overlap=Overlap(0, 0, 0), **refused) for n in range(3)),
    ]

    whole = summarise(results, positive_label="covid")["all"]

    assert whole["specificity"]["value"] == 0.0
    assert whole["auc"]["value"] == 0.0
    assert whole["false_regions"]["per_case"] == 0.0
    assert "without_lesions" not in whole, "no volume is known of what was not answered"
    nobody = summarise(results[1:], positive_label="covid")["all"]
    assert "false_regions" not in nobody


def test_a_case_that_no_classifier_applies_to_is_no_failure():
    whole = summarise([result("c-A"), result("o-A")], positive_label="covid")["all"]

    assert whole["unanswered"] == 0
    assert "sensitivity" not in whole


def test_sets_of_one_class_are_not_pooled_into_a_curve():
    results = [
        result("c-1", "covid only", probability=0.9, positive=True),
        result("o-1", "both", probability=0.8, positive=True),
        result("c-2", "both", probability=0.7, positive=True),
        result("o-2", "healthy only", probability=0.1, positive=False),
    ]

    figures = summarise(results, positive_label="covid")

    assert figures["all"]["auc"]["value"] == 0.0
    assert figures["all"]["auc_sets"] == ["both"]
    assert figures["all"]["specificity"]["value"] == 0.5
    assert figures["by_part"]["test"]["auc"]["value"] == 0.0
    assert "auc" not in figures["by_data_set"]["healthy only"]
    apart = summarise([results[0], results[3]], positive_label="covid")["all"]
    assert not {"auc", "auc_sets", "calibration"} & set(apart)
    assert (apart["sensitivity"]["value"], apart["specificity"]["value"]) == (1.0, 1.0)


def test_cases_of_one_name_in_two_sets_are_drawn_apart():
    results = [
        result(f"c-{n}", name, probability=p, positive=p > 0.5, lung_dice=p)
        for name, p in (("one", 1.0), ("other", 0.0))
        for n in range(5)
    ]

    whole = summarise(results, positive_label="covid")["all"]

    assert whole["lung_dice"]["high"] is not None, "of ten groups, not of five"
    assert whole["sensitivity"]["high"] == pytest.approx(0.7634, abs=1e-4)


def test_a_case_without_lesions_has_false_volume_and_no_dice():
    results = [
        result("c-A", overlap=Overlap(10, 30, 10), lesion_dice=0.5, regions=(LARGE,)),
        result("o-A", overlap=Overlap(25, 0, 0), regions=(FALSE, replace(FALSE, volume_ml=1))),
        result("o-B", overlap=Overlap(0, 0, 0), regions=()),
    ]

    whole = summarise(results, positive_label="covid")["all"]

    assert (whole["lesion_dice"]["value"], whole["lesion_dice"]["cases"]) == (0.5, 1)
    assert whole["without_lesions"] == {"cases": 2, "ml_per_case": 1.75, "most_ml": 3.5}
    assert whole["false_regions"]["largest_ml"] == 2.5


def test_a_case_without_a_mask_says_what_was_found_in_it():
    row = case_row(result("o-A", regions=(FALSE, replace(FALSE, volume_ml=0.25))))

    assert row["regions"] == {"count": 2, "ml": 2.75, "largest_ml": 2.5}
    assert "false_regions" not in row
    nothing = case_row(result("o-A", regions=()))
    assert nothing["regions"] == {"count": 0, "ml": 0, "largest_ml": 0.0}
    assert "regions" not in case_row(result("o-A"))


def test_slices_count_where_none_or_all_are_marked():
    spared = summarise([result("o-A", slices=SliceMarks(0, 0, 8, 2))], positive_label="covid")
    hit = summarise([result("c-A", slices=SliceMarks(4, 3, 0, 0))], positive_label="covid")

    assert spared["all"]["slice_specificity"] == 0.75
    assert "slice_sensitivity" not in spared["all"]
    assert hit["all"]["slice_sensitivity"] == 0.75
    assert "slice_specificity" not in hit["all"]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (
            {"lesions": (LARGE, SMALL), "regions": (LARGE, FALSE), "overlap": Overlap(9, 9, 5)},
            "",
            "c-A: 0.31\nFP 2.5 ml, 15 mm",
        ),
        (
            {"lesions": (LARGE, SMALL), "regions": (LARGE,), "overlap": Overlap(9, 9, 5)},
            "",
            "c-A: 0.31\nFN 0.1 ml, 4 mm",
        ),
        (
            {"lesions": (LARGE,), "regions": (LARGE,), "overlap": Overlap(9, 9, 9)},
            "TP",
            "TP c-A: 0.31\nTP 9.0 ml, 20 mm",
        ),
        ({"regions": (SMALL, FALSE)}, "FN", "FN c-A: 0.31\nlargest region 2.5 ml, 15 mm"),
        (
            {"regions": (), "notes": ("Metal: streaks in 3 slices.", "Noise (40 HU).")},
            "FN",
            "FN c-A: 0.31\nMetal\nNoise",
        ),
    ],
)
def test_a_caption_tells_kind_size_and_artefacts(values, kind, expected):
    assert caption(result("c-A", **values), 0.31, kind=kind) == expected


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
TRUTH = {("set", "c1"): "covid", ("set", "c2"): "covid", ("set", "o1"): "other"}


def manifest(name: str, **labels: str) -> Manifest:
    cases = tuple(Case(c, c, Domain.DISPLAY, "x", label=label) for c, label in labels.items())
    return Manifest(name, "", "", Path(), cases)


SETS = [manifest("set", c1="covid", c2="covid", o1="other")]


def test_readers_are_points_and_so_are_their_mean_and_their_majority(tmp_path):
    path = tmp_path / "readers.csv"
    path.write_text(READERS)

    points = reader_points(load_readers(path, SETS), TRUTH, "covid")

    assert points is not None
    assert points.each == {"Ada": Point(1, 1), "Bea": Point(0.5, 1), "Cyd": Point(0.5, 0)}
    assert points.mean == Point(pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert points.majority == Point(1, 1)
    assert reader_points({}, TRUTH, "covid") is None


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_column(tmp_path):
    path = tmp_path / "readers.csv"
    path.write_text(READERS, encoding="utf-8-sig")

    assert load_readers(path, SETS)["Dot"] == {("set", "c1"): "covid"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("reader,case\nAda,c1\n", "the columns reader, case and label are needed"),
        ("reader,case,label\nAda,c1,covid\nAda,c1,other\n", "Ada calls case 'c1' twice"),
        ("reader,case,label\nAda,c11,covid\n", "no case is called 'c11'; the nearest is 'c1'"),
        ("reader,case,label\nAda,c1,covdi\n", "no label is called 'covdi'; the nearest is 'covid'"),
        ("reader,case,label\nAda,c1\n", "no label is called ''; the nearest is"),
        (
            "reader,set,case,label\nAda,sat,c1,covid\n",
            "no set is called 'sat'; the nearest is 'set'",
        ),
        ("reader,set,case,label\nAda,set,d1,covid\n", "no case of 'set' is called 'd1'"),
    ],
)
def test_readers_whose_calls_do_not_fit_the_cases_are_refused(tmp_path, content, said):
    path = tmp_path / "readers.csv"
    path.write_text(content)

    with pytest.raises(ManifestError, match=rf"readers\.csv: .*{said}"):
        load_readers(path, SETS)


def test_readers_say_which_set_a_case_is_of_where_two_have_it(tmp_path):
    sets = [*SETS, manifest("other set", c1="other", x1="other")]
    path = tmp_path / "readers.csv"
    path.write_text("reader,case,label\nAda,x1,covid\nAda,c1,other\n")
    with pytest.raises(ManifestError, match="case 'c1' is in the sets set, other set: a column"):
        load_readers(path, sets)

    path.write_text("reader,set,case,label\nAda,,x1,covid\nAda,other set,c1,bacterial\n")

    calls = load_readers(path, sets, ["bacterial"])

    assert calls == {"Ada": {("other set", "x1"): "covid", ("other set", "c1"): "bacterial"}}


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
    readers = tmp_path / "readers.csv"
    readers.write_text("reader,case,label\nAda,study,covid\nAda,healthy,covid\n")

    figures = evaluate(
        [open_manifest(data_set)],
        models,
        tmp_path / "out",
        parts=list(Part),
        positive_label="covid",
        readers=readers,
        say=lambda _: None,
    )

    assert figures["readers"]["mean"] == {"sensitivity": 1.0, "specificity": 0.0}
    each = {row["id"]: row for row in figures["each"]}
    assert {"lung_dice", "lesion_dice", "probability", "slices"} <= set(each["study"])
    assert {"lung_dice", "lesion_dice", "lesion_dice_given_lungs"} <= set(each["picture"])
    assert "lung_dice" in each["slice"]
    assert each["slice"]["answered"]
    assert not {"probability", "regions"} & set(each["slice"])
    assert set(each["healthy"]["regions"]) == {"count", "ml", "largest_ml"}
    assert figures["all"]["unanswered"] == 0
    assert figures["all"]["negatives"] == 1
    assert figures["by_scanner"]["one"]["cases"] == 1
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == json.loads(
        json.dumps(figures)
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Research use only" in page
    assert "Not answered" not in page
    assert "of the sets with both classes: phantom." in page
    assert "Each case" in page
    assert "<td>study</td><td>phantom</td><td>covid</td>" in page
    assert "computed by PyTorch" in page
    assert f"phantom ({figures['sets']['phantom'][:12]})" in page
    assert "A star is the operating point: the model&#39;s own threshold, 0.500." in page
    assert "found: any voxel of it was marked." in page
    for name in ("dice", "roc", "calibration", "lesions", "hits"):
        assert f'src="{name}.png"' in page
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert len(picture.convert("L").getcolors()) > 10  # something is drawn


@pytest.fixture(scope="module")
def blind_models(tmp_path_factory) -> Models:
    """Models that find no lungs anywhere."""
    folder = write_opinion_models(write_models(tmp_path_factory.mktemp("blind")))
    lungs = replace(CONFIGS["lungs"], decision={"threshold": 1.0})
    write_bundle(folder / "lungs", lungs, lungs.network_with_random_weights())
    return Models.open(folder, EngineChoice.TORCH, second_opinion=True)


def test_cases_without_an_answer_count_as_failures_and_are_told(tmp_path, data_set, blind_models):
    figures = evaluate(
        [open_manifest(data_set)],
        blind_models,
        tmp_path / "out",
        parts=list(Part),
        positive_label="covid",
        say=lambda _: None,
    )

    each = {row["id"]: row for row in figures["each"]}
    assert {name: row["answered"] for name, row in each.items()} == {
        "study": False,
        "picture": False,
        "slice": True,  # asked for its lungs alone: that none are found is its Dice
        "healthy": False,
    }
    assert [each[name]["lesion_dice"] for name in ("study", "picture")] == [0.0, 0.0]
    assert [each[name]["lung_dice"] for name in ("study", "picture", "slice")] == [0.0] * 3
    assert (each["study"]["slices"]["marked"], each["study"]["slices"]["marked_hit"]) == (1, 0)
    assert figures["all"]["unanswered"] == 3
    assert figures["all"]["sensitivity"]["value"] == 0.0
    assert figures["all"]["specificity"]["value"] == 0.0
    assert figures["all"]["slice_specificity"] == 0.0
    assert figures["all"]["auc"]["value"] == 0.0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not answered: 3 of 4 cases. They count as wrong" in page
    assert "2 of 2; the surest first" in page  # both are among the missed
    assert "1 of 1; the surest first" in page  # the healthy one is a false alarm
    assert "No lungs were found." in page


def test_a_case_that_cannot_be_read_is_one_without_an_answer(tmp_path, data_set, models):
    whole = json.loads(data_set.read_text())
    (tmp_path / "empty.png").touch()
    broken = [
        {**case, "id": f"broken {case['id']}", "group": "e", "image": str(tmp_path / "empty.png")}
        for case in whole["cases"]
        if case["id"] in ("picture", "healthy")
    ]
    broken[0]["lesion_slices"] = [0]
    mixed = data_set.with_name("mixed.json")
    mixed.write_text(json.dumps({**whole, "name": "mixed", "cases": [*whole["cases"], *broken]}))
    said: list[str] = []

    figures = evaluate(
        [open_manifest(mixed)],
        models,
        tmp_path / "out",
        parts=[Part.TEST],
        positive_label="covid",
        say=said.append,
    )

    each = {row["id"]: row for row in figures["each"]}
    assert figures["all"]["unanswered"] == 2
    assert each["picture"]["answered"]
    dice = ("lung_dice", "lesion_dice", "lesion_dice_given_lungs")
    assert [each["broken picture"][key] for key in dice] == [0.0] * 3
    assert each["broken picture"]["slices"]["marked"] == 1
    assert figures["all"]["negatives"] == 2
    assert figures["all"]["specificity"]["value"] <= 0.5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not answered: 2 of 5 cases." in page
    assert page.count("cannot identify image file") == 2
    assert [line for line in said if "'broken picture' of 'mixed'" in line]


def test_nothing_but_cases_that_cannot_be_read_is_still_reported(tmp_path, models):
    (tmp_path / "empty.png").touch()
    cases = [
        {"id": name, "group": name, "domain": "display", "image": "empty.png", "part": "test"}
        | {"spacing_mm": [1, 1, 1], "label": name, "label_source": "made"}
        for name in ("covid", "healthy")
    ]
    path = tmp_path / "none.json"
    path.write_text(json.dumps({"name": "none", "source": "", "licence": "", "cases": cases}))

    figures = evaluate(
        [open_manifest(path)],
        models,
        tmp_path / "out",
        parts=[Part.TEST],
        positive_label="covid",
        say=lambda _: None,
    )

    assert figures["all"]["unanswered"] == 2
    assert "Not answered: 2 of 2 cases." in (tmp_path / "out" / "report.html").read_text()


CLASSES = {"healthy": "healthy", "covid": "COVID-19", "pneumonia": "bacterial"}


def opinion(name: str, label: str, **probabilities: float) -> CaseResult:
    said = {"healthy": 0.0, "COVID-19": 0.0, "other viral": 0.0, "bacterial": 0.0}
    case = Case(name, name, Domain.HU, "x", label=label, part=Part.TEST)
    return CaseResult(case, "set", classes={**said, **probabilities})


def test_a_second_opinion_without_an_answer_is_no_class():
    results = [
        opinion("a", "covid", **{"COVID-19": 0.9}),
        replace(opinion("b", "covid"), classes={}),
        opinion("c", "healthy", **{"healthy": 0.9, "COVID-19": 0.1}),
        replace(opinion("d", "healthy"), classes=None),  # was not asked
    ]

    figures = opinion_figures(results, CLASSES)

    assert figures["COVID-19"]["sensitivity"] == 0.5
    assert figures["COVID-19"]["auc"]["value"] == 0.5
    assert figures["COVID-19"]["specificity"] == 1.0
    assert figures["healthy"]["cases"] == 1
    assert figures["healthy"]["specificity"] == 0.5, "nor is it any other class rightly"
    assert figures["healthy"]["auc"]["value"] == 0.5


def test_grades_given_stand_beside_the_true_ones():
    grades = {"covid grade I": "I", "covid grade II": "II"}
    results = [
        replace(opinion("a", "covid grade I"), grade="I"),
        replace(opinion("b", "covid grade I"), grade="II"),
        opinion("c", "covid grade II"),
        replace(opinion("d", "covid grade II"), classes=None),
        replace(opinion("e", "covid"), grade="II"),
    ]

    assert severity_figures(results, grades) == {
        "cases": 3,
        "confusion": {
            "I": {"I": 1, "II": 1, "not graded": 0},
            "II": {"I": 0, "II": 0, "not graded": 1},
        },
    }


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
    cases = [
        {"id": name, "group": name, "domain": "hu", "image": "chest", "label": label}
        | {"label_source": "NAT", "part": "test"}
        for name, label in (("one", "covid"), ("other", "healthy"), ("graded", "covid grade I"))
    ]
    write_dicom(chest, tmp_path / "chest")
    path = tmp_path / "three.json"
    path.write_text(json.dumps({"name": "three", "source": "", "licence": "", "cases": cases}))
    folder = write_opinion_models(write_models(tmp_path / "models"))
    severity = OPINION_CONFIGS["severity"]
    labels = {"covid grade I": "I", "covid grade II": "II"}
    severity = replace(severity, decision={**severity.decision, "labels": labels})
    write_bundle(folder / "severity", severity, severity.network_with_random_weights())
    models = Models.open(folder, EngineChoice.TORCH, second_opinion=True)
    readers = tmp_path / "readers.csv"
    readers.write_text("reader,case,label\nAda,one,covid\nAda,other,bacterial\n")

    figures = evaluate(
        [open_manifest(path)],
        models,
        tmp_path / "out",
        parts=list(Part),
        positive_label="covid",
        readers=readers,
        say=lambda _: None,
    )

    assert set(figures["second_opinion"]) == {"COVID-19", "healthy"}
    assert figures["second_opinion"]["healthy"]["auc"]["value"] == 0.5  # the same chest twice
    assert figures["severity"]["cases"] == 1
    assert sum(figures["severity"]["confusion"]["I"].values()) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Second opinion" in page
    assert "Severity" in page
    assert "not graded" in page
    assert 'src="class-0.png"' in page


def test_only_the_parts_asked_for_are_read(tmp_path, data_set, models):
    figures = evaluate(
        [open_manifest(data_set)],
        models,
        tmp_path / "out",
        parts=[Part.TRAIN],
        positive_label="covid",
        say=lambda _: None,
    )

    assert [row["id"] for row in figures["each"]] == ["slice"]
    with pytest.raises(
        PipelineError, match=r"No case is in the parts validation; .* have cases in train, test"
    ):
        evaluate(
            [open_manifest(data_set)],
            models,
            tmp_path / "again",
            parts=[Part.VALIDATION],
            positive_label="covid",
        )


def test_two_sets_of_one_name_are_refused(tmp_path, data_set, models):
    with pytest.raises(PipelineError, match="Two of the manifests are called 'phantom'"):
        evaluate(
            [open_manifest(data_set)] * 2,
            models,
            tmp_path / "again",
            parts=[Part.TEST],
            positive_label="covid",
        )


def test_sets_with_equal_ids_stay_apart_and_are_told_which_have_both_classes(
    tmp_path, data_set, models
):
    whole = json.loads(data_set.read_text())
    (picture,) = (case for case in whole["cases"] if case["id"] == "picture")
    one_class = data_set.with_name("one-class.json")
    one_class.write_text(json.dumps({**whole, "name": "one class", "cases": [picture]}))
    readers = tmp_path / "readers.csv"
    readers.write_text(
        "reader,set,case,label\nAda,phantom,picture,covid\nAda,one class,picture,healthy\n"
        "Ada,,healthy,healthy\n"
    )

    figures = evaluate(
        [open_manifest(data_set), open_manifest(one_class)],
        models,
        tmp_path / "out",
        parts=[Part.TEST],
        positive_label="covid",
        readers=readers,
        say=lambda _: None,
    )

    assert figures["readers"]["mean"] == {"sensitivity": 0.5, "specificity": 1.0}
    assert figures["all"]["auc_sets"] == ["phantom"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Left out, for they have one class only: one class." in page


def test_the_command_takes_the_test_cases_unless_told(tmp_path, data_set):
    whole = json.loads(data_set.read_text())
    (slice_,) = (case for case in whole["cases"] if case["part"] == "train")
    trained = data_set.with_name("trained.json")
    trained.write_text(json.dumps({**whole, "cases": [slice_]}))
    folder = write_models(tmp_path / "models")
    arguments = [str(trained), "--models", str(folder), "--out", str(tmp_path / "out")]
    arguments += ["--without-cases"]

    refused = CliRunner().invoke(evaluate_command, arguments)
    asked = CliRunner().invoke(evaluate_command, [*arguments, "--part", "train"])

    assert refused.exit_code == 1
    assert "No case is in the parts test; the manifests have cases in train." in refused.output
    assert asked.exit_code == 0, asked.output
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert told["cases"] == 1
    assert "each" not in told
    assert len(told["models"][0]["digest"]) == 64
    assert "Each case" not in (tmp_path / "out" / "report.html").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "dice.png",
        "metrics.json",
        "report.html",
    }


def test_a_report_is_never_written_into_another(tmp_path, data_set, models):
    (tmp_path / "hits.png").write_text("a patient")

    with pytest.raises(PipelineError, match="exists already and is not empty"):
        evaluate(
            [open_manifest(data_set)],
            models,
            tmp_path,
            parts=[Part.TEST],
            positive_label="covid",
            single_cases=False,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["hits.png"]


def test_a_label_that_no_case_has_is_refused_with_the_nearest(tmp_path, data_set, models):
    with pytest.raises(
        PipelineError,
        match=r"No case has the label 'covd'; the nearest is 'covid'\. .* labels covid, healthy",
    ):
        evaluate(
            [open_manifest(data_set)],
            models,
            tmp_path / "out",
            parts=[Part.TEST],
            positive_label="covd",
        )


def test_the_command_says_what_is_wrong_with_a_manifest(tmp_path):
    (tmp_path / "bad.json").write_text("{")

    done = CliRunner().invoke(
        evaluate_command, [str(tmp_path / "bad.json"), "--out", str(tmp_path / "out")]
    )

    assert done.exit_code == 1
    assert "bad.json cannot be read as a manifest" in done.output
