"""What an identifier asks for by its information model (PS3.4 sections C.4 and C.6).

The hierarchy holds (C.4.1.2.1): above the level that is asked for, unique keys name one entity.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from appliance.holdings import ATTRIBUTES, UNIQUE, Level
from appliance.matching import listed
from dicom_node.errors import IdentifierError
from dicom_node.identifiers import CONTROL

OF_THIS_NODE: Final = frozenset({"RetrieveAETitle", "InstanceAvailability"})
"""What is answered without asking the database."""


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
    def held(self) -> tuple[str, ...]:
        """The keys that the database has something for, at this level or above it."""
        return tuple(
            keyword
            for keyword in self.keys
            if keyword in ATTRIBUTES and ATTRIBUTES[keyword].level <= self.level
        )

    @property
    def matched(self) -> Mapping[str, str]:
        """The keys that are matched, with their values; others are answered alone (C.2.2.1.3)."""
        return {
            keyword: self.keys[keyword]
            for keyword in self.held
            if ATTRIBUTES[keyword].rule is not None
        }

    @property
    def complete(self) -> bool:
        """Whether every key is known, and matched as asked."""
        held, matched = set(self.held), self.matched
        return all(
            keyword in OF_THIS_NODE or keyword in matched or (keyword in held and not value)
            for keyword, value in self.keys.items()
        )

    def require_unique(self) -> None:
        """Raise IdentifierError unless the level's unique key names what shall be retrieved."""
        keyword = UNIQUE[self.level]
        value = self.keys.get(keyword, "")
        if self.level is Level.PATIENT:
            _require_one(value, keyword)
        elif not listed(value) or "*" in value:
            raise IdentifierError(f"{keyword} must name what to retrieve")


def _require_one(value: str, keyword: str) -> None:
    if not value or set(value) & set("*?\\"):
        raise IdentifierError(f"{keyword} must be one value without wildcards")
