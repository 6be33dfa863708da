"""What can go wrong in the core, by the one question a queue asks: does trying again help?

ApplianceError            permanent: the same input fails the same way
├── ConfigError           the settings file or a credential is wrong; the text says which key
├── DeidentificationError   an instance that must not leave the appliance; the text says why
├── InvalidMoveError      a move that the table of states does not have: a fault in the caller
├── LostRaceError         another process moved the study or took the claim first
├── MeasurementError      a measurement that cannot be kept; the text says what to do
├── QueryError            a question about what is held that cannot be answered as it is put
├── ReviewError           a judgement that cannot be kept; the text says what is wrong with it
│   ├── ReviewConflictError    the result or its review is no longer what the person saw
│   └── ReviewForbiddenError   the person's role does not confirm results
├── SharedUIDError        a UID under which images of several people came, where one is meant
├── SourceError           a file, folder or archive to take instances from that nobody can read
├── StoreError            one instance is refused, with its status (PS3.4 table B.2-1)
│   ├── OutOfResourcesError    0xA700  try again later: disk full, database busy
│   ├── DatasetMismatchError   0xA900  the data set lacks its identifiers or contradicts the command
│   └── UnreadableDatasetError 0xC000  the data set cannot be parsed
├── UploadError           what a browser sends cannot be kept; the text says what to do
│   ├── UploadBusyError        something else still writes the file, or too much is under way
│   └── UploadOffsetError      a piece does not begin where the one before ended
└── TransientError        the outside world failed: try again later
"""

from typing import ClassVar, Final

COMMENT_CHARACTERS: Final = 64  # Error Comment (0000,0902) is an LO, PS3.5 section 6.2


class ApplianceError(Exception):
    """Something failed for good; the text tells a person what to do."""


class TransientError(ApplianceError):
    """Something failed that may work later: a full disk, an absent broker, a busy database."""


class ConfigError(ApplianceError):
    """The settings cannot be used; the text names the key and what is allowed."""


class DeidentificationError(ApplianceError):
    """An instance must not leave, for it cannot be rid of its patient for certain."""


class InvalidMoveError(ApplianceError):
    """The table of states has no such move."""

    def __init__(self, source: str, target: str) -> None:
        super().__init__(f"no study moves from {source} to {target}")
        self.source = source
        self.target = target


class LostRaceError(ApplianceError):
    """The study is no longer where the caller saw it, or the claim is no longer the caller's."""

    def __init__(self, study_id: int, expected: str) -> None:
        super().__init__(f"study {study_id} is not {expected} any more")
        self.study_id = study_id
        self.expected = expected


class MeasurementError(ApplianceError):
    """A measurement cannot be kept; the text says what to do."""


class QueryError(ApplianceError):
    """What is asked cannot be matched; the text says which key and why."""


class ReviewError(ApplianceError):
    """A judgement cannot be kept as it was given; the text says what to change."""


class ReviewConflictError(ReviewError):
    """Somebody else confirmed first, or a newer result is there or on its way; look again."""


class ReviewForbiddenError(ReviewError):
    """This person may look at results but not confirm them."""


class SharedUIDError(ApplianceError):
    """Images of several people came under one UID, and nothing else says whose are meant."""


class SourceError(ApplianceError):
    """Nothing can be taken from a file, folder or archive; the text says why."""


class UploadError(ApplianceError):
    """What a person uploads cannot be kept; the text says what to do."""


class UploadBusyError(UploadError):
    """Somebody writes the same file, or too many uploads are under way: try again soon."""


class UploadOffsetError(UploadError):
    """A piece of a file that does not continue it."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the file goes on at byte {offset}")
        self.offset = offset


class StoreError(ApplianceError):
    """One instance is refused; others may follow."""

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
