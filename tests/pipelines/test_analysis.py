"""The automatic run over whole inputs: which series it ends up with."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from pipelines.analysis import Models, analyse_study
from pipelines.engines.choice import EngineChoice
from pipelines.errors import NoUsableSeriesError, Rule
from pipelines.inference import Model
from pipelines.series import candidates, load_input
from pipelines.weights import open_bundle, shipped_weights
from tests.support.ct_series import renamed, slices, write
from tests.support.tiny_models import write_models


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """The shipped lung net, which knows lungs; the other two only have to run."""
    tiny = Models.open(write_models(tmp_path / "weights"), EngineChoice.TORCH)
    lungs = Model.open(open_bundle(shipped_weights() / "lungs"), EngineChoice.TORCH)
    return Models(lungs, tiny.lesions, tiny.screening)


def water(number: int) -> list[Dataset]:
    """A series that passes every rule and shows no lungs."""
    series = renamed(slices(20), SeriesNumber=number)
    for ds in series:
        ds.PixelData = np.full((ds.Rows, ds.Columns), 1024, "<u2").tobytes()
    return series


def test_the_next_series_is_analysed_when_the_best_shows_no_lungs(models: Models, tmp_path: Path):
    chest = slices(40)
    source = tmp_path / "study"
    write([*water(0), *chest], source)

    volume, found = analyse_study(candidates(source), models)

    assert load_input(source)[0].series_uid != chest[0].SeriesInstanceUID, "the water is preferred"
    assert volume.series_uid == found.series_uid == chest[0].SeriesInstanceUID
    assert [refusal.rule for refusal in found.refused_series] == [Rule.NOT_CHEST]
    assert found.lungs.total_ml > 0


def test_a_study_without_lungs_is_refused_for_every_series(models: Models, tmp_path: Path):
    source = tmp_path / "study"
    write([*water(0), *water(1)], source)

    with pytest.raises(NoUsableSeriesError) as error:
        analyse_study(candidates(source), models)

    assert [refusal.rule for refusal in error.value.refusals] == [Rule.NOT_CHEST] * 2
