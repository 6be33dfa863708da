"""Received attributes as a reader wants them.

What does not look as the standard says is shown as it came: a sender's text is data, and a date
that is none is still a hint.
"""

import re
from typing import Final

from flask import Flask

from appliance.lifecycle import State

ABSENT: Final = "\N{EN DASH}"

STATE_WORDS: Final = {
    State.RECEIVING: "Receiving",
    State.QUEUED: "Waiting",
    State.ANALYSING: "Analysing",
    State.READY: "Ready",
    State.REJECTED: "Refused",
    State.FAILED: "Failed",
}

_DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # with dots: ACR-NEMA, PS3.5 6.2
_TIME: Final = re.compile(r"(\d{2}):?(\d{2}).*")
_SEXES: Final = {"M": "male", "F": "female", "O": "other"}  # PS3.3 C.7.1.1


def person_name(value: str) -> str:
    """A PN value (PS3.5 6.2.1) as "Family, Given Middle", other scripts behind it in brackets."""
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


def time(value: str) -> str:
    """A TM value as 14:05."""
    match = _TIME.fullmatch(value.strip())
    return ":".join(match.groups()) if match else value.strip()


def sex(value: str) -> str:
    """A PatientSex value in words."""
    return _SEXES.get(value.strip().upper(), value.strip() or ABSENT)


def text(value: str | None) -> str:
    """A text, or a dash for none."""
    return (value or "").strip() or ABSENT


def register(app: Flask) -> None:
    """Make the functions filters of the templates."""
    app.add_template_filter(person_name)
    app.add_template_filter(date, "dicom_date")
    app.add_template_filter(time, "dicom_time")
    app.add_template_filter(sex, "patient_sex")
    app.add_template_filter(text, "or_dash")
