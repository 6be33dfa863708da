"""Which result a new one is compared with: the same person's last before, and nobody else's."""

from typing import Any

import pytest

from appliance import lifecycle, prior_results, reviews, studies
from appliance.accounts import Role
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.reviews import Judgement
from appliance.studies import PatientAttributes, StudyAttributes
from appliance.tables import Account
from tests.appliance import world

JANE = PatientAttributes(patient_id="P-7", name="Doe^Jane", birth_date="19700101", sex="F")


def analysed(database: Database, uid: str, date: str, *, time: str = "", **patient: Any) -> int:
    """The id of a study of a day that has a result."""
    person = PatientAttributes(**{**vars(JANE), **patient})
    study = StudyAttributes(study_date=date, study_time=time)
    world.receive(database, world.instance(study_uid=uid, patient=person, study=study))
    with database.snapshot() as db:
        study_id = studies.named(db, uid)[0].id
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)
    lifecycle.finish(database, world.reclaimed(database, study_id), world.result(f"analyses/{uid}"))
    return study_id


def found(database: Database, study_id: int) -> int | None:
    with database.snapshot() as db:
        prior = prior_results.last(db, study_id)
    return None if prior is None else prior.study_id


def test_it_is_the_last_study_before_this_one_that_has_a_result(database: Database):
    analysed(database, "1.1", "20250101")
    before = analysed(database, "1.2", "20260105", time="0900")
    new = analysed(database, "1.3", "20260105", time="1000")
    analysed(database, "1.4", "20260106")
    waiting = world.instance(
        study_uid="1.5",
        patient=JANE,
        study=StudyAttributes(study_date="20260105", study_time="0930"),
    )
    world.receive(database, waiting)

    assert found(database, new) == before
    assert found(database, before) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"name": "Roe^Richard"},
        {"birth_date": "19800101"},
        {"issuer": "elsewhere"},
        {"patient_id": ""},
        {"patient_id": "P-8"},
    ],
)
def test_nobody_is_compared_with_somebody_else(database: Database, other: dict[str, str]):
    analysed(database, "1.1", "20250101", **other)
    new = analysed(database, "1.2", "20260105", issuer="here" if "issuer" in other else "")

    assert found(database, new) is None


def test_without_a_number_or_a_date_nothing_is_compared(database: Database):
    analysed(database, "1.1", "20250101", patient_id="")
    analysed(database, "1.2", "")

    assert found(database, analysed(database, "1.3", "20260105", patient_id="")) is None
    assert found(database, analysed(database, "1.4", "")) is None


def test_it_says_what_was_confirmed_last(database: Database):
    before = analysed(database, "1.1", "20250101")
    new = analysed(database, "1.2", "20260105")
    for seen in (0, 1):
        with database.transaction() as db:
            account = db.get(Account, 1) or Account(
                name="ann",
                password_hash="",
                role=Role.RADIOLOGIST,
                active=True,
                created_at=utc_now(),
            )
            db.add(account)
            db.flush()
            judgement = Judgement(positive=True, lesions={1: True, 2: True})
            reviews.confirm(db, 1, judgement, seen=seen, account=account, organisation="Klinik")

    with database.snapshot() as db:
        prior = prior_results.last(db, new)
    assert prior is not None
    assert (prior.study_id, prior.review, prior.folder) == (before, 2, "analyses/1.1")
