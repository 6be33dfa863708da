"""What can go wrong between this node and a peer, and on the way to the objects it sends.

DicomNodeError   a setting or an input that nobody can use
├── ObjectError  no result object can be made of an analysis and these images
├── PduError     the peer broke PS3.8 or a limit: the association is aborted
└── SendError    as an SCU: no association, or instances the peer did not take
"""

from appliance.errors import ApplianceError


class DicomNodeError(ApplianceError):
    """A setting or an input that this node cannot use."""


class ObjectError(DicomNodeError):
    """The images do not belong to the analysis, or lack what an object must say of them."""


class PduError(DicomNodeError):
    """The peer sent what PS3.8 or a limit of ours forbids, or stopped in the middle of a PDU."""

    def __init__(self, message: str, *, reason: int) -> None:
        super().__init__(message)
        self.reason = reason
        """Reason/Diagnostic of the A-ABORT that answers it, PS3.8 section 9.3.8."""


class SendError(DicomNodeError):
    """A peer could not be reached, refused the association, or did not take every instance."""
