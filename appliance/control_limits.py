"""Limits beyond which a rate or a mean is no longer chance; arithmetic alone.

For rates Wilson's score interval (Wilson 1927, J Am Stat Assoc 22:209), which keeps its coverage
for small counts and rates near 0 or 1 (Brown, Cai, DasGupta 2001, Stat Sci 16:101). For means
Shewhart's limits, three standard errors (Montgomery, Introduction to Statistical Quality Control).
Three standard deviations instead of two, because many groups are looked at every week: by chance
one look in 370 warns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SIGMAS: Final = 3.0
LEAST_CASES: Final = 20
"""Fewer cases than these are shown, but no reason to warn."""


@dataclass(frozen=True)
class Rate:
    """How many of how many."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; 0 of nothing."""
        return self.count / self.of if self.of else 0.0

    def interval(self, sigmas: float = SIGMAS) -> tuple[float, float]:
        """Wilson's interval; all of [0, 1] for nothing."""
        if not self.of:
            return 0.0, 1.0
        n, p, z = self.of, self.value, sigmas
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def rates_differ(recent: Rate, earlier: Rate) -> int:
    """-1 or 1 where the recent rate is lower or higher than the earlier by more than chance, or 0.

    Newcombe's interval of the difference of two rates, from Wilson's of each (Newcombe 1998, Stat
    Med 17:873, method 10), so that a short past is not taken for the truth.
    """
    if min(recent.of, earlier.of) < LEAST_CASES:
        return 0
    (low, high), (low_0, high_0) = recent.interval(), earlier.interval()
    p, p_0 = recent.value, earlier.value
    difference = p - p_0
    if difference - math.hypot(p - low, high_0 - p_0) > 0:
        return 1
    if difference + math.hypot(high - p, p_0 - low_0) < 0:
        return -1
    return 0


@dataclass(frozen=True)
class Mean:
    """A mean, the standard deviation of the single values, and how many there are."""

    value: float
    deviation: float
    of: int

    @classmethod
    def of_values(cls, values: Sequence[float]) -> "Mean | None":
        """Of these; None of nothing."""
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        return cls(mean, math.sqrt(squares / max(1, len(values) - 1)), len(values))


def means_differ(recent: Mean | None, earlier: Mean | None) -> int:
    """-1 or 1 where the recent mean is lower or higher than the earlier by more than chance, or 0.

    The standard error is Welch's, of both means.
    """
    if recent is None or earlier is None or min(recent.of, earlier.of) < LEAST_CASES:
        return 0
    error = math.hypot(
        recent.deviation / math.sqrt(recent.of), earlier.deviation / math.sqrt(earlier.of)
    )
    difference = recent.value - earlier.value
    if abs(difference) <= SIGMAS * error:
        return 0
    return 1 if difference > 0 else -1
