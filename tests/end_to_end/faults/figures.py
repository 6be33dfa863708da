"""What the campaign does, and how often: the figures of its table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tests.end_to_end.faults import broker, delivery, disk, reception, workers
from tests.end_to_end.faults.box import Box, Row


@dataclass(frozen=True)
class Figure:
    """One line of the table to be.

    `count` is how often a whole campaign does it, `share` how often the tests do.
    """

    name: str
    what: str
    count: int
    share: int
    do: Callable[[Box, Row], None]


FIGURES: Final[Mapping[str, Figure]] = MappingProxyType(
    {
        figure.name: figure
        for figure in (
            Figure("F1", "listener killed at a random byte", 500, 4, reception.kill_the_listener),
            Figure(
                "F2", "worker killed in each step, of a delivery too", 200, 2, workers.kill_workers
            ),
            Figure("F3", "broker breaks", 100, 4, broker.break_the_broker),
            Figure("F4", "study kills its worker", 10, 1, workers.kill_whoever_takes_one),
            Figure("F5", "messages delivered again", 20, 1, workers.deliver_messages_again),
            Figure("F8", "study arrives by a random schedule", 100, 2, reception.arrive_at_random),
            Figure("F9", "study sent ten times", 10, 1, reception.send_ten_times),
            Figure("F10", "disk full", 60, 3, disk.fill_the_disk),
            Figure("F11", "PACS fails while results go back", 100, 3, delivery.break_the_pacs),
        )
    }
)
