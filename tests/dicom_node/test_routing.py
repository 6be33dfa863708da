"""Rules held against facts, as a table."""

from dataclasses import replace
from typing import Any

import pytest

from appliance.config import RuleSettings
from appliance.deliveries import Content
from dicom_node.routing import Facts, SeriesFacts, destinations_for, objections

CHEST = Facts(
    outcome="READY",
    source_ae="CT1",
    description="Thorax nativ",
    series=(
        SeriesFacts(modality="CT", description="Lunge 1 mm", manufacturer="Phantom Works"),
        SeriesFacts(modality="SR", description="Dose report", body_part="CHEST"),
    ),
    positive=True,
    probability=0.8,
    lesion_count=2,
)


def rule(**changes: Any) -> RuleSettings:
    values = {"name": "r", "destinations": ("pacs",), "objects": ("seg", "sr")}
    return RuleSettings(**{**values, **changes})


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        ({}, False),
        ({"priors": True}, True),
        *(({"when": when}, True) for when in ("confirmed", "request")),
    ],
)
def test_a_study_that_came_as_a_prior_is_no_new_result(
    conditions: dict[str, Any],
    holds: bool,  # noqa: FBT001
):
    said = objections(replace(CHEST, prior=True), rule(**conditions))

    assert said == (
        [] if holds else ["the study came as a prior of another, and the rule lacks priors = true"]
    )


@pytest.mark.parametrize(
    ("conditions", "objection"),
    [
        ({}, ""),
        ({"source_ae": "CT?"}, ""),
        ({"source_ae": "CT"}, "source_ae is not 'CT'"),
        ({"study_description": "*THORAX*"}, ""),
        ({"study_description": "thorax"}, "study_description is not 'thorax'"),
        ({"study_description": "Thorax.nativ"}, "study_description is not 'Thorax.nativ'"),
        ({"modality": "ct", "series_description": "*lunge*"}, ""),
        (
            {"modality": "CT", "body_part": "CHEST"},
            "no series has modality 'CT' and body_part 'CHEST'",
        ),
        ({"manufacturer": "Phantom*"}, ""),
        ({"manufacturer": "Other"}, "no series has manufacturer 'Other'"),
        ({"positive": True}, ""),
        ({"positive": False}, "the case was not called negative"),
        ({"probability_at_least": 0.8}, ""),
        ({"probability_at_least": 0.81}, "the probability is not 0.81 or more"),
        ({"lesions": True}, ""),
        ({"lesions": False}, "there are lesions"),
        ({"outcome": "REJECTED"}, "the study is not REJECTED"),
    ],
)
def test_a_rule_matches_or_says_why_not(conditions: dict[str, Any], objection: str):
    said = objections(CHEST, rule(**conditions))

    assert said == ([objection] if objection else [])
    assert bool(destinations_for(CHEST, [rule(**conditions)], "analysed")) is not bool(said)


def test_every_condition_is_a_fact_that_is_held_against_it():
    conditions = set(vars(rule())) - {"name", "destinations", "objects", "when", "priors"}
    refuted = {
        "outcome": "REJECTED", "positive": False, "probability_at_least": 1.0, "lesions": False,
    }  # fmt: skip

    for condition in conditions:
        assert objections(CHEST, rule(**{condition: refuted.get(condition, "no such")}))


def test_a_case_without_a_call_is_neither_positive_nor_negative():
    uncalled = replace(CHEST, positive=None, probability=None)

    for positive in (True, False):
        assert objections(uncalled, rule(positive=positive))
    assert objections(uncalled, rule(probability_at_least=0.0))


def test_rules_that_match_add_up_and_others_moments_do_not_count():
    rules = [
        rule(name="a"),
        rule(name="b", objects=("sr", "pdf"), destinations=("pacs", "archive")),
        rule(name="c", objects=("images",), when="confirmed"),
        rule(name="d", objects=("images",), source_ae="OTHER"),
    ]

    assert destinations_for(CHEST, rules, "analysed") == {
        "pacs": {Content.SEG, Content.SR, Content.PDF},
        "archive": {Content.SR, Content.PDF},
    }
    assert destinations_for(CHEST, rules, "confirmed") == {"pacs": {Content.IMAGES}}
    assert destinations_for(CHEST, rules, "request") == {}
    assert destinations_for(CHEST, [], "analysed") == {}
