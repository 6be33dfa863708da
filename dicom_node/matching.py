"""A query of PS3.4 section C.2.2.2 as one SQL statement over the appliance's tables.

What is matched, and how:

- dates and times: a single value or a range; a time without seconds stands for its whole minute;
- UIDs: one or a list; wildcards mean nothing in them;
- names of persons: wildcards, without regard to case, with the whole name or one of its groups;
- everything else: wildcards "*" and "?", with regard to case; of several values any may fit.

The hierarchy holds (C.4.1.2.1): above the level that is asked for, unique keys name one entity.
What is received is in the database as it came, so a date that is none matches by its text alone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from sqlalchemy import Boolean, ColumnElement, Select, and_, exists, func, or_, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, aliased
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from appliance.tables import Instance, Patient, Series, Study
from dicom_node.errors import IdentifierError
from dicom_node.identifiers import CONTROL, listed

UIDS_LIMIT: Final = 10_000
"""UIDs in one list; SQLite takes 32,766 parameters in a statement."""


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

OF_THIS_NODE: Final = frozenset({"RetrieveAETitle", "InstanceAvailability"})
"""What is answered without asking the database."""

Condition = Callable[[Any, str], ColumnElement[bool]]


@dataclass(frozen=True)
class Attribute:
    """What the database has for one attribute, and how it is matched; `None` is not at all."""

    level: Level
    column: Any
    condition: Condition | None


@dataclass(frozen=True)
class Query:
    """What is asked for: the level, the top of the model, and every key with its value or ""."""

    level: Level
    top: Level
    keys: Mapping[str, str]

    @classmethod
    def parse(cls, texts: Mapping[str, str], *, top: Level) -> "Query":
        """Return the query of an identifier.

        Raises:
            IdentifierError: the level is none of the model's, or a unique key above it is missing.
        """
        name = texts.get("QueryRetrieveLevel", "")
        if name not in Level.__members__ or Level[name] < top:
            allowed = ", ".join(level.name for level in Level if level >= top)
            raise IdentifierError(f"QueryRetrieveLevel must be {allowed}")
        level = Level[name]
        keys = {keyword: value for keyword, value in texts.items() if keyword not in CONTROL}
        for above in Level:
            if top <= above < level:
                _require_one(keys.get(UNIQUE[above], ""), UNIQUE[above])
        return cls(level, top, keys)

    @property
    def known(self) -> tuple[str, ...]:
        """The keys that the database has something for."""
        return tuple(keyword for keyword in self.keys if self._attribute(keyword) is not None)

    @property
    def complete(self) -> bool:
        """Whether every key is known and matched as asked."""
        return all(
            (attribute := self._attribute(keyword)) is not None
            and (attribute.condition is not None or not value)
            for keyword, value in self.keys.items()
            if keyword not in OF_THIS_NODE
        )

    def statement(self) -> Select[Any]:
        """Return the rows that match: a column for each known key, and `study_uid` below PATIENT.

        Raises IdentifierError if a value cannot be matched with.
        """
        columns = [ATTRIBUTES[keyword].column.label(keyword) for keyword in self.known]
        unique = ATTRIBUTES[UNIQUE[self.level]].column.label("unique_key")
        return (
            _joined(select(unique, *columns), self.level)
            .where(*self._conditions(self.level))
            .order_by(TABLES[self.level].id)
        )

    def require_unique(self) -> None:
        """Raise IdentifierError unless the level's unique key names what shall be retrieved."""
        keyword = UNIQUE[self.level]
        if self.level is Level.PATIENT:
            _require_one(self.keys.get(keyword, ""), keyword)
        elif not listed(self.keys.get(keyword, "")):
            raise IdentifierError(f"{keyword} must name what to retrieve")

    def instances(self) -> Select[Any]:
        """Return the instances at or below what matches, in a stable order.

        The columns: study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, digest.
        """
        columns: tuple[Any, ...] = (
            Instance.study_id,
            Instance.sop_instance_uid,
            Instance.sop_class_uid,
            Instance.transfer_syntax_uid,
            Instance.digest,
        )
        return (
            _joined(select(*columns), Level.IMAGE)
            .where(*self._conditions(self.level))
            .order_by(Instance.study_id, Instance.series_id, Instance.id)
        )

    def mixed(self) -> Select[Any]:
        """Return a row if one unique key stands for several persons, whom no answer may mix.

        Several persons' images may have come under one Study Instance UID (`Study.part`), and two
        senders may use one Patient ID for two people.
        """
        level = Level.PATIENT if self.level is Level.PATIENT else Level.STUDY
        entity = Study.study_uid if level is Level.STUDY else Patient.patient_id
        return (
            _joined(select(entity), level)
            .where(*self._conditions(level))
            .group_by(entity)
            .having(func.count() > 1)
            .limit(1)
        )

    def _conditions(self, level: Level) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = [true()]
        if level is Level.PATIENT:
            study = aliased(Study)
            found.append(exists().where(study.patient_key == Patient.id))
        for keyword in self.known:
            attribute, value = ATTRIBUTES[keyword], self.keys[keyword]
            if attribute.level > level or attribute.condition is None or value in ("", "*"):
                continue
            if self.top <= attribute.level < self.level and keyword == UNIQUE[attribute.level]:
                found.append(attribute.column == value)
            else:
                found.append(attribute.condition(attribute.column, value))
        return found

    def _attribute(self, keyword: str) -> Attribute | None:
        """What is known of a keyword at this level or above it."""
        attribute = ATTRIBUTES.get(keyword)
        return attribute if attribute is not None and attribute.level <= self.level else None


def _require_one(value: str, keyword: str) -> None:
    if not value or set(value) & set("*?\\"):
        raise IdentifierError(f"{keyword} must be one value without wildcards")


def _uid(column: Any, value: str) -> ColumnElement[bool]:
    uids = listed(value)
    if len(uids) > UIDS_LIMIT:
        raise IdentifierError(f"more than {UIDS_LIMIT} UIDs in one list")
    return and_(true(), column.in_(uids))


def _text(column: Any, value: str) -> ColumnElement[bool]:
    """Any of the values, with wildcards (PS3.4 section C.2.2.2.4)."""
    return or_(*(_one_text(column, each) for each in listed(value)))


def _one_text(column: Any, value: str) -> ColumnElement[bool]:
    if not set(value) & set("*?"):
        return and_(true(), column == value)
    return _Matches(column, *(rf"(?s)\A{pattern}\Z" for pattern in _patterns(value)))


def _name(column: Any, value: str) -> ColumnElement[bool]:
    """A name of a person: PS3.4 section C.2.2.2.1 leaves case and groups to the SCP.

    The carets that end a name mean nothing (PS3.5 section 6.2.1.1).
    """
    patterns = _patterns(value.rstrip("^="))
    return _Matches(column, *(rf"(?is)(?:\A|=){pattern}\^*(?:=|\Z)" for pattern in patterns))


class _Matches(FunctionElement[bool]):
    """A column, and one regular expression as Python reads it and as PostgreSQL does."""

    inherit_cache = True
    type = Boolean()


@compiles(_Matches, "sqlite")
def _matches_in_sqlite(element: _Matches, compiler: SQLCompiler, **options: Any) -> str:
    column, python, _ = element.clauses
    left, right = (compiler.process(each, **options) for each in (column, python))
    return f"{left} REGEXP {right}"  # SQLAlchemy gives each connection Python's


@compiles(_Matches, "postgresql")
def _matches_in_postgresql(element: _Matches, compiler: SQLCompiler, **options: Any) -> str:
    column, _, postgresql = element.clauses
    left, right = (compiler.process(each, **options) for each in (column, postgresql))
    return f"{left} ~ {right}"


def _patterns(value: str) -> tuple[str, str]:
    r"""Return wildcards as regular expressions for Python and for PostgreSQL.

    Every other character is written "\uXXXX", which both know, so that none means anything. Python
    would try every place of each "*" with every place of the next, for ever if a peer wants it to;
    but what stands between two of them may always be taken where it first occurs, once for all.
    """
    first, *rest = (_piece(piece) for piece in re.split(r"\*+", value))
    if not rest:
        return first, first
    *between, last = rest
    once = "".join(f"(?>.*?{piece})" for piece in between)
    return f"{first}{once}.*{last}", ".*".join((first, *rest))


def _piece(text: str) -> str:
    return "".join("." if letter == "?" else _escaped(ord(letter)) for letter in text)


def _escaped(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return rf"\u{code:04x}" if code <= 0xFFFF else rf"\U{code:08x}"


def _date(column: Any, value: str) -> ColumnElement[bool]:
    """One date or a range (PS3.4 section C.2.2.2.5)."""
    low, high = _range(value, DATE, "YYYYMMDD")
    return and_(column != "", column >= low, column <= high if high else true())


def _time(column: Any, value: str) -> ColumnElement[bool]:
    """One time or a range. A time may end at the hour or the minute, and lacks what follows."""
    low, high = _range(value, TIME, "HHMMSS")
    # Without trailing zeros 0900 comes before 09 and 090000; 99.999999 ends what was left out.
    low = re.sub(r"(00)+(\.0*)?$", "", low)
    high = high and high + ("9999.999999"[len(high) - 2 :] if len(high) < 7 else "999999")
    plain = func.replace(column, ":", "")
    return and_(plain != "", plain >= low, plain <= high if high else true())


DATE: Final = re.compile(r"\d{8}")
TIME: Final = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")


def _range(value: str, form: re.Pattern[str], example: str) -> tuple[str, str]:
    """Return both ends; an open end is "", a single value is both."""
    low, dash, high = (part.strip() for part in value.replace(":", "").partition("-"))
    if not dash:
        high = low
    if not (low or high) or not all(form.fullmatch(end) for end in (low, high) if end):
        raise IdentifierError(f"a date or time must be {example} or a range of them")
    return low, high


def _modalities(_column: Any, value: str) -> ColumnElement[bool]:
    """A study matches if one of its series does (PS3.4 section C.3.4)."""
    series = aliased(Series)
    return exists().where(series.study_id == Study.id, _text(series.modality, value))


def _count(counted: InstrumentedAttribute[int], *conditions: ColumnElement[bool]) -> Any:
    return select(func.count(counted)).where(*conditions).scalar_subquery()


_OF_PATIENT: Final = Study.patient_key == Patient.id

ATTRIBUTES: Final[Mapping[str, Attribute]] = {
    "PatientID": Attribute(Level.PATIENT, Patient.patient_id, _text),
    "IssuerOfPatientID": Attribute(Level.PATIENT, Patient.issuer, _text),
    "PatientName": Attribute(Level.PATIENT, Patient.name, _name),
    "PatientBirthDate": Attribute(Level.PATIENT, Patient.birth_date, _date),
    "PatientSex": Attribute(Level.PATIENT, Patient.sex, _text),
    "NumberOfPatientRelatedStudies": Attribute(
        Level.PATIENT, _count(Study.id, _OF_PATIENT).correlate(Patient), None
    ),
    "StudyInstanceUID": Attribute(Level.STUDY, Study.study_uid, _uid),
    "StudyDate": Attribute(Level.STUDY, Study.study_date, _date),
    "StudyTime": Attribute(Level.STUDY, Study.study_time, _time),
    "AccessionNumber": Attribute(Level.STUDY, Study.accession_number, _text),
    "StudyDescription": Attribute(Level.STUDY, Study.description, _text),
    "ReferringPhysicianName": Attribute(Level.STUDY, Study.referring_physician, _name),
    "ModalitiesInStudy": Attribute(
        Level.STUDY,
        select(func.aggregate_strings(Series.modality, "\\"))
        .where(Series.study_id == Study.id)
        .correlate(Study)
        .scalar_subquery(),
        _modalities,
    ),
    "NumberOfStudyRelatedSeries": Attribute(
        Level.STUDY, _count(Series.id, Series.study_id == Study.id).correlate(Study), None
    ),
    "NumberOfStudyRelatedInstances": Attribute(
        Level.STUDY, _count(Instance.id, Instance.study_id == Study.id).correlate(Study), None
    ),
    "SeriesInstanceUID": Attribute(Level.SERIES, Series.series_uid, _uid),
    "Modality": Attribute(Level.SERIES, Series.modality, _text),
    "SeriesNumber": Attribute(Level.SERIES, Series.series_number, _text),
    "SeriesDescription": Attribute(Level.SERIES, Series.description, _text),
    "BodyPartExamined": Attribute(Level.SERIES, Series.body_part, _text),
    "Manufacturer": Attribute(Level.SERIES, Series.manufacturer, _text),
    "ManufacturerModelName": Attribute(Level.SERIES, Series.model, _text),
    "NumberOfSeriesRelatedInstances": Attribute(Level.SERIES, Series.instance_count, None),
    "SOPInstanceUID": Attribute(Level.IMAGE, Instance.sop_instance_uid, _uid),
    "SOPClassUID": Attribute(Level.IMAGE, Instance.sop_class_uid, _uid),
    "AvailableTransferSyntaxUID": Attribute(Level.IMAGE, Instance.transfer_syntax_uid, _uid),
}
"""Every attribute that is held; any other is answered empty (PS3.4 section C.2.2.1.3)."""

TABLES: Final[Mapping[Level, Any]] = {
    Level.PATIENT: Patient,
    Level.STUDY: Study,
    Level.SERIES: Series,
    Level.IMAGE: Instance,
}


def _joined(statement: Select[Any], level: Level) -> Select[Any]:
    """From the table of the level up to the patient."""
    statement = statement.select_from(TABLES[level])
    if level >= Level.IMAGE:
        statement = statement.join(Series, Instance.series_id == Series.id)
    if level >= Level.SERIES:
        statement = statement.join(Study, Series.study_id == Study.id)
    if level >= Level.STUDY:
        statement = statement.join(Patient, Study.patient_key == Patient.id)
    return statement
