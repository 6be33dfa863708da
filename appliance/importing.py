"""Importing what lies on a disk: instance by instance through the same door as those received.

An import can be broken off and run again: what is there already counts as a duplicate.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pynetdicom.dsutils import split_dataset

from appliance import audit
from appliance.collection import Collected, InstanceFile
from appliance.database import Database
from appliance.errors import OutOfResourcesError, SourceError, StoreError
from appliance.part10 import DEFLATED
from appliance.reception import Command, Reception
from appliance.studies import Recorded

SOURCE_AE: Final = "import"
TAG: Final = "import:medium:taken"
PIECE_BYTES: Final = 1 << 20
PADDING: Final = (b"\0", b" ")  # PS3.5 section 6.2
PADDED: Final = "a padding byte too many at its end was left out; the rest was taken"


@dataclass(frozen=True)
class Imported:
    """What became of the instances: how many of each kind, and which were refused, with why.

    `mended` are those taken that were not quite as they lay there, with what was done. `study_uids`
    are those of the instances that were taken, each once, in their order.
    """

    taken: Counter[Recorded]
    refused: tuple[tuple[Path, str], ...]
    mended: tuple[tuple[Path, str], ...]
    study_uids: tuple[str, ...]


def take(
    collected: Collected,
    reception: Reception,
    database: Database,
    *,
    actor: str,
    source_ae: str = SOURCE_AE,
    report: Callable[[], None] = lambda: None,
) -> Imported:
    """Take every instance and leave one entry in the audit, also of an import broken off.

    A full disk or an absent database ends it: what was not tried is refused for the same reason.

    Args:
        collected: what was found on the medium.
        reception: the door.
        database: where the audit is kept.
        actor: who imports, for the audit.
        source_ae: from where the instances came, as the studies name it.
        report: called after each instance.
    """
    taken: Counter[Recorded] = Counter()
    refused = list(collected.refused)
    mended: list[tuple[Path, str]] = []
    study_uids: dict[str, None] = {}
    full = ""
    try:
        for instance in collected.instances:
            try:
                if full:
                    refused.append((instance.origin, full))
                else:
                    recorded, study_uid, padded = _take(instance, reception, source_ae)
                    taken[recorded] += 1
                    study_uids[study_uid] = None
                    if padded:
                        mended.append((instance.origin, PADDED))
            except OutOfResourcesError as error:
                full = str(error)
                refused.append((instance.origin, full))
            except (SourceError, StoreError) as error:
                refused.append((instance.origin, str(error)))
            report()
    finally:
        counts = {kind.value: taken[kind] for kind in Recorded} | {"refused": len(refused)}
        with database.transaction() as db:
            # No path: folders are named after patients.
            audit.record(db, actor=actor, tag=TAG, subject="import", detail=counts)
    return Imported(taken, tuple(refused), tuple(mended), tuple(study_uids))


def _take(
    instance: InstanceFile, reception: Reception, source_ae: str
) -> tuple[Recorded, str, bool]:
    """Take one file piece by piece; raises SourceError or StoreError.

    Returns what it was, its study, and whether it had a padding byte too many, as files from CDs
    do. That is left out; where it was not too many, the data set is not whole without.
    """
    padded = False
    command = Command(
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        source_ae=source_ae,
    )
    with reception.taking(command) as taking:
        for piece in _dataset(instance.path):  # no piece but the last has an odd length
            padded = (
                len(piece) % 2 == 1
                and instance.transfer_syntax_uid not in DEFLATED
                and piece.endswith(PADDING)
            )
            taking.write(piece[:-1] if padded else piece)
        study_uid = taking.header().study_uid
        return taking.finish(), study_uid, padded


def _dataset(path: Path) -> Iterator[bytes]:
    """Yield a file's encoded data set; raises SourceError, as on a scratched disk."""
    try:
        _, offset = split_dataset(path)
        with path.open("rb") as file:
            file.seek(offset)
            while piece := file.read(PIECE_BYTES):
                yield piece
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error
