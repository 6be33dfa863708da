"""Everything that can be wrong with a study, a file or a set of weights, as one small tree.

::

    PipelineError                 permanent: the same input gives the same error again
    ├── UnreadableInputError      the input itself cannot be opened: no DICOM, bad zip, bad NIfTI
    ├── NoUsableSeriesError       every series of the study was refused; carries the reasons
    ├── GeometryError             the slices of one series do not form one regular stack
    ├── DecodeError               pixel data that cannot be turned into HU
    ├── ResultError               a result folder that cannot be written or read back
    ├── RegionError               a region that a person marked, but not in the volume's own terms
    ├── WeightsError              a model bundle that is missing, altered or of another network
    ├── InferenceError            a network that answered something that is no number
    └── ManifestError             a data set whose manifest or files contradict each other

Memory and disk running out stay what Python calls them: they say nothing about the study, and
whoever called may try again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Rule(StrEnum):
    """The rules a series must pass before it is analysed; `pipelines.series` applies them."""

    UNREADABLE = "unreadable"
    NOT_CT = "not CT"
    UNSUPPORTED_OBJECT = "unsupported object"
    LOCALISER = "localiser"
    DERIVED = "derived image"
    MIXED_ORIENTATION = "mixed orientation"
    MIXED_SIZE = "mixed size"
    NO_GEOMETRY = "no geometry"
    REFORMAT = "not axial"
    GANTRY_TILT = "gantry tilt"
    DUPLICATE_POSITION = "duplicate position"
    MISSING_SLICE = "missing slice"
    UNEVEN_SPACING = "uneven spacing"
    SPACING_OUT_OF_RANGE = "spacing out of range"
    NOT_CHEST = "not a chest"
    TOO_FEW_SLICES = "too few slices"
    TOO_LARGE = "too large"
    UNDECODABLE = "undecodable"
    NOT_PREFERRED = "not preferred"


@dataclass(frozen=True)
class Refusal:
    """Why one series is not analysed: the rule, and a sentence that names the series."""

    series_uid: str
    rule: Rule
    reason: str


class PipelineError(Exception):
    """The input or the model is at fault, and trying again will not help."""


class UnreadableInputError(PipelineError):
    """The input is not a readable DICOM folder, zip archive or NIfTI file."""


class NoUsableSeriesError(PipelineError):
    """No series of the study may be analysed."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        """Keep the refusals, one for each series that was looked at."""
        self.refusals = refusals
        super().__init__(
            " ".join(refusal.reason for refusal in refusals) or "No DICOM image found."
        )


class GeometryError(PipelineError):
    """The slices of one series do not form one regular stack."""

    def __init__(self, rule: Rule, message: str) -> None:
        """Name the rule that the series breaks."""
        self.rule = rule
        super().__init__(message)


class DecodeError(PipelineError):
    """Pixel data that no decoder here turns into the values that were scanned."""


class ResultError(PipelineError):
    """A result folder that cannot be written or read back."""


class RegionError(PipelineError):
    """A region that a person marked cannot be taken; the text says why."""


class WeightsError(PipelineError):
    """A model bundle that is missing, altered or of another network."""


class InferenceError(PipelineError):
    """A network that answered something that is no number."""


class ManifestError(PipelineError):
    """A data set whose manifest cannot be read, or whose files do not fit it."""
