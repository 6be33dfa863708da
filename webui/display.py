"""Received attributes as a reader wants them.

What does not look as the standard says is shown as it came: a sender's text is data, and a date
that is none is still a hint.

A person may hide who the patients are, for a demonstration (`webui.account`). Then names and
numbers are replaced here, on the server, by codes that stay the same and lead back to nobody, and
of a birth date the year remains. So whatever names a patient goes through `person_name`, `number`
or `birth_date`, on every page and in every answer; what cannot asks for `Permission.TAKE_AWAY`. A
test looks for the names at every address.
"""

import base64
import hmac
import re
from typing import Final

from flask import Flask, current_app, has_request_context
from flask_login import current_user

from appliance.lifecycle import State
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked

ABSENT: Final = "\N{EN DASH}"

STATE_WORDS: Final = {
    State.RECEIVING: marked("Receiving"),
    State.QUEUED: marked("Waiting"),
    State.ANALYSING: marked("Analysing"),
    State.READY: marked("Ready"),
    State.REJECTED: marked("Refused"),
    State.FAILED: marked("Failed"),
}

_DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # with dots: ACR-NEMA, PS3.5 6.2
_TIME: Final = re.compile(r"(\d{2}):?(\d{2}).*")
_SEXES: Final = {"M": marked("male"), "F": marked("female"), "O": marked("other")}  # PS3.3 C.7.1.1


def person_name(value: str) -> str:
    """A PN value (PS3.5 6.2.1) as "Family, Given Middle", other scripts behind it in brackets."""
    if hides_names():
        return _("Patient %(code)s", code=_code(value))
    groups = [_person_group(group) for group in value.split("=")]
    written = [group for group in groups if group]
    if not written:
        return ABSENT
    return written[0] + "".join(f" ({group})" for group in written[1:2])


def _person_group(group: str) -> str:
    family, given, middle, prefix, suffix, *_ = [
        part.strip() for part in (group + "^^^^").split("^")
    ]
    others = " ".join(part for part in (prefix, given, middle, suffix) if part)
    return ", ".join(part for part in (family, others) if part)


def date(value: str) -> str:
    """A DA value as 2020-03-05."""
    match = _DATE.fullmatch(value.strip())
    return "-".join(match.groups()) if match else value.strip() or ABSENT


def birth_date(value: str) -> str:
    """A patient's birth date as 2020-03-05."""
    shown = date(value)
    return shown[:4] if hides_names() and _DATE.fullmatch(value.strip()) else _hidden(shown)


def number(value: str | None) -> str:
    """A number that leads to a patient, or a dash for none: of the person, the order, the study."""
    return _hidden(text(value))


def hides_names() -> bool:
    """Whether whoever asks has the names of patients hidden."""
    return has_request_context() and bool(getattr(current_user, "names_hidden", False))


def _hidden(shown: str) -> str:
    return _code(shown) if hides_names() and shown != ABSENT else shown


def _code(value: str) -> str:
    """The same letters for the same text, from which nobody without our key finds it."""
    digest = hmac.digest(current_app.config["SECRET_KEY"], value.strip().encode(), "sha256")
    return base64.b32encode(digest)[:6].decode("ascii")


def time(value: str) -> str:
    """A TM value as 14:05."""
    match = _TIME.fullmatch(value.strip())
    return ":".join(match.groups()) if match else value.strip()


def sex(value: str) -> str:
    """A PatientSex value in words."""
    known = _SEXES.get(value.strip().upper())
    return _(known) if known is not None else value.strip() or ABSENT


def text(value: str | None) -> str:
    """A text, or a dash for none."""
    return (value or "").strip() or ABSENT


def register(app: Flask) -> None:
    """Make the functions filters of the templates."""
    app.add_template_global(told, "told")
    app.add_template_filter(person_name)
    app.add_template_filter(number, "patient_number")
    app.add_template_filter(birth_date, "birth_date")
    app.add_template_filter(date, "dicom_date")
    app.add_template_filter(time, "dicom_time")
    app.add_template_filter(sex, "patient_sex")
    app.add_template_filter(text, "or_dash")
