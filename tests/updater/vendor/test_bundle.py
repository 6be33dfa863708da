import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from pipelines.weights import open_bundle
from tests.support.vendor import weights
from updater.vendor.bundle import build
from updater.vendor.errors import VendorError

SHIPPED = Path(__file__).parents[3] / "weights"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path):
    one, other = weights(tmp_path / "one", "1.0.0"), weights(tmp_path / "other", "1.0.0")
    for path in other.iterdir():
        path.chmod(0o600)
        os.utime(path, (1, 1))
    (other / "training.toml").write_text("no part of it")

    assert build(one, "0.1.0") == build(other, "0.1.0")
    assert build(one, "0.1.0") != build(one, "0.2.0")


def test_a_bundle_holds_the_model_its_card_its_requirement_and_all_their_checksums(tmp_path: Path):
    made = build(weights(tmp_path, "1.2.3", content=b"tensors"), "0.1.0")

    with tarfile.open(fileobj=io.BytesIO(made.content)) as archive:
        files = {name: archive.extractfile(name).read() for name in archive.getnames()}
    assert (made.purpose, made.version, made.minimum_software) == ("lungs", "1.2.3", "0.1.0")
    assert files["weights.safetensors"] == b"tensors"
    assert json.loads(files["bundle.json"]) == {"minimum_software": "0.1.0"}
    sums = dict(line.split("  ")[::-1] for line in files.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert set(files) == {"bundle.json", "config.json", "model_card.md", "weights.safetensors"}


@pytest.mark.parametrize("purpose", ["lungs", "lesions", "screening"])
def test_the_shipped_models_can_be_published_and_opened_again(tmp_path: Path, purpose: str):
    made = build(SHIPPED / purpose, "0.1.0")

    with tarfile.open(fileobj=io.BytesIO(made.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    assert open_bundle(tmp_path).reference == open_bundle(SHIPPED / purpose).reference


def test_weights_that_are_not_those_that_were_measured_are_refused(tmp_path: Path):
    folder = weights(tmp_path, "1.0.0")
    (folder / "weights.safetensors").write_bytes(b"other")

    with pytest.raises(VendorError, match=r"weights\.safetensors is not what"):
        build(folder, "0.1.0")


def test_checksums_that_leave_the_weights_out_are_refused(tmp_path: Path):
    folder = weights(tmp_path, "1.0.0")
    (folder / "SHA256SUMS").write_text("")

    with pytest.raises(VendorError, match=r"does not list config\.json, weights\.safetensors"):
        build(folder, "0.1.0")


@pytest.mark.parametrize("name", ["config.json", "model_card.md", "weights.safetensors"])
def test_a_folder_that_lacks_something_is_refused(tmp_path: Path, name: str):
    folder = weights(tmp_path, "1.0.0")
    (folder / name).unlink()

    with pytest.raises(VendorError, match=f"{name} cannot be read"):
        build(folder, "0.1.0")


@pytest.mark.parametrize(
    ("purpose", "version", "minimum"),
    [("lungs", "1", "0.1.0"), ("../x", "1.0.0", "0.1.0"), ("lungs", "1.0.0", "latest")],
)
def test_names_and_versions_that_no_site_would_take_are_refused(
    tmp_path: Path, purpose: str, version: str, minimum: str
):
    with pytest.raises(VendorError):
        build(weights(tmp_path, version, purpose), minimum)


def test_a_configuration_that_is_none_is_refused(tmp_path: Path):
    folder = weights(tmp_path, "1.0.0")
    (folder / "config.json").write_text("[]")
    digest = hashlib.sha256(b"[]").hexdigest()
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    (folder / "SHA256SUMS").write_text(f"{digest}  config.json\n{sums[1]}\n")

    with pytest.raises(VendorError, match="does not say the model's purpose"):
        build(folder, "0.1.0")
