"""What can go wrong between this node and a peer.

DicomNodeError                 a setting or an input that nobody can use
├── PduError                   the peer broke PS3.8 or a limit: the association is aborted
├── StoreError                 one C-STORE is refused, with its status (PS3.4 table B.2-1)
│   ├── OutOfResourcesError    0xA700  try again later: disk full, database busy
│   ├── DatasetMismatchError   0xA900  the data set is not what the command says
│   └── UnreadableDatasetError 0xC000  the data set cannot be parsed
└── SendError                  as an SCU: no association, or instances the peer did not take
"""

from typing import ClassVar, Final

from appliance.errors import ApplianceError

COMMENT_CHARACTERS: Final = 64  # Error Comment (0000,0902) is an LO, PS3.5 section 6.2


class DicomNodeError(ApplianceError):
    """A setting or an input that this node cannot use."""


class PduError(DicomNodeError):
    """The peer sent what PS3.8 or a limit of ours forbids, or stopped in the middle of a PDU."""

    def __init__(self, message: str, *, reason: int) -> None:
        super().__init__(message)
        self.reason = reason
        """Reason/Diagnostic of the A-ABORT that answers it, PS3.8 section 9.3.8."""


class StoreError(DicomNodeError):
    """One instance is refused; the association goes on."""

    status: ClassVar[int]

    @property
    def comment(self) -> str:
        """The message as it fits into the response's Error Comment."""
        return str(self)[:COMMENT_CHARACTERS]


class OutOfResourcesError(StoreError):
    """Nothing is wrong with the instance, but it cannot be kept now: the sender may try again."""

    status = 0xA700


class DatasetMismatchError(StoreError):
    """The data set lacks its identifiers, or they contradict the command."""

    status = 0xA900


class UnreadableDatasetError(StoreError):
    """The data set cannot be parsed in the transfer syntax it was announced in."""

    status = 0xC000


class SendError(DicomNodeError):
    """A peer could not be reached, refused the association, or did not take every instance."""
