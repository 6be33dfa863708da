import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, for what writes the same files hundreds of times and is only killed."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def keys_that_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stretching of passphrases costs a third of a second each time, which is its purpose."""
    monkeypatch.setattr("updater.vendor.keys.SCRYPT_COST", 2)
