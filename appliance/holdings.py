"""What is held, asked for as PS3.4 annex C and PS3.18 section 10.6 ask: keys to match, answers.

One statement serves C-FIND, C-MOVE, C-GET and QIDO-RS; `matching` has the rules. Every answer is of
one person: a Study Instance UID under which images of several people came is as many studies, each
with its own. What was kept aside as a conflict is in no answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, distinct, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from appliance import matching
from appliance.errors import QueryError, SharedUIDError
from appliance.matching import Rule
from appliance.studies import StoredInstance
from appliance.tables import Instance, Patient, Series, Study


class Level(IntEnum):
    """Query/Retrieve Level (0008,0052), PS3.4 table C.6.1-1; the numbers go down the hierarchy."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    IMAGE = 3


UNIQUE: Final[Mapping[Level, str]] = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.IMAGE: "SOPInstanceUID",
}
"""The unique key of each level."""

MODALITIES: Final = "ModalitiesInStudy"


Column = ColumnElement[Any] | InstrumentedAttribute[Any]


@dataclass(frozen=True)
class Attribute:
    """An attribute that is held.

    Attributes:
        level: At which it is answered and matched, and below.
        column: What it is in the database.
        rule: How it is matched; None if it is not.
        required: Whether PS3.18 tables 10.6.3-3 to 10.6.3-5 have it in every answer.
    """

    level: Level
    column: Column
    rule: Rule | None = None
    required: bool = True


_OtherSeries = aliased(Series)
"""The series that a study's own attributes are about, beside the one that an answer is about."""
_OF_STUDY: Final = _OtherSeries.study_id == Study.id


def _of_study(value: ColumnElement[Any]) -> ColumnElement[Any]:
    return select(value).where(_OF_STUDY).correlate(Study).scalar_subquery()


def _modalities(_column: Any, keyword: str, value: str) -> ColumnElement[bool]:
    """A study matches if one of its series does (PS3.4 section C.3.4)."""
    fits = matching.text(_OtherSeries.modality, keyword, value)
    return exists().where(_OF_STUDY, fits).correlate(Study)


_studies_of_patient: Final = (
    select(func.count(Study.id))
    .where(Study.patient_key == Patient.id)
    .correlate(Patient)
    .scalar_subquery()
)

ATTRIBUTES: Final[Mapping[str, Attribute]] = {
    "PatientID": Attribute(Level.PATIENT, Patient.patient_id, matching.text),
    "IssuerOfPatientID": Attribute(Level.PATIENT, Patient.issuer, matching.text, required=False),
    "PatientName": Attribute(Level.PATIENT, Patient.name, matching.name),
    "PatientBirthDate": Attribute(Level.PATIENT, Patient.birth_date, matching.date),
    "PatientSex": Attribute(Level.PATIENT, Patient.sex, matching.text),
    "NumberOfPatientRelatedStudies": Attribute(Level.PATIENT, _studies_of_patient, required=False),
    "StudyInstanceUID": Attribute(Level.STUDY, Study.study_uid, matching.uid),
    "StudyDate": Attribute(Level.STUDY, Study.study_date, matching.date),
    "StudyTime": Attribute(Level.STUDY, Study.study_time, matching.time),
    "AccessionNumber": Attribute(Level.STUDY, Study.accession_number, matching.text),
    "StudyDescription": Attribute(Level.STUDY, Study.description, matching.text, required=False),
    "ReferringPhysicianName": Attribute(Level.STUDY, Study.referring_physician, matching.name),
    MODALITIES: Attribute(
        Level.STUDY, _of_study(func.aggregate_strings(_OtherSeries.modality, "\\")), _modalities
    ),
    "NumberOfStudyRelatedSeries": Attribute(Level.STUDY, _of_study(func.count(_OtherSeries.id))),
    "NumberOfStudyRelatedInstances": Attribute(
        Level.STUDY, _of_study(func.coalesce(func.sum(_OtherSeries.instance_count), 0))
    ),
    "SeriesInstanceUID": Attribute(Level.SERIES, Series.series_uid, matching.uid),
    "Modality": Attribute(Level.SERIES, Series.modality, matching.text),
    "SeriesNumber": Attribute(Level.SERIES, Series.series_number, matching.text),
    "SeriesDescription": Attribute(Level.SERIES, Series.description, matching.text),
    "NumberOfSeriesRelatedInstances": Attribute(Level.SERIES, Series.instance_count),
    "BodyPartExamined": Attribute(Level.SERIES, Series.body_part, matching.text, required=False),
    "Manufacturer": Attribute(Level.SERIES, Series.manufacturer, matching.text, required=False),
    "ManufacturerModelName": Attribute(Level.SERIES, Series.model, matching.text, required=False),
    "SOPInstanceUID": Attribute(Level.IMAGE, Instance.sop_instance_uid, matching.uid),
    "SOPClassUID": Attribute(Level.IMAGE, Instance.sop_class_uid, matching.uid),
    "AvailableTransferSyntaxUID": Attribute(
        Level.IMAGE, Instance.transfer_syntax_uid, matching.uid, required=False
    ),
}
"""Every attribute that is held, by keyword (PS3.6)."""

IN_WORDS: Final[Mapping[Rule | None, str]] = {
    None: "returned only",
    matching.uid: "single value, list of UIDs",
    matching.text: "single value, list, wildcards",
    matching.name: "wildcards; case does not count",
    matching.date: "single value, range",
    matching.time: "single value, range",
    _modalities: "a study with any series that matches",
}
"""How each rule matches, for the conformance statement."""


@dataclass(frozen=True)
class Answer:
    """One study, series or instance; `values` by keyword, as they came, with those of its parents.

    `instance` is the file of an instance, and nothing at the other levels.
    """

    values: Mapping[str, str | int | tuple[str, ...]]
    instance: StoredInstance | None = None


@dataclass(frozen=True)
class Page:
    """Some of the answers, and whether there are more behind them."""

    answers: tuple[Answer, ...]
    more: bool


@dataclass(frozen=True)
class Held:
    """Instances of one study, which is one person's."""

    study_id: int
    instances: tuple[StoredInstance, ...]


def statement(level: Level, keys: Mapping[str, str], columns: Iterable[Column]) -> Select[Any]:
    """The columns of everything at a level that matches all keys, in an order that is always one.

    Newest studies come first, then series and instances as they came.

    Args:
        level: of what is looked for, in which model soever.
        keys: values by keyword, of this level and those above; an empty one matches everything.
        columns: of the level's table and those above.

    Raises:
        QueryError: a key is not held or not matched at this level, or its value is malformed.
    """
    newest: tuple[Any, ...] = (
        Study.first_received_at.desc(),
        Study.id.desc(),
        Series.id,
        Instance.id,
    )
    order: tuple[Any, ...] = (Patient.id,) if level is Level.PATIENT else newest[: level + 1]
    return _matching(select(*columns), level, keys).order_by(*order)


def require_one_person(db: Session, level: Level, keys: Mapping[str, str]) -> None:
    """Make sure that what matches is of one person under each Study Instance UID.

    At the patient level, that no Patient ID is of several: two senders may use one for two people.

    Raises:
        SharedUIDError: it is not; the patient's attributes as further keys may help.
        QueryError: as for `statement`.
    """
    if level is Level.PATIENT:
        shared, person = Patient.patient_id, Patient.id
    else:
        shared, person = Study.study_uid, Study.id
    several = _matching(select(shared), level, keys).group_by(shared)
    if db.execute(several.having(func.count(distinct(person)) > 1).limit(1)).first():
        raise SharedUIDError("several persons under one identifier: name the patient as well")


def modalities(aggregated: str | None) -> tuple[str, ...]:
    """The value of Modalities in Study (0008,0061): each once, in alphabetical order."""
    return tuple(sorted(set(matching.listed(aggregated or ""))))


def search(
    db: Session, level: Level, keys: Mapping[str, str], *, limit: int, offset: int = 0
) -> Page:
    """The answers at a level, as `statement` finds them.

    Raises:
        QueryError: a key is not held or not matched at this level, or its value is malformed.
    """
    held = {keyword: one for keyword, one in ATTRIBUTES.items() if one.level <= level}
    columns = [one.column.label(keyword) for keyword, one in held.items()]
    if level is Level.IMAGE:
        columns += [Instance.digest.label("digest"), Instance.size_bytes.label("size_bytes")]
    rows = db.execute(statement(level, keys, columns).limit(limit + 1).offset(offset)).all()
    return Page(
        tuple(
            Answer(
                {keyword: getattr(row, keyword) for keyword in held}
                | {MODALITIES: modalities(getattr(row, MODALITIES))},
                _stored(row) if level is Level.IMAGE else None,
            )
            for row in rows[:limit]
        ),
        more=len(rows) > limit,
    )


def find(
    db: Session, study_uid: str, series_uid: str | None = None, sop_instance_uid: str | None = None
) -> Held | None:
    """The instances that UIDs name, ordered by UID, or None if there are none.

    Raises:
        SharedUIDError: several people's images are so named.
    """
    rows = db.execute(
        select(
            Instance.study_id,
            Instance.digest,
            Series.series_uid,
            Instance.sop_instance_uid,
            Instance.sop_class_uid,
            Instance.transfer_syntax_uid,
            Instance.size_bytes,
        )
        .join(Series, Instance.series_id == Series.id)
        .join(Study, Instance.study_id == Study.id)
        .where(*_named(study_uid, series_uid, sop_instance_uid))
        .order_by(Series.series_uid, Instance.sop_instance_uid)
    ).all()
    study_id = _only({row.study_id for row in rows})
    if study_id is None:
        return None
    return Held(study_id, tuple(StoredInstance(*row[1:]) for row in rows))


def owner(db: Session, study_uid: str, series_uid: str | None = None) -> int | None:
    """The row id of the study that UIDs name, or None if there is none.

    Raises:
        SharedUIDError: several people's studies are so named.
    """
    studies = select(Study.id).where(*_named(study_uid, series_uid)).distinct()
    if series_uid is not None:
        studies = studies.join(Series, Series.study_id == Study.id)
    return _only(set(db.scalars(studies)))


def _only(owners: set[int]) -> int | None:
    if len(owners) > 1:
        raise SharedUIDError(
            "Images of several people came under this UID. Search with StudyInstanceUID and"
            " PatientID as keys, and name one person's series or instance."
        )
    return owners.pop() if owners else None


def _named(*uids: str | None) -> list[ColumnElement[bool]]:
    """That study, series and instance have these UIDs, as far as they are given."""
    columns = (Study.study_uid, Series.series_uid, Instance.sop_instance_uid)
    if any(uid is not None and matching.CONTROL.search(uid) for uid in uids):
        raise QueryError("A UID has control characters.")
    return [column == uid for column, uid in zip(columns, uids, strict=False) if uid is not None]


def _stored(row: Row[Any]) -> StoredInstance:
    return StoredInstance(
        digest=row.digest,
        series_uid=row.SeriesInstanceUID,
        sop_instance_uid=row.SOPInstanceUID,
        sop_class_uid=row.SOPClassUID,
        transfer_syntax_uid=row.AvailableTransferSyntaxUID,
        size_bytes=row.size_bytes,
    )


def _matching(chosen: Select[Any], level: Level, keys: Mapping[str, str]) -> Select[Any]:
    chosen = chosen.select_from(Patient)
    if level is Level.PATIENT:
        chosen = chosen.where(exists().where(Study.patient_key == Patient.id).correlate(Patient))
    if level >= Level.STUDY:
        chosen = chosen.join(Study, Study.patient_key == Patient.id)
    if level >= Level.SERIES:
        chosen = chosen.join(Series, Series.study_id == Study.id)
    if level >= Level.IMAGE:
        chosen = chosen.join(Instance, Instance.series_id == Series.id)
    conditions = (_condition(keyword, value, level) for keyword, value in keys.items() if value)
    return chosen.where(*(each for each in conditions if each is not None))


def _condition(keyword: str, value: str, level: Level) -> ColumnElement[bool] | None:
    attribute = ATTRIBUTES.get(keyword)
    if attribute is None or attribute.rule is None:
        raise QueryError(f"{keyword} cannot be matched here.")
    if attribute.level > level:
        raise QueryError(f"{keyword} is below the level that is searched.")
    return matching.condition(attribute.rule, attribute.column, keyword, value)
