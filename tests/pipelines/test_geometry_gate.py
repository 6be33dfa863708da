"""The gate: what a mask must not be drawn on is refused with a reason, or handled with a note."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    EnhancedCTImageStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from pipelines.errors import NoUsableSeriesError, Rule
from pipelines.series import MIN_SLICES, load_input
from tests.support.ct_series import copied, slices, tilted, write

Series = list[Dataset]
COUNT = 20
LOCALISER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
CORONAL = [1, 0, 0, 0, 0, -1]
SAGITTAL = [0, 1, 0, 0, 0, -1]
HALF_TURNED = [-1, 0, 0, 0, -1, 0]
NO_PLANE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def without(*numbers: int) -> Callable[[Series], Series]:
    return lambda series: [ds for k, ds in enumerate(series) if k not in numbers]


def besides(place: int, **changes: Any) -> Callable[[Series], Series]:
    """One of the images once more."""
    return lambda series: [*series, copied(series[place], **changes)]


def all_with(**changes: Any) -> Callable[[Series], Series]:
    return lambda series: [copied(ds, **changes) for ds in series]


def one_with(**changes: Any) -> Callable[[Series], Series]:
    return lambda series: [*series[:7], copied(series[7], **changes), *series[8:]]


def lacking(keyword: str) -> Callable[[Series], Series]:
    def arrange(series: Series) -> Series:
        del series[7][keyword]
        return series

    return arrange


def moved(axis: int, mm: float, numbers: Sequence[int]) -> Callable[[Series], Series]:
    """Some of the images lie elsewhere along x, y or z."""

    def arrange(series: Series) -> Series:
        for number in numbers:
            series[number].ImagePositionPatient[axis] += mm
        return series

    return arrange


def apart(mm: float) -> Callable[[Series], Series]:
    def arrange(series: Series) -> Series:
        for number, ds in enumerate(series):
            ds.ImagePositionPatient[2] = -mm * number
        return series

    return arrange


def interleaved(series: Series) -> Series:
    """A second reconstruction under the same Series Instance UID, at the same positions."""
    return [*series, *(copied(ds, PixelData=series[0].PixelData) for ds in series)]


def with_sheet(series: Series) -> Series:
    """A dose sheet of the size of a slice, as a CT image in the chest's own series."""
    sheet = copied(series[0], ImageType=["DERIVED", "SECONDARY", "DOSE_INFO"])
    for keyword in NO_PLANE:
        del sheet[keyword]
    return [*series, sheet]


def sheet_alone(series: Series) -> Series:
    return with_sheet(series)[-1:]


def turned_to(orientation: Sequence[float]) -> Callable[[Series], Series]:
    """Each image lies in another plane, one behind the other."""

    def arrange(series: Series) -> Series:
        for number, ds in enumerate(series):
            ds.ImageOrientationPatient = list(orientation)
            ds.ImagePositionPatient = [3.0 * number, 3.0 * number, 0.0]
        return series

    return arrange


@dataclass(frozen=True)
class Case:
    """A study that only a fault tells from a chest of `COUNT` slices."""

    name: str
    arrange: Callable[[Series], Series]
    rule: Rule
    says: str = ""


REFUSED = (
    Case("one slice is missing", without(7), Rule.MISSING_SLICE, "(1, the first"),
    Case("two slices in a row are missing", without(7, 8), Rule.MISSING_SLICE, "(2, the first"),
    Case("slices are missing at two places", without(4, 12), Rule.MISSING_SLICE, "(2, the first"),
    Case(
        "a slice is missing and another came twice",
        lambda series: besides(3)(without(7)(series)),
        Rule.MISSING_SLICE,
    ),
    Case(
        "every other slice is missing in the larger part",
        without(*range(6, COUNT, 2)),
        Rule.UNEVEN_SPACING,
        "but also",
    ),
    Case("a slice lies too near the next", moved(2, -1.0, range(10, COUNT)), Rule.UNEVEN_SPACING),
    Case("slices lie sideways", moved(0, 10.0, range(5, 10)), Rule.UNEVEN_SPACING, "sideways"),
    Case("slices are 0.1 mm apart", apart(0.1), Rule.SPACING_OUT_OF_RANGE, "0.10 mm apart"),
    Case("slices are 15 mm apart", apart(15.0), Rule.SPACING_OUT_OF_RANGE, "15.00 mm apart"),
    Case("pixels are 4 mm wide", all_with(PixelSpacing=[4, 4]), Rule.SPACING_OUT_OF_RANGE, "wide"),
    Case(
        "two different images lie at one position",
        lambda series: besides(3, PixelData=series[4].PixelData)(series),
        Rule.DUPLICATE_POSITION,
    ),
    Case("two reconstructions share a series", interleaved, Rule.DUPLICATE_POSITION),
    Case("all images lie at one position", apart(0.0), Rule.DUPLICATE_POSITION, "all 20 images"),
    Case("the gantry leans by 12°", lambda s: tilted(s, 12), Rule.GANTRY_TILT, "12.0°"),
    Case("the gantry leans by 1° the other way", lambda s: tilted(s, -1), Rule.GANTRY_TILT, "1.0°"),
    Case("one image is coronal", one_with(ImageOrientationPatient=CORONAL), Rule.MIXED_ORIENTATION),
    Case(
        "one image is turned by half a turn",
        one_with(ImageOrientationPatient=HALF_TURNED),
        Rule.MIXED_ORIENTATION,
    ),
    Case("one image has other pixels", one_with(PixelSpacing=[1, 1]), Rule.MIXED_SIZE),
    *(Case(f"one image has no {each}", lacking(each), Rule.NO_GEOMETRY) for each in NO_PLANE),
    Case("all images are sagittal", turned_to(SAGITTAL), Rule.REFORMAT, "not axial"),
    Case("all images are coronal", turned_to(CORONAL), Rule.REFORMAT, "not axial"),
    Case("a localiser", all_with(ImageType=LOCALISER), Rule.LOCALISER, "survey"),
    Case(
        "a localiser that does not say so",
        lambda series: turned_to(SAGITTAL)(series)[:2],
        Rule.REFORMAT,
        "survey",
    ),
    Case(
        "a dose sheet as a capture",
        all_with(SOPClassUID=SecondaryCaptureImageStorage),
        Rule.UNSUPPORTED_OBJECT,
        "dose reports",
    ),
    Case(
        "a dose report",
        all_with(SOPClassUID=XRayRadiationDoseSRStorage, Modality="SR"),
        Rule.NOT_CT,
        "modality is SR",
    ),
    Case(
        "a report that says it is CT",
        all_with(SOPClassUID=ComprehensiveSRStorage),
        Rule.UNSUPPORTED_OBJECT,
    ),
    Case("a dose sheet as a CT image", sheet_alone, Rule.NO_GEOMETRY),
    Case("a dose sheet in the chest's own series", with_sheet, Rule.NO_GEOMETRY),
    *(
        Case(f"{kind} by its image type", all_with(ImageType=kind.split("\\")), Rule.DERIVED)
        for kind in (
            "DERIVED\\SECONDARY\\CSA MIP",
            "DERIVED\\SECONDARY\\MINIP",
            "DERIVED\\PRIMARY\\PROJECTION IMAGE",
            "DERIVED\\SECONDARY\\AXIAL\\VRT",
        )
    ),
    Case(
        "a projection by its description alone",
        all_with(ImageType=["DERIVED", "SECONDARY", "AXIAL"], SeriesDescription="Thorax MIP 8/2"),
        Rule.DERIVED,
        "MIP",
    ),
    Case(
        "slices in one object",
        all_with(SOPClassUID=EnhancedCTImageStorage),
        Rule.UNSUPPORTED_OBJECT,
    ),
    Case("a magnetic resonance", all_with(Modality="MR"), Rule.NOT_CT),
    Case("one slice too few", lambda s: s[: MIN_SLICES - 1], Rule.TOO_FEW_SLICES, "15 are fewer"),
    Case("two slices", lambda series: series[:2], Rule.TOO_FEW_SLICES, "2 are fewer"),
    Case("one slice", lambda series: series[:1], Rule.TOO_FEW_SLICES, "1 are fewer"),
)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_it_is_refused_for_its_fault_and_says_what_to_send(case: Case, tmp_path: Path):
    write(case.arrange(slices(COUNT)), tmp_path)

    with pytest.raises(NoUsableSeriesError) as caught:
        load_input(tmp_path)

    (refusal,) = caught.value.refusals
    assert refusal.rule is case.rule
    assert case.says in refusal.reason
    assert refusal.reason.startswith('Series 2 "')
    assert refusal.reason.endswith(".")
    assert ". Send " in refusal.reason


@dataclass(frozen=True)
class Handled:
    """What is analysed all the same, with as many slices, and the note that says how."""

    name: str
    arrange: Callable[[Series], Series]
    slices: int = COUNT
    note: str | None = None


HANDLED = (
    Handled("nothing is wrong", lambda series: series),
    Handled("as few as may be", lambda series: series[:MIN_SLICES], MIN_SLICES),
    Handled("a slice came twice", besides(3), note="1 exact duplicates"),
    Handled("all came twice", lambda s: [*s, *map(copied, s)], note="20 exact duplicates"),
    Handled(
        "a localiser in the chest's own series",
        besides(0, ImageType=LOCALISER, ImageOrientationPatient=CORONAL),
        note="localiser",
    ),
    Handled("positions rounded to 0.1 mm", lambda series: [rounded(ds) for ds in series]),
    Handled("a lean within the rounding", lambda series: tilted(series, 0.3)),
    Handled(
        "an original whose description names a projection",
        all_with(SeriesDescription="Thorax for MIP"),
    ),
    Handled(
        "a thin derived series",
        all_with(ImageType=["DERIVED", "SECONDARY", "AXIAL"], SeriesDescription="Thorax 1.0"),
    ),
)


def rounded(ds: Dataset) -> Dataset:
    ds.ImagePositionPatient[2] = round(ds.ImagePositionPatient[2], 1)
    return ds


@pytest.mark.parametrize("case", HANDLED, ids=lambda case: case.name)
def test_it_is_handled_and_the_note_says_how(case: Handled, tmp_path: Path):
    write(case.arrange(slices(COUNT)), tmp_path)

    volume, refused = load_input(tmp_path)

    assert refused == ()
    assert volume.shape[0] == case.slices
    assert volume.spacing[0] == pytest.approx(3.2, abs=0.01)
    assert [case.note in warning for warning in volume.warnings] == (
        [] if case.note is None else [True]
    ), volume.warnings


def test_every_rule_of_geometry_has_its_case():
    geometry = {
        Rule.MIXED_ORIENTATION, Rule.MIXED_SIZE, Rule.NO_GEOMETRY, Rule.REFORMAT, Rule.GANTRY_TILT,
        Rule.DUPLICATE_POSITION, Rule.MISSING_SLICE, Rule.UNEVEN_SPACING, Rule.TOO_FEW_SLICES,
        Rule.SPACING_OUT_OF_RANGE, Rule.LOCALISER, Rule.DERIVED, Rule.UNSUPPORTED_OBJECT,
        Rule.NOT_CT,
    }  # fmt: skip

    assert {case.rule for case in REFUSED} == geometry
