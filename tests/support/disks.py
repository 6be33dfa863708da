"""A small disk of its own for a program: a tmpfs that only the program sees."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

NAMESPACE: Final = ("--user", "--map-root-user", "--mount")
MOUNTED: Final = 'mount -t tmpfs -o "size=$1,mode=700" tmpfs "$2" && shift 2 && exec "$@"'


def on_small_disk(
    folder: Path, size_bytes: int, *command: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command to which the folder is a disk of this size; skips where that cannot be."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("util-linux's unshare is not installed: no small disk")
    alone = [unshare, *NAMESPACE]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not permitted here: no small disk")
    return subprocess.run(
        [*alone, "sh", "-c", MOUNTED, "sh", str(size_bytes), str(folder), *command],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
