"""From the reviews of an analysis to what its objects say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import accounts, lifecycle, reviews
from appliance.database import Database, utc_now
from appliance.reviews import Judgement, Reason
from appliance.tables import Account
from dicom_node.objects.verification import load_verification
from tests.appliance import world
from tests.support.databases import migrated, settings_in

ANALYSIS = 1


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A result with two lesions that nobody reviewed."""
    with migrated(settings_in(tmp_path)) as made:
        lifecycle.finish(made, world.claimed(made), world.result())
        yield made


def confirm(database: Database, name: str, judgement: Judgement, *, seen: int = 0) -> None:
    with database.transaction() as db:
        role = accounts.Role.RADIOLOGIST
        account = Account(name=name, password_hash="", role=role, active=True, created_at=utc_now())
        db.add(account)
        db.flush()
        reviews.confirm(db, ANALYSIS, judgement, seen=seen, account=account, organisation="Klinik")


def test_nothing_is_verified_until_somebody_confirms(database):
    with database.snapshot() as db:
        assert load_verification(db, ANALYSIS, version=0) is None


def test_what_was_confirmed_last_amends_what_was_before(database):
    confirm(database, "ann", Judgement(positive=True, lesions={1: True, 2: True}, comment="Yes."))
    confirm(
        database,
        "HOSPITAL\\bob=Bob",
        Judgement(
            positive=False,
            lesions={1: False, 2: True},
            reason=Reason.ARTEFACT,
            reason_text="motion",
        ),
        seen=1,
    )

    with database.snapshot() as db:
        first = load_verification(db, ANALYSIS, version=1)
        said = load_verification(db, ANALYSIS, version=2)

    assert said is not None
    assert said.amends == first
    assert (said.version, said.person_name, said.organisation) == (2, "HOSPITAL bob Bob^", "Klinik")
    assert (said.positive, said.reason, said.rejected) == (False, "artefact: motion", (1,))
    assert said.amends is not None
    assert (said.amends.version, said.amends.person_name) == (1, "ann^")
    assert (said.amends.positive, said.amends.comment, said.amends.reason) == (True, "Yes.", "")
    assert said.amends.amends is None
    assert said.verified_at > said.amends.verified_at
