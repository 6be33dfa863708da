"""What the vendor offers, and which of it is meant for a site: rules without I/O, for both sides.

A bundle's facts are the custom metadata of its TUF target (specification section 4.5), signed with
it. The targets of a product line are listed in the line's index, a target as well: TUF finds a
target by its path and has no way to ask for all of them.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, Self

MODELS: Final = "models"
SOFTWARE: Final = "software"
LINES: Final = (MODELS, SOFTWARE)
"""The product lines: the names of their TUF roles and of their folders below `targets`."""

PURPOSE: Final = re.compile(r"[a-z][a-z0-9_]*")
VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


class Channel(StrEnum):
    """For whom a version is meant."""

    STABLE = "stable"
    CANDIDATE = "candidate"


def index_of(line: str) -> str:
    """Return the path of the target that lists all others of a product line."""
    return f"{line}/index.json"


def ordered(version: str) -> tuple[int, ...]:
    """Return what versions are compared by.

    Raises:
        ValueError: it is not written as three numbers.
    """
    if not VERSION.fullmatch(version):
        raise ValueError(f"'{version}' is no version such as 1.10.0")
    return tuple(int(number) for number in version.split("."))


@dataclass(frozen=True)
class Offer:
    """One version of a model, and who may have it.

    Raises:
        ValueError: a field is not what it may be.
    """

    purpose: str
    version: str
    channel: Channel
    share_percent: int
    """How many of a hundred sites take it: canonical JSON knows no fractions."""
    minimum_software: str
    """The oldest release of the appliance that can run it."""
    recalled: str
    """Why nobody shall run it any more; empty while it is good."""

    def __post_init__(self) -> None:
        if not PURPOSE.fullmatch(self.purpose):
            raise ValueError(f"'{self.purpose}' is no purpose of a model")
        if not 1 <= self.share_percent <= 100:
            raise ValueError(f"{self.share_percent} is no share: 1 to 100 percent are")
        ordered(self.version)
        ordered(self.minimum_software)

    @classmethod
    def read(cls, custom: Mapping[str, Any]) -> Self:
        """Return the offer that a target's custom metadata describe; what is more is left alone.

        Raises:
            ValueError: a field is missing or not what it may be.
        """
        try:
            return cls(
                purpose=str(custom["purpose"]),
                version=str(custom["version"]),
                channel=Channel(custom["channel"]),
                share_percent=int(custom["share_percent"]),
                minimum_software=str(custom["minimum_software"]),
                recalled=str(custom["recalled"]),
            )
        except KeyError as error:
            raise ValueError(f"{error} is missing") from error

    @property
    def path(self) -> str:
        """The TUF target path of the bundle."""
        return f"{MODELS}/{self.purpose}-{self.version}.tar"

    def custom(self) -> dict[str, Any]:
        """Return the target's custom metadata."""
        return asdict(self)


@dataclass(frozen=True)
class Site:
    """An appliance, as far as it matters which versions it takes."""

    identity: str
    """Any text that differs between sites and stays the same; it is never sent."""
    channel: Channel
    software_version: str


def suitable(offers: Iterable[Offer], site: Site) -> dict[str, Offer]:
    """Return the newest version of each purpose that the site shall run.

    A site on `candidate` takes stable versions as well.
    """
    newest: dict[str, Offer] = {}
    for offer in sorted(offers, key=lambda offer: ordered(offer.version)):
        if _meant_for(offer, site):
            newest[offer.purpose] = offer
    return newest


def _meant_for(offer: Offer, site: Site) -> bool:
    return (
        not offer.recalled
        and (offer.channel is Channel.STABLE or site.channel is Channel.CANDIDATE)
        and ordered(offer.minimum_software) <= ordered(site.software_version)
        and _place(offer, site) < offer.share_percent
    )


def _place(offer: Offer, site: Site) -> int:
    """Return where in the roll-out the site is, 0 to 99; first another one for each version."""
    digest = hashlib.sha256(f"{site.identity} {offer.path}".encode()).digest()
    return int.from_bytes(digest[:8]) % 100
