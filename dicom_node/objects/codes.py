"""Every coded concept that the result objects use (PS3.16), in one place.

SNOMED CT (SCT), DICOM (DCM) and UCUM where they have the concept; the few that no scheme has are in
one of our own, 99CHESTCT, which each object that uses it declares (PS3.3 C.12.1.1.1).
"""

from typing import Final

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from appliance.reviews import Sign
from pipelines.findings import Side

SCHEME: Final = "99CHESTCT"

# --- What was segmented: CID 7150, 7151, 6335; sides: CID 244
ANATOMICAL_STRUCTURE: Final = Code("123037004", "SCT", "Anatomical Structure")
ABNORMAL_STRUCTURE: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LUNG: Final = Code("39607008", "SCT", "Lung")
LESION: Final = Code("52988006", "SCT", "Lesion")
LATERALITY: Final[dict[Side, Code]] = {
    Side.RIGHT: Code("24028007", "SCT", "Right"),
    Side.LEFT: Code("7771000", "SCT", "Left"),
    Side.BOTH: Code("51440002", "SCT", "Bilateral"),
}

# --- By what and from what: CID 7162, 7203, 7202
ARTIFICIAL_INTELLIGENCE: Final = Code("123110", "DCM", "Artificial Intelligence")
NEIGHBOURHOOD_ANALYSIS: Final = Code("123101", "DCM", "Neighborhood Analysis")
SEGMENTATION: Final = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE: Final = Code("121322", "DCM", "Source image for image processing operation")

# --- The report: CID 7021, 100, 270
MEASUREMENT_REPORT: Final = Code("126000", "DCM", "Imaging Measurement Report")
CT: Final = Code("25045-6", "LN", "CT unspecified body region")
DEVICE: Final = Code("121007", "DCM", "Device")
PERSON: Final = Code("121006", "DCM", "Person")
ENGLISH: Final = Code("en", "RFC5646", "English")
COMMENT: Final = Code("121106", "DCM", "Comment")
FINDING: Final = Code("121071", "DCM", "Finding")

# --- Measurements: CID 7469, 7464, 7181
VOLUME: Final = Code("118565006", "SCT", "Volume")
LONG_AXIS: Final = Code("103339001", "SCT", "Long axis")
ATTENUATION: Final = Code("112031", "DCM", "Attenuation Coefficient")
MEAN: Final = Code("373098007", "SCT", "Mean")
MILLILITRE: Final = Code("ml", "UCUM", "milliliter")
MILLIMETRE: Final = Code("mm", "UCUM", "millimeter")
HOUNSFIELD: Final = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
PERCENT: Final = Code("%", "UCUM", "Percent")
NO_UNITS: Final = Code("1", "UCUM", "no units")

# --- What a person sees in a lesion: CID 6102 where it has the sign
SIGN: Final = Code("365853002", "SCT", "Imaging finding")
SIGNS: Final[dict[Sign, Code]] = {
    Sign.GROUND_GLASS: Code("112120", "DCM", "Ground glass opacity"),
    Sign.SEPTAL_THICKENING: Code("112108", "DCM", "Intralobular lines"),
    Sign.AIR_BRONCHOGRAM: Code("112071", "DCM", "Air bronchogram"),
    Sign.VESSEL_THICKENING: Code("VESSEL-THICK", SCHEME, "Vessel thickening"),
    Sign.CRAZY_PAVING: Code("CRAZY-PAVING", SCHEME, "Crazy-paving pattern"),
    Sign.FIBRE_STRIPES: Code("112112", "DCM", "Parenchymal band"),
    Sign.HONEYCOMB: Code("112106", "DCM", "Honeycomb pattern"),
}

# --- Results: CID 250
POSITIVE: Final = Code("10828004", "SCT", "Positive")
NEGATIVE: Final = Code("260385009", "SCT", "Negative")

# --- Our own
LUNG_SHARE: Final = Code("LUNG-SHARE", SCHEME, "Share of the volume of both lungs")
BURDEN: Final = Code("BURDEN", SCHEME, "Share of the lung that is lesion")
LESION_VOLUME: Final = Code("LESION-VOLUME", SCHEME, "Volume of all lesions")
LESION_COUNT: Final = Code("LESION-COUNT", SCHEME, "Number of lesions")
COVID_PROBABILITY: Final = Code("COVID-PROB", SCHEME, "Probability of COVID-19-like appearance")
COVID_THRESHOLD: Final = Code(
    "COVID-THRESHOLD", SCHEME, "Probability from which the case is called positive"
)
COVID_LIKE: Final = Code("COVID-LIKE", SCHEME, "COVID-19-like appearance")

# --- Messages name a lung by the code, for a system's table of results has no other place for it
DICOM_STUDY: Final = Code("113014", "DCM", "Study")
BURDEN_OF_RIGHT: Final = Code("BURDEN-RIGHT", SCHEME, "Share of the right lung that is lesion")
BURDEN_OF_LEFT: Final = Code("BURDEN-LEFT", SCHEME, "Share of the left lung that is lesion")
NETWORK: Final = Code("NETWORK", SCHEME, "Network that took part")
NOTICE: Final = Code("NOTICE", SCHEME, "How far the result may be relied upon")
VIEWER: Final = Code("VIEWER", SCHEME, "Where the result is shown")


def item(code: Code) -> Dataset:
    """Return a concept as the item of a code sequence (PS3.3 table 8.8-1)."""
    ds = Dataset()
    ds.CodeValue = code.value
    ds.CodingSchemeDesignator = code.scheme_designator
    ds.CodeMeaning = code.meaning
    return ds


def scheme_item() -> Dataset:
    """Return the item that declares our own scheme (PS3.3 C.12.1.1.1)."""
    ds = Dataset()
    ds.CodingSchemeDesignator = SCHEME
    ds.CodingSchemeName = "Chest CT appliance"
    ds.CodingSchemeResponsibleOrganization = "Chest CT appliance"
    return ds
