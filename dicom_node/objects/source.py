"""The images that an analysis was made of, each at its place in the canonical volume.

Files are found by SOP Instance UID and placed by their positions; order and names tell nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import config, dcmread
from pydicom.dataset import Dataset

from dicom_node.errors import ObjectError
from pipelines.decoding import decode_hounsfield
from pipelines.findings import Analysis
from pipelines.headers import InstanceHeader
from pipelines.series import describe_files
from pipelines.stack import along_normal, groups_by_position, stack_affine
from pipelines.volume import Orientation

SAME_PLACE_MM: Final = 0.01

# Patient, General Study and Patient Study (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2): the objects repeat
# them. Of these, the first group must be there, empty if unknown.
REQUIRED: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
    "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName",
)  # fmt: skip
OPTIONAL: Final = (
    "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID",
    "OtherPatientIDsSequence", "PatientBirthTime", "PatientComments", "EthnicGroup",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "IssuerOfAccessionNumberSequence", "StudyDescription", "PatientAge", "PatientSize",
    "PatientWeight", "TimezoneOffsetFromUTC",
)  # fmt: skip
_IMAGE: Final = (
    "SliceThickness", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod", "PositionReferenceIndicator",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """One series, as an analysis saw it.

    Attributes:
        images: One for each canonical z.
        orientation: The way from the canonical arrays to the images' own rows and columns.
        attributes: Of the patient, the study and the image, as in one of them, decoded.
    """

    images: tuple[InstanceHeader, ...]
    orientation: Orientation
    attributes: Dataset

    @property
    def first(self) -> InstanceHeader:
        """The image of canonical z = 0."""
        return self.images[0]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of each image."""
        assert self.first.pixels is not None
        return self.first.pixels.rows, self.first.pixels.columns

    def to_image(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return one canonical slice (y, x) in the images' own rows and columns."""
        image: npt.NDArray[np.bool_] = self.orientation.to_input(mask[np.newaxis])[0]
        return image

    def hounsfield(self, z: int) -> npt.NDArray[np.int16]:
        """Return the canonical slice (y, x) at z, HU.

        Raises:
            DecodeError: Its pixel data are damaged.
        """
        pixels = self.images[z].pixels
        assert pixels is not None
        stack = np.empty((1, *self.size), np.int16)
        decode_hounsfield(pixels, stack[0])
        canonical: npt.NDArray[np.int16] = self.orientation.to_canonical(stack)[0]
        return canonical


def read_source(analysis: Analysis, paths: Iterable[Path]) -> SourceSeries:
    """Return the images of the analysed series among some files.

    Raises:
        ObjectError: One is missing, or they are not where the analysis saw them.
    """
    found = [
        header
        for series in describe_files(paths)
        if series.series_uid == analysis.series_uid
        for header in series.instances
    ]
    ordered = along_normal(_used(analysis, found))
    affine = stack_affine(ordered)
    orientation = Orientation.from_affine(affine)
    if not np.allclose(
        orientation.canonical_affine(analysis.shape), analysis.affine, rtol=0, atol=SAME_PLACE_MM
    ):
        raise ObjectError("The images lie elsewhere than those that were analysed.")
    images = tuple(ordered[::-1] if orientation.flipped[0] else ordered)
    return SourceSeries(images, orientation, _attributes(images[0].path))


def _used(analysis: Analysis, found: Sequence[InstanceHeader]) -> list[InstanceHeader]:
    """Return the images that the analysis used, in no particular order."""
    by_uid = {header.sop_instance_uid: header for header in found}
    if "" in by_uid:
        raise ObjectError("Images have no SOP Instance UID, so no object can refer to them.")
    used = [by_uid[uid] for uid in analysis.sop_instance_uids if uid in by_uid]
    if not any(analysis.sop_instance_uids):
        # They had none when they were read, and were given theirs since.
        used = [header for header in by_uid.values() if not header.is_localiser]
    count = analysis.shape[0]
    if len(used) != count:
        raise ObjectError(
            f"{count} images were analysed, {len(used)} of their series are here: give those."
        )
    if any(not header.position or not header.orientation or not header.pixels for header in used):
        raise ObjectError("An image has no position any more, or no pixels that can be read.")
    if len({header.sop_instance_uid for header in used}) < count or (
        len(groups_by_position(along_normal(used))) < count
    ):
        raise ObjectError("Images share a SOP Instance UID or a position: which is meant is open.")
    return used


def _attributes(path: Path) -> Dataset:
    wanted: list[Any] = ["SpecificCharacterSet", *REQUIRED, *OPTIONAL, *_IMAGE]
    # What is illegal in it is copied as it is; a warning would quote it.
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(path, stop_before_pixels=True, specific_tags=wanted)
        ds.decode()
    return ds
