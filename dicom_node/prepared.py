"""The files of a delivery: result objects, built once, and the study's own instances.

Result objects lie in a folder for each result until no delivery needs them, so that what is sent
again is the same bytes, also by a later release.
"""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import structlog
from pydicom import dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from appliance import deliveries, prior_results, studies
from appliance.config import Settings
from appliance.database import Database
from appliance.deliveries import Content, ObjectFile, Order, Subject
from appliance.prior_results import PriorResult
from appliance.store import Store
from dicom_node.errors import ObjectError
from dicom_node.objects import segmentation
from dicom_node.objects.build import build_objects, trace, write_objects
from dicom_node.objects.document import outcome_of
from dicom_node.objects.provenance import Equipment, Provenance
from dicom_node.objects.verification import load_verification
from pipelines.errors import ResultError
from pipelines.findings import Analysis, whole_folder
from pipelines.report.content import Prior

log = structlog.get_logger()

CONTENT_OF: Final = {
    SegmentationStorage: Content.SEG,
    Comprehensive3DSRStorage: Content.SR,
    SecondaryCaptureImageStorage: Content.SC,
    EncapsulatedPDFStorage: Content.PDF,
}
"""What a result object is, by its SOP class."""

# One at a time in a process: a result and its images are in memory.
_building = threading.Lock()


def prepare(settings: Settings, database: Database, order: Order) -> list[ObjectFile]:
    """Return the objects of a delivery, in the order in which they go out.

    Images that the destination took before are left out.

    Raises:
        ObjectError: no objects can be made of the result.
        PipelineError: the result or its images cannot be read.
        OSError: the disk is full, or files are not there.
    """
    files: list[ObjectFile] = []
    if Content.IMAGES in order.contents:
        files += _images(settings, database, order)
    if set(order.contents) - {Content.IMAGES}:
        folder = _built(settings, database, order.subject)
        files += _results(settings, folder, order)
    return files


def remove_unneeded(settings: Settings, database: Database) -> int:
    """Remove the result objects that no delivery needs any more; returns how many folders.

    Nothing may be built meanwhile.
    """
    with database.snapshot() as db:
        needed = {_name(*result) for result in deliveries.unfinished_results(db)}
    removed = 0
    for folder in settings.deliveries_dir.iterdir():
        if folder.name not in needed:
            shutil.rmtree(folder)
            removed += 1
    return removed


def _images(settings: Settings, database: Database, order: Order) -> Iterator[ObjectFile]:
    store = Store(settings.store_dir)
    study_id = order.subject.study_id
    made_in = str(settings.deliveries_dir.relative_to(settings.data_dir))
    with database.snapshot() as db:
        instances = studies.instances_of(db, study_id)
        # Results of ours that a PACS sent back are none of the study's own images.
        left_out = deliveries.results_of(db, study_id, folder=made_in)
        if not order.repetition:  # once more by hand is once more for all
            left_out |= deliveries.sent_before(db, study_id, order.destination)
    for instance in instances:
        if instance.sop_instance_uid not in left_out:
            yield ObjectFile(
                sop_class_uid=instance.sop_class_uid,
                sop_instance_uid=instance.sop_instance_uid,
                transfer_syntax_uid=instance.transfer_syntax_uid,
                file=str(store.path_of(instance.digest).relative_to(settings.data_dir)),
            )


def _results(settings: Settings, folder: Path, order: Order) -> Iterator[ObjectFile]:
    for path in sorted(folder.iterdir()):
        ds = dcmread(path, stop_before_pixels=True, specific_tags=["ContentLabel"])
        meta = ds.file_meta
        contents = {CONTENT_OF[meta.MediaStorageSOPClassUID]}
        if ds.get("ContentLabel") == segmentation.PERSONS_LABEL:
            # The report refers to what the person outlined: it never goes without.
            contents.add(Content.SR)
        if contents & set(order.contents):
            yield ObjectFile(
                sop_class_uid=str(meta.MediaStorageSOPClassUID),
                sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
                transfer_syntax_uid=str(meta.TransferSyntaxUID),
                file=str(path.relative_to(settings.data_dir)),
            )


def _built(settings: Settings, database: Database, subject: Subject) -> Path:
    """Return the folder with the objects of a result, which are built if they are not there."""
    assert subject.analysis_id is not None
    folder = settings.deliveries_dir / _name(subject.analysis_id, subject.review)
    with _building:
        if not folder.is_dir():
            _build(settings, database, subject, folder)
    return folder


def _build(settings: Settings, database: Database, subject: Subject, folder: Path) -> None:
    assert subject.analysis_id is not None
    store = Store(settings.store_dir)
    with database.snapshot() as db:
        row = studies.analysis(db, subject.analysis_id)
        instances = studies.instances_of(db, subject.study_id)
        verification = load_verification(db, subject.analysis_id, version=subject.review)
        earlier = prior_results.last(db, subject.study_id)
    assert row is not None
    provenance = trace(
        Analysis.load(settings.data_dir / row.folder),
        [store.path_of(instance.digest) for instance in instances],
        analysed_at=row.created_at.astimezone(),
        equipment=Equipment.here(settings.dicom.serial_number),
        verification=verification,
    )
    prior = None if earlier is None else _prior(settings, database, earlier)
    provenance = replace(provenance, prior=prior)
    objects = build_objects(_as_before(database, subject.analysis_id, provenance))
    with whole_folder(folder) as staging:
        write_objects(objects, staging)


def _prior(settings: Settings, database: Database, earlier: PriorResult) -> Prior:
    """Return the result of an earlier study, as a person left it."""
    analysed_at = earlier.analysed_at.astimezone()
    try:
        with database.snapshot() as db:
            verification = load_verification(db, earlier.analysis_id, version=earlier.review)
        analysis = Analysis.load(settings.data_dir / earlier.folder)
        outcome = outcome_of(analysis, verification, analysed_at)
    except (ObjectError, ResultError):
        log.warning("delivery.prior_unreadable", analysis_id=earlier.analysis_id)
        return Prior(study_date=earlier.study_date, outcome=None)
    return Prior(study_date=earlier.study_date, outcome=outcome)


def _as_before(database: Database, analysis_id: int, provenance: Provenance) -> Provenance:
    """Return it by the name, and as the work of the box and release, of the first objects.

    A verified report refers to the Segmentation and to the report before it, which may have been
    made by an earlier release.
    """
    own = {"identity": provenance.identity, **asdict(provenance.equipment)}
    with database.transaction() as db:
        first = studies.keep_origin(db, analysis_id, own)
    identity = first.pop("identity")
    return replace(provenance, named=identity, equipment=Equipment(**first))


def _name(analysis_id: int, review: int) -> str:
    return f"{analysis_id}-{review}"
