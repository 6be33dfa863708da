"""What must hold in the end, whatever fell in between."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    SegmentationStorage,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from appliance import audit, deliveries, studies
from appliance.deliveries import DeliveryState
from appliance.lifecycle import State
from appliance.store import Store
from appliance.tables import Analysis, Delivery, Occasion, Study
from pipelines.findings import Analysis as SavedAnalysis
from tests.end_to_end.faults.box import Box, Sending, digest_of
from tests.support.instances import dataset_bytes

ONE_EACH: Final = (SegmentationStorage, Comprehensive3DSRStorage, EncapsulatedPDFStorage)
"""The classes of which a result has exactly one object."""


def faults_in(box: Box, sendings: Sequence[Sending]) -> list[str]:
    """Everything about these studies, and in general, that is not as it must be, in words."""
    found = [problem for sending in sendings for problem in faults_of(box, sending)]
    found += (f"another object came to the PACS as {uid}" for uid in box.pacs.differing)
    with box.database.snapshot() as db:
        if (broken := audit.verify(db)) is not None:
            found.append(f"the audit's chain is broken at entry {broken}")
        results = {
            (analysis.probability, analysis.lesion_count, analysis.lesion_volume_ml)
            for analysis in db.scalars(
                select(Analysis)
                .join(Study, Study.id == Analysis.study_id)
                .where(Study.study_uid.in_([sending.study_uid for sending in sendings]))
                .where(Analysis.current)
            )
        }
    if len(results) > 1:
        found.append(f"the same chest gave different results: {results}")
    return [*found, *partial_files(Store(box.settings.store_dir))]


def partial_files(store: Store) -> Iterator[str]:
    """Yield what lies in the store under a name that is not the digest of all its bytes."""
    for path in store.objects_dir.glob("*/*"):
        if digest_of(path.read_bytes()) != path.stem:
            yield f"a part of a file is in the store: {path.name}"


def lost_instances(store: Store, db: Session, study: Study, sending: Sending) -> Iterator[str]:
    """Yield each instance that was answered with Success and is not there, byte for byte."""
    kept = {i.sop_instance_uid: i.digest for i in studies.instances_of(db, study.id)}
    for uid in sending.taken:
        path = store.path_of(kept[uid]) if uid in kept else None
        if path is None or not path.is_file():
            yield f"study {study.id}: an acknowledged instance is lost"
        elif digest_of(dataset_bytes(path)) != sending.digests[uid]:
            yield f"study {study.id}: an acknowledged instance has other bytes"


def faults_of(box: Box, sending: Sending) -> Iterator[str]:
    """Yield what is wrong with a study that was sent and has settled."""
    with box.database.snapshot() as db:
        study = next(iter(studies.named(db, sending.study_uid)), None)
        if study is None:
            yield "a study is not in the database"
            return
        name = f"study {study.id}"
        yield from lost_instances(Store(box.settings.store_dir), db, study, sending)
        if study.state != State.READY:
            yield f"{name} is {study.state}: {study.state_reason}"
            return
        analyses = studies.analyses_of(db, study.id)
        yield from (f"{name}: {what}" for what in _wrong_results(box, db, analyses, sending))
        yield from (f"{name}: {what}" for what in _wrong_at_pacs(box, db, study, sending))


def _wrong_results(
    box: Box, db: Session, analyses: Sequence[Analysis], sending: Sending
) -> Iterator[str]:
    current = [analysis for analysis in analyses if analysis.current]
    if len(current) != 1:
        yield f"{len(current)} current results"
        return
    if current[0].revision != len(sending.instances):
        yield f"its result is made from {current[0].revision} instances"
    saved = SavedAnalysis.load(box.settings.data_dir / current[0].folder)
    if set(saved.sop_instance_uids) != sending.longest:
        yield "its result is of a part of a series"
    ended = set(db.scalars(select(Occasion.analysis_id)))
    for older in analyses:
        if older.id in ended and not older.current and older.superseded_by is None:
            yield "an older result is not marked as superseded"
        SavedAnalysis.load(box.settings.data_dir / older.folder)


def _wrong_at_pacs(box: Box, db: Session, study: Study, sending: Sending) -> Iterator[str]:
    there = box.pacs.of(study.study_uid)
    if missing := set(sending.digests) - set(there):
        yield f"the PACS lacks {len(missing)} images"
    sent = db.scalars(select(Delivery).where(Delivery.study_id == study.id)).all()
    known = {each.sop_instance_uid for d in sent for each in deliveries.objects_of(db, d.id)}
    if strange := set(there) - known:
        yield f"the PACS has {len(strange)} objects of no delivery"
    of_current = [
        each
        for each in sent
        if each.state == DeliveryState.SENT and db.get_one(Analysis, each.analysis_id).current
    ]
    if len(of_current) != 1:
        yield f"its result was delivered {len(of_current)} times"
        return
    wanted = {each.sop_instance_uid for each in deliveries.objects_of(db, of_current[0].id)}
    if missing := wanted - set(there):
        yield f"{len(missing)} objects of its result are not at the PACS, but said to be"
    results = {d.analysis_id for d in sent if deliveries.objects_of(db, d.id)}
    yield from _not_once_each(there[uid].sop_class_uid for uid in wanted & set(there))
    yield from _too_many((kept.sop_class_uid for kept in there.values()), len(results))


def _not_once_each(classes: Iterable[str]) -> Iterator[str]:
    counts = Counter(classes)
    for sop_class in ONE_EACH:
        if counts[sop_class] != 1:
            yield f"its result has {counts[sop_class]} objects of {sop_class}"


def _too_many(classes: Iterable[str], results: int) -> Iterator[str]:
    counts = Counter(classes)
    for sop_class in ONE_EACH:
        if counts[sop_class] > results:
            yield f"{counts[sop_class]} objects of {sop_class} of {results} results at the PACS"
