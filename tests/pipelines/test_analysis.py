"""The automatic run over whole inputs: which series it ends up with, and what it says of it."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import Dataset
from pydicom.uid import JPEGLosslessSV1
from SimpleITK import ProcessObject

from pipelines import series
from pipelines.analysis import CUT_OFF, NO_LESION, PART_ONLY, Models, analyse, analyse_study
from pipelines.engines.choice import EngineChoice
from pipelines.errors import NoUsableSeriesError, Rule
from pipelines.findings import Flaw
from pipelines.inference import Model
from pipelines.series import candidates, load_input
from pipelines.volume import CTVolume
from pipelines.weights import open_bundle, shipped_weights
from tests.support.ct_series import compressed, renamed, slices, write
from tests.support.phantom import small_chest
from tests.support.tiny_models import write_models


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """The shipped lung net, which knows lungs; the other two only have to run."""
    tiny = Models.open(write_models(tmp_path / "weights"), EngineChoice.TORCH)
    lungs = Model.open(open_bundle(shipped_weights() / "lungs"), EngineChoice.TORCH)
    return Models(lungs, tiny.lesions, tiny.screening)


@pytest.fixture
def threads() -> Iterator[None]:
    """Give PyTorch and SimpleITK their threads back."""
    torch_had, sitk_had = torch.get_num_threads(), ProcessObject.GetGlobalDefaultNumberOfThreads()
    yield
    torch.set_num_threads(torch_had)
    ProcessObject.SetGlobalDefaultNumberOfThreads(sitk_had)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("choice", [EngineChoice.TORCH, EngineChoice.OPENVINO])
def test_the_threads_bind_all_that_computes(tmp_path: Path, choice: EngineChoice):
    torch.set_num_threads(2)
    weights = write_models(tmp_path)

    Models.open(weights, choice, threads=1)

    assert torch.get_num_threads() == 1
    assert ProcessObject.GetGlobalDefaultNumberOfThreads() == 1


def water(number: int) -> list[Dataset]:
    """A series that passes every rule and shows no lungs."""
    made = renamed(slices(20), SeriesNumber=number)
    for ds in made:
        ds.PixelData = np.full((ds.Rows, ds.Columns), 1024, "<u2").tobytes()
    return made


def test_the_next_series_is_analysed_when_the_best_shows_no_lungs(models: Models, tmp_path: Path):
    chest = slices(40)
    source = tmp_path / "study"
    write([*water(0), *chest], source)

    volume, found = analyse_study(candidates(source), models)

    assert load_input(source)[0].series_uid != chest[0].SeriesInstanceUID, "the water is preferred"
    assert volume.series_uid == found.series_uid == chest[0].SeriesInstanceUID
    assert [refusal.rule for refusal in found.refused_series] == [Rule.NOT_CHEST]
    assert found.lungs.total_ml > 0
    (warning,) = (text for text in found.warnings if "instead" in text)
    assert warning.startswith("Series 0")
    assert "ml of lung" in warning
    assert warning.endswith(f"{volume.name} is analysed instead.")


def test_only_one_volume_is_in_memory(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "study"
    write([*water(0), *water(1), *slices(40)], source)
    load = series.load_series
    loaded: list[weakref.ref] = []
    before: list[bool] = []

    def watched(*args: Any, **kwargs: Any) -> CTVolume:
        before.append(any(volume() is not None for volume in loaded))
        volume = load(*args, **kwargs)
        loaded.append(weakref.ref(volume.hu))
        return volume

    monkeypatch.setattr(series, "load_series", watched)

    analyse_study(candidates(source), models)

    assert before == [False] * 3


def test_a_chest_that_does_not_decode_is_named_when_nothing_else_shows_lungs(
    models: Models, tmp_path: Path
):
    broken = renamed(compressed(slices(40), JPEGLosslessSV1), SeriesNumber=7)
    broken[5].PixelData = broken[5].PixelData[:-2000]
    source = tmp_path / "study"
    write([*water(0), *broken], source)

    with pytest.raises(NoUsableSeriesError) as error:
        analyse_study(candidates(source), models)

    assert [refusal.rule for refusal in error.value.refusals] == [Rule.NOT_CHEST, Rule.UNDECODABLE]
    assert "Series 7" in str(error.value)


def test_an_acquisition_without_lungs_hides_neither_the_other_nor_its_fault(
    models: Models, tmp_path: Path
):
    chest = compressed(slices(40), JPEGLosslessSV1)
    blank = water(0)
    for number, made in ((1, blank), (2, chest)):
        for ds in made:
            ds.SeriesInstanceUID = chest[0].SeriesInstanceUID
            ds.SeriesNumber = 1
            ds.AcquisitionNumber = number
    write([*blank, *chest], tmp_path / "whole")
    chest[5].PixelData = chest[5].PixelData[:-2000]
    write([*blank, *chest], tmp_path / "broken")

    _, found = analyse_study(candidates(tmp_path / "whole"), models)
    with pytest.raises(NoUsableSeriesError) as error:
        analyse_study(candidates(tmp_path / "broken"), models)

    assert found.refused_series == ()
    assert any("instead" in warning for warning in found.warnings)
    assert [refusal.rule for refusal in error.value.refusals] == [Rule.NOT_CHEST, Rule.UNDECODABLE]


def test_a_study_without_lungs_is_refused_for_every_series(models: Models, tmp_path: Path):
    source = tmp_path / "study"
    write([*water(0), *water(1)], source)

    with pytest.raises(NoUsableSeriesError) as error:
        analyse_study(candidates(source), models)

    assert [refusal.rule for refusal in error.value.refusals] == [Rule.NOT_CHEST] * 2


def decided(model: Model, **decision: float) -> Model:
    config = replace(model.bundle.config, decision={**model.bundle.config.decision, **decision})
    return replace(model, bundle=replace(model.bundle, config=config))


def test_a_verdict_on_a_part_or_without_a_lesion_has_its_caveat(models: Models):
    models = replace(
        models,
        lesions=decided(models.lesions, threshold=1.0, peak=1.0),
        screening=decided(models.screening, threshold=0.0),
    )
    chest = small_chest().volume
    part = replace(chest, hu=chest.hu[30:60], sop_instance_uids=(), instance_numbers=())

    whole, cut = analyse(chest, models), analyse(part, models)

    assert (whole.positive, whole.lesions) == (True, ())
    assert NO_LESION in whole.warnings
    assert PART_ONLY not in whole.warnings
    assert {CUT_OFF, PART_ONLY, NO_LESION} <= set(cut.warnings)
    sure = replace(models, screening=decided(models.screening, threshold=1.0))
    assert NO_LESION not in analyse(chest, sure).warnings


def test_a_flaw_of_the_scan_is_among_the_warnings(models: Models):
    clean = small_chest().volume
    noise = np.random.default_rng(3).normal(0, 70, clean.shape)
    noisy = replace(clean, hu=(clean.hu + noise).astype(np.int16), warnings=("From the loader.",))

    found = analyse(noisy, models)

    assert found.quality is not None
    assert found.quality.flaws == (Flaw.NOISE,)
    assert found.warnings[0] == "From the loader."
    assert [warning for warning in found.warnings if warning.startswith("Noise")]
    assert set(found.timings_s) == {"lungs", "lesions", "screening"}
