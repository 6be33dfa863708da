"""The rules asked about studies: what ended, what a person wants sent, and what would be sent."""

from collections.abc import Collection, Iterator
from dataclasses import replace

import structlog
from sqlalchemy.orm import Session

from appliance import deliveries, retrievals, reviews, studies
from appliance.config import RESULTS, Settings
from appliance.database import Database
from appliance.deliveries import Content, Kind, Moment, Subject
from appliance.errors import ApplianceError
from appliance.tables import Study
from dicom_node.routing import Facts, SeriesFacts, destinations_for, objections

log = structlog.get_logger()


def consider(settings: Settings, database: Database) -> int:
    """Queue what the rules say of everything that ended or was confirmed since the last look.

    Each occasion is considered once, by the rules of that time. Returns how many deliveries were
    queued.
    """
    with database.snapshot() as db:
        occasions = deliveries.open_occasions(db)
    queued = 0
    for occasion_id in occasions:
        with database.transaction() as db:
            taken = deliveries.take(db, occasion_id)
            if taken is None or not deliveries.is_current(db, taken[1]):
                continue
            queued += _queue(settings, db, *taken)
    return queued


def _queue(settings: Settings, db: Session, moment: Moment, subject: Subject) -> int:
    wanted = destinations_for(facts_of(db, subject), settings.routing.rules, moment)
    queued = 0
    for destination, contents in wanted.items():
        delivery_id = deliveries.queue(
            db,
            subject,
            destination=destination,
            kind=_kind(contents),
            contents=contents,
        )
        if delivery_id is not None:
            log.info("delivery.queued", delivery_id=delivery_id, study_id=subject.study_id)
            queued += 1
    return queued


def _kind(contents: Collection[Content]) -> Kind:
    return Kind.MESSAGE if Content.MESSAGE in contents else Kind.DICOM


def request(
    settings: Settings,
    database: Database,
    study_id: int,
    destination: str,
    *,
    contents: Collection[Content] = (),
    actor: str,
) -> int:
    """Queue the newest result of a study for a destination because a person wants it.

    Args:
        settings: of the appliance.
        database: of the appliance.
        study_id: the study's number.
        destination: the destination's name.
        contents: what to send; by default what the rules for `request` say.
        actor: who wants it.

    Returns:
        The delivery's id.

    Raises:
        ApplianceError: there is nothing to send, no rule for it, the same is under way, or nobody
            takes all of it.
    """
    systems = {each.name for each in settings.messages.destinations}
    if Content.MESSAGE in contents and set(contents) != {Content.MESSAGE}:
        raise ApplianceError(
            '"message" goes to other systems than the other objects: ask for each by itself'
        )
    is_message = Content.MESSAGE in contents or (not contents and destination in systems)
    known = settings.messages if is_message else settings.dicom
    known.destination(destination)
    with database.transaction() as db:
        subject = _ended(db, study_id)
        wanted = destinations_for(facts_of(db, subject), settings.routing.rules, "request")
        chosen = set(contents) or wanted.get(destination)
        if not chosen:
            raise ApplianceError(
                f'no rule with when = "request" lets study {study_id} go to {destination!r}:'
                " name what to send with --objects"
            )
        if subject.analysis_id is None and chosen & set(map(Content, RESULTS)):
            raise ApplianceError(
                f"study {study_id} was rejected: only its images can be sent, with --objects images"
            )
        return deliveries.request(
            db,
            subject,
            destination=destination,
            kind=_kind(chosen),
            contents=chosen,
            actor=actor,
        )


def explain(settings: Settings, database: Database, study_id: int) -> Iterator[str]:
    """Yield a line for each rule: what it sends of the newest result and where, or why not.

    Raises:
        ApplianceError: the study has not ended yet.
    """
    with database.snapshot() as db:
        facts = facts_of(db, _ended(db, study_id))
    for rule in settings.routing.rules:
        if reasons := objections(facts, rule):
            yield f"{rule.name}: no, {'; '.join(reasons)}"
            continue
        objects, destinations = ", ".join(rule.objects), ", ".join(rule.destinations)
        moment = "on request" if rule.when == "request" else f"when {rule.when}"
        yield f"{rule.name}: {objects} to {destinations} {moment}"


def facts_of(db: Session, subject: Subject) -> Facts:
    """Return what the database knows of a subject; of a confirmed one, what the person said."""
    study = db.get_one(Study, subject.study_id)
    series = tuple(
        SeriesFacts(
            modality=row.modality,
            description=row.description,
            body_part=row.body_part,
            manufacturer=row.manufacturer,
        )
        for row in studies.series_of(db, subject.study_id)
    )
    facts = Facts(
        outcome="REJECTED",
        prior=retrievals.came_as_prior(db, study),
        source_ae=study.source_ae,
        description=study.description,
        series=series,
    )
    if subject.analysis_id is None:
        return facts
    analysis = studies.analysis(db, subject.analysis_id)
    assert analysis is not None
    machine = replace(
        facts,
        outcome="READY",
        positive=analysis.positive,
        probability=analysis.probability,
        lesion_count=analysis.lesion_count,
    )
    if subject.review == 0:
        return machine
    person = reviews.history(db, subject.analysis_id)[subject.review - 1]
    left = person.lesion_count(analysis)
    return replace(machine, positive=person.positive, lesion_count=left)


def _ended(db: Session, study_id: int) -> Subject:
    if db.get(Study, study_id) is None:
        raise ApplianceError(f"there is no study {study_id}")
    subject = deliveries.latest(db, study_id)
    if subject is None or not deliveries.is_current(db, subject):
        raise ApplianceError(f"study {study_id} has no result that is up to date")
    return subject
