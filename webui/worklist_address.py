"""The worklist's address: filters, search and order stand in it, for bookmarks and the back button.

===================  ==========================================================================
state                a `Stage`: waiting, running, review, confirmed, failed or refused
period               today, 7 or 30 (days, today among them), or dates, with from and to
source, station      the calling AE title, the station's name
device               manufacturer and model, with the backslash between them that neither can hold
result               suspicious, below (the threshold) or lesions
mine                 confirmed or opened
q                    what is searched for
order                an `Order`; with a minus before it the other way round
page                 from 1
===================  ==========================================================================
"""

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from enum import StrEnum
from typing import Final, TypeVar
from urllib.parse import urlencode

from appliance.errors import QueryError
from appliance.worklist import Mine, Order, Outcome, Stage, View, today_here
from webui.language import gettext

KEYS: Final = (
    "state",
    "period",
    "from",
    "to",
    "source",
    "station",
    "device",
    "result",
    "mine",
    "q",
    "order",
)
PASSING: Final = frozenset({"q", "from", "to"})
"""What no default view holds: a patient's name, and days that pass."""

DATES: Final = "dates"
PERIODS: Final = {"today": 1, "7": 7, "30": 30}
LONGEST: Final = 200
"""Characters of one value."""

Choice = TypeVar("Choice", bound=StrEnum)


def view_of(asked: Mapping[str, str], *, account_id: int, account: str) -> View:
    """What an address asks for.

    Raises:
        QueryError: it asks for what there is not; the text says what there is.
    """
    given = {key: asked.get(key, "").strip() for key in KEYS}
    for key, value in given.items():
        if len(value) > LONGEST or "\x00" in value:
            said = gettext("The address is wrong: %(key)s is too long. Shorten it.", key=key)
            raise QueryError(said)
    today = today_here()
    first, last = _days(given, today)
    order = given["order"].removeprefix("-")
    manufacturer, _, model = given["device"].partition("\\")
    return View(
        account_id=account_id,
        account=account,
        stage=_one_of(Stage, "state", given["state"]),
        first=first,
        last=last,
        source=given["source"],
        station=given["station"],
        device=(manufacturer, model) if given["device"] else None,
        outcome=_one_of(Outcome, "result", given["result"]),
        mine=_one_of(Mine, "mine", given["mine"]),
        search=given["q"],
        order=_one_of(Order, "order", order) or Order.SUSPICION,
        reverse=given["order"].startswith("-"),
        today=today,
    )


def lasting(asked: Mapping[str, str]) -> str:
    """The part of an address that a default view keeps, as a query string."""
    wanted = {key: asked.get(key, "").strip() for key in KEYS if key not in PASSING}
    if wanted["period"] == DATES:
        wanted["period"] = ""
    return urlencode({key: value for key, value in wanted.items() if value})


def _days(given: Mapping[str, str], today: date) -> tuple[date | None, date | None]:
    period = given["period"]
    if period == DATES:
        return _day("from", given["from"]), _day("to", given["to"])
    if not period:
        return None, None
    if period not in PERIODS:
        raise _no_choice("period", (*PERIODS, DATES))
    return today - timedelta(days=PERIODS[period] - 1), None


def _day(key: str, value: str) -> date | None:
    try:
        return date.fromisoformat(value) if value else None
    except ValueError as error:
        said = gettext("The address is wrong: write %(key)s as 2026-03-05.", key=key)
        raise QueryError(said) from error


def _one_of(choices: type[Choice], key: str, value: str) -> Choice | None:
    if not value:
        return None
    try:
        return choices(value)
    except ValueError as error:
        raise _no_choice(key, choices) from error


def _no_choice(key: str, choices: Iterable[str]) -> QueryError:
    listed = ", ".join(choices)
    return QueryError(
        gettext("The address is wrong: %(key)s is one of %(choices)s.", key=key, choices=listed)
    )
