"""Small true DICOM instances, and their encoded data sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

REAL_DICOM = Path(__file__).parents[3] / "shared/data/dicom"
SIXTEEN_SYNTAXES = REAL_DICOM / "one_chest_slice_in_many_transfer_syntaxes"
REAL_STUDY = REAL_DICOM / "chest_covid_P002"
needs_real_data = pytest.mark.skipif(
    not REAL_DICOM.is_dir(), reason="../shared/data is not there: no real DICOM to test with"
)


@dataclass(frozen=True)
class Names:
    """The UIDs of a study with one series."""

    study_uid: str
    series_uid: str

    @classmethod
    def fresh(cls) -> "Names":
        return cls(generate_uid(), generate_uid())


def ct_instance(names: Names, **attributes: Any) -> Dataset:
    """A CT slice of 8 × 8 pixels; `attributes` are DICOM keywords that replace or add."""
    ds = Dataset()
    with disable_value_validation():  # tests make illegal values on purpose
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = generate_uid()
        ds.StudyDate = "20260102"
        ds.StudyTime = "030405"
        ds.AccessionNumber = "A1"
        ds.Modality = "CT"
        ds.Manufacturer = "Phantom Works"
        ds.StudyDescription = "Thorax nativ für Prüfung"
        ds.SeriesDescription = "Lunge 2 mm"
        ds.PatientName = "Test^Zoë"
        ds.PatientID = "P-1"
        ds.PatientBirthDate = "19700101"
        ds.PatientSex = "O"
        ds.StudyInstanceUID = names.study_uid
        ds.SeriesInstanceUID = names.series_uid
        ds.SeriesNumber = 3
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.Rows = ds.Columns = 8
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit = 15
        ds.PixelRepresentation = 1
        ds.PixelData = bytes(range(128))
        for keyword, value in attributes.items():
            ds.pop(keyword, None)  # an element keeps the validation it was made with
            setattr(ds, keyword, value)
    return ds


def encoded(ds: Dataset, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> bytes:
    """The data set as it travels; uncompressed transfer syntaxes only."""
    stream = DicomBytesIO()
    stream.is_implicit_VR = transfer_syntax_uid == ImplicitVRLittleEndian
    stream.is_little_endian = transfer_syntax_uid != ExplicitVRBigEndian
    write_dataset(stream, ds)
    return stream.getvalue()


def as_file(ds: Dataset, path: Path, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> Path:
    """The data set as a Part 10 file."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax_uid
    head = DicomBytesIO()
    write_file_meta_info(head, meta, enforce_standard=False)  # tests leave things out on purpose
    path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + encoded(ds, transfer_syntax_uid))
    return path


def dataset_bytes(path: Path) -> bytes:
    """What follows the File Meta Information (PS3.10 section 7.1) of a file."""
    content = path.read_bytes()
    assert content[128:132] == b"DICM"
    # (0002,0000) is the first element: 12 bytes whose value counts the bytes after it.
    length = int.from_bytes(content[140:144], "little")
    return content[144 + length :]
