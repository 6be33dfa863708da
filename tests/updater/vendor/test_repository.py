import fcntl
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tuf.api.exceptions import UnsignedMetadataError

from tests.support.figures import FIGURE
from tests.support.kills import killed_before
from tests.support.vendor import PASSPHRASE, Appliance, Vendor, new_vendor, passphrase, weights
from updater.offers import Channel
from updater.vendor.bundle import build
from updater.vendor.errors import VendorError
from updater.vendor.keys import Keyring
from updater.vendor.repository import LIFETIME, VendorRepository


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    vendor = new_vendor(tmp_path / "vendor")
    vendor.publish("1.0.0")
    return vendor


@pytest.fixture
def appliance(tmp_path: Path, vendor: Vendor) -> Appliance:
    return Appliance(tmp_path / "appliance", vendor.root())


def test_the_ceremony_makes_three_root_keys_of_which_two_sign(vendor: Vendor):
    root = vendor.read("1.root.json")

    assert len(root.signed.roles["root"].keyids) == 3
    assert root.signed.roles["root"].threshold == 2
    ids = {keyid for role in root.signed.roles.values() for keyid in role.keyids}
    assert len(ids) == 6, "one key for two roles"
    lines = vendor.repository.targets().delegations.roles
    assert {name: line.paths for name, line in lines.items()} == {
        "models": ["models/*"],
        "software": ["software/*"],
    }


def test_keys_are_for_their_owner_and_open_with_their_passphrase_alone(vendor: Vendor):
    for path in vendor.keys.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        with pytest.raises(ValueError, match="password"):  # it guards more than OpenSSL's PBKDF2
            load_pem_private_key(path.read_bytes(), PASSPHRASE.encode())

    guessing = Keyring([vendor.keys], lambda name, *, new: "not the passphrase")
    with pytest.raises(VendorError, match=r"snapshot-\w+\.pem does not open"):
        VendorRepository(vendor.served, guessing).refresh()


def test_a_short_passphrase_is_refused(tmp_path: Path):
    careless = Keyring([tmp_path / "keys"], lambda name, *, new: "hunter2")

    with pytest.raises(VendorError, match="at least 12 characters"):
        VendorRepository(tmp_path / "repository", careless).initialise()


def test_a_second_ceremony_touches_nothing(vendor: Vendor):
    before = {path: path.read_bytes() for path in vendor.folder.rglob("*") if path.is_file()}

    with pytest.raises(VendorError, match="holds a repository already"):
        vendor.repository.initialise()

    after = {path: path.read_bytes() for path in vendor.folder.rglob("*") if path.is_file()}
    assert after == before


def test_nothing_can_be_done_where_no_repository_is(tmp_path: Path):
    repository = Vendor(tmp_path).repository
    actions: list[Callable[[], object]] = [
        repository.refresh,
        repository.status,
        repository.offers,
        lambda: repository.rotate("root"),
    ]

    for action in actions:
        with pytest.raises(VendorError, match="`appliance-vendor init` makes one"):
            action()


def test_what_is_published_is_offered_with_its_conditions(vendor: Vendor, appliance: Appliance):
    vendor.publish("2.0.0", channel=Channel.CANDIDATE, share_percent=25)

    offers = {offer.version: offer for offer in appliance.looks_at(vendor.served).check()}

    assert offers["2.0.0"].channel is Channel.CANDIDATE
    assert offers["2.0.0"].share_percent == 25
    assert offers["1.0.0"].channel is Channel.STABLE


def test_publishing_again_widens_the_share_and_keeps_the_bytes(
    vendor: Vendor, appliance: Appliance
):
    vendor.publish("1.1.0", share_percent=10)
    files = sorted((vendor.served / "targets" / "models").glob("*.tar"))

    vendor.publish("1.1.0", share_percent=100)

    assert sorted((vendor.served / "targets" / "models").glob("*.tar")) == files
    offers = appliance.looks_at(vendor.served).check()
    assert [offer.share_percent for offer in offers] == [100, 100]


def test_a_version_never_gets_other_bytes(vendor: Vendor, appliance: Appliance):
    with pytest.raises(VendorError, match="raise the version"):
        vendor.publish("1.0.0", content=b"retrained")

    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_a_stable_version_is_not_made_a_candidate_by_the_way(vendor: Vendor, appliance: Appliance):
    with pytest.raises(VendorError, match="is stable already"):
        vendor.publish("1.0.0", channel=Channel.CANDIDATE)

    (offer,) = appliance.looks_at(vendor.served).check()
    assert offer.channel is Channel.STABLE


def test_a_recall_is_told_with_its_reason_and_is_for_good(vendor: Vendor, appliance: Appliance):
    vendor.repository.recall("lungs", "1.0.0", "misses the apices")

    (offer,) = appliance.looks_at(vendor.served).check()
    assert offer.recalled == "misses the apices"
    with pytest.raises(VendorError, match="was recalled"):
        vendor.publish("1.0.0")


def test_what_was_never_published_cannot_be_recalled(vendor: Vendor):
    with pytest.raises(VendorError, match=r"lungs 3\.0\.0 was never published"):
        vendor.repository.recall("lungs", "3.0.0", "bad")


@pytest.mark.parametrize("role", list(LIFETIME))
def test_after_a_rotation_old_and_new_appliances_go_on_and_the_old_key_counts_no_more(
    tmp_path: Path, vendor: Vendor, appliance: Appliance, role: str
):
    appliance.versions(vendor.served)

    retired = vendor.repository.rotate(role)

    assert len(retired) == (3 if role == "root" else 1)
    for path in retired:
        path.unlink()
    vendor.publish("1.1.0")
    vendor.repository.refresh(list(LIFETIME))
    assert appliance.versions(vendor.served) == ["1.0.0", "1.1.0"]
    newcomer = Appliance(tmp_path / "newcomer", vendor.root())
    assert newcomer.versions(vendor.served) == ["1.0.0", "1.1.0"]


def test_the_keys_before_a_rotation_sign_nothing_after_it(vendor: Vendor):
    old = {path.name for path in vendor.keys.iterdir()}
    vendor.repository.rotate("models")
    for path in vendor.keys.glob("models-*.pem"):
        if path.name not in old:
            path.unlink()

    with pytest.raises(VendorError, match="models cannot be signed: 1 of its keys"):
        vendor.publish("1.1.0")


def test_one_root_key_alone_makes_no_root(vendor: Vendor, appliance: Appliance):
    for path in sorted(vendor.keys.glob("root-*.pem"))[1:]:
        path.unlink()

    with pytest.raises(VendorError, match="root cannot be signed: 2 of its keys") as refused:
        vendor.repository.rotate("timestamp")

    assert isinstance(refused.value.__cause__, UnsignedMetadataError)
    assert not (vendor.served / "metadata" / "2.root.json").exists()
    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_two_root_keys_from_two_sticks_make_a_root(vendor: Vendor, appliance: Appliance):
    one, other, lost = sorted(vendor.keys.glob("root-*.pem"))
    lost.unlink()
    stick = vendor.folder / "stick"
    stick.mkdir()
    other.rename(stick / other.name)
    appliance.versions(vendor.served)

    repository = VendorRepository(vendor.served, Keyring([vendor.keys, stick], passphrase))
    retired = repository.rotate("root")

    assert sorted(retired) == sorted([one, stick / other.name])
    assert len(vendor.read("2.root.json").signed.roles["root"].keyids) == 3
    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_a_lost_timestamp_key_can_be_replaced(vendor: Vendor, appliance: Appliance):
    appliance.versions(vendor.served)
    for path in vendor.keys.glob("timestamp-*.pem"):
        path.unlink()

    vendor.repository.rotate("timestamp")

    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_root_is_renewed_by_its_keys_alone(vendor: Vendor, appliance: Appliance):
    for path in vendor.keys.iterdir():
        if not path.name.startswith("root-"):
            path.unlink()

    vendor.repository.refresh(["root"])

    assert vendor.read("2.root.json").signed.version == 2
    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_status_warns_before_a_signature_expires(vendor: Vendor):
    def expiring(after: timedelta) -> set[str]:
        later = Vendor(vendor.folder, lambda: datetime.now(UTC) + after).repository
        return {status.role for status in later.status() if status.warning}

    assert expiring(timedelta(0)) == set()
    assert expiring(timedelta(days=8)) == {"snapshot", "timestamp"}
    assert expiring(timedelta(days=310)) == set(LIFETIME)


def test_only_one_publishes_at_a_time(vendor: Vendor):
    folder = os.open(vendor.served / "metadata", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)

    with pytest.raises(VendorError, match="Somebody else is publishing"):
        vendor.repository.refresh()

    os.close(folder)
    vendor.repository.refresh()


def test_a_damaged_repository_is_said_to_be_so(vendor: Vendor):
    (vendor.served / "metadata" / "timestamp.json").write_text("{")

    with pytest.raises(VendorError, match=r"timestamp\.json cannot be read"):
        vendor.repository.refresh()


CHANGES: dict[str, Callable[[Vendor], object]] = {
    "publish": lambda vendor: vendor.publish("1.1.0"),
    "refresh": lambda vendor: vendor.repository.refresh(list(LIFETIME)),
    "rotate root": lambda vendor: vendor.repository.rotate("root"),
    "rotate models": lambda vendor: vendor.repository.rotate("models"),
    "rotate timestamp": lambda vendor: vendor.repository.rotate("timestamp"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_wherever_a_change_is_killed_the_repository_is_the_old_or_the_new(
    memory: Path, change: str, record_property: Callable[[str, object], None]
):
    act = CHANGES[change]
    vendor = new_vendor(memory / "vendor")
    vendor.publish("1.0.0")
    whole = vendor.copy(memory / "whole")
    old = Appliance(memory / "before", vendor.root()).versions(vendor.served)
    act(whole)
    new = Appliance(memory / "after", vendor.root()).versions(whole.served)
    step, killed, seen = 0, True, []

    while killed:
        step += 1
        tried = vendor.copy(memory / f"vendor {step}")
        regular = Appliance(memory / f"regular {step}", vendor.root())
        regular.versions(tried.served)

        killed = killed_before(step, lambda tried=tried: act(tried))

        seen.append(regular.versions(tried.served))
        assert Appliance(memory / f"newcomer {step}", vendor.root()).versions(tried.served)
        act(tried)
        assert regular.versions(tried.served) == new
        assert not list(tried.served.rglob(".part-*")), "leftovers are served"
    record_property(FIGURE, f"{change}: killed at each of {step - 1} points")
    assert (seen[0], seen[-1]) == (old, new)
    assert seen == sorted(seen, key=len), "what was published was taken back"
    assert step > 10


def test_a_ceremony_that_is_killed_can_be_held_again(memory: Path):
    step, killed = 0, True

    while killed:
        step += 1
        vendor = Vendor(memory / f"vendor {step}")

        killed = killed_before(step, lambda vendor=vendor: vendor.repository.initialise())

        if not list(vendor.served.glob("metadata/*.root.json")):
            vendor.repository.initialise()
        vendor.publish("1.0.0")
        assert Appliance(memory / f"site {step}", vendor.root()).versions(vendor.served)
    assert step > 20


def test_what_is_published_does_not_depend_on_when_or_by_whom(tmp_path: Path, vendor: Vendor):
    made = build(weights(tmp_path / "weights", "1.0.0", content=b"weights"), "0.1.0")
    (published,) = (vendor.served / "targets" / "models").glob("*.tar")

    assert published.read_bytes() == made.content
