"""What is held, asked for as PS3.4 C.2.2.2 and PS3.18 8.3.4 ask: keys to match, answers in pages.

Every answer is of one person: a Study Instance UID under which images of several people came is as
many studies, each with its own. What was kept aside as a conflict is in no answer.

Matching:

=================  ================================================================================
UID                equal, or one of a list, separated by commas or backslashes
text               equal, or wildcards: ``*`` any characters, ``?`` one; case counts
person's name      the same, but neither case nor trailing carets count; the alphabetic group alone
                   matches, too
date               equal, or a range: ``A-B``, ``A-``, ``-B``
time               the same; a time of lesser precision stands for all that lies within it
=================  ================================================================================

An empty value matches everything.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, collate, exists, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from appliance.errors import QueryError, SharedUIDError
from appliance.studies import InstanceFile
from appliance.tables import Instance, Patient, Series, Study

MOST_STARS: Final = 5
"""Wildcards ``*`` in one value: matching takes time as a power of their number."""

LONGEST_VALUE: Final = 4096
"""Characters; a list of UIDs may be long."""


class Level(IntEnum):
    """The levels of the study root (PS3.4 C.6.2.1), higher ones first."""

    STUDY = 0
    SERIES = 1
    INSTANCE = 2


class Matching(Enum):
    """How a key is matched."""

    NONE = auto()
    UID = auto()
    TEXT = auto()
    NAME = auto()
    DATE = auto()
    TIME = auto()


@dataclass(frozen=True)
class Attribute:
    """An attribute that is held, by its keyword (PS3.6).

    Attributes:
        required: Whether PS3.18 tables 10.6.3-3 to 10.6.3-5 have it in every answer.
    """

    keyword: str
    level: Level
    column: ColumnElement[Any] | InstrumentedAttribute[Any]
    matching: Matching = Matching.NONE
    required: bool = True


_OtherSeries = aliased(Series)
"""The series that a study's numbers count, beside the one that an answer may be about."""


def _series_of_study() -> ColumnElement[Any]:
    return (
        select(func.count())
        .select_from(_OtherSeries)
        .where(_OtherSeries.study_id == Study.id)
        .correlate(Study)
        .scalar_subquery()
    )


def _instances_of_study() -> ColumnElement[Any]:
    return (
        select(func.coalesce(func.sum(_OtherSeries.instance_count), 0))
        .where(_OtherSeries.study_id == Study.id)
        .correlate(Study)
        .scalar_subquery()
    )


ATTRIBUTES: Final[Mapping[str, Attribute]] = {
    attribute.keyword: attribute
    for attribute in (
        Attribute("StudyInstanceUID", Level.STUDY, Study.study_uid, Matching.UID),
        Attribute("StudyDate", Level.STUDY, Study.study_date, Matching.DATE),
        Attribute("StudyTime", Level.STUDY, Study.study_time, Matching.TIME),
        Attribute("AccessionNumber", Level.STUDY, Study.accession_number, Matching.TEXT),
        Attribute("ReferringPhysicianName", Level.STUDY, Study.referring_physician, Matching.NAME),
        Attribute("PatientName", Level.STUDY, Patient.name, Matching.NAME),
        Attribute("PatientID", Level.STUDY, Patient.patient_id, Matching.TEXT),
        Attribute("PatientBirthDate", Level.STUDY, Patient.birth_date, Matching.DATE),
        Attribute("PatientSex", Level.STUDY, Patient.sex, Matching.TEXT),
        Attribute("NumberOfStudyRelatedSeries", Level.STUDY, _series_of_study()),
        Attribute("NumberOfStudyRelatedInstances", Level.STUDY, _instances_of_study()),
        Attribute("IssuerOfPatientID", Level.STUDY, Patient.issuer, Matching.TEXT, required=False),
        Attribute(
            "StudyDescription", Level.STUDY, Study.description, Matching.TEXT, required=False
        ),
        Attribute("SeriesInstanceUID", Level.SERIES, Series.series_uid, Matching.UID),
        Attribute("Modality", Level.SERIES, Series.modality, Matching.TEXT),
        Attribute("SeriesNumber", Level.SERIES, Series.series_number, Matching.TEXT),
        Attribute("SeriesDescription", Level.SERIES, Series.description, Matching.TEXT),
        Attribute("NumberOfSeriesRelatedInstances", Level.SERIES, Series.instance_count),
        Attribute(
            "BodyPartExamined", Level.SERIES, Series.body_part, Matching.TEXT, required=False
        ),
        Attribute("Manufacturer", Level.SERIES, Series.manufacturer, Matching.TEXT, required=False),
        Attribute(
            "ManufacturerModelName", Level.SERIES, Series.model, Matching.TEXT, required=False
        ),
        Attribute("SOPInstanceUID", Level.INSTANCE, Instance.sop_instance_uid, Matching.UID),
        Attribute("SOPClassUID", Level.INSTANCE, Instance.sop_class_uid, Matching.UID),
    )
}
MODALITIES: Final = "ModalitiesInStudy"
"""Of the study level, matched as text against every series of the study; a tuple in answers."""


@dataclass(frozen=True)
class Answer:
    """One study, series or instance; `values` by keyword, as they came, with those of its parents.

    `instance` is the file of an instance, and nothing at the other levels.
    """

    values: Mapping[str, str | int | tuple[str, ...]]
    instance: InstanceFile | None = None


@dataclass(frozen=True)
class Page:
    """Some of the answers, and whether there are more behind them."""

    answers: tuple[Answer, ...]
    more: bool


@dataclass(frozen=True)
class Held:
    """Instances of one study, which is one person's."""

    study_id: int
    instances: tuple[InstanceFile, ...]


def search(
    db: Session,
    level: Level,
    keys: Mapping[str, str],
    *,
    within: Sequence[str] = (),
    limit: int,
    offset: int = 0,
) -> Page:
    """The answers at a level that match all keys: newest studies first, then as they came.

    `within` names the study, or the study and the series, that are searched.

    Raises:
        QueryError: a key is not held or not matched at this level, or its value is malformed.
    """
    on_sqlite = db.get_bind().dialect.name == "sqlite"
    attributes = [one for one in ATTRIBUTES.values() if one.level <= level]
    columns = [one.column.label(one.keyword) for one in attributes]
    extra: list[Any] = [Study.id.label("study_id")]
    if level is Level.INSTANCE:
        extra += [Instance.digest, Instance.transfer_syntax_uid, Instance.size_bytes]
    statement = _joined(select(*columns, *extra), level).where(*_named(*within))
    for keyword, value in keys.items():
        if value:
            statement = statement.where(_condition(keyword, value, level, on_sqlite=on_sqlite))
    statement = statement.order_by(Study.first_received_at.desc(), Study.id.desc())
    for one in (Series.id, Instance.id)[:level]:
        statement = statement.order_by(one)
    rows = db.execute(statement.limit(limit + 1).offset(offset)).all()
    modalities = _modalities(db, {row.study_id for row in rows[:limit]})
    return Page(
        tuple(
            Answer(
                {one.keyword: getattr(row, one.keyword) for one in attributes}
                | {MODALITIES: modalities.get(row.study_id, ())},
                _file(row) if level is Level.INSTANCE else None,
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
    return Held(study_id, tuple(InstanceFile(*row[1:]) for row in rows))


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
    if not all(uid is None or uid.isprintable() for uid in uids):
        raise QueryError("A UID has control characters.")
    return [column == uid for column, uid in zip(columns, uids, strict=False) if uid is not None]


def _file(row: Row[Any]) -> InstanceFile:
    return InstanceFile(
        digest=row.digest,
        series_uid=row.SeriesInstanceUID,
        sop_instance_uid=row.SOPInstanceUID,
        sop_class_uid=row.SOPClassUID,
        transfer_syntax_uid=row.transfer_syntax_uid,
        size_bytes=row.size_bytes,
    )


def _joined(statement: Select[Any], level: Level) -> Select[Any]:
    joined = statement.select_from(Study).join(Patient, Study.patient_key == Patient.id)
    if level >= Level.SERIES:
        joined = joined.join(Series, Series.study_id == Study.id)
    if level is Level.INSTANCE:
        joined = joined.join(Instance, Instance.series_id == Series.id)
    return joined


def _modalities(db: Session, study_ids: set[int]) -> Mapping[int, tuple[str, ...]]:
    rows = db.execute(
        select(Series.study_id, Series.modality)
        .where(Series.study_id.in_(study_ids), Series.modality != "")
        .distinct()
        .order_by(Series.study_id, Series.modality)
    )
    found: dict[int, tuple[str, ...]] = {}
    for study_id, modality in rows:
        found[study_id] = (*found.get(study_id, ()), modality)
    return found


def _condition(keyword: str, value: str, level: Level, *, on_sqlite: bool) -> ColumnElement[bool]:
    if len(value) > LONGEST_VALUE or not value.isprintable():
        raise QueryError(f"The value of {keyword} is too long or has control characters.")
    if keyword == MODALITIES:
        modality = _text(_OtherSeries.modality, keyword, value.strip(), on_sqlite=on_sqlite)
        return exists().where(_OtherSeries.study_id == Study.id, modality).correlate(Study)
    attribute = ATTRIBUTES.get(keyword)
    if attribute is None or attribute.matching is Matching.NONE:
        raise QueryError(f"{keyword} cannot be matched here.")
    if attribute.level > level:
        raise QueryError(f"{keyword} is below the level that is searched.")
    match attribute.matching:
        case Matching.UID:
            return attribute.column.in_(re.split(r"[,\\]", value))
        case Matching.NAME:
            return _name(attribute.column, keyword, value.strip())
        case Matching.DATE:
            return _date(attribute.column, keyword, value, on_sqlite=on_sqlite)
        case Matching.TIME:
            return _time(attribute.column, keyword, value, on_sqlite=on_sqlite)
        case _:
            return _text(attribute.column, keyword, value.strip(), on_sqlite=on_sqlite)


def _text(column: Any, keyword: str, value: str, *, on_sqlite: bool) -> ColumnElement[bool]:
    if not _has_wildcards(keyword, value):
        equal: ColumnElement[bool] = column == value
        return equal
    if on_sqlite:  # whose LIKE ignores case
        glob: ColumnElement[bool] = column.op("GLOB")(value.replace("[", "[[]"))
        return glob
    return _like(column, value)


def _name(column: Any, keyword: str, value: str) -> ColumnElement[bool]:
    _has_wildcards(keyword, value)
    name, wanted = func.lower(func.rtrim(column, "^ ")), value.rstrip("^ ")
    return or_(
        name.like(func.lower(_pattern(wanted)), escape="\\"),
        name.like(func.lower(_pattern(wanted) + "=%"), escape="\\"),
    )


def _has_wildcards(keyword: str, value: str) -> bool:
    if value.count("*") > MOST_STARS:
        raise QueryError(f"{keyword} has more than {MOST_STARS} wildcards *.")
    return "*" in value or "?" in value


def _like(column: Any, value: str) -> ColumnElement[bool]:
    like: ColumnElement[bool] = column.like(_pattern(value), escape="\\")
    return like


def _pattern(value: str) -> str:
    """LIKE's pattern for a value with DICOM's wildcards."""
    literal = re.sub(r"([\\%_])", r"\\\1", value)
    return literal.replace("*", "%").replace("?", "_")


def _date(column: Any, keyword: str, value: str, *, on_sqlite: bool) -> ColumnElement[bool]:
    first, last = _bounds(keyword, value, r"[0-9]{8}", "a date as 20260131")
    # ACR-NEMA wrote dates with dots (PS3.5 6.2).
    return _between(func.replace(column, ".", ""), first, last, on_sqlite=on_sqlite)


def _time(column: Any, keyword: str, value: str, *, on_sqlite: bool) -> ColumnElement[bool]:
    form = r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?"
    first, last = _bounds(keyword, value, form, "a time as 1430 or 143000")
    to_the_end = last + "235959.999999"[len(last) :] if last else ""
    return _between(func.replace(column, ":", ""), first, to_the_end, on_sqlite=on_sqlite)


def _bounds(keyword: str, value: str, form: str, written: str) -> tuple[str, str]:
    """The ends of a range, "" where it is open; both are the value itself if it is no range."""
    first, dash, last = value.strip().partition("-")
    if not dash:
        last = first
    given = [end for end in (first, last) if end]
    if not given or not all(re.fullmatch(form, end) for end in given):
        raise QueryError(f"{keyword} must be {written}, or a range of two with a hyphen.")
    return first, last


def _between(column: Any, first: str, last: str, *, on_sqlite: bool) -> ColumnElement[bool]:
    # By the characters' codes: a locale's order may pass over the dot.
    ordered = collate(column, "BINARY" if on_sqlite else "C")
    conditions = [column != ""]
    if first:
        conditions.append(ordered >= first)
    if last:
        conditions.append(ordered <= last)
    return and_(*conditions)
