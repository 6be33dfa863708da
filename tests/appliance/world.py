"""Studies for the tests of the core, made by the core's own functions."""

from dataclasses import dataclass, field
from typing import Any

from appliance import lifecycle, studies
from appliance.database import Database
from appliance.lifecycle import Claim, FinishedAnalysis, State
from appliance.studies import ReceivedInstance, Recorded

STUDY_UID = "2.25.1"


@dataclass
class Bell:
    """A doorbell that remembers; `deaf` is a broker that is away."""

    deaf: bool = False
    rung: list[tuple[str, int]] = field(default_factory=list)

    def send(self, name: str, study_id: int) -> bool:
        if not self.deaf:
            self.rung.append((name, study_id))
        return not self.deaf


def instance(number: int = 1, *, content: str = "a", **changes: Any) -> ReceivedInstance:
    study_uid = str(changes.get("study_uid", STUDY_UID))
    values: dict[str, Any] = {
        "study_uid": study_uid,
        "series_uid": f"{study_uid}.1",
        "sop_instance_uid": f"{study_uid}.1.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "digest": content * 64,
        "size_bytes": 3,
        "source_ae": "CT1",
    }
    return ReceivedInstance(**{**values, **changes})


def receive(database: Database, *received: ReceivedInstance) -> list[Recorded]:
    with database.transaction() as db:
        return [studies.record_instance(db, each) for each in received]


def state_of(database: Database, study_id: int = 1) -> State:
    with database.snapshot() as db:
        progress = studies.progress(db, study_id)
    assert progress is not None
    return progress.state


def queued(database: Database, *, study_uid: str = STUDY_UID) -> int:
    """The id of a study of one instance that waits to be analysed."""
    receive(database, instance(study_uid=study_uid))
    with database.snapshot() as db:
        study = studies.named(db, study_uid)[0]
    lifecycle.move(database, None, study.id, State.RECEIVING, State.QUEUED)
    return study.id


def claimed(database: Database, *, study_uid: str = STUDY_UID, lease_s: float = 30.0) -> Claim:
    claim = lifecycle.claim(
        database, queued(database, study_uid=study_uid), owner="test", lease_s=lease_s
    )
    assert claim is not None
    return claim


def reclaimed(database: Database, study_id: int = 1) -> Claim:
    claim = lifecycle.claim(database, study_id, owner="test", lease_s=30.0)
    assert claim is not None
    return claim


def result(folder: str = "analyses/1/a", **changes: Any) -> FinishedAnalysis:
    values: dict[str, Any] = {
        "folder": folder,
        "probability": 0.9,
        "positive": True,
        "lesion_count": 2,
        "lesion_volume_ml": 12.5,
    }
    return FinishedAnalysis(**{**values, **changes})


def in_state(database: Database, state: State) -> int:
    """The id of a study brought to `state` by the moves that lead there."""
    match state:
        case State.RECEIVING:
            receive(database, instance())
        case State.QUEUED:
            queued(database)
        case State.ANALYSING:
            claimed(database)
        case State.READY:
            lifecycle.finish(database, claimed(database), result())
        case State.REJECTED:
            lifecycle.reject(database, claimed(database), reason="not a chest")
        case State.FAILED:
            lifecycle.fail(database, claimed(database), reason="broken", transient=False)
    return 1
