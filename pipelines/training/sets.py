"""The stacks a recipe trains on, by what is known of them, and the files made from them."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.manifest import Domain, Manifest, Part, Stack, open_manifest
from pipelines.preprocessing import window

SOURCES: Final = tuple(
    f"{kind} {extent}" for kind in ("display", "hu", "lung") for extent in ("volumes", "slices")
)


def open_sets(data: Mapping[str, Any], folder: Path) -> list[Manifest]:
    """Return the manifests that a training names, `folder/NAME.json` each.

    `data.fold` = { number, count, seed } makes another part of the groups the validation.

    Raises:
        PipelineError: one is missing or broken.
    """
    names = [str(name) for name in data["manifests"]]
    missing = [name for name in names if not (folder / f"{name}.json").exists()]
    if missing:
        raise PipelineError(
            f"{folder} holds no {', '.join(f'{name}.json' for name in missing)}. "
            "`appliance prepare` writes the manifests of the public sets."
        )
    sets = [open_manifest(folder / f"{name}.json") for name in names]
    return [manifest.fold(**data["fold"]) for manifest in sets] if "fold" in data else sets


def load_part(sets: Iterable[Manifest], part: Part) -> list[Stack]:
    """Return the stacks of one part, in the order of the manifests."""
    return [manifest.load(case) for manifest in sets for case in manifest.of(part)]


def require(found: Sequence[Stack], what: str, part: Part) -> None:
    """Refuse to train what nothing could be measured on.

    Raises:
        PipelineError: there is nothing in this part.
    """
    if not found:
        raise PipelineError(
            f"The sets have no {what} in the {part} part: give it some in a manifest."
        )


class Mixture:
    """Picks stacks: the source by its share, within it a stack by the root of its slices."""

    def __init__(self, stacks: Iterable[Stack], shares: Mapping[str, float]) -> None:
        """Take the sources that `stacks` have, each of which needs a share; 0 leaves it out.

        Raises:
            PipelineError: a share is of no kind of source or is none, a source has no share, or
                nothing is left.
        """
        _check_shares(shares)
        sources = by_source(stacks)
        unshared = {name: len(found) for name, found in sources.items() if name not in shares}
        if unshared:
            raise PipelineError(
                f"data.shares does not name what the sets have: {_counted(unshared)}. Give each a "
                "share; 0 leaves it out."
            )
        names = sorted(name for name in sources if shares[name] > 0)
        if not names:
            shared = [name for name, share in shares.items() if share > 0]
            raise PipelineError(
                f"Nothing to learn from: data.shares gives one to {', '.join(shared) or 'none'}; "
                f"the sets have {', '.join(sources) or 'none'}."
            )
        self.counts = {name: len(sources[name]) for name in names}
        self._sources = [sources[name] for name in names]
        self._shares = _normed([float(shares[name]) for name in names])
        self._within = [_normed([len(s.image) ** 0.5 for s in found]) for found in self._sources]

    def pick(self, rng: np.random.Generator) -> Stack:
        """Return a random stack."""
        source = int(rng.choice(len(self._sources), p=self._shares))
        stacks = self._sources[source]
        return stacks[int(rng.choice(len(stacks), p=self._within[source]))]


def told(mixture: Mixture, there: Mapping[Part, int], used: Mapping[Part, int]) -> str:
    """Return what a training learns from and is measured on, of the stacks that are there."""
    parts = ", ".join(f"{used[part]} of {there[part]} stacks for {part}" for part in Part)
    return (
        f"Learning from {_counted(mixture.counts)}. Used are {parts}; what is not lacks a mask "
        "that is needed, is a single slice to validate on, or has the share 0."
    )


def _counted(sources: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sources.items())


def _check_shares(shares: Mapping[str, Any]) -> None:
    for name, share in shares.items():
        if name not in SOURCES:
            near = difflib.get_close_matches(name, SOURCES, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f", but {', '.join(SOURCES)}."
            raise PipelineError(f"data.shares names '{name}', which is no kind of source{hint}")
        if not (isinstance(share, int | float) and 0 <= share < math.inf):
            raise PipelineError(f"The share of '{name}' in data.shares is a number from 0.")


def _normed(weights: list[float]) -> NDArray[np.float64]:
    array = np.array(weights)
    out: NDArray[np.float64] = array / array.sum()
    return out


def by_source(stacks: Iterable[Stack]) -> dict[str, list[Stack]]:
    """Return the stacks by how a segmentation can learn from them.

    `display volumes` and `display slices` are 8-bit stacks and single slices, `hu volumes` and
    `hu slices` HU with lesion masks, `lung volumes` and `lung slices` HU with lungs and no lesion
    mask, into which lesions can be put. HU without either mask teaches nothing and is left out.
    """
    found: dict[str, list[Stack]] = {}
    for stack in stacks:
        extent = "slices" if len(stack.image) == 1 else "volumes"
        if stack.case.domain is Domain.DISPLAY:
            found.setdefault(f"display {extent}", []).append(stack)
        elif stack.lesion is not None:
            found.setdefault(f"hu {extent}", []).append(stack)
        elif stack.lung is not None:
            found.setdefault(f"lung {extent}", []).append(stack)
    return found


def in_grey(
    image: NDArray[np.generic], domain: Domain, window_hu: tuple[float, float]
) -> NDArray[np.float32]:
    """Return slices (z, y, x) in [0, 1]: HU through the window, 8 bits as they are."""
    if domain is Domain.DISPLAY:
        return image.astype(np.float32) / np.float32(255)
    return window(image, window_hu)
