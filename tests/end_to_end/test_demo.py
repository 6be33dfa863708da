"""`appliance demo` as a stranger types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ct_series import slices, write

pytestmark = pytest.mark.timeout(900)


def demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance.cli", "demo", "--once", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "APPLIANCE_SETTINGS"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    last = done.stdout.strip().splitlines()[-1]
    return dict(json.loads(last.removeprefix("RESULT ")))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return demo("--data-dir", tmp_path_factory.mktemp("demo"))


def test_the_demo_ends_ready_with_the_lesions_of_its_chest(shown):
    assert shown.returncode == 0, shown.stdout + shown.stderr
    result = result_of(shown)

    assert result["state"] == "READY"
    assert result["lesions"] > 0
    assert result["lesion_volume_ml"] > 10
    assert 0 <= result["probability"] <= 1
    assert result["positive"] in (True, False)
    assert {"reading", "lungs", "lesions", "screening", "saving"} <= set(result["seconds"])
    assert result["viewer_url"].startswith("http://127.0.0.1:")


def test_the_demo_says_how_to_sign_in(shown):
    assert "password" in shown.stdout
    assert "not for primary diagnosis" in shown.stdout


def test_a_study_that_cannot_be_analysed_ends_the_demo_with_the_reason(tmp_path: Path):
    write(slices(5), tmp_path / "study")

    done = demo("--data-dir", tmp_path / "data", "--study", tmp_path / "study")

    assert done.returncode != 0
    result = result_of(done)
    assert result["state"] == "REJECTED"
    assert "slices" in str(result["reason"])
