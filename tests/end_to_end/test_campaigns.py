"""A small share of the fuzz and soak campaigns, with every run of the tests."""

from pathlib import Path

from tests.end_to_end import fuzz, soak
from tests.support.listeners import listener_process


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
