"""What of a data set may leave: the attributes that are kept, and what may stand in each.

The Basic Application Level Confidentiality Profile (PS3.15 annex E, edition 2026c) lists what has
to go; vendors and people put names into everything else as well. So this is a list of what stays:
numbers, dates that are shifted, identifiers that are replaced, terms out of closed vocabularies.
Free text never stays. What the standard's list (table E.1-1, as dicom-anonymizer carries it) lets
be empty is emptied, for readers that look for it; everything else is removed.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table_e1_1
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

Values = Sequence[Any]
Rule = Callable[[Values], Values]
"""From an attribute's values to those that may leave; none of them: the attribute stays away."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _tags(keywords: str) -> frozenset[BaseTag]:
    return frozenset(map(Tag, keywords.split()))


# Digits of other scripts are digits, too, to `re` and to `float`, but to no reader of DICOM.
NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NUMBER_CHARACTERS: Final = 32  # what any double needs, and no more
ORDINAL: Final = re.compile(r"\d{1,5}", re.ASCII)
TOKEN: Final = re.compile(r"[A-Z0-9]+")

# Value 3 and on are the vendors' own (PS3.3 C.7.6.1.1.2); these say what kind of image it is.
IMAGE_TYPES: Final = _words(
    """
    ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER REFORMATTED AVERAGE MPR MIP MINIP MNIP
    MAXIP PROJECTION VRT VOLREN VOLUME SUBTRACTION PERFUSION HELICAL SPIRAL CT SOM5 SOM7 SPI SEQ
    MON TOP CSA RESAMPLED NONE MIXED SAMPLED MAX MIN MEAN ANGIO FLUOROSCOPY MULTI SINGLE PLANE
    CORONAL SAGITTAL OBLIQUE THICK THIN OTHER
    """
)
BODY_PARTS: Final = _words(
    """
    ABDOMEN ABDOMENPELVIS ANKLE BRAIN BREAST CAP CERVICALSPINE CHEST CHESTABDOMEN CHESTABDPELVIS
    CSPINE ELBOW EXTREMITY FOOT HAND HEAD HEADNECK HEART HIP KNEE LEG LSPINE LUNG LUNGS
    MEDIASTINUM NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV ORBIT PELVIS SHOULDER SINUS SKULL
    SPINE THORAX TSPINE WHOLEBODY WRIST
    """
)
# Reconstruction kernels have short names: a word of these, or B70s, Br40d, FC51 and the like; a
# second value is the strength of an iterative reconstruction.
KERNEL_WORDS: Final = _words(
    """
    A B BONE BONEPLUS C CHEST D DETAIL E EDGE F HEAD L LUNG SHARP SMOOTH SOFT STANDARD STND ULTRA
    YA YB YC YD
    """
)
KERNEL: Final = re.compile(r"[A-Z]{1,2}[a-z]?\d{2,3}[a-z]?|\d", re.ASCII)
# Makers and models by their words: who put a patient's name beside them leaves it behind.
MAKERS: Final = _words(
    """
    CANON ELSCINT GE GMBH HEALTHCARE HEALTHINEERS HITACHI IMAGING MARCONI MEDICAL MINFOUND NEUSOFT
    PHILIPS PICKER SAMSUNG SIEMENS SYSTEMS TOSHIBA UIH UNITED ANKE
    """
)
MODELS: Final = _words(
    """
    ACT ALEXION ALPHA AQUILION APEX AS AS+ ASTEION ASCEND BRIGHTSPEED BRILLIANCE CONFIDENCE CT
    DEFINITION DISCOVERY DRIVE DUAL ECLOS EDGE EMOTION EVO EXCEED FLASH FORCE GENESIS GO HD
    HISPEED ICT IDT INCISIVE INGENUITY IQON LIGHTNING LIGHTSPEED MX NAEOTOM NEUVIZ NOW ONE OPEN
    OPTIMA PERSPECTIVE PHYSION PLUS POWER PRECISION PRIME PRO REVEAL REVOLUTION SCENARIA SCOPE
    SENSATION SOMATOM SP SPECTRAL SPIRIT SUPREME TOP TSX UCT ULTRA VCT VISION VOLUME X XR XT XCITE
    """
)
MODEL_WORD: Final = re.compile(r"([A-Z]*\+?)(\d{0,3})")
OLDEST_AGE_YEARS: Final = 89  # HIPAA's safe harbour, 45 CFR 164.514(b)(2)(i)(C)
AGE: Final = re.compile(r"(\d{3})([DWMY])", re.ASCII)
UNITS_A_YEAR: Final = {"D": 365, "W": 52, "M": 12, "Y": 1}


def numbers(values: Values) -> Values:
    """Return the values if each is a finite number, however its element was written."""
    texts = [str(value).strip(" \0") for value in values]
    return values if all(map(_is_number, texts)) else ()


def ordinals(values: Values) -> Values:
    """Return the values if each counts something: longer numbers are names, of orders or people."""
    fit = all(ORDINAL.fullmatch(str(value).strip(" \0")) for value in values)
    return values if fit else ()


def pointers(values: Values) -> Values:
    """Return the values if each is the tag of a standard attribute."""
    fit = all(isinstance(value, int) and dictionary_has_tag(value) for value in values)
    return values if fit else ()


def one_of(*terms: str) -> Rule:
    """Return a rule that keeps those terms."""
    return lambda values: [term for term in map(_term, values) if term in terms]


def image_type(values: Values) -> Values:
    """Return each value reduced to the words that say what kind of image it is."""
    known = [[w for w in TOKEN.findall(_term(value)) if w in IMAGE_TYPES] for value in values]
    return [" ".join(words)[:16].strip() or "OTHER" for words in known]


def kernel(values: Values) -> Values:
    """Return the name of a reconstruction kernel, and its strength."""
    texts = [str(value).strip(" \0") for value in values]
    known = (t.isascii() and (t.upper() in KERNEL_WORDS or KERNEL.fullmatch(t)) for t in texts)
    return [text for text, fits in zip(texts, known, strict=True) if fits]


def maker(values: Values) -> Values:
    """Return the words that name a maker of scanners."""
    return [kept for value in values if (kept := _known(str(value), MAKERS, numbered=False))]


def model(values: Values) -> Values:
    """Return the words that name a scanner's model, with one number of up to three digits."""
    return [kept for value in values if (kept := _known(str(value), MODELS, numbered=True))]


def age(values: Values) -> Values:
    """Return an age in whole years, "090Y" for all beyond 89."""
    found = AGE.fullmatch(_term(values[0])) if len(values) == 1 else None
    if found is None:
        return ()
    return [age_in_years(int(found[1]) // UNITS_A_YEAR[found[2]])]


def age_in_years(years: int) -> str:
    """Return a number of years as an Age String (PS3.5 6.2)."""
    return f"{min(years, OLDEST_AGE_YEARS + 1):03d}Y"


def _known(text: str, vocabulary: frozenset[str], *, numbered: bool) -> str:
    kept: list[str] = []
    has_word = has_number = False
    for word in re.findall(r"[A-Za-z0-9+]+", text):
        parts = MODEL_WORD.fullmatch(word.upper())
        if parts is None or (parts[1] and parts[1] not in vocabulary):
            continue
        if parts[2] and (has_number or not numbered):
            continue
        kept.append(word)
        has_word = has_word or bool(parts[1])
        has_number = has_number or bool(parts[2])
    return " ".join(kept) if has_word else ""


def _is_number(text: str) -> bool:
    return (
        len(text) <= NUMBER_CHARACTERS
        and NUMBER.fullmatch(text) is not None
        and math.isfinite(float(text))
    )


def _term(value: object) -> str:
    return str(value).strip(" \0").upper()


def _rules(rule: Rule, keywords: str) -> dict[BaseTag, Rule]:
    return {Tag(keyword): rule for keyword in keywords.split()}


KEPT: Final[Mapping[BaseTag, Rule]] = {
    **_rules(
        numbers,
        """
        NumberOfFrames PixelSpacing PixelAspectRatio ImagerPixelSpacing NominalScannedPixelSpacing
        ImagePositionPatient ImageOrientationPatient SliceThickness SliceLocation
        SpacingBetweenSlices RescaleIntercept RescaleSlope WindowCenter WindowWidth
        PixelPaddingValue PixelPaddingRangeLimit LossyImageCompressionRatio
        KVP XRayTubeCurrent ExposureTime Exposure ExposureInmAs ExposureTimeInms
        XRayTubeCurrentInmA XRayTubeCurrentInuA ExposureInuAs GeneratorPower FocalSpots
        ReconstructionDiameter DataCollectionDiameter ReconstructionFieldOfView
        ReconstructionPixelSpacing ReconstructionTargetCenterPatient DataCollectionCenterPatient
        DistanceSourceToDetector DistanceSourceToPatient DistanceSourceToDataCollectionCenter
        GantryDetectorTilt TableHeight TablePosition TableSpeed TableFeedPerRotation
        SingleCollimationWidth TotalCollimationWidth SpiralPitchFactor RevolutionTime CTDIvol
        EstimatedDoseSaving
        TemporalPositionIndex InStackPositionNumber FrameAcquisitionNumber
        FrameAcquisitionDuration FrameReferenceTime DimensionIndexValues
        SegmentNumber ReferencedSegmentNumber ReferencedFrameNumber MaximumFractionalValue
        RecommendedDisplayCIELabValue
        """,
    ),
    **_rules(pointers, "DimensionIndexPointer FunctionalGroupPointer FrameIncrementPointer"),
    **_rules(ordinals, "SeriesNumber AcquisitionNumber InstanceNumber StackID"),
    **_rules(image_type, "ImageType FrameType"),
    **_rules(kernel, "ConvolutionKernel"),
    **_rules(maker, "Manufacturer"),
    **_rules(model, "ManufacturerModelName"),
    **_rules(age, "PatientAge"),
    **_rules(one_of("M", "F", "O"), "PatientSex"),
    **_rules(one_of("CT", "CR", "DX", "OT", "SC", "SEG"), "Modality"),
    **_rules(one_of(*BODY_PARTS), "BodyPartExamined"),
    **_rules(
        one_of("HFS", "HFP", "FFS", "FFP", "HFDR", "HFDL", "FFDR", "FFDL"), "PatientPosition"
    ),
    # What is not HU must stay known as such (PS3.3 C.11.1.1.2).
    **_rules(
        one_of("HU", "US", "OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"), "RescaleType"
    ),
    **_rules(one_of("CW", "CC"), "RotationDirection"),
    **_rules(
        one_of("SEQUENCED", "SPIRAL", "CONSTANT_ANGLE", "STATIONARY", "FREE"), "AcquisitionType"
    ),
    **_rules(one_of("NO"), "BurnedInAnnotation"),
    **_rules(one_of("00", "01"), "LossyImageCompression"),
    **_rules(
        one_of("ISO_10918_1", "ISO_14495_1", "ISO_15444_1", "ISO_15444_15"),
        "LossyImageCompressionMethod",
    ),
    **_rules(one_of("IDENTITY", "INVERSE"), "PresentationLUTShape"),
    **_rules(one_of("FOR PRESENTATION", "FOR PROCESSING"), "PresentationIntentType"),
    **_rules(one_of("LINEAR", "LINEAR_EXACT", "SIGMOID"), "VOILUTFunction"),
    **_rules(one_of("DV", "DI", "DF", "WSD", "SD", "SI", "DRW", "SYN"), "ConversionType"),
    **_rules(one_of("AP", "PA", "LL", "RL", "LLD", "RLD", "RLO", "LLO"), "ViewPosition"),
    **_rules(one_of("R", "L", "U", "B"), "ImageLaterality FrameLaterality Laterality"),
    **_rules(one_of("MONOCHROME", "COLOR", "MIXED"), "PixelPresentation"),
    **_rules(one_of("VOLUME", "SAMPLED", "DISTORTED", "MIXED"), "VolumetricProperties"),
    **_rules(
        one_of("NONE", "MAX_IP", "MIN_IP", "VOLUME_RENDER", "MPR"),
        "VolumeBasedCalculationTechnique",
    ),
    **_rules(
        one_of("3D", "3D_TEMPORAL", "TILED_FULL", "TILED_SPARSE"), "DimensionOrganizationType"
    ),
    **_rules(one_of("BINARY", "FRACTIONAL", "LABELMAP"), "SegmentationType"),
    **_rules(one_of("PROBABILITY", "OCCUPANCY"), "SegmentationFractionalType"),
    **_rules(one_of("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"), "SegmentAlgorithmType"),
    **_rules(one_of("YES", "NO", "UNDEFINED"), "SegmentsOverlap"),
}  # fmt: skip

SEQUENCES: Final = _tags(
    """
    ReferencedImageSequence SourceImageSequence DerivationImageSequence
    ReferencedSeriesSequence ReferencedInstanceSequence ReferencedSOPSequence
    StudiesContainingOtherReferencedInstancesSequence
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence
    PlanePositionSequence PlaneOrientationSequence PixelValueTransformationSequence
    FrameVOILUTSequence FrameContentSequence FrameAnatomySequence CTImageFrameTypeSequence
    CTAcquisitionTypeSequence CTAcquisitionDetailsSequence CTTableDynamicsSequence
    CTPositionSequence CTGeometrySequence CTReconstructionSequence CTExposureSequence
    CTXRayDetailsSequence IrradiationEventIdentificationSequence
    DimensionOrganizationSequence DimensionIndexSequence
    SegmentSequence SegmentIdentificationSequence
    """
)
"""Kept, item by item under the same rules."""

CODES: Final = _tags(
    """
    AnatomicRegionSequence DerivationCodeSequence PurposeOfReferenceCodeSequence
    SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence
    SegmentedPropertyTypeModifierCodeSequence
    """
)
"""Kept where the standard knows the code, with the standard's meaning."""

SHIFTED: Final = _tags(
    """
    StudyDate SeriesDate AcquisitionDate ContentDate
    AcquisitionDateTime FrameAcquisitionDateTime FrameReferenceDateTime
    """
)
"""Dates of the examination; those of birth, of reports and of equipment go."""

SCHEMES: Final = frozenset({"DCM", "SCT", "UCUM"})
REMOVED: Final = "REMOVED"
DUMMIES: Final[Mapping[BaseTag, str]] = {
    Tag(keyword): REMOVED for keyword in ("ContentLabel", "SegmentLabel", "SegmentAlgorithmName")
}
"""Type 1 texts, which may be neither absent nor empty (PS3.5 7.4.1)."""

TYPE_2: Final = _tags(
    """
    AcquisitionNumber InstanceNumber KVP Laterality Manufacturer PatientOrientation
    PositionReferenceIndicator SeriesNumber
    """
)
EMPTIED: Final = TYPE_2 | {
    tag
    for category in ("Z", "Z_D", "X_Z", "X_Z_D")
    for pair in getattr(table_e1_1, f"{category}_TAGS")
    if len(pair) == 2 and dictionary_VR(tag := Tag(pair)) != "SQ"
}
"""What must be there, if empty (PS3.5 7.4.3), and what table E.1-1 lets be empty instead of absent.

An empty sequence is as good as none.
"""


def is_registered(uid: str) -> bool:
    """Return whether a UID is a name in the standard (PS3.6 annex A), hence nobody's."""
    return UID(uid).type != ""


def standard_meaning(scheme: str, value: str) -> str:
    """Return what a code means in the standard (PS3.16), "" where it means nothing there."""
    return _meanings(scheme).get(value, "") if scheme in SCHEMES else ""


@cache
def _meanings(scheme: str) -> Mapping[str, str]:
    return {code.value: code.meaning for code in getattr(codes, scheme).concepts.values()}
