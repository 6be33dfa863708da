"""The attacks that TUF withstands (specification section 1.5.2), each refused by the real client.

The repository is made by the vendor's own tools. Who attacks holds what is served, and no key but
where the test says so.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Key, Metadata, MetaFile, TargetFile

from tests.support.mirror import Mirror, endless, mirror, saying, silence, trickle
from tests.support.vendor import Appliance, Vendor, new_vendor, passphrase
from updater.errors import (
    DamagedError,
    ExpiredError,
    IncompleteError,
    NotOfferedError,
    OlderError,
    SlowError,
    UntrustedError,
    WebPageError,
)
from updater.sources import HttpFetcher, Source
from updater.vendor.keys import Keyring


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    """A vendor that has published lungs 1.0.0."""
    vendor = new_vendor(tmp_path / "vendor")
    vendor.publish("1.0.0")
    return vendor


@pytest.fixture
def appliance(tmp_path: Path, vendor: Vendor) -> Appliance:
    """An appliance of that vendor's that has never looked."""
    return Appliance(tmp_path / "appliance", vendor.root())


@pytest.fixture
def served(vendor: Vendor) -> Iterator[Mirror]:
    with mirror(vendor.served) as served:
        yield served


def forged(vendor: Vendor, name: str, md: Metadata, *keys: tuple[str, Key]) -> None:
    """Serve metadata signed with the vendor's keys for other roles, or stolen ones."""
    md.signatures.clear()
    keyring = Keyring([vendor.keys], passphrase)
    for role, key in keys:
        signer = keyring.signer(role, key)
        assert signer is not None
        md.sign(signer, append=True)
    (vendor.served / "metadata" / name).write_bytes(md.to_bytes())


def key_of(vendor: Vendor, role: str) -> tuple[str, Key]:
    """A role's key, as the newest root or top-level targets say."""
    root = vendor.repository.root()
    delegator = root if role in root.roles else vendor.repository.targets()
    return role, delegator.get_key(delegator.get_delegated_role(role).keyids[0])


def bundle_file(vendor: Vendor, version: str) -> Path:
    (path,) = (vendor.served / "targets" / "models").glob(f"*.lungs-{version}.tar")
    return path


def test_arbitrary_software_with_the_right_name_and_length_is_not_staged(
    vendor: Vendor, appliance: Appliance
):
    path = bundle_file(vendor, "1.0.0")
    path.write_bytes(path.read_bytes().replace(b"weights", b"WEIGHTS"))
    client = appliance.looks_at(vendor.served)
    (offer,) = client.check()

    with pytest.raises(DamagedError) as refused:
        client.download(offer)

    assert isinstance(refused.value.__cause__, LengthOrHashMismatchError)
    assert not list((appliance.folder / "staging").glob("*lungs*"))
    assert not list((appliance.folder / "staging").glob(".*lungs*"))


def test_arbitrary_software_in_a_list_that_somebody_else_signed_is_refused(
    tmp_path: Path, vendor: Vendor, appliance: Appliance
):
    attacker = new_vendor(tmp_path / "attacker")
    attacker.publish("9.9.9")

    with pytest.raises(UntrustedError) as refused:
        appliance.looks_at(attacker.served).check()

    assert isinstance(refused.value.__cause__, UnsignedMetadataError)
    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_a_rollback_to_an_older_list_is_refused(
    tmp_path: Path, vendor: Vendor, appliance: Appliance
):
    old = vendor.copy(tmp_path / "old")
    vendor.publish("1.1.0")
    assert appliance.versions(vendor.served) == ["1.0.0", "1.1.0"]

    with pytest.raises(OlderError) as refused:
        appliance.looks_at(old.served).check()

    assert isinstance(refused.value.__cause__, BadVersionNumberError)


def test_a_rollback_with_a_stolen_timestamp_key_is_refused(vendor: Vendor, appliance: Appliance):
    old = vendor.read("timestamp.json").signed.snapshot_meta
    vendor.publish("1.1.0")
    assert appliance.versions(vendor.served) == ["1.0.0", "1.1.0"]
    timestamp = vendor.read("timestamp.json")
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = old
    forged(vendor, "timestamp.json", timestamp, key_of(vendor, "timestamp"))

    with pytest.raises(OlderError) as refused:
        appliance.looks_at(vendor.served).check()

    assert isinstance(refused.value.__cause__, BadVersionNumberError)


def test_a_fast_forward_with_a_stolen_key_ends_with_the_key(vendor: Vendor, appliance: Appliance):
    honest = (vendor.served / "metadata" / "timestamp.json").read_bytes()
    timestamp, stolen = vendor.read("timestamp.json"), key_of(vendor, "timestamp")
    timestamp.signed.version = 2**31 - 1
    forged(vendor, "timestamp.json", timestamp, stolen)
    appliance.looks_at(vendor.served).check()
    (vendor.served / "metadata" / "timestamp.json").write_bytes(honest)
    vendor.publish("1.1.0")
    with pytest.raises(OlderError) as refused:
        appliance.looks_at(vendor.served).check()
    assert isinstance(refused.value.__cause__, BadVersionNumberError)

    vendor.repository.rotate("timestamp")

    assert appliance.versions(vendor.served) == ["1.0.0", "1.1.0"]
    forged(vendor, "timestamp.json", timestamp, stolen)
    with pytest.raises(UntrustedError):
        appliance.looks_at(vendor.served).check()


def test_a_fast_forward_without_the_key_is_refused(vendor: Vendor, appliance: Appliance):
    timestamp = vendor.read("timestamp.json")
    timestamp.signed.version = 2**31 - 1
    forged(vendor, "timestamp.json", timestamp, key_of(vendor, "models"))

    with pytest.raises(UntrustedError) as refused:
        appliance.looks_at(vendor.served).check()

    assert isinstance(refused.value.__cause__, UnsignedMetadataError)


def test_a_freeze_is_noticed_once_the_signature_has_expired(tmp_path: Path):
    long_ago = datetime.now(UTC) - timedelta(days=15)
    vendor = new_vendor(tmp_path / "vendor", lambda: long_ago)
    vendor.publish("1.0.0")
    appliance = Appliance(tmp_path / "appliance", vendor.root())

    with pytest.raises(ExpiredError, match="out of date") as refused:
        appliance.looks_at(vendor.served).check()

    assert isinstance(refused.value.__cause__, ExpiredMetadataError)
    Vendor(vendor.folder).repository.refresh()
    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_an_old_list_cannot_be_kept_up_by_a_stolen_timestamp_key(tmp_path: Path):
    long_ago = datetime.now(UTC) - timedelta(days=15)
    vendor = new_vendor(tmp_path / "vendor", lambda: long_ago)
    appliance = Appliance(tmp_path / "appliance", vendor.root())
    timestamp = vendor.read("timestamp.json")
    timestamp.signed.version += 1
    timestamp.signed.expires = datetime.now(UTC) + timedelta(days=99)
    forged(vendor, "timestamp.json", timestamp, key_of(vendor, "timestamp"))

    with pytest.raises(ExpiredError, match="snapshot"):
        appliance.looks_at(vendor.served).check()


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.models.json"])
def test_endless_metadata_are_cut_off(
    vendor: Vendor, appliance: Appliance, served: Mirror, name: str
):
    served.instead[name] = endless

    with pytest.raises(DamagedError) as refused:
        appliance.looks_at(served.url).check()

    assert isinstance(refused.value.__cause__, DownloadLengthMismatchError)


def test_an_endless_bundle_is_cut_off_where_it_should_end(
    vendor: Vendor, appliance: Appliance, served: Mirror
):
    served.instead[".tar"] = endless
    client = appliance.looks_at(served.url)
    (offer,) = client.check()

    with pytest.raises(DamagedError) as refused:
        client.download(offer)

    assert isinstance(refused.value.__cause__, DownloadLengthMismatchError)
    (part,) = (appliance.folder / "staging").glob(".*lungs*.part")
    assert part.stat().st_size <= bundle_file(vendor, "1.0.0").stat().st_size


def test_lists_of_different_times_are_not_mixed(vendor: Vendor, appliance: Appliance):
    vendor.publish("1.1.0")
    metadata = vendor.served / "metadata"
    (metadata / "3.models.json").write_bytes((metadata / "2.models.json").read_bytes())

    with pytest.raises(DamagedError) as refused:
        appliance.looks_at(vendor.served).check()

    assert isinstance(refused.value.__cause__, LengthOrHashMismatchError)


def test_a_snapshot_of_another_time_is_not_mixed_in(vendor: Vendor, appliance: Appliance):
    vendor.publish("1.1.0")
    metadata = vendor.served / "metadata"
    (metadata / "3.snapshot.json").write_bytes((metadata / "2.snapshot.json").read_bytes())

    with pytest.raises(DamagedError) as refused:
        appliance.looks_at(vendor.served).check()

    assert isinstance(refused.value.__cause__, LengthOrHashMismatchError)


def test_who_signs_models_cannot_offer_software(vendor: Vendor, appliance: Appliance):
    """The keys of models, snapshot and timestamp are stolen: all that a publisher has at hand."""
    stolen = [key_of(vendor, role) for role in ("models", "snapshot", "timestamp")]
    models, snapshot = vendor.read("2.models.json"), vendor.read("2.snapshot.json")
    timestamp = vendor.read("timestamp.json")
    content = b"no wheel of ours"
    evil = TargetFile.from_data("software/0.2.0.tar", content)
    (vendor.served / "targets" / evil.get_prefixed_paths()[0]).write_bytes(content)
    models.signed.targets[evil.path] = evil
    for md in (models, snapshot, timestamp):
        md.signed.version += 1
    forged(vendor, "3.models.json", models, stolen[0])
    snapshot.signed.meta["models.json"] = MetaFile.from_data(3, models.to_bytes(), ["sha256"])
    forged(vendor, "3.snapshot.json", snapshot, stolen[1])
    timestamp.signed.snapshot_meta = MetaFile.from_data(3, snapshot.to_bytes(), ["sha256"])
    forged(vendor, "timestamp.json", timestamp, stolen[2])
    client = appliance.looks_at(vendor.served)

    with pytest.raises(NotOfferedError):
        client.fetch(evil.path)

    assert [offer.version for offer in client.check()] == ["1.0.0"]


def test_one_of_three_root_keys_makes_no_root(vendor: Vendor, appliance: Appliance):
    root = vendor.read("1.root.json")
    stolen = key_of(vendor, "root")
    root.signed.version = 2
    root.signed.roles["root"].threshold = 1
    root.signed.roles["root"].keyids = [stolen[1].keyid]
    forged(vendor, "2.root.json", root, stolen)

    with pytest.raises(UntrustedError) as refused:
        appliance.looks_at(vendor.served).check()

    assert isinstance(refused.value.__cause__, UnsignedMetadataError)
    (vendor.served / "metadata" / "2.root.json").unlink()
    assert appliance.versions(vendor.served) == ["1.0.0"]


def test_slow_retrieval_byte_by_byte_is_given_up(
    vendor: Vendor, appliance: Appliance, served: Mirror
):
    served.instead[".tar"] = trickle(served.closing)
    source = Source(
        served.url,
        HttpFetcher(gap_s=5, patience_s=0.3),
        f"{served.url}/metadata/",
        f"{served.url}/targets/",
    )
    client = appliance.looks_at(source)
    (offer,) = client.check()

    with pytest.raises(SlowError) as refused:
        client.download(offer)

    assert isinstance(refused.value.__cause__, SlowRetrievalError)


@pytest.mark.parametrize("name", ["timestamp.json", ".tar"])
def test_a_server_that_falls_silent_is_given_up(
    vendor: Vendor, appliance: Appliance, served: Mirror, name: str
):
    served.instead[name] = silence(served.closing, 100)
    source = Source(
        served.url,
        HttpFetcher(gap_s=0.3),
        f"{served.url}/metadata/",
        f"{served.url}/targets/",
    )
    client = appliance.looks_at(source)

    with pytest.raises(SlowError) as refused:
        client.download(client.check()[0])

    assert isinstance(refused.value.__cause__, SlowRetrievalError)


def test_nothing_that_a_malicious_mirror_serves_does_lasting_harm(
    tmp_path: Path, vendor: Vendor, appliance: Appliance
):
    bad = vendor.copy(tmp_path / "bad")
    metadata = bad.served / "metadata"
    with mirror(bad.served) as served:
        served.instead["timestamp.json"] = saying(b"\n<html>sign in</html>")
        with pytest.raises(WebPageError):
            appliance.looks_at(served.url).check()
        served.instead["timestamp.json"] = saying(b"{}", content_type="application/json")
        with pytest.raises(DamagedError):
            appliance.looks_at(served.url).check()
        served.instead["timestamp.json"] = saying(b"\0" * 9999, content_type="application/json")
        with pytest.raises(DamagedError):
            appliance.looks_at(served.url).check()
        served.instead.clear()
        (metadata / "2.snapshot.json").unlink()
        with pytest.raises(IncompleteError):
            appliance.looks_at(served.url).check()
        served.instead["2.root.json"] = saying(json.dumps({"signed": 1}).encode())
        (metadata / "2.root.json").touch()
        with pytest.raises(DamagedError):
            appliance.looks_at(served.url).check()

    assert appliance.versions(vendor.served) == ["1.0.0"]
