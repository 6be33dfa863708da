"""What all result objects share: whose they are, what made them, and UIDs that tell them apart.

Every UID is `2.25.` and a name-based UUID (PS3.5 B.2, RFC 9562 version 5) of the analysis's
identity and the object's role. The identity is made of everything that was found, the networks and
their digests included, of the images, of when the analysis ended, and of the box and release that
write it down. So an analysis delivered twice is the same objects under the same UIDs, byte for
byte, and another analysis is other objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property
from importlib.metadata import version
from typing import Final
from uuid import UUID, uuid5

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import PersonName

from appliance.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.errors import ObjectError
from dicom_node.objects import codes
from dicom_node.objects.source import OPTIONAL, REQUIRED, SourceSeries
from dicom_node.objects.verification import Verification, as_confirmed
from pipelines.findings import Analysis, ModelRef
from pipelines.headers import InstanceHeader
from pipelines.marks import Mark
from pipelines.report.content import PRODUCT, Prior

NAMESPACE: Final = UUID("bc4190c3-ed32-4f46-b5c3-203cbdf2fb17")
"""Ours. It never changes, or a second delivery would bring other objects."""

MANUFACTURER: Final = "Chest CT appliance"
MODEL_NAME: Final = PRODUCT
_CHARACTER_SET: Final = "ISO_IR 192"
_LO_CHARACTERS: Final = 64  # PS3.5 6.2
_SAID: Final = ("person_name", "organisation", "positive", "reason", "comment", "rejected")
"""What names a verification; not what a later release adds, or the same would get another name."""
_MOST_MINUTES: Final = 14 * 60  # PS3.3 C.12.1.1.8


@dataclass(frozen=True)
class Equipment:
    """The device that made the objects (PS3.3 C.7.5.1, C.7.5.2).

    Attributes:
        serial_number: Tells this box from others, at most 64 characters.
        software_version: The release.
    """

    serial_number: str
    software_version: str

    def __post_init__(self) -> None:
        """Refuse what Device Serial Number (0018,1000) cannot hold."""
        number = self.serial_number
        if not number.strip() or len(number) > _LO_CHARACTERS or "\\" in number:
            raise ObjectError(
                "dicom.serial_number must have 1 to 64 characters, none of them a backslash."
            )

    @classmethod
    def here(cls, serial_number: str) -> Equipment:
        """Return this installation."""
        return cls(serial_number, version("chest-ct-appliance"))

    @property
    def uid(self) -> str:
        """The device's own UID, for the report's observer (PS3.16 TID 1004)."""
        return named_uid("device", MODEL_NAME, self.serial_number)


@dataclass(frozen=True, eq=False)
class Provenance:
    """Where the objects of one delivery come from.

    Attributes:
        analysis: What was found.
        source: In which images.
        analysed_at: When, with its time zone.
        equipment: By what.
        verification: What a person confirmed; None as long as only the machine speaks.
        named: The identity under which objects of the analysis were made before; "" for none.
        prior: What the document compares the result with.
    """

    analysis: Analysis
    source: SourceSeries
    analysed_at: datetime
    equipment: Equipment
    verification: Verification | None = None
    named: str = ""
    prior: Prior | None = None

    def __post_init__(self) -> None:
        """Refuse times without a zone: they would name different moments on different machines."""
        verified_at = None if self.verification is None else self.verification.verified_at
        for moment in (self.analysed_at, verified_at):
            if moment is not None and moment.tzinfo is None:
                raise ValueError("A time needs its zone.")

    @cached_property
    def identity(self) -> str:
        """The analysis as a digest: what it found, in which images, when, and which box wrote it.

        How long the steps took is no part of it. Another release may see more in the same analysis:
        what was made before keeps its name.
        """
        if self.named:
            return self.named
        summary = {k: v for k, v in self.analysis.summary().items() if k != "timings_s"}
        digest = hashlib.sha256(json.dumps(summary, sort_keys=True).encode())
        for mask in (self.analysis.lung_mask, self.analysis.lesion_labels):
            digest.update(np.ascontiguousarray(mask).data)
        for image in self.source.images:
            digest.update(image.sop_instance_uid.encode())
        digest.update(self.local(self.analysed_at).isoformat().encode())
        digest.update(repr(self.equipment).encode())
        return digest.hexdigest()

    def uid(self, *role: str) -> str:
        """Return the UID of what plays a role in this analysis, verified or not."""
        return named_uid(self.identity, *role)

    def verified_uid(self, *role: str) -> str:
        """Return the UID of what also says what was verified, and by whom."""
        return self._uid_of_version(self.verification, *role)

    def predecessor_uid(self, *role: str) -> str:
        """Return the UID of what a verified object replaces: the version before, or the machine's.

        Raises:
            ValueError: Nobody verified anything.
        """
        if self.verification is None:
            raise ValueError("The machine's own objects replace none.")
        return self._uid_of_version(self.verification.amends, *role)

    def _uid_of_version(self, verification: Verification | None, *role: str) -> str:
        if verification is None:
            return self.uid(*role)
        said = []
        version: Verification | None = verification
        while version is not None:
            when = version.verified_at.astimezone(UTC).isoformat()
            said.append([when, *(getattr(version, name) for name in _SAID)])
            if version.marks or version.signs:
                signs = [[number, *seen] for number, seen in version.signs.items()]
                said[-1] += [version.drawn, signs]
            version = version.amends
        return self.uid(*role, json.dumps(said, sort_keys=True))

    @cached_property
    def confirmed(self) -> Analysis:
        """The analysis as the person left it; the machine's own while nobody verified it.

        Raises:
            ObjectError: The person rejected a lesion that it does not have.
        """
        return as_confirmed(self.analysis, self.verification)

    @cached_property
    def marks(self) -> Mapping[int, Mark]:
        """The lesions that the person outlined, by their numbers."""
        drawn = () if self.verification is None else self.verification.marks
        return {mark.lesion.id: mark for mark in drawn}

    @cached_property
    def added(self) -> tuple[int, ...]:
        """The numbers of the lesions that the analysis missed, as the person says."""
        own = {lesion.id for lesion in self.analysis.lesions}
        return tuple(number for number in self.marks if number not in own)

    @cached_property
    def first_outlines(self) -> Mapping[int, str]:
        """The digest that each added lesion's outline had when it was added, by its number.

        It tells lesions apart that two people added under one number.
        """
        first = {number: self.marks[number].digest for number in self.added}
        version = self.verification
        while version is not None:
            first |= {
                mark.lesion.id: mark.digest for mark in version.marks if mark.lesion.id in first
            }
            version = version.amends
        return first

    @cached_property
    def corrected(self) -> tuple[int, ...]:
        """The numbers of the lesions of the analysis that the person outlined anew."""
        return tuple(number for number in self.marks if number not in self.added)

    @property
    def positive(self) -> bool:
        """The case, as the person sees it, else as the analysis does."""
        return self.analysis.positive if self.verification is None else self.verification.positive

    @property
    def frame_of_reference_uid(self) -> str:
        """The images' own; where the scanner left it out, one that is the same for the series."""
        own = self.source.first.frame_of_reference_uid
        return own or named_uid("frame of reference", self.analysis.series_uid)

    @property
    def written_at(self) -> datetime:
        """When what verified objects say became so: the verification, else the analysis."""
        return self.local(
            self.analysed_at if self.verification is None else self.verification.verified_at
        )

    def local(self, moment: datetime) -> datetime:
        """Return a moment in the zone that the study's own times are in, where it names one."""
        offset = str(self.source.attributes.get("TimezoneOffsetFromUTC") or "")
        if len(offset) != len("+hhmm") or offset[0] not in "+-" or not offset[1:].isdigit():
            return moment
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        if minutes > _MOST_MINUTES:
            return moment
        return moment.astimezone(timezone(timedelta(minutes=int(offset[0] + "1") * minutes)))

    def model(self, purpose: str) -> ModelRef:
        """Return the network for `purpose`.

        Raises:
            ObjectError: The analysis names none.
        """
        for model in self.analysis.models:
            if model.purpose == purpose:
                return model
        raise ObjectError(f"The analysis does not name its network for {purpose}.")

    def new_object(
        self,
        sop_class_uid: str,
        sop_instance_uid: str,
        *,
        series: str,
        series_number: int,
        modality: str,
        written_at: datetime,
        of_verification: bool = False,
    ) -> Dataset:
        """Return an object with its patient, study, series, equipment and SOP common modules.

        Args:
            sop_class_uid: What it is.
            sop_instance_uid: Its own UID.
            series: What its series is called; one series for each name.
            series_number: In the study.
            modality: Of its series.
            written_at: Its content date and time.
            of_verification: Whether each verification has a series of its own.
        """
        ds = Dataset()
        ds.file_meta = _file_meta(sop_class_uid, sop_instance_uid)
        ds.SpecificCharacterSet = _CHARACTER_SET
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, sop_instance_uid
        self._copy_patient_and_study(ds)
        ds.Modality = modality
        series_uid = self.verified_uid if of_verification else self.uid
        ds.SeriesInstanceUID = series_uid("series", series)
        ds.SeriesNumber = series_number
        ds.SeriesDescription = f"{MODEL_NAME} {series}, research use only"
        ds.Manufacturer, ds.ManufacturerModelName = MANUFACTURER, MODEL_NAME
        ds.DeviceSerialNumber = self.equipment.serial_number
        ds.SoftwareVersions = self.equipment.software_version
        ds.ContentDate, ds.ContentTime = f"{written_at:%Y%m%d}", f"{written_at:%H%M%S}"
        ds.InstanceNumber = 1
        return ds

    def copy_compression(self, ds: Dataset) -> None:
        """Say whether the images were ever compressed with loss (PS3.3 C.7.6.1.1.5)."""
        ds.LossyImageCompression = "00"
        if self.source.attributes.get("LossyImageCompression") == "01":
            for keyword in ("", "Ratio", "Method"):
                _copy(self.source.attributes, ds, f"LossyImageCompression{keyword}")

    def _copy_patient_and_study(self, ds: Dataset) -> None:
        attributes = self.source.attributes
        for keyword in REQUIRED:
            setattr(ds, keyword, "")
        for keyword in (*REQUIRED, *OPTIONAL):
            _copy(attributes, ds, keyword)


def named_uid(*names: str) -> str:
    """Return the UID that these names always get (PS3.5 B.2)."""
    return f"2.25.{uuid5(NAMESPACE, chr(0x1F).join(names)).int}"


def reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """Return an item that refers to an instance (PS3.3 table 10-11)."""
    ds = Dataset()
    ds.ReferencedSOPClassUID = sop_class_uid
    ds.ReferencedSOPInstanceUID = sop_instance_uid
    return ds


def source_image(image: InstanceHeader) -> Dataset:
    """Return an item of the Source Image Sequence (PS3.3 C.7.6.1.1.4, C.7.6.16.2.6)."""
    ds = reference(image.sop_class_uid, image.sop_instance_uid)
    ds.PurposeOfReferenceCodeSequence = [codes.item(codes.SOURCE_IMAGE)]
    return ds


def _copy(source: Dataset, ds: Dataset, keyword: str) -> None:
    if keyword not in source:
        return
    value = source[keyword].value
    # A name keeps the bytes of its old character set unless it is made anew.
    setattr(ds, keyword, PersonName(str(value)) if isinstance(value, PersonName) else value)


def _file_meta(sop_class_uid: str, sop_instance_uid: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
