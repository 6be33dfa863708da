r"""How a key of a query is matched (PS3.4 section C.2.2.2), as a condition in SQL.

=================  ================================================================================
UID                equal, or one of a list, separated by backslashes; no wildcards
text               equal, or wildcards: ``*`` any characters, ``?`` one; case counts; of several
                   values, separated by backslashes, any may fit
person's name      the same wildcards, but case does not count; the whole name or one of its
                   groups; carets and equals signs that end a name mean nothing (PS3.5 6.2.1.1)
date               equal, or a range: ``A-B``, ``A-``, ``-B``
time               the same; a time of lesser precision stands for all that lies within it
=================  ================================================================================

PS3.4 leaves case and groups of names to the SCP. What was received is in the database as it came,
so a date that is none matches by its text alone, and what is empty lies in no range.

Values are parameters of the statement, or regular expressions in which nothing but the wildcards
means anything: neither is SQL, whatever a peer sends.
"""

import re
import unicodedata
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Final

from sqlalchemy import Boolean, ColumnElement, and_, false, func, or_
from sqlalchemy import Text as TextType
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from appliance.errors import QueryError

UIDS_LIMIT: Final = 10_000
"""UIDs in one list; SQLite takes 32,766 parameters in a statement."""

CHARACTERS_LIMIT: Final = 4096
"""Of a value that is no list of UIDs."""

CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

Rule = Callable[[Any, str, str], ColumnElement[bool]]
"""Makes a condition of a column, the key's keyword and its value, which is neither "" nor "*".

It raises QueryError, with a sentence that names the key, where nothing can match the value.
"""


def fits(pattern: str, value: str) -> bool:
    """Whether a value is what a rule's pattern names; "" names all, and case does not count.

    The wildcards are DICOM's, but rules are for people: this one needs no database.
    """
    plain = pattern.strip().casefold().replace("[", "[[]")  # which is none of DICOM's
    return not plain or fnmatchcase(value.strip().casefold(), plain)


def condition(rule: Rule, column: Any, keyword: str, value: str) -> ColumnElement[bool] | None:
    """Return the condition of one key; None for universal matching (C.2.2.2.3).

    Raises:
        QueryError: the value is malformed or too long.
    """
    if CONTROL.search(value):
        raise QueryError(f"{keyword} has control characters.")
    if value.strip() in {"", "*"}:
        return None
    if rule is not uid and len(value) > CHARACTERS_LIMIT:
        raise QueryError(f"{keyword} has more than {CHARACTERS_LIMIT} characters.")
    return rule(column, keyword, value.strip())


def contains(column: Any, part: str) -> ColumnElement[bool]:
    """Whether a name holds this anywhere, as `folded` compares: what people type to find somebody.

    DICOM's matching needs the whole name, or wildcards.
    """
    wanted = folded(part)
    if not wanted:
        return false()
    return _Contains(column, wanted, "".join(_either_case(letter) for letter in wanted))


def folded(text: str) -> str:
    """A name without case, accents and what separates its parts."""
    plain = unicodedata.normalize("NFKD", text).lower().replace("ß", "ss")
    return FOLDED_AWAY.sub("", plain)


FOLDED_AWAY: Final = re.compile(r"[\u0300-\u036f^=,.' -]+")


def _either_case(letter: str) -> str:
    """A pattern for a letter in PostgreSQL, whose own idea of case depends on its locale."""
    cases = {_escaped(ord(each)) for each in (letter, letter.upper()) if len(each) == 1}
    return f"[{''.join(sorted(cases))}]"


def listed(value: str) -> list[str]:
    """Return the values of an attribute with several (PS3.5 section 6.4), without empty ones."""
    return [one for part in value.split("\\") if (one := part.strip())]


def uid(column: Any, keyword: str, value: str) -> ColumnElement[bool]:
    """Return the rule of C.2.2.2.2."""
    uids = listed(value)
    if len(uids) > UIDS_LIMIT:
        raise QueryError(f"{keyword} has more than {UIDS_LIMIT} UIDs.")
    is_one: ColumnElement[bool] = column.in_(uids)
    return is_one


def text(column: Any, _keyword: str, value: str) -> ColumnElement[bool]:
    """Return the rule of C.2.2.2.1 and C.2.2.2.4."""
    return or_(false(), *(_one_text(column, each) for each in listed(value)))


def _one_text(column: Any, value: str) -> ColumnElement[bool]:
    if not set(value) & set("*?"):
        equal: ColumnElement[bool] = column == value
        return equal
    return _Matches(column, *(rf"(?s)\A{pattern}\Z" for pattern in _patterns(value)))


def name(column: Any, _keyword: str, value: str) -> ColumnElement[bool]:
    """Return the rule of a person's name."""
    patterns = _patterns(value.rstrip("^= "))
    return _Matches(column, *(rf"(?is)(?:\A|=){pattern}[\^ ]*(?:=|\Z)" for pattern in patterns))


def date(column: Any, keyword: str, value: str) -> ColumnElement[bool]:
    """Return the rule of C.2.2.2.5 for dates; ACR-NEMA wrote them with dots (PS3.5 6.2)."""
    first, last = _ends(keyword, value.replace(".", ""), DATE, "YYYYMMDD")
    return _between(func.replace(column, ".", ""), first, last)


def time(column: Any, keyword: str, value: str) -> ColumnElement[bool]:
    """Return the rule of C.2.2.2.5 for times; ACR-NEMA wrote them with colons (PS3.5 6.2)."""
    first, last = _ends(keyword, value.replace(":", ""), TIME, "HHMMSS")
    plain = func.replace(column, ":", "")
    whole = plain.concat(func.substr(FIRST_MOMENT, func.length(plain) + 1))
    return and_(
        column != "",
        _between(
            whole,
            first and first + FIRST_MOMENT[len(first) :],
            last and last + LAST_MOMENT[len(last) :],
        ),
    )


DATE: Final = re.compile(r"[0-9]{8}")
TIME: Final = re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?")
FIRST_MOMENT: Final = "000000.000000"
LAST_MOMENT: Final = "235959.999999"


def _ends(keyword: str, value: str, form: re.Pattern[str], example: str) -> tuple[str, str]:
    """Return both ends of a range, "" where it is open; a single value is both."""
    first, dash, last = (part.strip() for part in value.partition("-"))
    if not dash:
        last = first
    if not (first or last) or not all(form.fullmatch(end) for end in (first, last) if end):
        raise QueryError(f"{keyword} must be {example} or a range of them.")
    return first, last


def _between(value: Any, first: str, last: str) -> ColumnElement[bool]:
    by_code = _ByCode(value)
    conditions = [value != ""]
    if first:
        conditions.append(by_code >= first)
    if last:
        conditions.append(by_code <= last)
    return and_(*conditions)


class _ByCode(FunctionElement[str]):
    """A text that is compared by its characters' codes: a locale's order may pass over the dot."""

    inherit_cache = True
    type = TextType()


@compiles(_ByCode)
def _by_code(element: _ByCode, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(_ByCode, "postgresql")
def _by_code_in_postgresql(element: _ByCode, compiler: SQLCompiler, **options: Any) -> str:
    return f'({compiler.process(element.clauses, **options)}) COLLATE "C"'


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


class _Contains(FunctionElement[bool]):
    """A name, and a part of one, folded and as a regular expression that PostgreSQL reads."""

    inherit_cache = True
    type = Boolean()


@compiles(_Contains, "sqlite")
def _contains_in_sqlite(element: _Contains, compiler: SQLCompiler, **options: Any) -> str:
    column, part, _ = (compiler.process(each, **options) for each in element.clauses)
    return f"instr(folded({column}), {part}) > 0"  # `folded` is ours: see `database`


@compiles(_Contains, "postgresql")
def _contains_in_postgresql(element: _Contains, compiler: SQLCompiler, **options: Any) -> str:
    column, _, pattern = (compiler.process(each, **options) for each in element.clauses)
    plain = f"replace(normalize({column}, NFKD), 'ß', 'ss')"
    away = FOLDED_AWAY.pattern.replace("'", "''")
    return f"regexp_replace({plain}, '{away}', '', 'g') ~ {pattern}"


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


def _piece(literal: str) -> str:
    return "".join("." if letter == "?" else _escaped(ord(letter)) for letter in literal)


def _escaped(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return rf"\u{code:04x}" if code <= 0xFFFF else rf"\U{code:08x}"
