"""The queue's entry point: what is to be delivered; standing queries, priors, what to retrieve.

A message is only a doorbell. What was asked of whom lies in the database, so that nothing is lost
when a PACS, the broker or this process goes away, and nothing is asked for twice.
"""

import logging
import threading
import time
from datetime import datetime, timedelta
from typing import Final

import structlog
from celery import shared_task
from pynetdicom import _config

from appliance import remote_queries, retrievals, studies
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.errors import ApplianceError, ConfigError
from appliance.queue import current
from appliance.reception import Reception
from appliance.remote_queries import Question, RemoteStudy
from appliance.retrievals import Aim, Order, Standing, Why
from appliance.store import Store
from dicom_node import commitment, delivery, dispatch, query
from dicom_node.errors import AssociationError, QueryError
from dicom_node.priors import NewStudy, find_priors
from dicom_node.query import Counts, StudyKeys
from dicom_node.scu import ANSWER_TIMEOUT_S, Destination

log = structlog.get_logger()

# A peer that is silent for longer is given up, so a lease renewed at each answer outlives it.
LEASE_S: Final = ANSWER_TIMEOUT_S + 60.0
RENEW_S: Final = 10.0
# After that the next message goes on, so that a long row of studies holds no worker for hours.
TURN_S: Final = 300.0
CLOCKS_DIFFER: Final = timedelta(hours=12)
"""A study's date is of its scanner's clock and zone; one of late evening comes after midnight."""
PRIORS_SOUGHT_WITHIN: Final = timedelta(days=1)
"""Of what came earlier no priors are sought: the setting may have been made this minute."""

# Process-wide: pynetdicom's messages quote what peers send, UIDs and names too.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
_config.LOG_HANDLER_LEVEL = "none"


@shared_task(name="dicom_node.run_standing_query")
def run_standing_query_task(number: int) -> None:
    """Run `run_standing_query` in a worker; `number` counts those of the settings from 0."""
    app = current()
    standing = app.settings.retrieve.standing_queries
    if number < len(standing):  # else the settings changed while the message waited
        run_standing_query(app.settings, app.database, number)


@shared_task(name="dicom_node.retrieve_waiting")
def retrieve_waiting_task() -> None:
    """Run `seek_priors` and `retrieve_waiting` in a worker."""
    app = current()
    seek_priors(app.settings, app.database)
    retrieve_waiting(app.settings, app.database)


@shared_task(name="dicom_node.answer_queries")
def answer_queries_task() -> None:
    """Run `answer_queries` in a worker."""
    app = current()
    answer_queries(app.settings, app.database)


def answer_queries(settings: Settings, database: Database) -> int:
    """Answer what people ask, of other nodes mostly; returns how many questions."""
    with database.snapshot() as db:
        if not remote_queries.is_any_kept(db):
            return 0
    remote_queries.remove_expired(database)
    answered = 0
    while (question := remote_queries.claim_next(database)) is not None:
        _answer(settings, database, question)
        answered += 1
    return answered


def _answer(settings: Settings, database: Database, question: Question) -> None:
    match question.kind:
        case remote_queries.Kind.STUDIES:
            _answer_studies(settings, database, question)
        case remote_queries.Kind.ECHO:
            _answer_echo(settings, database, question)
        case remote_queries.Kind.RULES:
            _answer_rules(settings, database, question)


def _answer_echo(settings: Settings, database: Database, question: Question) -> None:
    begun = time.monotonic()
    try:
        query.echo(Destination.configured(settings.dicom, question.destination))
    except (AssociationError, QueryError, ConfigError) as error:
        remote_queries.fail(database, question, str(error))
        return
    took_ms = (time.monotonic() - begun) * 1000
    remote_queries.say(database, question, [f"{took_ms:.0f}"])


def _answer_rules(settings: Settings, database: Database, question: Question) -> None:
    try:
        lines = list(dispatch.explain(settings, database, int(question.keys["study"])))
    except ApplianceError as error:
        remote_queries.fail(database, question, str(error))
        return
    remote_queries.say(database, question, lines)


def _answer_studies(settings: Settings, database: Database, question: Question) -> None:
    try:
        found = query.find_studies(
            Destination.configured(settings.dicom, question.destination),
            StudyKeys(**question.keys),
            at_most=settings.retrieve.max_answers,
        )
    except (AssociationError, QueryError, ConfigError) as error:
        remote_queries.fail(database, question, str(error))
        log.warning("remote_query.failed", query_id=question.id, destination=question.destination)
        return
    listed = [
        RemoteStudy(
            study_uid=answer.study_uid,
            patient_id=answer.patient_id,
            patient_name=answer.patient_name,
            birth_date=answer.birth_date,
            accession_number=answer.accession_number,
            study_date=answer.study_date,
            study_time=answer.study_time,
            modalities=answer.modalities,
            description=answer.description,
            instance_count=answer.instance_count,
        )
        for answer in found.answers
    ]
    remote_queries.answer(database, question, listed, cut_off=found.cut_off)
    log.info("remote_query.done", query_id=question.id, answers=len(listed))


@shared_task(name="dicom_node.deliver_waiting")
def deliver_waiting_task() -> None:
    """Run `consider` and `deliver_waiting` in a worker."""
    app = current()
    dispatch.consider(app.settings, app.database)
    delivery.deliver_waiting(app.settings, app.database)


@shared_task(name="dicom_node.answer_commitments")
def answer_commitments_task() -> None:
    """Run `commitment.answer_waiting` in a worker."""
    app = current()
    commitment.answer_waiting(app.settings, app.database)


def run_standing_query(settings: Settings, database: Database, number: int) -> int:
    """Ask a PACS what it has and note what is not here; returns how many studies were noted.

    A PACS that does not answer is asked again at the next turn. `appliance doctor` tells why one
    did not, and of one that has more than it is asked for.

    Args:
        settings: of the appliance.
        database: of the appliance.
        number: of the query among the standing queries, from 0.
    """
    standing = settings.retrieve.standing_queries[number]
    at_most = settings.retrieve.max_answers
    keys = StudyKeys(
        study_date=dates_asked(utc_now(), standing.days),
        modality=standing.modality,
        description=standing.description,
    )
    try:
        found = query.find_studies(
            Destination.configured(settings.dicom, standing.destination),
            keys,
            at_most=at_most,
        )
    except (AssociationError, QueryError) as error:
        retrievals.note_standing(settings, number, Standing(0, str(error)))
        log.warning("standing_query.failed", destination=standing.destination)
        return 0
    trouble = f"it matches more than {at_most} studies, of which {at_most} are looked at"
    matched = Standing(len(found.answers), trouble if found.cut_off else "")
    retrievals.note_standing(settings, number, matched)
    if found.cut_off:
        log.warning("standing_query.cut_off", destination=standing.destination)
    noted = 0
    for answer in found.answers:
        with database.transaction() as db:
            noted += retrievals.ask(
                db,
                destination=standing.destination,
                aim=Aim.STUDY,
                study_uid=answer.study_uid,
                why=Why.STANDING_QUERY,
                expected=answer.instance_count,
            )
    log.info("standing_query.done", destination=standing.destination, noted=noted)
    return noted


def dates_asked(now: datetime, days: int) -> str:
    """Return the range of the last `days` days, today included, wherever today has begun."""
    first = (now - CLOCKS_DIFFER).astimezone().date() - timedelta(days=days - 1)
    last = (now + CLOCKS_DIFFER).astimezone().date()
    return f"{first:%Y%m%d}-{last:%Y%m%d}"


def seek_priors(settings: Settings, database: Database) -> int:
    """Note that every PACS is to be asked for the priors of what came lately; returns how many."""
    if settings.retrieve.priors == 0:
        return 0
    noted = 0
    for destination in settings.dicom.destinations:
        if not destination.query:
            continue
        with database.transaction() as db:
            since = utc_now() - PRIORS_SOUGHT_WITHIN
            for study in retrievals.fresh(db, destination=destination.name, since=since):
                noted += retrievals.ask(
                    db,
                    destination=destination.name,
                    aim=Aim.PRIORS,
                    study_uid=study.study_uid,
                    why=Why.NEW_STUDY,
                    expected=study.people,
                )
    return noted


def retrieve_waiting(settings: Settings, database: Database) -> int:
    """Carry out what is due, one after the other; returns how many were tried."""
    deadline = time.monotonic() + TURN_S
    tried = 0
    while time.monotonic() < deadline:
        order = retrievals.claim_next(database, lease_s=LEASE_S)
        if order is None:
            break
        _carry_out(settings, database, order)
        tried += 1
    return tried


def _carry_out(settings: Settings, database: Database, order: Order) -> None:
    problem, retriable = _attempt(settings, database, order)
    if not problem:
        retrievals.finish(database, order)
        log.info("retrieval.done", retrieval_id=order.id, aim=order.aim)
        return
    state = retrievals.put_off(
        database,
        order,
        problem,
        retriable=retriable,
        max_attempts=settings.retrieve.max_attempts,
        retry_s=settings.retrieve.retry_s,
    )
    log.warning("retrieval.put_off", retrieval_id=order.id, attempt=order.attempt, state=state)


def _attempt(settings: Settings, database: Database, order: Order) -> tuple[str, bool]:
    """Try it once; returns the problem, "" for none, and whether to try again."""
    if order.attempt > settings.retrieve.max_attempts:
        return "every try ended with the worker's death", False
    try:
        destination = Destination.configured(settings.dicom, order.destination)
        if order.aim is Aim.STUDY:
            return _retrieve(settings, database, order, destination)
        _note_priors(settings, database, order, destination)
    except (AssociationError, QueryError) as error:
        return str(error), error.retriable
    except ConfigError as error:
        return str(error), False
    return "", False


def _retrieve(
    settings: Settings, database: Database, order: Order, destination: Destination
) -> tuple[str, bool]:
    """Retrieve a study; returns as `_attempt`."""
    with database.snapshot() as db:
        if 0 < order.expected <= retrievals.held(db, order.study_uid):
            return "", False  # it came in the meantime
    renewed_at = time.monotonic()
    lost = threading.Event()

    def renew(_counts: Counts) -> None:
        nonlocal renewed_at
        if time.monotonic() - renewed_at > RENEW_S:
            renewed_at = time.monotonic()
            if not retrievals.renew(database, order, lease_s=LEASE_S):
                lost.set()  # given up by a person, or another worker's by now

    reception = Reception(
        database, Store(settings.store_dir), min_free_bytes=settings.dicom.min_free_bytes
    )
    retrieved = query.retrieve(destination, order.study_uid, reception, report=renew, stop=lost)
    with database.snapshot() as db:
        here = retrievals.held(db, order.study_uid)
    if 0 < order.expected <= here:
        return "", False  # whatever the peer made of it: some fall silent during a long C-MOVE
    if retrieved.problem:
        return retrieved.problem, retrieved.retriable
    if here < max(order.expected, 1):
        wanted = f"{here} of {order.expected}" if order.expected else "no"
        return f"{retrieved.service}: {wanted} instances are here", True
    return "", False


def _note_priors(
    settings: Settings, database: Database, order: Order, destination: Destination
) -> None:
    with database.snapshot() as db:
        known = [
            NewStudy(
                study_uid=study.study_uid,
                patient_id=study.patient.patient_id,
                birth_date=study.patient.birth_date,
                study_date=study.study_date,
                study_time=study.study_time,
            )
            for study in studies.named(db, order.study_uid)
        ]
    for study in known:
        priors = find_priors(
            destination,
            study,
            count=settings.retrieve.priors,
            max_age_days=settings.retrieve.priors_max_age_days,
            at_most=settings.retrieve.max_answers,
        )
        with database.transaction() as db:
            for prior in priors:
                retrievals.ask(
                    db,
                    destination=order.destination,
                    aim=Aim.STUDY,
                    study_uid=prior.study_uid,
                    why=Why.PRIOR,
                    expected=prior.instance_count,
                )
