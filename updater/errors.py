"""What can go wrong on the way of an update, each class one sentence for an administrator.

UpdateError              nothing was installed; the text says why and what to do
├── NoRootError          this installation knows no vendor
├── UnreachableError     the disk or the server does not answer, or refuses
├── WebPageError         a web page came instead: a proxy or a sign-in page stands between
├── SlowError            it came too slowly
├── IncompleteError      a file that should be there is missing
├── DamagedError         a file is not what was signed: half copied, altered or endless
├── UntrustedError       it is not signed by the vendor
├── OlderError           it is older than what this appliance has seen
├── ExpiredError         it is out of date
├── ClockError           this machine's clock is wrong
├── NotOfferedError      the vendor does not offer it
├── NewerFormatError     it is written for a later release
└── LocalDiskError       this machine cannot keep it
    └── DiskFullError    its disk is too full
"""

from datetime import datetime
from pathlib import Path

from appliance.errors import ApplianceError


class UpdateError(ApplianceError):
    """An update did not come about; what runs goes on running."""


class NoRootError(UpdateError):
    """There is no root of trust to begin with."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"This installation cannot be updated: {path} is missing, the file that says whose "
            "signatures count; install a release of the vendor's."
        )


class UnreachableError(UpdateError):
    """The disk or the server does not answer, or refuses."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(
            f"{place} cannot be read ({reason}): check the disk, or the network, the firewall and "
            "the proxy (https_proxy)."
        )


class WebPageError(UpdateError):
    """A proxy or a sign-in page answers in the server's place."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"A web page came instead of the update from {place}: let the proxy or firewall pass "
            "this address without a sign-in."
        )


class SlowError(UpdateError):
    """It came too slowly, or stopped."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"{place} sends too slowly: what came is kept, and the next try goes on from there."
        )


class IncompleteError(UpdateError):
    """A file that should be there is missing."""

    def __init__(self, place: str, name: str) -> None:
        super().__init__(
            f"{place} lacks {name}: copy the disk anew, or tell the vendor if it is the server."
        )


class DamagedError(UpdateError):
    """A file is not what was signed."""

    def __init__(self, place: str, detail: str) -> None:
        super().__init__(
            f"A file from {place} is damaged or half copied and was not used ({detail}): copy the "
            "disk anew, or try again later if it is the server."
        )


class UntrustedError(UpdateError):
    """It is not signed by the vendor."""

    def __init__(self, place: str, detail: str) -> None:
        super().__init__(
            f"What {place} offers is not as the vendor signs it and was not used ({detail}): tell "
            "the vendor."
        )


class OlderError(UpdateError):
    """Somebody goes back in time, or a disk is old."""

    def __init__(self, place: str, detail: str) -> None:
        super().__init__(
            f"{place} offers less than this appliance has seen already and was not used "
            f"({detail}): take a newer disk, or tell the vendor if it is the server."
        )


class ExpiredError(UpdateError):
    """Nobody has signed it for too long."""

    def __init__(self, place: str, detail: str, now: datetime) -> None:
        super().__init__(
            f"What {place} offers is out of date and was not used ({detail}, and it is "
            f"{now:%Y-%m-%d} by this machine's clock): take a newer disk, or ask the vendor to "
            "sign it anew."
        )


class ClockError(UpdateError):
    """This machine's clock is wrong."""

    def __init__(self, place: str, now: datetime, detail: str) -> None:
        super().__init__(
            f"This machine's clock says {now:%Y-%m-%d %H:%M} UTC, and {place} disagrees "
            f"({detail}): set the clock, or tell the vendor if it is right."
        )


class NotOfferedError(UpdateError):
    """The vendor offers no such file."""

    def __init__(self, place: str, path: str) -> None:
        super().__init__(f"The vendor does not offer {path} on {place}: check for updates again.")


class NewerFormatError(UpdateError):
    """It is written for a later release."""

    def __init__(self, place: str, detail: str) -> None:
        super().__init__(
            f"This release does not understand what {place} offers ({detail}): update the "
            "software first."
        )


class LocalDiskError(UpdateError):
    """This machine cannot keep the update."""

    def __init__(self, error: OSError) -> None:
        place = "" if error.filename is None else f" in {error.filename}"
        super().__init__(
            f"The update cannot be kept ({error.strerror}{place}): see to this machine's disk and "
            "the folder's permissions."
        )


class DiskFullError(LocalDiskError):
    """The disk is too full; what is free is left to reception."""

    def __init__(self, folder: Path, needed_bytes: int | None = None) -> None:
        needed = "" if needed_bytes is None else f", {needed_bytes / 1e6:.0f} MB more are needed"
        UpdateError.__init__(
            self, f"The disk of {folder} is too full for the update{needed}: free some of it."
        )
