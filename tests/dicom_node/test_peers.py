from pathlib import Path

import pytest

from appliance.config import Settings
from dicom_node.errors import DicomNodeError
from dicom_node.peers import AllowList, Arrivals, Peer, Rejection


def allow_list(*peers: tuple[str, str]) -> AllowList:
    return AllowList("CHESTCT", tuple(Peer.parse(*peer) for peer in peers))


@pytest.mark.parametrize(
    ("peer", "calling", "address", "allowed"),
    [
        (("*", "*"), "ANY", "203.0.113.9", True),
        (("CT1", "*"), "CT1", "203.0.113.9", True),
        (("CT1", "*"), "CT2", "203.0.113.9", False),
        (("*", "10.1.2.3"), "CT1", "10.1.2.3", True),
        (("*", "10.1.2.3"), "CT1", "10.1.2.4", False),
        (("CT1", "10.1.0.0/16"), "CT1", "10.1.200.7", True),
        (("CT1", "10.1.0.0/16"), "CT1", "10.2.0.1", False),
        (("*", "10.1.2.3"), "CT1", "::ffff:10.1.2.3", True),
        (("*", "fe80::/10"), "CT1", "fe80::1%eth0", True),
        (("*", "10.1.2.3"), "CT1", "::1", False),
    ],
)
def test_a_caller_is_allowed_by_title_and_address(
    peer: tuple[str, str], calling: str, address: str, *, allowed: bool
):
    rejection = allow_list(peer).judge(called="CHESTCT", calling=calling, address=address)

    assert rejection is (None if allowed else Rejection.CALLING_AE_TITLE_NOT_RECOGNISED)


def test_one_matching_row_is_enough():
    peers = allow_list(("CT1", "10.0.0.1"), ("CT2", "10.0.0.2"))

    assert peers.judge(called="CHESTCT", calling="CT2", address="10.0.0.2") is None
    assert peers.judge(called="CHESTCT", calling="CT2", address="10.0.0.1") is not None


def test_nobody_may_call_another_title():
    rejection = allow_list(("*", "*")).judge(called="OTHER", calling="CT1", address="10.0.0.1")

    assert rejection is Rejection.CALLED_AE_TITLE_NOT_RECOGNISED


def test_by_default_only_this_machine_may_call(tmp_path: Path):
    settings = Settings.parse({"data_dir": str(tmp_path)})
    peers = AllowList.from_settings(settings.dicom)

    assert peers.judge(called="CHESTCT", calling="ANY", address="127.0.0.1") is None
    assert peers.judge(called="CHESTCT", calling="ANY", address="192.0.2.1") is not None


def test_an_address_that_is_none_is_refused_with_the_setting_named():
    with pytest.raises(DicomNodeError, match=r"\[\[dicom.peers\]\].*'scanner-3'"):
        Peer.parse("CT1", "scanner-3")


def test_a_rejection_is_encoded_as_the_standard_says():
    pdu = Rejection.LOCAL_LIMIT_EXCEEDED.pdu()

    assert pdu == b"\x03\x00\x00\x00\x00\x04\x00\x02\x03\x02"  # PS3.8 table 9-21


@pytest.mark.parametrize(
    ("address", "known"), [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("10.2.0.1", False)]
)
def test_an_address_of_no_peer_is_known_before_anything_is_read(address: str, *, known: bool):
    assert allow_list(("CT1", "10.1.0.0/16"), ("CT2", "192.0.2.7")).knows(address) is known


def test_connections_of_one_address_are_held_to_a_rate_and_others_are_not():
    now = 0.0
    arrivals = Arrivals(2.0, clock=lambda: now)

    assert [arrivals.admit("10.0.0.1") for _ in range(22)] == [True] * 20 + [False] * 2
    assert arrivals.admit("10.0.0.2")
    now = 1.0
    assert [arrivals.admit("10.0.0.1") for _ in range(3)] == [True, True, False]
