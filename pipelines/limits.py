"""What a value in a settings file may be, in words and as a test; no limit lets NaN through."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final


@dataclass(frozen=True)
class Limit:
    """What a value may be: `words` go on from "must be"."""

    words: str
    holds: Callable[[Any], bool]

    def refusal(self, key: str, value: object) -> str:
        """Return the sentence that refuses `value` as `key`."""
        return f"{key} must be {self.words}, not {value!r}."


def is_number(value: object) -> bool:
    """Return whether it is a finite number, and no flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Return whether it is a whole number above 0, and no flag."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_name(value: object) -> bool:
    """Return whether it is text of one line that cannot be taken for a path."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and value.isprintable()
        and not value.startswith(".")
        and not {"/", "\\"} & set(value)
    )


def _several(values: object, each: Callable[[Any], bool]) -> bool:
    return isinstance(values, list | tuple) and bool(values) and all(map(each, values))


NUMBER: Final = Limit("a number", is_number)
ABOVE_ZERO: Final = Limit("a number above 0", lambda v: is_number(v) and v > 0)
FROM_ZERO: Final = Limit("a number from 0", lambda v: is_number(v) and v >= 0)
TO_ONE: Final = Limit("a number from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1)
BELOW_ONE: Final = Limit("a number from 0 to below 1", lambda v: is_number(v) and 0 <= v < 1)
COUNT: Final = Limit("a whole number above 0", is_count)
COUNTS: Final = Limit("a list of whole numbers above 0", lambda v: _several(v, is_count))
WHOLE: Final = Limit(
    "a whole number from 0 to 4294967295",
    lambda v: v in range(2**32) and isinstance(v, int) and not isinstance(v, bool),
)
FLAG: Final = Limit("true or false", lambda v: isinstance(v, bool))
NAME: Final = Limit("text of one line, without slashes and no dot before it", is_name)
NAMES: Final = Limit(
    "a list of different names", lambda v: _several(v, is_name) and len(set(v)) == len(v)
)
SPACING: Final = Limit(
    "three numbers above 0", lambda v: _several(v, ABOVE_ZERO.holds) and len(v) == 3
)
RANGE: Final = Limit(
    "two numbers, the lower one first",
    lambda v: _several(v, is_number) and len(v) == 2 and all(a < b for a, b in pairwise(v)),
)
TABLE: Final = Limit("a table", lambda v: isinstance(v, dict))
