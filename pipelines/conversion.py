"""A NIfTI volume of HU as a CT series (PS3.3 A.3), so that it goes the way of every other study.

Slices, positions and values are those of `load_nifti`, which refuses what is no chest CT in HU: an
analysis of the series sees voxel by voxel what was in the file. Nothing else is taken from it: free
text of its header may name anybody. The header says that the series was converted. The same volume
of the same person gets the same UIDs, so that uploading it again adds nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID, uuid5

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from pipelines.series import load_nifti
from pipelines.volume import CTVolume

NAMESPACE: Final = UUID("6a1f6f0e-1f0b-4c52-9d0a-0f6c1c8a7e55")
"""Ours. It never changes, or a volume uploaded again would be another study."""

ANONYMOUS: Final = "ANONYMOUS"
DESCRIPTION: Final = "Converted from NIfTI"
DERIVATION: Final = "Converted from a NIfTI volume; positions from its affine, values as they were"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whose volume it is, as a person says; each "" where unknown.

    Attributes:
        name: As DICOM writes names.
        patient_id: Without one, a number is made that no other volume has.
        study_date: YYYYMMDD.
    """

    name: str = ""
    patient_id: str = ""
    study_date: str = ""


def convert(path: Path, folder: Path, person: Person) -> list[Path]:
    """Write a NIfTI file as a CT series into a folder, and return its files, from foot to head.

    Raises:
        UnreadableInputError: Not NIfTI, not 3-D, without orientation, or not HU.
        GeometryError: Sheared, or spaced like no chest CT.
    """
    volume = load_nifti(path)
    paths = []
    for number, ds in enumerate(_instances(volume, person), start=1):
        paths.append(folder / f"{number:05d}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def _instances(volume: CTVolume, person: Person) -> Iterator[Dataset]:
    content = hashlib.sha256(np.ascontiguousarray(volume.hu).data)
    content.update(np.ascontiguousarray(volume.affine).data)
    digest = content.hexdigest()
    patient_id = person.patient_id or f"{ANONYMOUS}-{digest[:12].upper()}"
    identity = (digest, person.name, patient_id, person.study_date)
    along_x, along_y = (volume.affine[:3, k] / volume.spacing[2 - k] for k in (0, 1))
    for z in range(volume.shape[0]):
        ds = _common(volume, person, patient_id, identity)
        ds.SOPInstanceUID = _uid(*identity, "image", str(z))
        ds.file_meta = _file_meta(ds)
        ds.InstanceNumber = volume.shape[0] - z  # from the head, as scanners count
        ds.ImagePositionPatient = _numbers(volume.affine @ (0, 0, z, 1))[:3]
        ds.ImageOrientationPatient = [*_numbers(along_x), *_numbers(along_y)]
        ds.PixelData = volume.hu[z].astype("<i2").tobytes()
        ds["PixelData"].VR = "OW"
        yield ds


def _common(
    volume: CTVolume, person: Person, patient_id: str, identity: tuple[str, ...]
) -> Dataset:
    """Return what all images of the series say."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CTImageStorage
    ds.PatientName, ds.PatientID = person.name or ANONYMOUS, patient_id
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.StudyInstanceUID = _uid(*identity, "study")
    ds.StudyDate, ds.StudyTime = person.study_date, ""
    ds.StudyID = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyDescription = ds.SeriesDescription = DESCRIPTION
    ds.SeriesInstanceUID = _uid(*identity, "series")
    ds.FrameOfReferenceUID = _uid(*identity, "frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.Modality, ds.SeriesNumber, ds.AcquisitionNumber = "CT", 1, None
    ds.Manufacturer = ""
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    ds.DerivationDescription = DERIVATION
    ds.PatientPosition = ds.Laterality = ""
    ds.KVP = None
    ds.SliceThickness = format_number_as_ds(volume.spacing[0])
    ds.PixelSpacing = _numbers(np.array(volume.spacing[1:]))
    ds.Rows, ds.Columns = volume.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
    return ds


def _numbers(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[str]:
    """Return numbers as a DS holds them, in at most 16 characters (PS3.5 6.2)."""
    return [format_number_as_ds(float(value)) for value in values]


def _uid(*names: str) -> str:
    return f"2.25.{uuid5(NAMESPACE, chr(0x1F).join(names)).int}"


def _file_meta(ds: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta
