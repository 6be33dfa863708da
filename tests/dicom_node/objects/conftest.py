"""Studies with their true results, and the objects made of them; nothing here is written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from dicom_node.objects.build import build_objects, trace, write_objects
from dicom_node.objects.provenance import Equipment
from pipelines.findings import Analysis
from pipelines.series import load_input
from tests.support import ct_series
from tests.support.phantom import small_chest
from tests.support.results import analysis_of_chest

ANALYSED_AT = datetime(2026, 11, 22, 10, 20, 30, tzinfo=UTC)
EQUIPMENT = Equipment("box 1", "0.1.0")


@dataclass(frozen=True)
class Study:
    """The files of a study and what was found in it."""

    paths: tuple[Path, ...]
    analysis: Analysis

    @classmethod
    def of(cls, series: Sequence[Dataset], folder: Path, *, with_lesions: bool = True) -> Study:
        """A series of the synthetic chest, in files whose order tells nothing."""
        paths = ct_series.write(series, folder)
        volume, _ = load_input(folder)
        return cls(
            tuple(paths), analysis_of_chest(volume, small_chest(), with_lesions=with_lesions)
        )

    def objects(self, **changes: Any) -> tuple[Dataset, ...]:
        """Its objects: SEG, SR, key images, PDF."""
        arguments = {"analysed_at": ANALYSED_AT, "equipment": EQUIPMENT} | changes
        provenance = trace(
            arguments.pop("analysis", self.analysis),
            arguments.pop("paths", self.paths),
            **arguments,
        )
        return build_objects(provenance)

    def write(self, folder: Path, **changes: Any) -> list[Path]:
        """Its objects as files."""
        return write_objects(self.objects(**changes), folder)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The whole synthetic chest."""
    return Study.of(ct_series.slices(), tmp_path_factory.mktemp("chest"))


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study in which no lesion was found."""
    folder = tmp_path_factory.mktemp("healthy")
    return Study.of(ct_series.slices(24), folder, with_lesions=False)


@pytest.fixture(scope="session")
def objects(study: Study) -> tuple[Dataset, ...]:
    """The machine's objects of the synthetic chest."""
    return study.objects()


@pytest.fixture(scope="session")
def files(study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same as files."""
    return study.write(tmp_path_factory.mktemp("objects"))
