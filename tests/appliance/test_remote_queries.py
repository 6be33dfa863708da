"""Questions of people to other nodes: put once, answered to who asked, and forgotten."""

from datetime import timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from appliance import remote_queries
from appliance.database import Database, utc_now
from appliance.remote_queries import (
    ANSWERED_WITHIN,
    KEPT,
    TOO_LATE,
    Answers,
    Kind,
    RemoteStudy,
)
from appliance.retrievals import RetrievalState
from appliance.tables import AuditEntry, RemoteQuery

MOMENT = timedelta(seconds=1)


def ask(database: Database) -> int:
    keys = {"patient_id": "P\0-1", "study_date": ""}
    with database.transaction() as db:
        return remote_queries.ask(db, destination="pacs", keys=keys, asked_by="reader")


def found(
    database: Database, query_id: int, asked_by: str = "reader", after: timedelta = MOMENT
) -> Answers | None:
    with database.snapshot() as db:
        return remote_queries.find(db, query_id, asked_by=asked_by, now=utc_now() + after)


def test_a_question_is_put_once_and_answered_to_who_asked(database: Database):
    query_id = ask(database)
    question = remote_queries.claim_next(database)
    assert question is not None
    assert (question.id, question.keys["patient_id"]) == (query_id, "P-1")
    assert remote_queries.claim_next(database) is None

    remote_queries.answer(database, question, [RemoteStudy(study_uid="1.2")], cut_off=True)

    answers = found(database, query_id)
    assert answers is not None
    assert (answers.state, answers.cut_off) == (RetrievalState.DONE, True)
    assert answers.studies == (RemoteStudy(study_uid="1.2"),)
    assert found(database, query_id, asked_by="somebody else") is None


def test_the_audit_tells_who_asked_whom_but_not_for_whom(database: Database):
    query_id = ask(database)

    with database.snapshot() as db:
        (entry,) = db.scalars(select(AuditEntry))
    assert (entry.actor, entry.tag, entry.subject) == (
        "reader",
        "web:node:asked",
        f"query {query_id}",
    )
    assert entry.detail == {"destination": "pacs", "keys": ["patient_id"]}


def test_a_node_that_does_not_answer_is_told(database: Database):
    query_id = ask(database)
    question = remote_queries.claim_next(database)
    assert question is not None
    remote_queries.fail(database, question, "nothing listens\0 there")

    answers = found(database, query_id)
    assert answers is not None
    assert (answers.state, answers.problem) == ("FAILED", "nothing listens there")


def test_a_question_that_nobody_puts_ends(database: Database):
    query_id = ask(database)

    waiting = found(database, query_id)
    late = found(database, query_id, after=ANSWERED_WITHIN + MOMENT)

    assert waiting is not None
    assert waiting.state is RetrievalState.WAITING
    assert late is not None
    assert (late.state, late.problem) == (RetrievalState.FAILED, TOO_LATE)


def test_answers_are_forgotten(database: Database):
    query_id = ask(database)

    assert found(database, query_id, after=KEPT + MOMENT) is None
    remote_queries.remove_expired(database)
    assert found(database, query_id) is not None
    remote_queries.remove_expired(database, now=utc_now() + KEPT + MOMENT)
    assert found(database, query_id) is None


def test_a_question_answered_in_words_is_for_every_administrator(database: Database):
    with database.transaction() as db:
        remote_queries.ask(db, kind=Kind.ECHO, destination="pacs", keys={}, asked_by="chief")
        study = {"study": "17"}
        remote_queries.ask(db, kind=Kind.RULES, destination="", keys=study, asked_by="chief")
    for lines in (["13"], ["results: no, \0the study is not READY"]):
        question = remote_queries.claim_next(database)
        assert question is not None
        remote_queries.say(database, question, lines)

    with database.snapshot() as db:
        (echo,) = remote_queries.said(db, Kind.ECHO)
        (rules,) = remote_queries.said(db, Kind.RULES)
        late = remote_queries.said(db, Kind.RULES, now=utc_now() + KEPT + MOMENT)
        assert remote_queries.find(db, 1, asked_by="chief") is None, "it lists no studies"
    assert (echo.destination, echo.state, echo.lines) == ("pacs", RetrievalState.DONE, ("13",))
    assert (rules.keys, rules.lines) == (study, ("results: no, the study is not READY",))
    assert late == []


def test_there_are_no_other_questions(database: Database):
    ask(database)

    with pytest.raises(IntegrityError), database.transaction() as db:
        db.execute(update(RemoteQuery).values(kind="gossip"))
