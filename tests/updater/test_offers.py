import dataclasses

import pytest

from updater.offers import Channel, Offer, Site, suitable

OFFER = Offer("lungs", "1.0.0", Channel.STABLE, 100, "0.1.0", recalled="")
SITE = Site("hospital 1", Channel.STABLE, "0.2.0")


def versions(site: Site, *offers: Offer) -> dict[str, str]:
    return {purpose: offer.version for purpose, offer in suitable(offers, site).items()}


def test_the_newest_of_each_purpose_is_taken_by_number_not_by_letter():
    newer = dataclasses.replace(OFFER, version="1.10.0")
    middle = dataclasses.replace(OFFER, version="1.9.0")
    other = dataclasses.replace(OFFER, purpose="lesions", version="2.0.0")

    assert versions(SITE, newer, other, middle, OFFER) == {"lungs": "1.10.0", "lesions": "2.0.0"}


def test_candidates_are_for_candidate_sites_which_take_stable_versions_too():
    candidate = dataclasses.replace(OFFER, version="1.1.0", channel=Channel.CANDIDATE)
    daring = dataclasses.replace(SITE, channel=Channel.CANDIDATE)

    assert versions(SITE, OFFER, candidate) == {"lungs": "1.0.0"}
    assert versions(daring, OFFER, candidate) == {"lungs": "1.1.0"}
    assert versions(daring, OFFER) == {"lungs": "1.0.0"}


def test_a_version_that_needs_newer_software_is_left_for_later():
    demanding = dataclasses.replace(OFFER, version="1.1.0", minimum_software="0.10.0")

    assert versions(SITE, OFFER, demanding) == {"lungs": "1.0.0"}
    assert versions(dataclasses.replace(SITE, software_version="0.10.0"), demanding)


def test_a_recalled_version_gives_way_to_the_one_before():
    bad = dataclasses.replace(OFFER, version="1.1.0", recalled="misses lesions")

    assert versions(SITE, OFFER, bad) == {"lungs": "1.0.0"}
    assert versions(SITE, bad) == {}


def test_a_share_of_the_sites_takes_a_version_and_stays_in_as_it_grows():
    sites = [dataclasses.replace(SITE, identity=f"hospital {n}") for n in range(1000)]
    newer = dataclasses.replace(OFFER, version="1.1.0")

    def takers(version: str, percent: int) -> set[str]:
        offer = dataclasses.replace(newer, version=version, share_percent=percent)
        return {site.identity for site in sites if versions(site, OFFER, offer)["lungs"] == version}

    few, many = takers("1.1.0", 10), takers("1.1.0", 50)
    assert 70 < len(few) < 130
    assert 450 < len(many) < 550
    assert few < many
    assert takers("1.1.0", 100) == {site.identity for site in sites}
    assert takers("1.2.0", 10) != few, "the same hospitals are always the first to try"


def test_an_offer_is_read_as_it_was_written_and_more_is_left_alone():
    assert Offer.read({**OFFER.custom(), "added_later": [1]}) == OFFER


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("purpose", "../../etc"),
        ("version", "1.0"),
        ("version", "01.0.0"),
        ("channel", "nightly"),
        ("share_percent", 0),
        ("share_percent", 101),
        ("minimum_software", "newest"),
    ],
)
def test_what_an_offer_may_not_say_is_refused(field: str, value: object):
    with pytest.raises(ValueError, match=str(value)):
        Offer.read({**OFFER.custom(), field: value})


def test_an_offer_that_lacks_something_is_refused():
    custom = OFFER.custom()
    del custom["recalled"]

    with pytest.raises(ValueError, match="'recalled' is missing"):
        Offer.read(custom)
