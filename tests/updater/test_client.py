import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.disks import on_small_disk
from tests.support.figures import FIGURE
from tests.support.kills import killed_before
from tests.support.mirror import Mirror, cut_off, mirror, silence, without_ranges
from tests.support.vendor import Appliance, Vendor, new_vendor
from updater.client import Client, root_of_trust
from updater.errors import (
    DamagedError,
    DiskFullError,
    IncompleteError,
    LocalDiskError,
    NewerFormatError,
    NoRootError,
    UnreachableError,
    UpdateError,
)
from updater.offers import Offer

WEIGHTS = random.Random(6).randbytes(2_000_000)

LOOK = """
import sys
from pathlib import Path
from tests.support.vendor import Appliance
from updater.errors import UpdateError
root, folder, place = sys.argv[1:]
try:
    appliance = Appliance(Path(folder), Path(root).read_bytes())
    client = appliance.looks_at(place)
    for offer in client.check():
        client.download(offer)
except UpdateError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    vendor = new_vendor(tmp_path / "vendor")
    vendor.publish("1.0.0", content=WEIGHTS)
    return vendor


@pytest.fixture
def appliance(tmp_path: Path, vendor: Vendor) -> Appliance:
    return Appliance(tmp_path / "appliance", vendor.root())


@pytest.fixture
def served(vendor: Vendor) -> Iterator[Mirror]:
    with mirror(vendor.served) as served:
        yield served


def published(vendor: Vendor) -> Path:
    (path,) = (vendor.served / "targets" / "models").glob("*lungs*")
    return path


def only(client: Client) -> Offer:
    (offer,) = client.check()
    return offer


def parts(appliance: Appliance) -> list[Path]:
    return list((appliance.folder / "staging").glob(".*.part"))


def test_a_download_is_whole_and_made_once(vendor: Vendor, appliance: Appliance, served: Mirror):
    client = appliance.looks_at(served.url)
    offer = only(client)

    path = client.download(offer)
    served.requests.clear()
    again = appliance.looks_at(served.url).download(offer)

    assert path.read_bytes() == published(vendor).read_bytes()
    assert again == path
    assert not [path for path, _ in served.requests if path.endswith(".tar")]
    assert not parts(appliance)


def test_a_download_that_was_cut_off_goes_on_where_it_ended(
    vendor: Vendor, appliance: Appliance, served: Mirror
):
    served.instead[".tar"] = cut_off(1_500_000)
    client = appliance.looks_at(served.url)
    offer = only(client)
    with pytest.raises(UnreachableError):
        client.download(offer)
    served.instead.clear()
    served.requests.clear()

    path = appliance.looks_at(served.url).download(offer)

    assert path.read_bytes() == published(vendor).read_bytes()
    assert [asked for name, asked in served.requests if name.endswith(".tar")] == ["bytes=1500000-"]


def test_a_server_without_ranges_makes_it_begin_anew(
    vendor: Vendor, appliance: Appliance, served: Mirror
):
    served.instead[".tar"] = cut_off(1_500_000)
    client = appliance.looks_at(served.url)
    offer = only(client)
    with pytest.raises(UnreachableError):
        client.download(offer)
    served.instead[".tar"] = without_ranges

    path = appliance.looks_at(served.url).download(offer)

    assert path.read_bytes() == published(vendor).read_bytes()


def test_a_part_that_a_power_cut_spoilt_costs_one_try(
    vendor: Vendor, appliance: Appliance, served: Mirror
):
    served.instead[".tar"] = cut_off(1_500_000)
    client = appliance.looks_at(served.url)
    offer = only(client)
    with pytest.raises(UnreachableError):
        client.download(offer)
    served.instead.clear()
    (part,) = parts(appliance)
    part.write_bytes(bytes(1_500_000))

    with pytest.raises(DamagedError):
        appliance.looks_at(served.url).download(offer)

    assert appliance.looks_at(served.url).download(offer).read_bytes() == (
        published(vendor).read_bytes()
    )


def test_the_part_of_a_version_gives_way_to_that_of_its_own(
    vendor: Vendor, appliance: Appliance, served: Mirror
):
    """An index changes its content and keeps its path; the parts of others are left alone."""
    served.instead[".tar"] = cut_off(10)
    served.instead["index.json"] = cut_off(10)
    client = appliance.looks_at(served.url)
    with pytest.raises(UnreachableError):
        client.check()
    with pytest.raises(UnreachableError):
        client.fetch("models/lungs-1.0.0.tar")
    vendor.publish("1.1.0")
    assert len(parts(appliance)) == 2
    del served.instead["index.json"]

    offers = appliance.looks_at(served.url).check()

    assert len(offers) == 2
    assert ["lungs" in part.name for part in parts(appliance)] == [True]


@pytest.mark.parametrize("over", ["http", "disk"])
def test_wherever_a_download_is_killed_the_next_one_finishes_it(
    memory: Path, over: str, record_property: Callable[[str, object], None]
):
    vendor = new_vendor(memory / "vendor")
    vendor.publish("1.0.0", content=WEIGHTS[:5000])
    step, killed = 0, True

    with mirror(vendor.served) as served:
        place = served.url if over == "http" else vendor.served
        while killed:
            step += 1
            appliance = Appliance(memory / f"appliance {step}", vendor.root())

            killed = killed_before(step, lambda site=appliance: site.versions(place))

            staged = appliance.folder / "staging" / "models%2Flungs-1.0.0.tar"
            if staged.exists():
                assert staged.read_bytes() == published(vendor).read_bytes()
            assert appliance.versions(place) == ["1.0.0"]
            assert staged.read_bytes() == published(vendor).read_bytes()
            assert not parts(appliance)
    record_property(FIGURE, f"download by {over}: killed at each of {step - 1} points")
    assert step > 15


def test_a_download_killed_in_the_middle_of_its_bytes_goes_on_there(
    tmp_path: Path, vendor: Vendor, appliance: Appliance, served: Mirror
):
    served.instead[".tar"] = silence(served.closing, 1_500_000)
    root = vendor.served / "metadata" / "1.root.json"
    command = [sys.executable, "-c", LOOK, str(root), str(appliance.folder), served.url]
    process = subprocess.Popen(command)
    while not (parts(appliance) and parts(appliance)[0].stat().st_size == 1_500_000):
        assert process.poll() is None
        time.sleep(0.01)  # nobody tells when a file has grown
    process.send_signal(signal.SIGKILL)
    process.wait()
    served.instead.clear()
    served.requests.clear()

    assert appliance.versions(served.url) == ["1.0.0"]

    assert [asked for name, asked in served.requests if name.endswith(".tar")] == ["bytes=1500000-"]


def test_a_half_copied_disk_is_never_believed(tmp_path: Path, vendor: Vendor):
    """Each file in turn is missing, cut in half or empty."""
    vendor.repository.rotate("models")
    files = sorted(path for path in vendor.served.rglob("*") if path.is_file())
    refused: dict[str, set[type]] = {}

    def refusal(appliance: Appliance, disk: Path) -> UpdateError | None:
        try:
            assert appliance.versions(disk) == ["1.0.0"]
        except UpdateError as error:
            return error
        return None

    for number, file in enumerate(files):
        for rest in (None, 0.5, 0.0):
            disk = tmp_path / f"disk {number} {rest}"
            shutil.copytree(vendor.served, disk)
            copied = disk / file.relative_to(vendor.served)
            if rest is None:
                copied.unlink()
            else:
                copied.write_bytes(file.read_bytes()[: int(file.stat().st_size * rest)])
            appliance = Appliance(tmp_path / f"site {number} {rest}", vendor.root())
            if (error := refusal(appliance, disk)) is not None:
                assert "copy the disk anew" in str(error)
                refused.setdefault(file.name, set()).add(type(error))

    both = {IncompleteError, DamagedError}
    for name in ("timestamp.json", "3.snapshot.json", "2.targets.json", "3.models.json"):
        assert refused.pop(name) == both
    assert list(refused.values()) == [both] * 2, "the index and the bundle"


def test_local_metadata_that_a_power_cut_spoilt_are_fetched_anew(
    vendor: Vendor, appliance: Appliance
):
    appliance.versions(vendor.served)
    for path in (appliance.folder / "metadata").rglob("*.json"):
        path.write_bytes(b"")

    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_what_is_left_free_for_reception_is_left(vendor: Vendor, appliance: Appliance):
    free_bytes = shutil.disk_usage(vendor.folder).free
    client = appliance.looks_at(vendor.served, spare_bytes=2 * free_bytes)

    with pytest.raises(DiskFullError, match=r"too full for the update, \d+ MB more are needed"):
        client.check()

    assert [part.stat().st_size for part in parts(appliance)] == [0]


def test_a_full_disk_is_one_sentence(tmp_path: Path, vendor: Vendor):
    """The bundle does not fit; then the disk has no byte left for the metadata either."""
    disk = tmp_path / "disk"
    disk.mkdir()
    root = vendor.served / "metadata" / "1.root.json"
    look = f'"{sys.executable}" -c "$1" {root} {disk}/$2 {vendor.served}'
    both = f"{look.replace('$2', 'one')}; head -c 2000000 /dev/zero > {disk}/filler; {look}"

    told = on_small_disk(disk, 1_000_000, "sh", "-c", both, "sh", LOOK, "two").stdout.splitlines()

    assert len(told) == 2
    assert told[0].startswith(f"DiskFullError The disk of {disk}/one/staging is too full for the")
    assert told[1].startswith(f"DiskFullError The disk of {disk}/two/staging is too full for the")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, vendor: Vendor):
    (tmp_path / "site").write_text("no folder")

    with pytest.raises(LocalDiskError, match="see to this machine's disk"):
        Appliance(tmp_path / "site", vendor.root()).looks_at(vendor.served)


@pytest.mark.parametrize("field", ["channel", "purpose"])
def test_an_offer_of_a_later_release_is_said_to_be_so(
    vendor: Vendor, appliance: Appliance, field: str
):
    repository = vendor.repository
    with repository._change(), repository.edit_targets("models") as models:
        models.targets["models/lungs-1.0.0.tar"].custom[field] = "later"

    with pytest.raises(NewerFormatError, match="update the software first"):
        appliance.looks_at(vendor.served).check()


def test_what_is_newer_in_the_metadata_does_no_harm(vendor: Vendor, appliance: Appliance):
    repository = vendor.repository
    with repository._change(), repository.edit_targets("models") as models:
        models.targets["models/lungs-1.0.0.tar"].custom["later"] = {"more": 1}
        models.unrecognized_fields["later"] = True

    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_the_embedded_root_is_where_a_release_has_it(tmp_path: Path, vendor: Vendor):
    path = tmp_path / "root.json"
    with pytest.raises(NoRootError, match=r"root\.json is missing"):
        root_of_trust(path)

    path.write_bytes(vendor.root())

    assert json.loads(root_of_trust(path))["signed"]["_type"] == "root"
