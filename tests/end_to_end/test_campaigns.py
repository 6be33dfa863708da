"""A small share of the fault, fuzz and soak campaigns, with every run of the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end import fuzz, soak
from tests.end_to_end.faults import box as boxes
from tests.end_to_end.faults.__main__ import carry_out
from tests.end_to_end.faults.box import Box
from tests.end_to_end.faults.figures import FIGURES, Figure
from tests.support.listeners import listener_process


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """One appliance for all figures."""
    with boxes.running(tmp_path_factory.mktemp("box")) as box:
        yield box


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_faults_cost_time_and_nothing_else(box: Box, figure: Figure):
    row = carry_out(box, figure, figure.share, seed=1)

    assert row.faults == []
    assert row.left <= 0


def test_damaged_objects_and_streams_harm_nobody(tmp_path: Path):
    campaign = fuzz.Campaign(seed=1)

    with listener_process(tmp_path, network_timeout_s=10, max_connections_per_s=1000) as listener:
        fuzz.run(listener, campaign, range(60), range(30))

    assert campaign.faults == []
    assert campaign.outcomes.total() == 90


def test_associations_leave_nothing_behind(tmp_path: Path):
    with listener_process(tmp_path, max_connections_per_s=1000) as listener:
        samples, kinds = soak.run(listener, 100, seed=1)

    figures = soak.drifts(samples)
    assert kinds.total() == 100
    assert figures["threads"][2]
    assert figures["descriptors"][2]
