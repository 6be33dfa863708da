"""From the reviews of an analysis to what its objects say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, update

from appliance import accounts, lifecycle, marks, reviews
from appliance.database import Database, utc_now
from appliance.reviews import Judgement, Mark, Reason, Sign
from appliance.tables import Account, MarkedRegion
from dicom_node.errors import ObjectError
from dicom_node.objects.verification import load_verification
from pipelines.findings import Lesion, Side
from pipelines.marks import Region
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


REGION = Region((4, 5, 6), np.array([[[True, False], [True, True]]]))
LESION = Lesion(
    id=0,
    volume_ml=0.25,
    diameter_mm=3.5,
    mean_hu=-512.25,
    side=Side.LEFT,
    first_slice=4,
    last_slice=4,
    key_slice=4,
    centroid=(4.0, 5.5, 6.5),
    bbox=((4, 5, 6), (5, 7, 8)),
    lung_share=0.001,
    probability=None,
)


@pytest.fixture
def outlined(database: Database) -> Database:
    """A result to which somebody added lesion 3."""
    with database.transaction() as db:
        number = accounts.add(
            db, "cem", password="correct horse battery", role=accounts.Role.RADIOLOGIST, actor="a"
        )
        marks.keep(
            db,
            analysis_id=ANALYSIS,
            account_id=number,
            digest=REGION.digest,
            box=REGION.box,
            bits=REGION.bits,
            measures=asdict(LESION),
        )
    outlines = {3: Mark(REGION.digest, grown=True)}
    said = Judgement(
        positive=True,
        lesions={1: True, 2: True},
        marks=outlines,
        signs={3: [Sign.HONEYCOMB]},
    )
    confirm(database, "ann", said)
    return database


def test_what_was_outlined_comes_back_with_its_measures(outlined):
    with outlined.snapshot() as db:
        said = load_verification(db, ANALYSIS, version=1)

    assert said is not None
    (mark,) = said.marks
    assert (mark.lesion.id, mark.lesion.volume_ml, mark.grown) == (3, 0.25, True)
    assert mark.lesion.bbox == LESION.bbox
    assert mark.region.corner == REGION.corner
    np.testing.assert_array_equal(mark.region.mask, REGION.mask)
    assert said.signs == {3: (Sign.HONEYCOMB,)}


def test_voxels_that_are_not_what_was_kept_leave_in_no_object(outlined):
    with outlined.transaction() as db:
        db.execute(update(MarkedRegion).values(box=[7, 5, 4, 9, 7, 5]))
    with outlined.snapshot() as db, pytest.raises(ObjectError, match="not those that were kept"):
        load_verification(db, ANALYSIS, version=1)

    with outlined.transaction() as db:
        db.execute(delete(MarkedRegion))
    with outlined.snapshot() as db, pytest.raises(ObjectError, match="are gone"):
        load_verification(db, ANALYSIS, version=1)
