"""Which destination gets what of a study: rules of the settings, held against facts; no I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from appliance.config import RuleSettings
from appliance.deliveries import Content
from appliance.matching import fits


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """A series as its images describe it, each "" when absent."""

    modality: str = ""
    description: str = ""
    body_part: str = ""
    manufacturer: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What rules may ask of a study and its result.

    Attributes:
        outcome: READY or REJECTED.
        prior: whether it came only as a prior of another study.
        source_ae: the AE title that sent it.
        description: the study description.
        series: every series.
        positive: whether the case was called so, by the person who confirmed it, else by the
            analysis; None where it was not called at all.
        probability: of the case, None likewise.
        lesion_count: how many were found and not rejected.
    """

    outcome: str
    prior: bool = False
    source_ae: str = ""
    description: str = ""
    series: tuple[SeriesFacts, ...] = ()
    positive: bool | None = None
    probability: float | None = None
    lesion_count: int = 0


SERIES_CONDITIONS: Final = {
    "modality": "modality",
    "series_description": "description",
    "body_part": "body_part",
    "manufacturer": "manufacturer",
}
"""The conditions that one and the same series must meet, and the fact that each is about."""


def destinations_for(
    facts: Facts, rules: Iterable[RuleSettings], when: str
) -> dict[str, frozenset[Content]]:
    """Return what each destination gets by the rules that match, in the rules' order.

    Args:
        facts: of the study.
        rules: of the settings.
        when: the moment: analysed, confirmed or request.
    """
    found: dict[str, frozenset[Content]] = {}
    for rule in rules:
        if rule.when != when or any(objections(facts, rule)):
            continue
        for destination in rule.destinations:
            contents = frozenset(map(Content, rule.objects))
            found[destination] = found.get(destination, frozenset()) | contents
    return found


def objections(facts: Facts, rule: RuleSettings) -> list[str]:
    """Return why a rule does not match, whatever the moment; nothing if it does.

    The reasons quote the rule and never the study: what senders write may name a person.
    """
    said = []
    if rule.outcome != facts.outcome:
        said.append(f"the study is not {rule.outcome}")
    if facts.prior and not rule.priors and rule.when == "analysed":
        said.append("the study came as a prior of another, and the rule lacks priors = true")
    if not fits(rule.source_ae, facts.source_ae):
        said.append(f"source_ae is not {rule.source_ae!r}")
    if not fits(rule.study_description, facts.description):
        said.append(f"study_description is not {rule.study_description!r}")
    wanted = {key: getattr(rule, key) for key in SERIES_CONDITIONS if getattr(rule, key)}
    if wanted and not any(_meets(series, wanted) for series in facts.series):
        conditions = " and ".join(f"{key} {value!r}" for key, value in wanted.items())
        said.append(f"no series has {conditions}")
    if rule.positive is not None and rule.positive is not facts.positive:
        said.append(f"the case was not called {'positive' if rule.positive else 'negative'}")
    least = rule.probability_at_least
    if least is not None and (facts.probability is None or facts.probability < least):
        said.append(f"the probability is not {least} or more")
    if rule.lesions is not None and rule.lesions is not (facts.lesion_count > 0):
        said.append("there are no lesions" if rule.lesions else "there are lesions")
    return said


def _meets(series: SeriesFacts, wanted: Mapping[str, str]) -> bool:
    return all(
        fits(value, getattr(series, SERIES_CONDITIONS[key])) for key, value in wanted.items()
    )
