"""Which earlier studies of a patient are worth having beside a new one: the last chest CTs."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from appliance.matching import listed
from dicom_node import query
from dicom_node.query import StudyAnswer, StudyKeys
from dicom_node.scu import Destination

CHEST: Final = re.compile(r"CHEST|THORA|\bTHOR\b|LUNG|PULM|HRCT|WHOLE ?BODY|\bCAP\b|\bTAP\b")
WILDCARDS: Final = frozenset("*?\\")


@dataclass(frozen=True, kw_only=True)
class NewStudy:
    """The study that earlier ones are wanted for, as it was received."""

    study_uid: str
    patient_id: str
    birth_date: str = ""
    study_date: str = ""
    study_time: str = ""


def find_priors(
    destination: Destination, study: NewStudy, *, count: int, max_age_days: int, at_most: int
) -> list[StudyAnswer]:
    """Return a patient's last `count` chest CT studies before `study`, the latest first.

    The same number with another birth date is another person. A study whose series name no part of
    the body counts as a chest.

    Args:
        destination: the PACS to ask.
        study: the new one.
        count: how many are wanted.
        max_age_days: how long before the new study they may be.
        at_most: answers to one query after which it is cancelled.

    Raises:
        AssociationError: no association came about.
        QueryError: the peer offers no C-FIND, or failed in it.
    """
    if not study.patient_id or WILDCARDS & set(study.patient_id):
        return []
    day = _day(study.study_date)
    keys = StudyKeys(
        patient_id=study.patient_id,
        modality="CT",
        study_date=f"{day - timedelta(days=max_age_days):%Y%m%d}-{day:%Y%m%d}",
    )
    found = query.find_studies(destination, keys, at_most=at_most).answers
    earlier = sorted(
        (answer for answer in found if _precedes(answer, study)),
        key=lambda answer: (answer.study_date, answer.study_time),
        reverse=True,
    )
    chests: list[StudyAnswer] = []
    for answer in earlier:
        if len(chests) == count:
            break
        if _shows_chest(destination, answer, at_most):
            chests.append(answer)
    return chests


def _precedes(answer: StudyAnswer, study: NewStudy) -> bool:
    """Whether it is an earlier study of the same person."""
    same_person = answer.patient_id.strip() == study.patient_id.strip() and (
        not (answer.birth_date and study.birth_date) or answer.birth_date == study.birth_date
    )
    when = (answer.study_date, answer.study_time)
    return (
        same_person
        and answer.study_uid != study.study_uid
        and (not study.study_date or when <= (study.study_date, study.study_time or "999999"))
    )


def _shows_chest(destination: Destination, answer: StudyAnswer, at_most: int) -> bool:
    """Whether one of its CT series is, or may be, of the chest."""
    if CHEST.search(answer.description.upper()):
        return True
    series = query.find_series(destination, answer.study_uid, at_most=at_most)
    return any(
        "CT" in listed(each.modality)
        and (not each.body_part or CHEST.search(f"{each.body_part} {each.description}".upper()))
        for each in series
    )


def _day(study_date: str) -> date:
    """The day of a study, today where it has none that can be read."""
    try:
        return datetime.strptime(study_date, "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return datetime.now(UTC).date()
