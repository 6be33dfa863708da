"""The masks as a binary Segmentation (PS3.3 A.51): both lungs, and each lesion on its own.

What a person outlined is a Segmentation of its own, by the person: the machine's stays as it was.
Frames are in the images' own rows and columns, each derived from exactly one image; nothing is
resampled. Lesions lie in the lungs, so segments overlap. Frames without a voxel are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import SegmentationStorage
from pydicom.valuerep import DSfloat, PersonName

from dicom_node.objects import codes
from dicom_node.objects.provenance import Provenance, reference, source_image
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Lesion, ModelRef, Side
from pipelines.headers import InstanceHeader
from pipelines.report.content import NOTICE

ROLE: Final = "segmentation"
SERIES_NUMBER: Final = 9101
PERSONS_ROLE: Final = "reader's segmentation"
PERSONS_SERIES_NUMBER: Final = 9106
PERSONS_LABEL: Final = "CHEST_CT_READER"

_GROWN: Final = "Region growing from a reader's seed"

_LUNGS: Final = {RIGHT_LUNG: Side.RIGHT, LEFT_LUNG: Side.LEFT}
_FRAMES_AT_ONCE: Final = 8  # whole bytes, whatever the size of the images


@dataclass(frozen=True, eq=False)
class Segment:
    """One region of an analysis, as the objects number and call it.

    Attributes:
        number: Segment Number, from 1.
        name: Its label and tracking identifier.
        tracking_uid: Its tracking UID.
        side: Of the patient.
        model: The network that marked it; None where a person did.
        grown: Whether a computer spread it from a person's seed.
        inside: The UID of the Segmentation that holds it.
        lesion: Its measures; None for a lung.
        labels: Canonical labels (z, y, x).
        value: Its value in them.
    """

    number: int
    name: str
    tracking_uid: str
    side: Side
    model: ModelRef | None
    lesion: Lesion | None
    labels: npt.NDArray[np.integer[Any]]
    value: int
    inside: str
    grown: bool = False

    @property
    def category(self) -> Code:
        """Its property category (PS3.16 CID 7150)."""
        return codes.ANATOMICAL_STRUCTURE if self.lesion is None else codes.ABNORMAL_STRUCTURE

    @property
    def kind(self) -> Code:
        """Its property type."""
        return codes.LUNG if self.lesion is None else codes.LESION

    @property
    def slices(self) -> range:
        """The canonical z among which all its voxels lie."""
        if self.lesion is None:
            return range(self.labels.shape[0])
        return range(self.lesion.first_slice, self.lesion.last_slice + 1)


def segments(provenance: Provenance) -> tuple[Segment, ...]:
    """Return the lungs that were found, right before left, then the lesions by their number.

    Raises:
        ObjectError: The analysis does not name the networks.
    """
    analysis = provenance.analysis
    regions: list[tuple[Side, int, Lesion | None]] = [
        (side, value, None) for value, side in _LUNGS.items() if (analysis.lung_mask == value).any()
    ]
    regions += [(lesion.side, lesion.id, lesion) for lesion in analysis.lesions]
    return tuple(
        _segment(provenance, number, *region) for number, region in enumerate(regions, start=1)
    )


def _segment(
    provenance: Provenance, number: int, side: Side, value: int, lesion: Lesion | None
) -> Segment:
    analysis, is_lung = provenance.analysis, lesion is None
    name = f"{side.capitalize()} lung" if is_lung else f"Lesion {value}"
    return Segment(
        number=number,
        name=name,
        tracking_uid=provenance.uid("tracking", name),
        side=side,
        model=provenance.model("lungs" if is_lung else "lesions"),
        lesion=lesion,
        labels=analysis.lung_mask if is_lung else analysis.lesion_labels,
        value=value,
        inside=provenance.uid(ROLE),
    )


def outlined_segments(provenance: Provenance) -> tuple[Segment, ...]:
    """Return the lesions that a person outlined, by their number."""
    return tuple(
        Segment(
            number=place,
            name=(name := f"Lesion {number}"),
            tracking_uid=provenance.uid(
                "tracking", name, *filter(None, [provenance.first_outlines.get(number)])
            ),
            side=mark.lesion.side,
            model=None,
            lesion=mark.lesion,
            labels=provenance.confirmed.lesion_labels,
            value=number,
            inside=provenance.verified_uid(PERSONS_ROLE),
            grown=mark.grown,
        )
        for place, (number, mark) in enumerate(provenance.marks.items(), start=1)
    )


def build_segmentation(provenance: Provenance) -> Dataset:
    """Return the Segmentation of an analysis.

    Raises:
        ObjectError: The analysis does not name the networks.
    """
    ds = provenance.new_object(
        SegmentationStorage,
        provenance.uid(ROLE),
        series=ROLE,
        series_number=SERIES_NUMBER,
        modality="SEG",
        written_at=provenance.local(provenance.analysed_at),
    )
    ds.ContentLabel = "CHEST_CT_AI"
    ds.ContentDescription = f"Lungs and lesions. {NOTICE}"
    ds.ContentCreatorName = ""
    ds.SegmentsOverlap = "YES" if provenance.analysis.lesions else "NO"
    return _filled(ds, provenance, segments(provenance), provenance.uid(ROLE, "dimensions"))


def build_persons_segmentation(provenance: Provenance) -> Dataset | None:
    """Return the Segmentation of what a person outlined; None where nobody outlined anything."""
    person = provenance.verification
    if person is None or not person.marks:
        return None
    ds = provenance.new_object(
        SegmentationStorage,
        provenance.verified_uid(PERSONS_ROLE),
        series=PERSONS_ROLE,
        series_number=PERSONS_SERIES_NUMBER,
        modality="SEG",
        written_at=provenance.written_at,
        of_verification=True,
    )
    ds.ContentLabel = PERSONS_LABEL
    ds.ContentDescription = "Lesions that a reader outlined"
    ds.ContentCreatorName = PersonName(person.person_name)
    ds.SegmentsOverlap = "NO"
    dimensions = provenance.verified_uid(PERSONS_ROLE, "dimensions")
    return _filled(ds, provenance, outlined_segments(provenance), dimensions)


def _filled(
    ds: Dataset, provenance: Provenance, described: tuple[Segment, ...], dimensions: str
) -> Dataset:
    """Return a Segmentation with what all have in common, and its segments."""
    ds.BodyPartExamined = "CHEST"
    ds.FrameOfReferenceUID = provenance.frame_of_reference_uid
    ds.PositionReferenceIndicator = provenance.source.attributes.get(
        "PositionReferenceIndicator", ""
    )
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.SegmentationType = "BINARY"
    ds.SegmentSequence = [_description(provenance, segment) for segment in described]
    ds.ReferencedSeriesSequence = [_referenced_series(provenance)]
    provenance.copy_compression(ds)
    _add_dimensions(ds, dimensions)
    ds.SharedFunctionalGroupsSequence = [_shared_groups(provenance)]
    _add_frames(ds, provenance, described)
    return ds


def _made_by(
    provenance: Provenance, segment: Segment
) -> tuple[SegmentAlgorithmTypeValues, AlgorithmIdentificationSequence | None]:
    """Return who marked a segment: a network, a person, or a computer from a person's seed."""
    if segment.model is not None:
        network = AlgorithmIdentificationSequence(
            name=segment.model.name,
            family=codes.ARTIFICIAL_INTELLIGENCE,
            version=segment.model.version,
            parameters={"sha256": segment.model.digest},
        )
        return SegmentAlgorithmTypeValues.AUTOMATIC, network
    if not segment.grown:
        return SegmentAlgorithmTypeValues.MANUAL, None
    growing = AlgorithmIdentificationSequence(
        name=_GROWN,
        family=codes.NEIGHBOURHOOD_ANALYSIS,
        version=provenance.equipment.software_version,
    )
    return SegmentAlgorithmTypeValues.SEMIAUTOMATIC, growing


def _description(provenance: Provenance, segment: Segment) -> Dataset:
    """Return the item of the Segment Sequence (PS3.3 C.8.20.4)."""
    is_lung = segment.lesion is None
    item = SegmentDescription(
        segment.number,
        segment.name,
        segment.category,
        segment.kind,
        *_made_by(provenance, segment),
        tracking_uid=segment.tracking_uid,
        tracking_id=segment.name,
        anatomic_regions=None if is_lung else [codes.LUNG],
    )
    side = [codes.item(codes.LATERALITY[segment.side])]
    if is_lung:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = side
    else:
        item.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
    return item


def _referenced_series(provenance: Provenance) -> Dataset:
    """Return the item of the Common Instance Reference module (PS3.3 C.12.2)."""
    item = Dataset()
    item.SeriesInstanceUID = provenance.analysis.series_uid
    item.ReferencedInstanceSequence = [
        reference(image.sop_class_uid, image.sop_instance_uid) for image in provenance.source.images
    ]
    return item


def _add_dimensions(ds: Dataset, uid: str) -> None:
    """Add the Multi-frame Dimension module (PS3.3 C.7.6.17): segment, then position."""
    organisation = Dataset()
    organisation.DimensionOrganizationUID = uid
    ds.DimensionOrganizationSequence = [organisation]
    ds.DimensionIndexSequence = []
    for pointer, group in (
        ("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
        ("ImagePositionPatient", "PlanePositionSequence"),
    ):
        index = Dataset()
        index.DimensionOrganizationUID = organisation.DimensionOrganizationUID
        index.DimensionIndexPointer = Tag(pointer)
        index.FunctionalGroupPointer = Tag(group)
        index.DimensionDescriptionLabel = pointer
        ds.DimensionIndexSequence.append(index)


def _shared_groups(provenance: Provenance) -> Dataset:
    """Return what all frames have in common (PS3.3 C.7.6.16.2.1, C.7.6.16.2.4)."""
    image, spacing_mm = provenance.source.first, provenance.analysis.spacing[0]
    assert image.pixel_spacing is not None
    assert image.orientation is not None
    measures = Dataset()
    measures.PixelSpacing = _decimals(image.pixel_spacing)
    thickness = provenance.source.attributes.get("SliceThickness")
    measures.SliceThickness = thickness or DSfloat(spacing_mm, auto_format=True)
    measures.SpacingBetweenSlices = DSfloat(spacing_mm, auto_format=True)
    orientation = Dataset()
    orientation.ImageOrientationPatient = _decimals(image.orientation)
    groups = Dataset()
    groups.PixelMeasuresSequence = [measures]
    groups.PlaneOrientationSequence = [orientation]
    return groups


def _add_frames(ds: Dataset, provenance: Provenance, described: Iterable[Segment]) -> None:
    """Add the pixels and what belongs to each frame (PS3.3 C.7.6.16, C.8.20.2)."""
    groups: list[Dataset] = []

    def frames() -> Iterator[npt.NDArray[np.bool_]]:
        for segment in described:
            for z in segment.slices:
                mask = segment.labels[z] == segment.value
                if mask.any():
                    groups.append(_frame_groups(segment, z, provenance.source.images[z]))
                    yield provenance.source.to_image(mask)

    ds.PixelData = _packed(frames())
    ds["PixelData"].VR = "OB"
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.NumberOfFrames = len(groups)
    ds.Rows, ds.Columns = provenance.source.size
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = ds.PixelRepresentation = 0


def _frame_groups(segment: Segment, z: int, image: InstanceHeader) -> Dataset:
    assert image.position is not None
    content = Dataset()
    content.DimensionIndexValues = [segment.number, z + 1]
    position = Dataset()
    position.ImagePositionPatient = _decimals(image.position)
    identification = Dataset()
    identification.ReferencedSegmentNumber = segment.number
    derived_from = source_image(image)
    derived_from.SpatialLocationsPreserved = "YES"
    derivation = Dataset()
    derivation.DerivationCodeSequence = [codes.item(codes.SEGMENTATION)]
    derivation.SourceImageSequence = [derived_from]
    groups = Dataset()
    groups.FrameContentSequence = [content]
    groups.PlanePositionSequence = [position]
    groups.SegmentIdentificationSequence = [identification]
    groups.DerivationImageSequence = [derivation]
    return groups


def _packed(frames: Iterable[npt.NDArray[np.bool_]]) -> bytes:
    """Return frames (rows, columns) as one bit a pixel without gaps between frames (PS3.5 8.2)."""
    packed, waiting = bytearray(), []
    for frame in frames:
        waiting.append(frame)
        if len(waiting) == _FRAMES_AT_ONCE:
            packed += np.packbits(np.stack(waiting), axis=None, bitorder="little").tobytes()
            waiting.clear()
    if waiting:
        packed += np.packbits(np.stack(waiting), axis=None, bitorder="little").tobytes()
    return bytes(packed) + b"\0" * (len(packed) % 2)


def _decimals(numbers: Iterable[float]) -> list[DSfloat]:
    return [DSfloat(number, auto_format=True) for number in numbers]
