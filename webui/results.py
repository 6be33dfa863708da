"""The files of an analysis that a browser reads; `pipelines.presentation` describes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

VIEWER_FOLDER: Final = "viewer"
VIEWER_FILE: Final = "viewer.json"
SCHEMA: Final = 1
KEPT_IN_MEMORY: Final = 32


@dataclass(frozen=True, eq=False)
class Result:
    """One analysis on disk.

    Attributes:
        folder: Where its files lie.
        facts: What ``viewer.json`` holds.
        files: The files a browser may ask for: a name that is not a key here is not looked for.
    """

    folder: Path
    facts: Mapping[str, Any]
    files: Mapping[str, Path]


@lru_cache(maxsize=KEPT_IN_MEMORY)
def open_result(folder: Path) -> Result:
    """The result in an analysis folder, which never changes once it is there.

    Raises:
        OSError: ``viewer.json`` is missing.
        ValueError: it was written by another release.
    """
    viewer = folder / VIEWER_FOLDER
    facts = json.loads((viewer / VIEWER_FILE).read_text(encoding="utf-8"))
    if facts["schema"] != SCHEMA:
        raise ValueError(f"{VIEWER_FILE} has schema {facts['schema']}, not {SCHEMA}")
    pieces = [*facts["slabs"], *facts["key_slabs"], *(row["mask"] for row in facts["lesions"])]
    pieces += lungs_of(facts)
    pieces += [row["map"] for row in facts.get("heat_maps", ()) if row["map"] is not None]
    return Result(viewer, facts, {piece["file"]: viewer / piece["file"] for piece in pieces})


def lungs_of(facts: Mapping[str, Any]) -> list[Any]:
    """The pieces with the masks of the lungs that were found, right before left."""
    return [piece for side in ("right", "left") if (piece := facts["lungs"][side]) is not None]
