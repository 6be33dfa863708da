"""The tables. What is received is kept as it came, as text: a sender's date need not be a date.

Rules that hold whatever the code does are constraints here: one study per UID and person, one
instance per UID and study, one current analysis per study, one review per analysis and version.
"""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from appliance.config import ROLES
from appliance.database import Base

NEVER_AGAIN: Final = {"sqlite_autoincrement": True}
"""A removed row's number is given to no other: addresses and the audit name studies by it."""

STATES: Final = ("RECEIVING", "QUEUED", "ANALYSING", "READY", "REJECTED", "FAILED")
"""The values of `Study.state`; `lifecycle.State` gives them their meaning."""

PRIORITIES: Final = ("ROUTINE", "URGENT")
"""The values of `Study.priority`; `priority.Priority` gives them their meaning."""

OUTCOMES: Final = ("analysed", "refused")
"""The values of `Series.outcome`."""

CONFLICTS: Final = ("bytes", "place")
"""The values of `InstanceConflict.reason`; `studies.Conflict` gives them their meaning."""

QUESTIONS: Final = ("studies", "echo", "rules")
"""The values of `RemoteQuery.kind`; `remote_queries.Kind` gives them their meaning."""

RETRIEVAL_STATES: Final = ("WAITING", "RUNNING", "DONE", "FAILED")
"""The values of `Retrieval.state`; `retrievals.RetrievalState` gives them their meaning."""

COMMITMENT_STATES: Final = ("WAITING", "RUNNING", "DONE", "FAILED")
"""The values of `CommitmentRequest.state`; `commitments.RequestState` gives them their meaning."""

AIMS: Final = ("study", "priors")
"""The values of `Retrieval.aim`; `retrievals.Aim` gives them their meaning."""

WHYS: Final = ("standing query", "prior", "new study", "by hand")
"""The values of `Retrieval.why`; `retrievals.Why` gives them their meaning."""

MOMENTS: Final = ("analysed", "confirmed")
"""The values of `Occasion.moment`; `deliveries.Moment` gives them their meaning."""

DELIVERY_KINDS: Final = ("dicom", "message")
"""The values of `Delivery.kind`; `deliveries.Kind` gives them their meaning."""

DELIVERY_STATES: Final = ("WAITING", "SENDING", "SENT", "COMMITTED", "FAILED", "DROPPED")
"""The values of `Delivery.state`; `deliveries.DeliveryState` gives them their meaning."""

OBJECT_STATES: Final = ("WAITING", "SENT", "COMMITTED", "REFUSED")
"""The values of `DeliveredObject.state`; `deliveries.ObjectState` gives them their meaning."""

REASONS: Final = (
    "small lesion missed",
    "lesion missed",
    "other pneumonia",
    "several kinds of lesion",
    "artefact",
    "normal anatomy",
    "other",
)
"""The values of `Review.reason`; `reviews.Reason` gives them their meaning."""

MEASUREMENTS: Final = ("distance", "angle", "ellipse", "probe", "arrow")
"""The values of `Measurement.kind`; `measurements.Kind` gives them their meaning."""


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


class Patient(Base):
    """A person as one sender describes them.

    All five attributes identify the row: two senders without an issuer may use the same number for
    two people, and nobody's study may ever be shown under another's name.
    """

    __tablename__ = "patient"
    __table_args__ = (UniqueConstraint("patient_id", "issuer", "name", "birth_date", "sex"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[str] = mapped_column(Text, default="")
    issuer: Mapped[str] = mapped_column(Text, default="")
    name: Mapped[str] = mapped_column(Text, default="")
    birth_date: Mapped[str] = mapped_column(Text, default="")
    sex: Mapped[str] = mapped_column(Text, default="")


class Study(Base):
    """A study and where it stands; `state` is written by `lifecycle` alone.

    Images of several people under one Study Instance UID are a study each: `part` counts them in
    the order they came. Nobody's images are shown under another's name, and none stay unread.
    """

    __tablename__ = "study"
    __table_args__ = (
        UniqueConstraint("study_uid", "part"),
        CheckConstraint(_one_of("state", STATES), name="state"),
        CheckConstraint(_one_of("priority", PRIORITIES), name="priority"),
        Index("ix_study_state_state_since", "state", "state_since"),
        Index("ix_study_first_received_at", "first_received_at"),
        NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_uid: Mapped[str] = mapped_column(Text)
    part: Mapped[int] = mapped_column(default=0)
    patient_key: Mapped[int] = mapped_column(ForeignKey("patient.id"), index=True)
    accession_number: Mapped[str] = mapped_column(Text, default="")
    description: Mapped[str] = mapped_column(Text, default="")
    study_date: Mapped[str] = mapped_column(Text, default="")
    study_time: Mapped[str] = mapped_column(Text, default="")
    referring_physician: Mapped[str] = mapped_column(Text, default="")
    source_ae: Mapped[str] = mapped_column(Text, default="")
    state: Mapped[str] = mapped_column(Text)
    state_reason: Mapped[str | None] = mapped_column(Text)
    state_since: Mapped[datetime]
    first_received_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    priority: Mapped[str] = mapped_column(Text, default="ROUTINE", server_default="ROUTINE")
    # Which rule or who decided the priority; absent as long as nobody did.
    priority_reason: Mapped[str | None] = mapped_column(Text)
    # Counts distinct instances as they come, so that a result says what it was made from.
    revision: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None]
    rung_at: Mapped[datetime | None]
    step: Mapped[str | None] = mapped_column(Text)
    step_done: Mapped[int] = mapped_column(default=0)
    step_total: Mapped[int] = mapped_column(default=0)

    patient: Mapped[Patient] = relationship(lazy="joined", innerjoin=True)


class Series(Base):
    """A series of a study, and whether it was analysed or refused, with the reason."""

    __tablename__ = "series"
    __table_args__ = (
        UniqueConstraint("study_id", "series_uid"),
        CheckConstraint(_one_of("outcome", OUTCOMES), name="outcome"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    series_uid: Mapped[str] = mapped_column(Text)
    modality: Mapped[str] = mapped_column(Text, default="")
    description: Mapped[str] = mapped_column(Text, default="")
    series_number: Mapped[str] = mapped_column(Text, default="")
    body_part: Mapped[str] = mapped_column(Text, default="")
    manufacturer: Mapped[str] = mapped_column(Text, default="")
    model: Mapped[str] = mapped_column(Text, default="")
    station_name: Mapped[str] = mapped_column(Text, default="", server_default="")
    protocol_name: Mapped[str] = mapped_column(Text, default="", server_default="")
    requested_priority: Mapped[str] = mapped_column(Text, default="", server_default="")
    instance_count: Mapped[int] = mapped_column(default=0)
    # Of those instances together, so that nobody has to add up millions of them.
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    outcome: Mapped[str | None] = mapped_column(Text)
    outcome_reason: Mapped[str | None] = mapped_column(Text)


class Instance(Base):
    """An instance whose bytes lie in the store under `digest` (SHA-256, hexadecimal)."""

    __tablename__ = "instance"
    # Other bytes under a UID that is in the study are a conflict. Not unique among all studies: a
    # study sent again under a corrected Study Instance UID or patient often keeps its images' UIDs.
    __table_args__ = (UniqueConstraint("study_id", "sop_instance_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(Text)
    sop_class_uid: Mapped[str] = mapped_column(Text)
    transfer_syntax_uid: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    source_ae: Mapped[str] = mapped_column(Text, default="")
    received_at: Mapped[datetime]


class InstanceConflict(Base):
    """An instance that contradicts what is there: kept aside, used for nothing, reported."""

    __tablename__ = "instance_conflict"
    __table_args__ = (
        UniqueConstraint("study_id", "sop_instance_uid", "other_digest"),
        CheckConstraint(_one_of("reason", CONFLICTS), name="reason"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    sop_instance_uid: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    kept_digest: Mapped[str] = mapped_column(Text)
    other_digest: Mapped[str] = mapped_column(Text)
    source_ae: Mapped[str] = mapped_column(Text, default="")
    received_at: Mapped[datetime]


class StudyEvent(Base):
    """One move of one study; `source` is absent when the study was first seen.

    A change of its priority is noted as a move from its state to the same one.
    """

    __tablename__ = "study_event"
    __table_args__ = (
        CheckConstraint(_one_of("source", STATES), name="source"),
        CheckConstraint(_one_of("target", STATES), name="target"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    source: Mapped[str | None] = mapped_column(Text)
    target: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime]


class Analysis(Base):
    """A finished analysis; its files lie in `folder`, relative to the data folder."""

    __tablename__ = "analysis"
    __table_args__ = (
        Index(
            "uq_analysis_current",
            "study_id",
            unique=True,
            sqlite_where=text("current"),
            postgresql_where=text("current"),
        ),
        NEVER_AGAIN,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    revision: Mapped[int]
    current: Mapped[bool]
    superseded_by: Mapped[int | None] = mapped_column(ForeignKey("analysis.id"))
    folder: Mapped[str] = mapped_column(Text)
    probability: Mapped[float | None]
    positive: Mapped[bool | None]
    lesion_count: Mapped[int] = mapped_column(default=0)
    lesion_volume_ml: Mapped[float] = mapped_column(default=0.0)
    models: Mapped[list[Any]] = mapped_column(JSON, default=list)
    timings: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # The mean over both lungs; absent in results of releases that did not measure it.
    lung_hu: Mapped[float | None]
    # What its objects are named by and which box and release they name, since the first were made:
    # later ones, of another release perhaps, refer to those by their UIDs.
    origin: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime]


class StepResult(Base):
    """What one step of the analysis under way found; replaced at each claim."""

    __tablename__ = "step_result"
    __table_args__ = (UniqueConstraint("study_id", "attempt", "position"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    attempt: Mapped[int]
    step: Mapped[str] = mapped_column(Text)
    position: Mapped[int]
    seconds: Mapped[float]
    summary: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    at: Mapped[datetime]


class Retrieval(Base):
    """What is asked of another node, once for each study: its images, or its patient's priors."""

    __tablename__ = "retrieval"
    __table_args__ = (
        UniqueConstraint("destination", "aim", "study_uid"),
        CheckConstraint(_one_of("aim", AIMS), name="aim"),
        CheckConstraint(_one_of("why", WHYS), name="why"),
        CheckConstraint(_one_of("state", RETRIEVAL_STATES), name="state"),
        Index("ix_retrieval_state_next_try_at", "state", "next_try_at"),
        Index("ix_retrieval_study_uid", "study_uid"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    # The name in the settings; the node behind it may move to another address.
    destination: Mapped[str] = mapped_column(Text)
    aim: Mapped[str] = mapped_column(Text)
    study_uid: Mapped[str] = mapped_column(Text)
    why: Mapped[str] = mapped_column(Text)
    # How many instances the node said it has, 0 where it did not say.
    expected: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime]
    lease_until: Mapped[datetime | None]
    last_problem: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]


class RemoteQuery(Base):
    """What a person asks the DICOM worker, of another node mostly, and for a while the answer."""

    __tablename__ = "remote_query"
    __table_args__ = (
        CheckConstraint(_one_of("state", RETRIEVAL_STATES), name="state"),
        CheckConstraint(_one_of("kind", QUESTIONS), name="kind"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(Text, default="studies", server_default="studies")
    asked_by: Mapped[str] = mapped_column(Text)
    destination: Mapped[str] = mapped_column(Text)
    keys: Mapped[dict[str, str]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(Text)
    answers: Mapped[list[Any]] = mapped_column(JSON, default=list)
    cut_off: Mapped[bool] = mapped_column(default=False)
    problem: Mapped[str | None] = mapped_column(Text)
    asked_at: Mapped[datetime]


class Occasion(Base):
    """Something after which results may have to go out, until the rules were asked once.

    Written in the transaction of what it tells of, so that none is lost; what came before a rule
    was made is not sent by that rule.
    """

    __tablename__ = "occasion"
    __table_args__ = (
        CheckConstraint(_one_of("moment", MOMENTS), name="moment"),
        Index(
            "ix_occasion_open",
            "id",
            sqlite_where=text("NOT considered"),
            postgresql_where=text("NOT considered"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    revision: Mapped[int]
    # Absent: the study was rejected.
    analysis_id: Mapped[int | None] = mapped_column(ForeignKey("analysis.id"))
    moment: Mapped[str] = mapped_column(Text)
    # The version of the result's review; 0 as long as only the machine speaks.
    review: Mapped[int] = mapped_column(default=0)
    considered: Mapped[bool] = mapped_column(default=False)
    at: Mapped[datetime]


class Delivery(Base):
    """What is to go to one destination of one result, or of the images of a study without one."""

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("analysis_id", "destination", "what", "review", "repetition"),
        Index(
            "uq_delivery_rejected",
            "study_id",
            "revision",
            "destination",
            "what",
            "repetition",
            unique=True,
            sqlite_where=text("analysis_id IS NULL"),
            postgresql_where=text("analysis_id IS NULL"),
        ),
        CheckConstraint(_one_of("kind", DELIVERY_KINDS), name="kind"),
        CheckConstraint(_one_of("state", DELIVERY_STATES), name="state"),
        Index("ix_delivery_state_next_try_at", "state", "next_try_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    revision: Mapped[int]
    analysis_id: Mapped[int | None] = mapped_column(ForeignKey("analysis.id"))
    review: Mapped[int] = mapped_column(default=0)
    # The name in the settings; what is behind it may move to another address.
    destination: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    what: Mapped[str] = mapped_column(Text)
    # Counts what people had sent once more, from 1.
    repetition: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(Text)
    # Counts claims, so that a worker knows its own; failures count since the last success.
    attempts: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    # Absent: nothing is left to do.
    next_try_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]
    last_problem: Mapped[str | None] = mapped_column(Text)
    queued_at: Mapped[datetime]


class DeliveredObject(Base):
    """One instance of a delivery; its file is named relative to the data folder."""

    __tablename__ = "delivered_object"
    __table_args__ = (
        UniqueConstraint("delivery_id", "sop_instance_uid"),
        CheckConstraint(_one_of("state", OBJECT_STATES), name="state"),
        Index("ix_delivered_object_sop_instance_uid", "sop_instance_uid"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("delivery.id"))
    sop_class_uid: Mapped[str] = mapped_column(Text)
    sop_instance_uid: Mapped[str] = mapped_column(Text)
    transfer_syntax_uid: Mapped[str] = mapped_column(Text)
    file: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    problem: Mapped[str | None] = mapped_column(Text)
    # When the destination last answered about it.
    answered_at: Mapped[datetime | None]


class CommitmentTransaction(Base):
    """One time that a destination was asked to commit itself to a delivery (PS3.4 J.3.2)."""

    __tablename__ = "commitment_transaction"

    id: Mapped[int] = mapped_column(primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("delivery.id"), index=True)
    transaction_uid: Mapped[str] = mapped_column(Text, unique=True)
    asked_at: Mapped[datetime]
    reported_at: Mapped[datetime | None]


class CommitmentRequest(Base):
    """A peer's question whether we hold and keep instances, until it has our answer."""

    __tablename__ = "commitment_request"
    __table_args__ = (
        UniqueConstraint("peer", "transaction_uid"),
        CheckConstraint(_one_of("state", COMMITMENT_STATES), name="state"),
        Index("ix_commitment_request_state_next_try_at", "state", "next_try_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    # The AE title that asked, to which the answer goes.
    peer: Mapped[str] = mapped_column(Text)
    transaction_uid: Mapped[str] = mapped_column(Text)
    # Pairs of SOP Class UID and SOP Instance UID.
    instances: Mapped[list[Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime]
    lease_until: Mapped[datetime | None]
    last_problem: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]


class Account(Base):
    """A person who may sign in.

    A `temporary` password came from an administrator and must be changed before anything else.
    `external_id` names the person at the identity provider: the issuer, a blank, and the subject.
    """

    __tablename__ = "account"
    __table_args__ = (CheckConstraint(_one_of("role", ROLES), name="role"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    password_hash: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]
    failed_logins: Mapped[int] = mapped_column(default=0)
    locked_until: Mapped[datetime | None]
    temporary: Mapped[bool] = mapped_column(default=False)
    external_id: Mapped[str | None] = mapped_column(Text, index=True, unique=True)


class WebSession(Base):
    """A browser in which somebody is signed in; its cookie holds what `token_digest` is of."""

    __tablename__ = "web_session"

    id: Mapped[int] = mapped_column(primary_key=True)
    token_digest: Mapped[str] = mapped_column(Text, unique=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), index=True)
    opened_at: Mapped[datetime]
    active_at: Mapped[datetime]
    names_hidden: Mapped[bool] = mapped_column(default=False)
    failed_logins: Mapped[int] = mapped_column(default=0)


class Preference(Base):
    """What a person set for themselves, by name."""

    __tablename__ = "preference"

    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)


class Review(Base):
    """What a person confirmed of one analysis; triggers refuse every change.

    An amendment is a row with the next version. `reviewer` and `organisation` are the names at the
    time; `reason` says why `positive` differs from the analysis's answer, and is absent when it
    does not. A lesion that is not in `rejected` was accepted.

    `marks` names what the person marked, each by its number and the digest of its `MarkedRegion`: a
    number that the analysis has is another outline of that lesion, a higher one a lesion that it
    missed. `signs` are those seen in a lesion, by its number.
    """

    __tablename__ = "review"
    __table_args__ = (
        UniqueConstraint("analysis_id", "version"),
        CheckConstraint(_one_of("reason", REASONS), name="reason"),
        CheckConstraint("version > 0", name="version"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    analysis_id: Mapped[int] = mapped_column(ForeignKey("analysis.id"))
    version: Mapped[int]
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"))
    reviewer: Mapped[str] = mapped_column(Text)
    organisation: Mapped[str] = mapped_column(Text)
    positive: Mapped[bool]
    reason: Mapped[str | None] = mapped_column(Text)
    reason_text: Mapped[str] = mapped_column(Text, default="")
    rejected: Mapped[list[int]] = mapped_column(JSON, default=list)
    comment: Mapped[str] = mapped_column(Text, default="")
    marks: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list, server_default="[]")
    signs: Mapped[dict[str, list[str]]] = mapped_column(JSON, default=dict, server_default="{}")
    at: Mapped[datetime]

    @property
    def overridden(self) -> bool:
        """Whether the person decided the case otherwise than the analysis."""
        return self.reason is not None

    def lesion_count(self, analysis: Analysis) -> int:
        """How many lesions the result has by this: not rejected, and those that were added."""
        added = self.added_count(analysis.lesion_count)
        return analysis.lesion_count - len(self.rejected) + added

    def added_count(self, of_analysis: int) -> int:
        """How many lesions the person added to those that the analysis has."""
        return len([mark for mark in self.marks if mark["number"] > of_analysis])


class MarkedRegion(Base):
    """Voxels that a person marked on one analysis, and what was measured of them.

    `box` is half-open (x0, y0, z0, x1, y1, z1) and `bits` one zstd frame, as the viewer's masks
    travel; `digest` is that of box and bits.
    """

    __tablename__ = "marked_region"
    __table_args__ = (UniqueConstraint("analysis_id", "account_id", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    analysis_id: Mapped[int] = mapped_column(ForeignKey("analysis.id"))
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"))
    digest: Mapped[str] = mapped_column(Text)
    box: Mapped[list[int]] = mapped_column(JSON)
    bits: Mapped[bytes] = mapped_column(LargeBinary)
    measures: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime]

    account: Mapped[Account] = relationship(lazy="joined")


class ReviewDraft(Base):
    """What a person judged of one analysis and has not confirmed; nothing of it ever leaves."""

    __tablename__ = "review_draft"
    __table_args__ = (
        UniqueConstraint("analysis_id", "account_id"),
        CheckConstraint("revision > 0", name="revision"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    analysis_id: Mapped[int] = mapped_column(ForeignKey("analysis.id"))
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"))
    # Counts what was kept, so that a second window of the person overwrites nothing unseen.
    revision: Mapped[int]
    judged: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime]


class Measurement(Base):
    """What a person measured on the images of one analysis, to be drawn again for them.

    The browser chooses `key`, so that a measurement that is sent twice is one.
    """

    __tablename__ = "measurement"
    __table_args__ = (
        UniqueConstraint("analysis_id", "account_id", "key"),
        CheckConstraint(_one_of("kind", MEASUREMENTS), name="kind"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    analysis_id: Mapped[int] = mapped_column(ForeignKey("analysis.id"))
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"))
    key: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    plane: Mapped[str] = mapped_column(Text)
    # (x, y, z) each, in voxels of the analysed volume, a voxel's centre at whole numbers.
    points: Mapped[list[Any]] = mapped_column(JSON)
    text: Mapped[str] = mapped_column(Text, default="")
    values: Mapped[dict[str, float]] = mapped_column(JSON)
    at: Mapped[datetime]


class QualityRecord(Base):
    """What is followed of a study's result over months, and what a person said of it.

    It outlives its study, so it refers to no row, names nobody, and holds nothing that was written
    about a person. None is what was not measured, or what nobody said yet.
    """

    __tablename__ = "quality_record"
    __table_args__ = (Index("ix_quality_record_at", "at"),)

    # Of the analysis, whose number no other gets.
    analysis_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    source_ae: Mapped[str] = mapped_column(Text)
    manufacturer: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    kernel: Mapped[str] = mapped_column(Text)
    slice_spacing_mm: Mapped[float | None]
    lung_hu: Mapped[float | None]
    noise_hu: Mapped[float | None]
    burden: Mapped[float | None]
    probability: Mapped[float | None]
    positive: Mapped[bool | None]
    lesion_count: Mapped[int]
    # The version of the review below; 0 as long as nobody confirmed.
    review: Mapped[int] = mapped_column(default=0)
    overridden: Mapped[bool | None]
    reason: Mapped[str | None] = mapped_column(Text)
    rejected_count: Mapped[int | None]
    added_count: Mapped[int | None]
    corrected_count: Mapped[int | None]


class Tally(Base):
    """What removed studies had added to a total that only ever grows (`metrics`)."""

    __tablename__ = "tally"

    metric: Mapped[str] = mapped_column(Text, primary_key=True)
    # The values of its labels, in their order, as JSON.
    labels: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[float]


class AuditEntry(Base):
    """One line of the audit; triggers refuse every change and removal."""

    __tablename__ = "audit_entry"
    __table_args__ = (Index("ix_audit_entry_tag_actor", "tag", "actor"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(Text, index=True)
    tag: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text, index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    previous_hash: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(Text)
