"""What the recipes sample and measure, on sets cut from the synthetic chest."""

import dataclasses
import json
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.analysis import Models
from pipelines.engines.choice import EngineChoice
from pipelines.engines.torch import TorchEngine, best_precision
from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import dice
from pipelines.evaluation.reading import as_volume, read
from pipelines.inference import Model
from pipelines.lesions import segment_lesions
from pipelines.manifest import Part, open_manifest
from pipelines.preprocessing import dilate, extract_lungs
from pipelines.training.lesions import LesionRecipe
from pipelines.training.lungs import LungRecipe
from pipelines.training.recipe import TrainingConfig
from pipelines.training.screening import ScreeningRecipe, first_share
from pipelines.training.sets import by_source
from pipelines.weights import Precision, open_bundle, shipped_weights, write_bundle
from tests.support.phantom import small_chest
from tests.support.tiny_models import CONFIGS, FEATURES, HU, write_models
from tests.support.toy_training import CPU, config

SPACING = (6.4, 5.6, 5.6)
SOURCES = [
    f"{kind} {extent}" for kind in ("display", "hu", "lung") for extent in ("slices", "volumes")
]
SEEDS = range(20)
Arrays = dict[str, NDArray[Any]]


@cache
def chest() -> Arrays:
    """The chest at half its resolution, in HU and in 8 bits, with both masks."""
    made, half = small_chest(), (slice(None, None, 2),) * 3
    hu = made.volume.hu[half]
    lung, lesion = made.lungs[half] > 0, made.lesions[half] > 0
    return {"hu": hu, "display": in_8_bits(hu), "lung": lung, "lesion": lesion}


@cache
def plain() -> Arrays:
    """The same chest without vessels and noise."""
    lung, lesion = chest()["lung"], chest()["lesion"]
    hu = np.where(lesion, -300, np.where(lung, -850, 40)).astype(np.int16)
    return {**chest(), "hu": hu, "display": in_8_bits(hu)}


def in_8_bits(hu: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = HU
    return np.clip((hu.astype(float) - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def case(source: str, *, slices: slice | None = None, of: Arrays | None = None) -> Arrays:
    """A case of one source: its image under the name of its domain, and the masks it has."""
    of = of or chest()
    kind, extent = source.split()
    middle = int(chest()["lesion"].sum(axis=(1, 2)).argmax())
    rows = slices or (slice(middle, middle + 1) if extent == "slices" else slice(None))
    masks = ("lung",) if kind == "lung" else ("lung", "lesion")
    return {key: of[key][rows] for key in ("display" if kind == "display" else "hu", *masks)}


def write(folder: Path, name: str, cases: Iterable[tuple[Arrays, dict[str, Any]]]) -> Path:
    """Write a manifest of the cases, and what else its rows shall say of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place, (arrays, said) in enumerate(cases):
        file = f"{name}-{place}.npz"
        np.savez_compressed(folder / file, **arrays)
        domain = "hu" if "hu" in arrays else "display"
        row = {"id": f"{name}-{place}", "group": f"{name}-{place}", "domain": domain}
        row |= {"image": f"{file}#{domain}", "spacing_mm": SPACING}
        row |= {mask: f"{file}#{mask}" for mask in ("lung", "lesion") if mask in arrays}
        rows.append(row | said)
    top = {"name": name, "source": "made", "licence": "none", "cases": rows}
    (folder / f"{name}.json").write_text(json.dumps(top))
    return folder


def parts(training: Arrays, measured: Arrays | None = None) -> list[tuple[Arrays, dict[str, Any]]]:
    """One case to learn from, and one each to validate and to test on."""
    measured = measured or case("display volumes")
    return [(training, {"part": "train"})] + [
        (measured, {"part": part}) for part in ("validation", "test")
    ]


def data(source: str, *left_out: str) -> dict[str, Any]:
    """Which source is learnt from, and which others there are."""
    return {"manifests": ["set"], "shares": {**dict.fromkeys(left_out, 0.0), source: 1.0}}


def lesions(source: str, **changes: Any) -> TrainingConfig:
    given = {
        "purpose": "lesions",
        "network": {"architecture": "unet", "dimensions": 3, "features": FEATURES},
        "preprocessing": {
            "spacing_mm": SPACING,
            "window_hu": HU,
            "lung_margin_mm": 0.0,
        },
        "decision": {"threshold": 0.5, "peak": 0.5},
        "data": data(source),
        "patch": (16, 32, 32),
    }
    return config(**{**given, **changes})


def lungs(source: str, *left_out: str) -> TrainingConfig:
    return config(
        purpose="lungs",
        preprocessing={"spacing_mm": SPACING, "window_hu": HU},
        data=data(source, *left_out),
        patch=(48, 48),
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def blind(tmp_path: Path) -> Path:
    """A lung model that finds no lung anywhere."""
    unsure = dataclasses.replace(CONFIGS["lungs"], decision={"threshold": 1.0})
    write_bundle(tmp_path / "blind" / "lungs", unsure, unsure.network_with_random_weights())
    return tmp_path / "blind"


# The lesion net


@pytest.mark.parametrize("source", SOURCES)
def test_a_lesion_sample_fills_the_patch_and_depends_on_its_seed_alone(tmp_path, models, source):
    recipe = LesionRecipe(lesions(source), write(tmp_path, "set", parts(case(source))), models)

    for seed in SEEDS:
        image, target = recipe.sample(np.random.default_rng(seed))
        again, same = recipe.sample(np.random.default_rng(seed))
        assert image.shape == target.shape == (1, 16, 32, 32)
        assert image.dtype == target.dtype == torch.float32
        assert 0 <= float(image.min()) < float(image.max()) <= 1
        assert set(target.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(image, again)
        assert torch.equal(target, same)


@pytest.mark.parametrize("source", SOURCES)
def test_the_target_of_a_lesion_sample_is_what_is_denser_in_the_lungs(
    tmp_path, monkeypatch, models, source
):
    monkeypatch.setattr("pipelines.training.lesions.LARGEST_RIM", 0)
    recipe = LesionRecipe(lesions(source), write(tmp_path, "set", parts(case(source))), models)

    drawn = [recipe.sample(np.random.default_rng(seed)) for seed in SEEDS]

    marked = [(image, target > 0) for image, target in drawn if target.any()]
    assert len(marked) >= len(SEEDS) / 2, "most samples show a lesion"
    for image, target in marked:
        around = (image > 0) & ~target
        assert image[target].median() > image[around].median()


@pytest.mark.parametrize("source", ["display volumes", "hu volumes"])
def test_the_target_of_a_lesion_sample_ends_at_the_lung(tmp_path, models, source):
    everything = case(source)
    key = "display" if "display" in everything else "hu"
    everything[key] = np.full_like(everything[key], 128)
    everything["lesion"] = np.ones_like(everything["lung"])
    recipe = LesionRecipe(lesions(source), write(tmp_path, "set", parts(everything)), models)

    for seed in SEEDS:
        image, target = (t.numpy()[0] for t in recipe.sample(np.random.default_rng(seed)))
        assert (image[target > 0] > 0).all()
        assert not image[~dilate(target > 0, (0, 2, 2))].any(), "the rim is two pixels at most"


@pytest.mark.parametrize("source", ["display volumes", "hu volumes", "lung volumes"])
def test_a_thin_stack_is_filled_up_with_its_last_slice(tmp_path, models, source):
    middle = int(chest()["lesion"].sum(axis=(1, 2)).argmax())
    thin = case(source, slices=slice(middle - 5, middle + 5))
    recipe = LesionRecipe(lesions(source), write(tmp_path, "set", parts(thin)), models)

    for seed in SEEDS:
        image, target = recipe.sample(np.random.default_rng(seed))
        assert image.shape == target.shape == (1, 16, 32, 32)
        if source != "display volumes":  # of which slices are also left out or turned round
            assert (target[0, 9:] == target[0, 9]).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("source", ["hu volumes", "display volumes"])
def test_a_net_of_two_dimensions_is_given_slices(source, channels, tmp_path, models):
    network = {"dimensions": 2, "in_channels": channels}
    flat = lesions(source, network=network, patch=(32, 32))
    recipe = LesionRecipe(flat, write(tmp_path, "set", parts(case(source))), models)

    image, target = recipe.sample(np.random.default_rng(0))

    assert image.shape == (channels, 32, 32)
    assert target.shape == (1, 32, 32)
    assert image[0][target[0] > 0].min() > 0  # the target is what is to be seen in channel 0


def test_an_8_bit_stack_whose_lesions_nobody_marked_is_not_learnt_from(tmp_path, models):
    unmarked = {k: v for k, v in case("display volumes").items() if k != "lesion"}
    folder = write(tmp_path, "set", parts(unmarked))

    with pytest.raises(PipelineError, match="gives one to display volumes; the sets have none"):
        LesionRecipe(lesions("display volumes"), folder, models)


def test_a_source_that_no_share_names_is_refused_until_it_has_one(tmp_path, models):
    own = [(case("hu volumes"), {"part": "train"})] * 2
    folder = write(tmp_path, "set", [*parts(case("display volumes")), *own])

    with pytest.raises(PipelineError, match=r"2 hu volumes\. Give each a share; 0 leaves it out"):
        LesionRecipe(lesions("display volumes"), folder, models)
    left_out = lesions("display volumes", data=data("display volumes", "hu volumes"))
    recipe = LesionRecipe(left_out, folder, models)
    picked = {recipe.mixture.pick(np.random.default_rng(seed)).case.domain for seed in SEEDS}

    assert picked == {"display"}


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"display volume": 1.0}, "'display volume', which is no kind of source; did you mean 'di"),
        ({"x": 1.0, "display volumes": 1.0}, "'x', which is no kind of source, but display volu"),
        ({"display volumes": -1.0}, "share of 'display volumes' in data.shares is a number from 0"),
        ({"display volumes": "half"}, "share of 'display volumes' in data.shares is a number"),
        ({"display volumes": 0.0}, "gives one to none; the sets have display volumes"),
    ],
)
def test_shares_that_cannot_be_are_refused(tmp_path, models, shares, said):
    folder = write(tmp_path, "set", parts(case("display volumes")))
    settings = lesions("", data={"manifests": ["set"], "shares": shares})

    with pytest.raises(PipelineError, match=said):
        LesionRecipe(settings, folder, models)


def test_a_training_says_what_it_learns_from_and_how_much_it_does_not_use(tmp_path, models):
    unmarked = {k: v for k, v in case("display volumes").items() if k != "lesion"}
    more = [(case("lung slices"), {"part": "train"}), (unmarked, {"part": "train"})]
    more += [(case("display slices"), {"part": part}) for part in ("validation", "test")]
    folder = write(tmp_path, "set", [*parts(case("display volumes")), *more])
    said: list[str] = []
    shares = data("display volumes") | {"shares": {"display volumes": 1.0, "lung slices": 1.0}}

    LesionRecipe(lesions("", data=shares), folder, models, say=said.append)

    (line,) = said
    assert line.startswith("Learning from 1 display volumes, 1 lung slices. Used are ")
    assert "2 of 3 stacks for train, 1 of 2 stacks for validation, 2 of 2 stacks for test" in line


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_part_that_nothing_can_be_measured_on_is_named(tmp_path, models, part):
    cases = [pair for pair in parts(case("hu volumes")) if pair[1]["part"] != part]
    folder = write(tmp_path, "set", cases)

    with pytest.raises(PipelineError, match=f"no volumes with lesion masks in the {part} part"):
        LesionRecipe(lesions("hu volumes"), folder, models)
    with pytest.raises(PipelineError, match=f"no lung masks in the {part} part"):
        LungRecipe(lungs("hu volumes"), folder)


@pytest.mark.parametrize("domain", ["display", "hu"])
def test_the_lungs_of_a_marked_stack_are_found_slice_by_slice(tmp_path, domain):
    chest_of = small_chest()
    rows = slice(30, 60, 10)
    hu = chest_of.volume.hu[rows]
    found = {"hu": hu} if domain == "hu" else {"display": in_8_bits(hu)}
    found["lesion"] = chest_of.lesions[rows] > 0
    said = {"spacing_mm": (32.0, 2.8, 2.8)}
    cases = [(found, said | {"part": str(part)}) for part in Part]
    source = f"{domain} volumes"
    folder = write(tmp_path, "set", cases)

    recipe = LesionRecipe(lesions(source), folder, shipped_weights())

    for truth, mask in zip(chest_of.lungs[rows] > 0, recipe.test[0].lung, strict=True):
        assert dice(mask, truth) > 0.9


def test_only_in_training_does_the_lesion_mask_mend_the_lung_mask(tmp_path, blind):
    without = {k: v for k, v in case("display slices").items() if k != "lung"}
    cases = [*parts(without), (without, {"part": "test"})]
    recipe = LesionRecipe(lesions("display slices"), write(tmp_path, "set", cases), blind)

    (stack,) = recipe.test_slices
    _, target = recipe.sample(np.random.default_rng(0))

    assert not stack.lung.any(), "a hole of a lesion's shape would give the truth away"
    assert not recipe.mask(Dense(), stack).any()
    assert target.any()


class Dense(nn.Module):
    """A network that calls lesion what is denser than ground glass, and keeps its precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 1)
        with torch.no_grad():
            self.layer.weight.fill_(100.0)
            self.layer.bias.fill_(-25.0)
        self.computed_in: torch.dtype | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images)
        self.computed_in = logits.dtype
        return logits


@pytest.mark.parametrize("source", ["display volumes", "hu volumes", "hu slices"])
def test_what_a_net_finds_is_held_against_the_marks_in_both_domains(tmp_path, models, source):
    volume, sought = case("display volumes", of=plain()), case(source, of=plain())
    cases = [*parts(volume, volume), *parts(sought, sought)]
    settings = lesions(source, data=data(source, "display volumes"))
    recipe = LesionRecipe(settings, write(tmp_path, "set", cases), models)

    figures = recipe.report(Dense())

    found = figures["slice_dice" if "slices" in source else "lesion_dice"]
    assert found["set-5"] > 0.9
    assert recipe.validate(Dense()) > 0.9


def test_where_nothing_is_and_nothing_is_found_all_is_right(tmp_path, models):
    healthy = case("display volumes", of=plain())
    healthy["lesion"] = np.zeros_like(healthy["lesion"])
    healthy["display"] = np.where(healthy["lung"], 20, 200).astype(np.uint8)
    folder = write(tmp_path, "set", parts(case("display volumes"), healthy))

    figures = LesionRecipe(lesions("display volumes"), folder, models).report(Dense())

    assert figures["lesion_dice_mean"] == figures["lesion_dice_pooled"] == 1.0


def test_a_stack_in_hu_is_measured_as_the_pipeline_segments_it(tmp_path, models):
    fine = lesions("hu volumes")
    fine = dataclasses.replace(
        fine, preprocessing={**fine.preprocessing, "spacing_mm": (8.0, 4.0, 4.0)}
    )
    volume = case("hu volumes")
    recipe = LesionRecipe(fine, write(tmp_path, "set", parts(volume, volume)), models)
    (stack,) = recipe.test
    bundle = open_bundle(models / "lesions")
    bundle = dataclasses.replace(
        bundle,
        config=dataclasses.replace(
            bundle.config,
            preprocessing=fine.preprocessing,
            decision={"threshold": 0.5, "peak": 0.5, "minimum_ml": 0.0},
        ),
    )
    model = Model(bundle, (TorchEngine(Dense(), CPU, Precision.FP32),))
    extraction = extract_lungs(
        stack.image, stack.lung.view(np.uint8), stack.spacing, target=(8, 4, 4), margin_mm=0.0
    )

    labels = segment_lesions(as_volume(stack), extraction, model)

    assert labels.any()
    assert (recipe.mask(Dense(), stack) == (labels > 0)).all()


@pytest.mark.parametrize("precision", Precision)
def test_lesions_are_measured_in_the_precision_the_model_will_have(tmp_path, models, precision):
    settings = lesions("display volumes", precision=precision)
    volume = case("display volumes")
    recipe = LesionRecipe(settings, write(tmp_path, "set", parts(volume)), models)
    net = Dense()

    recipe.mask(net, recipe.test[0])

    low = best_precision(CPU, precision) is Precision.BF16
    assert net.computed_in is (torch.bfloat16 if low else torch.float32)


# The lung net


@pytest.mark.parametrize("source", SOURCES)
def test_a_lung_sample_is_a_slice_whose_target_is_its_dark_part(tmp_path, source):
    recipe = LungRecipe(lungs(source), write(tmp_path, "set", parts(case(source))))

    drawn = [recipe.sample(np.random.default_rng(seed)) for seed in SEEDS]

    assert sum(bool(target.any()) for _, target in drawn) > len(SEEDS) / 2
    for seed, (image, target) in enumerate(drawn):
        again, same = recipe.sample(np.random.default_rng(seed))
        assert image.shape == target.shape == (1, 48, 48)
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
        assert set(target.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(image, again)
        assert torch.equal(target, same)
        rim = dilate(target.numpy() > 0, (0, 3, 3)) & (target.numpy() == 0)
        tissue = image[torch.from_numpy(rim)]
        if target.any() and tissue.any():  # else cropped
            assert image[target > 0].median() < tissue.max()


def test_the_figures_of_the_lung_net_tell_the_sources_apart(tmp_path):
    few = slice(20, 26)
    cases = [pair for source in SOURCES for pair in parts(case(source), case(source, slices=few))]
    recipe = LungRecipe(lungs("hu volumes", *SOURCES), write(tmp_path, "set", cases))

    assert set(recipe.test) == {"display volumes", "hu volumes", "lung volumes"}
    for stack in recipe.test["hu volumes"]:
        assert len(stack.image) == len(stack.lung) == 2


def test_stacks_are_told_apart_by_domain_extent_and_masks(tmp_path):
    manifest = open_manifest(
        write(tmp_path, "set", [(case(s), {"part": "train"}) for s in SOURCES]) / "set.json"
    )

    found = by_source(manifest.load(c) for c in manifest.cases)

    assert list(found) == SOURCES
    assert all(len(stacks) == 1 for stacks in found.values())


# The classifier


def screening(**data: Any) -> TrainingConfig:
    return config(
        purpose="screening",
        network={"architecture": "resnet50", "dimensions": 2},
        preprocessing={"size": 32, "window_hu": HU},
        data={"manifests": ["one", "other"], "positive": "covid", **data},
        patch=(32, 32),
        loss="cross-entropy",
    )


def labelled(
    *,
    labels: Iterable[str] = ("covid", "healthy"),
    without: Iterable[tuple[str, str]] = (),
) -> list[tuple[Arrays, dict[str, Any]]]:
    """Slices with lesions and without for each part, less some labels in some parts."""
    made, rng = small_chest(), np.random.default_rng(0)
    z = int((made.lesions > 0).sum(axis=(1, 2)).argmax())
    cases = []
    for part in ("train", "validation", "test"):
        for label in labels:
            if (part, label) in tuple(without):
                continue
            hu = made.volume.hu[z].astype(float)
            if label != "covid":
                hu[made.lungs[z] > 0] = rng.normal(-860, 20, int((made.lungs[z] > 0).sum()))
            said = {"part": part, "label": label, "label_source": "made"}
            said |= {"spacing_mm": (3.2, 2.8, 2.8)}
            cases.append(({"display": in_8_bits(hu + rng.normal(0, 5, hu.shape))}, said))
    return cases


def classifier(settings: TrainingConfig, sets: Path, models: Path) -> ScreeningRecipe:
    return ScreeningRecipe(settings, sets, sets.parent / "cache", models, say=lambda _: None)


@pytest.fixture(scope="module")
def labelled_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "sets"
    for name in ("one", "other"):
        write(folder, name, labelled())
    return folder


def test_a_sample_of_the_classifier_shows_the_regions_of_its_class(labelled_sets):
    recipe = classifier(screening(manifests=["one"]), labelled_sets, shipped_weights())

    drawn = [recipe.sample(np.random.default_rng(seed)) for seed in SEEDS]

    for seed, (image, label) in enumerate(drawn):
        again, same = recipe.sample(np.random.default_rng(seed))
        assert image.shape == (2, 32, 32)
        assert label.shape == (1,)
        assert torch.equal(image, again)
        assert torch.equal(label, same)
        assert image[0].any()
        # Only the positive slices have regions, so the label tells how much of one is there.
        assert float(label) / 4 <= float(image[1].max()) <= float(label) + 1e-6
    assert {round(float(label)) for _, label in drawn} == {0, 1}


def test_the_regions_of_the_classifier_lie_in_the_lungs(labelled_sets):
    recipe = classifier(screening(manifests=["one"]), labelled_sets, shipped_weights())

    grey, regions = recipe.images[:, 0], recipe.images[:, 1]

    assert ((grey > 0) | (regions == 0)).all()
    assert ((recipe.regions > 0) == (regions > 0)).all()
    assert [bool(mask.any()) for mask in regions] == recipe.covid.tolist()


class Recorder:
    """An engine that keeps what it was asked."""

    description = "recorder"

    def __init__(self) -> None:
        self.asked: list[NDArray[np.float32]] = []

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.asked.extend(batch)
        return np.full((len(batch), 1), 0.5, dtype=np.float32)


def test_the_classifier_learns_from_what_an_evaluation_shows_it(labelled_sets, tmp_path):
    recipe = classifier(screening(manifests=["one"]), labelled_sets, shipped_weights())
    models = Models.open(shipped_weights(), EngineChoice.AUTO)
    bundle, recorder = models.screening.bundle, Recorder()
    small = dataclasses.replace(
        bundle, config=dataclasses.replace(bundle.config, preprocessing={"size": 32})
    )
    models = dataclasses.replace(models, screening=Model(small, (recorder,)))
    manifest = open_manifest(labelled_sets / "one.json")

    for which in manifest.cases:
        read(manifest.load(which), manifest.name, models)

    assert len(recorder.asked) == len(manifest.cases)
    kept = recipe.images[: len(manifest.cases)].astype(np.float32)
    np.testing.assert_allclose(np.stack(recorder.asked), kept, atol=1e-3)


def test_the_manifests_of_a_training_are_known_by_their_files(labelled_sets, tmp_path, models):
    for name in ("one", "other"):
        raw = json.loads((labelled_sets / f"{name}.json").read_text())
        raw |= {"name": "the same for both", "root": str(labelled_sets)}
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))

    recipe = classifier(screening(train=["other"]), tmp_path, models)

    assert recipe.train_cases == {0: 1, 1: 1}
    assert set(recipe.sets) == {"one", "other"}


def test_a_share_is_one_of_each_set_and_class(tmp_path, models):
    for name in ("one", "other"):
        write(tmp_path / "sets", name, labelled() + labelled())

    least = classifier(screening(share=0.01), tmp_path / "sets", models)

    assert least.train_cases == {0: 2, 1: 2}, "the first group of each"


def test_a_smaller_share_is_part_of_a_larger_one():
    groups = [f"paper {number % 10}" for number in range(30)]

    shares = [first_share(groups, share, seed=3) for share in (0.1, 0.16, 0.4, 0.7, 1.0)]

    assert [len({groups[row] for row in np.flatnonzero(rows)}) for rows in shares] == [
        1,
        2,
        4,
        7,
        10,
    ]
    assert all((less <= more).all() for less, more in pairwise(shares))


@pytest.mark.parametrize(
    ("data", "cases", "said"),
    [
        ({"train": ["ome"]}, labelled(), "'ome' has no slice labelled 'covid' to train on"),
        ({}, labelled(labels=["covid"]), "'one' has no slice labelled otherwise than 'covid' to t"),
        ({"positive": "covd"}, labelled(), "'one' has no slice labelled 'covd' to train on"),
        ({"share": 0.0}, labelled(), "has no slice labelled .* to train on"),
        (
            {},
            labelled(without=[("validation", "covid")]),
            "validation part has no slice labelled 'covid'",
        ),
        (
            {},
            labelled(without=[("test", "covid")]),
            "test part has no slice labelled 'covid'",
        ),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused_before_anything_is_prepared(
    tmp_path, data, cases, said
):
    for name in ("one", "other"):
        write(tmp_path / "sets", name, cases)

    with pytest.raises(PipelineError, match=said):
        classifier(screening(**data), tmp_path / "sets", tmp_path / "no models")


@pytest.mark.parametrize("name", ["all", "test", "validation", "threshold"])
def test_a_set_that_is_called_like_a_figure_is_refused(tmp_path, name):
    write(tmp_path / "sets", name, labelled())

    with pytest.raises(PipelineError, match=f"A figure of the report is called '{name}'"):
        classifier(screening(manifests=[name]), tmp_path / "sets", tmp_path / "no models")


def test_a_test_set_of_one_class_has_no_area_under_the_curve(tmp_path, models):
    write(tmp_path / "sets", "one", labelled(without=[("test", "covid")]))
    write(tmp_path / "sets", "other", labelled())
    recipe = classifier(screening(), tmp_path / "sets", models)

    figures = recipe.report(open_bundle(models / "screening").network())

    assert figures["one"]["auc"] is figures["one"]["sensitivity"] is None
    assert 0 <= figures["one"]["specificity"] <= 1
    assert 0 <= figures["other"]["auc"] <= 1
    assert figures["all"]["slices"] == figures["one"]["slices"] + figures["other"]["slices"]
    json.dumps(figures, allow_nan=False)


def test_prepared_slices_are_kept_in_the_cache_alone_and_made_once(tmp_path, models):
    for name in ("one", "other"):
        write(tmp_path / "sets", name, labelled())
    classifier(screening(), tmp_path / "sets", models)
    (kept,) = (tmp_path / "cache").iterdir()
    made = kept.stat().st_mtime_ns

    classifier(screening(), tmp_path / "sets", models)

    assert kept.stat().st_mtime_ns == made
    assert {p.name for p in tmp_path.iterdir()} == {"cache", "sets"}
