"""Independent readers and checkers of DICOM objects; a test that needs a missing one skips."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

PIXELMED = Path("/usr/share/java/pixelmed.jar")
# The JDK's limits on XPath stop the rules of the templates (JAXP0801003).
needs_pixelmed = pytest.mark.skipif(
    not PIXELMED.is_file(), reason=f"PixelMed is not installed at {PIXELMED}"
)
NO_LIMITS = tuple(f"-Djdk.xml.xpath{limit}Limit=0" for limit in ("TotalOp", "ExprOp", "ExprGrp"))


def dciodvfy_errors(path: Path) -> list[str]:
    """What dicom3tools calls an error in an object."""
    return [line for line in _run("dciodvfy", "-new", path).splitlines() if "Error" in line]


def dcentvfy_errors(paths: Sequence[Path]) -> list[str]:
    """What dicom3tools calls an inconsistency among objects."""
    return [line for line in _run("dcentvfy", *paths).splitlines() if "Error" in line]


def pixelmed_errors(path: Path) -> list[str]:
    """What PixelMed's validator of structured reports calls an error, templates included."""
    validator = ("com.pixelmed.validate.DicomSRValidator", "-checktemplateid", path)
    told = _run("java", *NO_LIMITS, "-cp", PIXELMED, *validator)
    assert "Root Template" in told, told
    return [line for line in told.splitlines() if line.startswith("Error")]


def dsrdump_problems(path: Path) -> list[str]:
    """What DCMTK calls an error in a structured report, its relationships included."""
    told = _run("dsrdump", path)
    assert "Verification Flag" in told, told
    return [line for line in told.splitlines() if line.startswith(("E:", "F:"))]


def dcmqi_segments(path: Path, folder: Path) -> dict[int, tuple[dict[str, Any], nib.Nifti1Image]]:
    """What dcmqi reads in a Segmentation: by segment number its description and its image."""
    folder.mkdir()
    told = _run(
        _dcmqi("segimage2itkimage"), "--inputDICOM", path, "--outputDirectory", folder,
        "-t", "nifti", "--prefix", "mask",
    )  # fmt: skip
    assert (folder / "mask-meta.json").is_file(), told
    groups = json.loads((folder / "mask-meta.json").read_text())["segmentAttributes"]
    read = {}
    for group, segments in enumerate(groups, start=1):
        (described,) = segments  # overlapping segments have an image each
        image = nib.Nifti1Image.from_filename(folder / f"mask-{group}.nii.gz")
        read[int(described["labelID"])] = (described, image)
    return read


def on_grid(
    image: nib.Nifti1Image, affine: npt.NDArray[np.float64], shape: tuple[int, int, int]
) -> npt.NDArray[np.bool_]:
    """An image of ones and zeros on the canonical grid (z, y, x); voxels must fall on voxels."""
    voxels = np.argwhere(np.asarray(image.dataobj) > 0)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(image.affine)
    places = np.linalg.inv(affine) @ lps @ np.c_[voxels, np.ones(len(voxels))].T
    indices = np.rint(places[:3]).astype(int)
    np.testing.assert_allclose(places[:3], indices, atol=0.02)
    mask = np.zeros(shape, bool)
    mask[indices[2], indices[1], indices[0]] = True
    return mask


def dcmqi_report(path: Path, folder: Path) -> dict[str, Any]:
    """What dcmqi reads in a report on TID 1500."""
    target = folder / "report.json"
    told = _run(_dcmqi("tid1500reader"), "--inputDICOM", path, "--outputMetadata", target)
    assert target.is_file(), told
    return dict(json.loads(target.read_text()))


def _dcmqi(tool: str) -> str:
    return str(Path(sys.executable).parent / tool)


def _run(tool: str, *arguments: object) -> str:
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"{Path(tool).name} is not installed")
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr
