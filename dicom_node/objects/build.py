"""An analysis as the objects that go to the PACS."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset

from appliance.part10 import leniently
from dicom_node.objects.capture import build_captures
from dicom_node.objects.document import build_document
from dicom_node.objects.provenance import Equipment, Provenance
from dicom_node.objects.report import build_report
from dicom_node.objects.segmentation import build_persons_segmentation, build_segmentation
from dicom_node.objects.source import read_source
from dicom_node.objects.verification import Verification
from pipelines.files import whole_file
from pipelines.findings import Analysis


def trace(
    analysis: Analysis,
    source_paths: Iterable[Path],
    *,
    analysed_at: datetime,
    equipment: Equipment,
    verification: Verification | None = None,
) -> Provenance:
    """Return where the objects of an analysis come from.

    Args:
        analysis: What was found.
        source_paths: Files of the analysed images, in any order; others beside them do no harm.
        analysed_at: When the analysis ended, with its time zone.
        equipment: The box that made it.
        verification: What a person confirmed, as `load_verification` returns it; None as long as
            nobody did.

    Raises:
        ObjectError: The images are not of the analysis.
    """
    with leniently():
        source = read_source(analysis, source_paths)
    return Provenance(analysis, source, analysed_at, equipment, verification)


def build_objects(provenance: Provenance) -> tuple[Dataset, ...]:
    """Return Segmentations, report, key images and document, in this order, ready to be written.

    Of the same provenance they are the same bytes. With a verification, the report and the document
    are new instances, and so are the key images if lesions were rejected or outlined; the others
    are those of the machine's delivery. The Segmentation stays what the machine marked; what a
    person outlined is another one.

    Raises:
        ObjectError: The verification is not of the analysis, or this does not name its networks.
        DecodeError: The pixel data of a key image are damaged.
    """
    with leniently():
        outlined = build_persons_segmentation(provenance)
        return (
            build_segmentation(provenance),
            *(() if outlined is None else (outlined,)),
            build_report(provenance),
            *build_captures(provenance),
            build_document(provenance),
        )


def write_objects(objects: Iterable[Dataset], folder: Path) -> list[Path]:
    """Write objects as Part 10 files named by what they are, and return their paths."""
    paths = []
    for number, ds in enumerate(objects, start=1):
        path = folder / f"{number:02d}-{ds.Modality}.dcm"
        with leniently(), whole_file(path) as file:
            ds.save_as(file, enforce_file_format=True)
        paths.append(path)
    return paths
