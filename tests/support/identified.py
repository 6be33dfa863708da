"""Data sets with something that tells of a person in every place that holds anything."""

from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import BYTES_VR, STR_VR

# What the image and its place are made of; planted text would make it no image at all.
NEEDED = frozenset(
    Tag(keyword)
    for line in (
        "SpecificCharacterSet SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID",
        "FrameOfReferenceUID Modality ImageType ImagePositionPatient ImageOrientationPatient",
        "PixelSpacing RescaleSlope RescaleIntercept NumberOfFrames SamplesPerPixel",
        "PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit",
        "PixelRepresentation PlanarConfiguration PixelData FloatPixelData DoubleFloatPixelData",
        "PixelDataProviderURL ExtendedOffsetTable ExtendedOffsetTableLengths PatientID",
        "BurnedInAnnotation",
    )
    for keyword in line.split()
)
PLACES = tuple(
    (Tag(number), vr)
    for number, (vr, *_) in DicomDictionary.items()
    if number >= 0x00080000
    and Tag(number) not in NEEDED
    and vr in STR_VR | BYTES_VR
    and keyword_for_tag(number)
)
"""Every attribute of the dictionary that can hold text, with its VR."""


def plant(ds: Dataset, places: list[tuple[BaseTag, str]], text: bytes) -> None:
    """Put the text into attributes, as a careless sender encodes it: whatever the VR allows."""
    for tag, vr in places:
        padded = text + b" " * (len(text) % 2)
        ds[tag] = RawDataElement(
            tag, vr, len(padded), padded, 0, is_implicit_VR=False, is_little_endian=True
        )


def plant_privately(ds: Dataset, text: str) -> None:
    """Put the text into private elements and a private sequence."""
    block = ds.private_block(0x0029, f"{text} INC", create=True)
    block.add_new(0x01, "LO", text)
    block.add_new(0x02, "UN", text.encode())
    nested = Dataset()
    nested.PatientComments = text
    block.add_new(0x03, "SQ", Sequence([nested]))


def plant_deep(ds: Dataset, places: list[tuple[BaseTag, str]], text: bytes, depth: int = 5) -> None:
    """Put the text into items nested in sequences of which some are kept, some are not."""
    for keyword in ("ReferencedImageSequence", "RequestAttributesSequence"):
        inner = ds
        for _ in range(depth):
            item = Dataset()
            item.ReferencedSOPInstanceUID = "1.2.826.0.1.7"
            plant(item, [p for p in places if p[0] != Tag("ReferencedSOPInstanceUID")], text)
            item.pop(Tag(keyword), None)
            setattr(inner, keyword, [item])
            inner = item
