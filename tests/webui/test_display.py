import pytest

from appliance.lifecycle import State
from webui import display
from webui.viewer import EXPLANATIONS


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("Phantom^Chest", "Phantom, Chest"),
        ("Phantom^Chest^Q^Dr^Jr", "Phantom, Dr Chest Q Jr"),
        ("Wang^XiaoDong=王^小東", "Wang, XiaoDong (王, 小東)"),
        ("PLAIN", "PLAIN"),
        ("", "–"),
        ("^^^^", "–"),
        ("<b>^x", "<b>, x"),
    ],
)
def test_a_person_name_is_shown_family_first(value: str, shown: str):
    assert display.person_name(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [("20200305", "2020-03-05"), ("2020.03.05", "2020-03-05"), ("spring", "spring"), ("", "–")],
)
def test_a_date_is_unambiguous_and_anything_else_shown_as_it_came(value: str, shown: str):
    assert display.date(value) == shown


@pytest.mark.parametrize(("value", "shown"), [("140509.123", "14:05"), ("x", "x"), ("", "")])
def test_a_time_is_shown_in_hours_and_minutes(value: str, shown: str):
    assert display.time(value) == shown


def test_every_state_has_a_word_and_an_explanation():
    assert set(display.STATE_WORDS) == set(EXPLANATIONS) == set(State)
