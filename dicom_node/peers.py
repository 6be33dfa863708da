"""Who may open an association: the called AE title, and an allow-list of callers.

The answers are those of PS3.8 section 9.3.4 (A-ASSOCIATE-RJ), so that a PACS administrator reads
the reason in the PACS's own log.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self

from appliance.config import DicomSettings
from dicom_node.errors import DicomNodeError

ANY: Final = "*"
BURST_S: Final = 10.0
ADDRESSES: Final = 4096


class Rejection(Enum):
    """Why an association is refused: result, source and reason of PS3.8 table 9-21."""

    APPLICATION_CONTEXT_NAME_NOT_SUPPORTED = (1, 1, 2)
    CALLING_AE_TITLE_NOT_RECOGNISED = (1, 1, 3)
    CALLED_AE_TITLE_NOT_RECOGNISED = (1, 1, 7)
    PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)
    LOCAL_LIMIT_EXCEEDED = (2, 3, 2)  # transient: the peer may try again

    def pdu(self) -> bytes:
        """Return the A-ASSOCIATE-RJ PDU."""
        return bytes((3, 0, 0, 0, 0, 4, 0, *self.value))


@dataclass(frozen=True)
class Peer:
    """One row of the allow-list; `None` allows any."""

    ae_title: str | None
    network: IPv4Network | IPv6Network | None

    @classmethod
    def parse(cls, ae_title: str, address: str) -> Self:
        """Return the peer that the settings name: an address, a network (10.1.0.0/16), or `*`."""
        try:
            network = None if address == ANY else ip_network(address, strict=False)
        except ValueError as error:
            raise DicomNodeError(
                f"[[dicom.peers]] address {address!r} is neither an IP address, nor a network "
                f"such as 10.1.0.0/16, nor '*'"
            ) from error
        return cls(None if ae_title == ANY else ae_title.strip(), network)

    def matches(self, ae_title: str, address: IPv4Address | IPv6Address) -> bool:
        """Return whether this row allows a caller."""
        return self.ae_title in (None, ae_title) and (
            self.network is None or address in self.network
        )


@dataclass(frozen=True)
class AllowList:
    """Our own AE title and everybody who may call it."""

    ae_title: str
    peers: tuple[Peer, ...]

    @classmethod
    def from_settings(cls, settings: DicomSettings) -> Self:
        """Return the allow-list of the `[dicom]` table."""
        return cls(
            settings.ae_title,
            tuple(Peer.parse(peer.ae_title, peer.address) for peer in settings.peers),
        )

    def knows(self, address: str) -> bool:
        """Return whether anybody at this address may call, whatever the AE title."""
        plain = _plain(address)
        return any(peer.network is None or plain in peer.network for peer in self.peers)

    def judge(self, *, called: str, calling: str, address: str) -> Rejection | None:
        """Return why this caller is refused, or `None` if it may come in."""
        if not _any_matches(self.peers, calling, _plain(address)):
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNISED
        if called != self.ae_title:
            return Rejection.CALLED_AE_TITLE_NOT_RECOGNISED
        return None


class Arrivals:
    """New connections of each address, held to a rate: a token bucket for each (RFC 2697's idea).

    `per_s` refill a bucket, which holds `BURST_S` times as many; the longest unheard of many
    addresses is forgotten.
    """

    def __init__(self, per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def admit(self, address: str) -> bool:
        """Count a connection; return whether it is within the rate."""
        now = self._clock()
        tokens, then = self._buckets.pop(address, (self._per_s * BURST_S, now))
        tokens = min(tokens + (now - then) * self._per_s, self._per_s * BURST_S)
        admitted = tokens >= 1
        self._buckets[address] = (tokens - 1 if admitted else tokens, now)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return admitted


def _any_matches(peers: Iterable[Peer], ae_title: str, address: IPv4Address | IPv6Address) -> bool:
    return any(peer.matches(ae_title, address) for peer in peers)


def _plain(address: str) -> IPv4Address | IPv6Address:
    """Return the address without the ::ffff: that a dual-stack socket puts before IPv4."""
    parsed = ip_address(address.partition("%")[0])
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed
