"""What can go wrong in the core, by the one question a queue asks: does trying again help?

ApplianceError            permanent: the same input fails the same way
├── ConfigError           the settings file or a credential is wrong; the text says which key
├── InvalidMoveError      a move that the table of states does not have: a fault in the caller
├── LostRaceError         another process moved the study or took the claim first
└── TransientError        the outside world failed: try again later
"""


class ApplianceError(Exception):
    """Something failed for good; the text tells a person what to do."""


class TransientError(ApplianceError):
    """Something failed that may work later: a full disk, an absent broker, a busy database."""


class ConfigError(ApplianceError):
    """The settings cannot be used; the text names the key and what is allowed."""


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
