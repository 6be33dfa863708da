"""The three commands of tuf-conformance, as a program of its own against a real server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from tests.support.mirror import Mirror, mirror
from tests.support.vendor import Vendor, new_vendor

ROOT = Path(__file__).parents[2]
TARGET = "models/lungs-1.0.0.tar"


@dataclass(frozen=True)
class Suite:
    """As tuf-conformance calls a client."""

    vendor: Vendor
    served: Mirror
    folder: Path

    def init(self) -> int:
        trusted = self.vendor.served / "metadata" / "1.root.json"
        return self._run("init", str(trusted))

    def refresh(self) -> int:
        return self._run("--metadata-url", f"{self.served.url}/metadata/", "refresh")

    def download(self, target: str) -> int:
        return self._run(
            *("--metadata-url", f"{self.served.url}/metadata", "--target-name", target),
            *("--target-base-url", f"{self.served.url}/targets"),
            *("--target-dir", str(self.folder / "targets"), "download"),
        )

    def trusted(self) -> dict[str, int]:
        """The metadata it considers valid, and their versions."""
        paths = (self.folder / "metadata").glob("*.json")
        return {path.stem: Metadata.from_file(str(path)).signed.version for path in paths}

    def downloaded(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.folder / "targets").glob("[!.]*")]

    def _run(self, *arguments: str) -> int:
        command = [sys.executable, "-m", "tests.updater.tuf_client"]
        metadata_dir = ("--metadata-dir", str(self.folder / "metadata"))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        return subprocess.run(
            [*command, *metadata_dir, *arguments], cwd=ROOT, env=environment, check=False
        ).returncode


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    vendor = new_vendor(tmp_path / "vendor")
    vendor.publish("1.0.0")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "targets").mkdir()
    with mirror(vendor.served) as served:
        yield Suite(vendor, served, tmp_path)


def test_init_trusts_the_root_that_it_is_given_and_asks_nobody(suite: Suite):
    assert suite.init() == 0

    assert suite.trusted() == {"root": 1}
    assert suite.served.requests == []


def test_refresh_brings_the_top_level_metadata_up_to_date(suite: Suite):
    suite.init()
    suite.vendor.repository.rotate("root")

    assert suite.refresh() == 0

    assert suite.trusted() == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 1}
    asked = [path.removeprefix("/metadata/") for path, _ in suite.served.requests]
    expected = "2.root.json 3.root.json timestamp.json 2.snapshot.json 1.targets.json"
    assert asked == expected.split()


def test_download_gets_a_target_once(suite: Suite):
    suite.init()

    assert suite.download(TARGET) == 0
    (content,) = suite.downloaded()
    suite.served.requests.clear()
    assert suite.download(TARGET) == 0

    (path,) = (suite.vendor.served / "targets" / "models").glob("*.tar")
    assert content == path.read_bytes()
    assert not [path for path, _ in suite.served.requests if "/targets/" in path]


def test_what_is_refused_ends_with_exit_status_1_and_changes_nothing(suite: Suite):
    suite.init()
    suite.refresh()
    before = suite.trusted()
    (path,) = (suite.vendor.served / "targets" / "models").glob("*.tar")
    path.write_bytes(bytes(path.stat().st_size))
    (suite.vendor.served / "metadata" / "timestamp.json").write_text("{}")

    assert suite.refresh() == 1
    assert suite.download(TARGET) == 1
    assert suite.download("models/no-such.tar") == 1

    assert suite.trusted() == before
    assert suite.downloaded() == []
