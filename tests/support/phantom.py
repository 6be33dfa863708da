"""The synthetic chest the tests share: made once, never written to."""

from __future__ import annotations

from functools import cache

from pipelines import phantom
from pipelines.phantom import Phantom


@cache
def small_chest() -> Phantom:
    """A coarse chest with its default lesions: 96 slices of 128 x 128."""
    made = phantom.small_chest()
    for array in (made.volume.hu, made.lungs, made.lesions):
        array.setflags(write=False)
    return made
