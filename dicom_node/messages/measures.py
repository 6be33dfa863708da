"""The numbers that every message tells, each with its code and unit (UCUM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydicom.sr.coding import Code

from dicom_node.messages.result import Finding
from dicom_node.objects import codes

_DECIMALS: Final = 4


@dataclass(frozen=True)
class Measure:
    """One number, rounded as it is told."""

    concept: Code
    value: float
    unit: Code


def measures(finding: Finding) -> tuple[Measure, ...]:
    """Return what was measured, in the order in which people read it; shares are in percent."""
    told = [
        Measure(codes.COVID_PROBABILITY, finding.probability, codes.NO_UNITS),
        Measure(codes.COVID_THRESHOLD, finding.threshold, codes.NO_UNITS),
        Measure(codes.LESION_COUNT, finding.lesion_count, codes.NO_UNITS),
        Measure(codes.LESION_VOLUME, finding.lesion_volume_ml, codes.MILLILITRE),
    ]
    if (burden := finding.burden) is not None:
        told += [
            Measure(codes.BURDEN, 100 * burden.both.share, codes.PERCENT),
            Measure(codes.BURDEN_OF_RIGHT, 100 * burden.right.whole.share, codes.PERCENT),
            Measure(codes.BURDEN_OF_LEFT, 100 * burden.left.whole.share, codes.PERCENT),
        ]
    return tuple(Measure(one.concept, round(one.value, _DECIMALS), one.unit) for one in told)
