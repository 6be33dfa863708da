"""What can go wrong between this node and a peer, and on the way to the objects it sends.

DicomNodeError   a setting or an input that nobody can use
├── ObjectError  no result object can be made of an analysis and these images
├── PduError     the peer broke PS3.8 or a limit: the association is aborted
├── SendError    as an SCU: no association, or instances the peer did not take
│   └── AssociationError   no association came about, for now or for good
├── IdentifierError  a query's identifier contradicts its information model
├── MessageError     a result was not told to a HL7 or FHIR system
└── QueryError   as an SCU: a C-ECHO, C-FIND, C-MOVE or C-GET was not answered as it should be
    └── NotOfferedError    it accepts no presentation context of the service
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


class AssociationError(SendError):
    """A peer could not be reached or refused the association."""

    def __init__(self, message: str, *, retriable: bool) -> None:
        super().__init__(message)
        self.retriable = retriable
        """Whether it may come about later; a peer may also reject us for good (PS3.8 9.3.4)."""


class QueryError(DicomNodeError):
    """A peer does not offer the service, or failed in it."""

    def __init__(self, message: str, *, retriable: bool) -> None:
        super().__init__(message)
        self.retriable = retriable
        """Whether the same request may succeed later."""


class NotOfferedError(QueryError):
    """A peer accepts no presentation context of a service."""

    def __init__(self, service: str, ae_title: str) -> None:
        super().__init__(f"{ae_title} offers no {service}", retriable=False)


class IdentifierError(DicomNodeError):
    """The identifier of a query or retrieve does not match its SOP class (0xA900)."""


class MessageError(DicomNodeError):
    """A system that is told results could not be reached, or did not take the message.

    The text is for the administrator; it may quote the answer, and so the patient: it is not to be
    logged.
    """

    def __init__(self, message: str, *, retriable: bool) -> None:
        super().__init__(message)
        self.retriable = retriable
        """Whether the same message may be taken later."""
