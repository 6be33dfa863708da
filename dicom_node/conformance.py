"""The DICOM conformance statement (PS3.2), written from the tables and settings that the code uses.

What other packages have to say comes as chapters by the entry point group `appliance.conformance`:
functions without arguments that return Markdown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import metadata
from typing import Any, Final

from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom._globals import DEFAULT_MAX_LENGTH
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from appliance import commitments, deidentification, holdings
from appliance.config import (
    SECTIONS,
    DestinationSettings,
    DicomSettings,
    PeerSettings,
    RuleSettings,
    StandingQuerySettings,
    to_toml,
)
from appliance.errors import DatasetMismatchError, OutOfResourcesError, UnreadableDatasetError
from appliance.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node import commitment, direct, proposal, query_scp, scu, tls
from dicom_node.acceptance import (
    ABSTRACT_SYNTAX_NOT_SUPPORTED,
    TRANSFER_SYNTAXES_NOT_SUPPORTED,
)
from dicom_node.dimse import PROCESSING_FAILURE, SUCCESS
from dicom_node.errors import DicomNodeError
from dicom_node.identifiers import CHARACTER_SET
from dicom_node.objects import capture, codes, document, report, segmentation
from dicom_node.pdu import AbortReason
from dicom_node.peers import Rejection

CHAPTERS: Final = "appliance.conformance"
"""The entry-point group in which other packages name their chapters."""

YES, NO = "yes", "no"


@dataclass(frozen=True)
class Service:
    """One row of the overview: a SOP class, and in which roles it is used."""

    uid: str
    group: str
    scu: bool
    scp: bool

    @property
    def row(self) -> tuple[str, ...]:
        """Name, UID, service, and whether it is SCU and SCP."""
        roles = (YES if role else NO for role in (self.scu, self.scp))
        return (_name(self.uid), self.uid, self.group, *roles)


QUERY: Final = "Query/Retrieve"
SERVICES: Final = (
    Service(Verification, "Verification", scu=True, scp=True),
    Service(StudyRootQueryRetrieveInformationModelFind, QUERY, scu=True, scp=True),
    Service(StudyRootQueryRetrieveInformationModelMove, QUERY, scu=True, scp=True),
    Service(StudyRootQueryRetrieveInformationModelGet, QUERY, scu=True, scp=True),
    Service(PatientRootQueryRetrieveInformationModelFind, QUERY, scu=False, scp=True),
    Service(PatientRootQueryRetrieveInformationModelMove, QUERY, scu=False, scp=True),
    Service(PatientRootQueryRetrieveInformationModelGet, QUERY, scu=False, scp=True),
    Service(StorageCommitmentPushModel, "Storage Commitment", scu=True, scp=True),
)
"""Every SOP class but those of storage."""


@dataclass(frozen=True)
class Created:
    """A kind of object that is made of an analysis."""

    uid: str
    what: str
    series_number: int


CREATED: Final = (
    Created(SegmentationStorage, "lungs and lesions, binary", segmentation.SERIES_NUMBER),
    Created(
        SegmentationStorage,
        "lesions that a person outlined, binary; goes with the verified report",
        segmentation.PERSONS_SERIES_NUMBER,
    ),
    Created(
        Comprehensive3DSRStorage,
        "TID 1500 Measurement Report: each lesion by TID 1411, the case by TID 1501",
        report.SERIES_NUMBER,
    ),
    Created(SecondaryCaptureImageStorage, "key images", capture.SERIES_NUMBER),
    Created(EncapsulatedPDFStorage, "the report to read", document.SERIES_NUMBER),
)

STORE_STATUSES: Final[Mapping[int, str]] = {
    SUCCESS: "the instance is on disk and in the database, or has been there before",
    OutOfResourcesError.status: "it cannot be kept now (disk, database): try again later",
    DatasetMismatchError.status: "it lacks a UID of study or series, or contradicts the command",
    UnreadableDatasetError.status: "it cannot be parsed in its transfer syntax, or is cut short",
    PROCESSING_FAILURE: "internal error: try again later",
}
FIND_STATUSES: Final[Mapping[int, str]] = {
    SUCCESS: "all matches were sent",
    query_scp.PENDING: "a match; every key is known",
    query_scp.PENDING_WITHOUT_SOME_KEYS: "a match; keys that are not held are empty",
    query_scp.TOO_MANY_ANSWERS: "more matches than `dicom.max_answers`, after as many were sent",
    query_scp.IDENTIFIER_DOES_NOT_MATCH: "the identifier contradicts the information model",
    query_scp.UNABLE_TO_PROCESS: "several persons under one identifier, or an internal error",
    query_scp.CANCELLED: "ended by C-CANCEL",
}
RETRIEVE_STATUSES: Final[Mapping[int, str]] = {
    SUCCESS: "all instances were sent",
    query_scp.PENDING: "sub-operations continue; sent after each of them",
    query_scp.SOME_FAILED: "some sub-operations failed; their UIDs are in the identifier",
    query_scp.ALL_FAILED: "every sub-operation failed",
    query_scp.TOO_MANY_INSTANCES: f"more than {query_scp.SUBOPERATIONS_LIMIT} instances",
    query_scp.MOVE_DESTINATION_UNKNOWN: "the Move Destination is in no `[[dicom.destinations]]`",
    query_scp.IDENTIFIER_DOES_NOT_MATCH: "the identifier contradicts the information model",
    query_scp.UNABLE_TO_PROCESS: "several persons under one identifier, or an internal error",
    query_scp.CANCELLED: "ended by C-CANCEL",
}
ACTION_STATUSES: Final[Mapping[int, str]] = {
    SUCCESS: "the request is in the database and will be answered",
    commitment.NO_SUCH_SOP_INSTANCE: "another Requested SOP Instance UID than the well-known one",
    commitment.INVALID_ARGUMENT_VALUE: "no Transaction UID, no instance, or a UID that is none",
    commitment.NO_SUCH_ACTION: f"an Action Type ID but {commitment.REQUEST_STORAGE_COMMITMENT}",
    commitment.RESOURCE_LIMITATION: f"more than {commitment.INSTANCES_LIMIT} instances",
    PROCESSING_FAILURE: "internal error: try again later",
}
FAILURE_REASONS: Final[Mapping[int, str]] = {
    commitments.Failure.PROCESSING_FAILURE: "its bytes are not as they came, or of two versions",
    commitments.Failure.NO_SUCH_OBJECT_INSTANCE: "it is not here",
    commitments.Failure.CLASS_INSTANCE_CONFLICT: "it is here under another SOP class",
}
CONTEXT_RESULTS: Final[Mapping[int, str]] = {
    ABSTRACT_SYNTAX_NOT_SUPPORTED: "abstract syntax: no service here, or not in"
    " `dicom.accepted_sop_classes`",
    TRANSFER_SYNTAXES_NOT_SUPPORTED: "transfer syntaxes: none is in"
    " `dicom.accepted_transfer_syntaxes`",
}


def statement(chapters: Iterable[str] = ()) -> str:
    """Return the statement as Markdown, `chapters` of other packages behind the network services.

    It depends on nothing but the code: the same release has the same statement.
    """
    parts = (
        _overview(),
        _networking(),
        *chapters,
        _media(),
        _character_sets(),
        _security(),
        _created(),
        _configuration(),
    )
    return "\n".join(f"{part.strip()}\n" for part in parts)


def chapters() -> list[str]:
    """Return what the installed packages add.

    Raises:
        DicomNodeError: none does, so that the statement would lack DICOMweb.
    """
    found = sorted(metadata.entry_points(group=CHAPTERS), key=lambda entry: entry.name)
    if not found:
        raise DicomNodeError(
            "the installed package is older than this code: install it again"
            " (pip install --no-deps -e .)"
        )
    return [str(entry.load()()) for entry in found]


def _overview() -> str:
    storage = [
        ("Storage: every SOP class, private and unknown ones too", "any", "Storage", YES, YES),
        *(
            (_name(uid), uid, "Storage (made by the appliance)", YES, YES)
            for uid in dict.fromkeys(made.uid for made in CREATED)
        ),
    ]
    return f"""\
# DICOM conformance statement

Chest CT appliance, Implementation Class UID `{IMPLEMENTATION_CLASS_UID}`, Implementation Version
Name `{IMPLEMENTATION_VERSION_NAME}`. In the order of DICOM PS3.2. This file is written by
`appliance dicom conformance` from the code's own tables; a test holds the two together.

Research use only; not a medical device.

## 1 Overview

The appliance receives chest CTs, analyses them, shows the result in a browser and answers queries
over what it holds. All of it is one application entity.

{_table(("SOP class", "UID", "service", "SCU", "SCP"), [*(s.row for s in SERVICES), *storage])}

Over HTTP it offers the services of the chapter on DICOMweb. From media it reads files of every SOP
class, with and without a DICOMDIR; it writes none.
"""


def _networking() -> str:
    default = DicomSettings()
    models = [
        (_name(model), level.name)
        for group in (query_scp.FIND, query_scp.MOVE, query_scp.GET)
        for model, level in group.items()
    ]
    keys = [
        (keyword, attribute.level.name, holdings.IN_WORDS[attribute.rule])
        for keyword, attribute in holdings.ATTRIBUTES.items()
    ]
    return f"""\
## 2 Networking

### 2.1 Implementation model

One application entity, by default `{default.ae_title}`, made of a listener, which accepts
associations, and workers and commands, which open them: `appliance send`, `appliance dicom
echo|find|fetch`, deliveries, standing queries, prior studies, C-MOVE sub-operations and the answers
of storage commitment. A study is analysed when no instance of it has come for `receive.quiet_s`; no
service waits for an analysis.

### 2.2 Association policies

{
        _table(
            ("", "accepting", "opening"),
            [
                (
                    "Application Context Name",
                    direct.APPLICATION_CONTEXT,
                    direct.APPLICATION_CONTEXT,
                ),
                (
                    "most at once",
                    f"`dicom.max_associations`, {default.max_associations}",
                    "one for each operation; `appliance send --associations`, up to 64",
                ),
                (
                    "longest P-DATA-TF taken",
                    f"`dicom.max_pdu_bytes`, {default.max_pdu_bytes} bytes",
                    f"{DEFAULT_MAX_LENGTH} bytes",
                ),
                (
                    "longest data set taken",
                    f"`dicom.max_instance_bytes`, {default.max_instance_bytes} bytes",
                    "no limit",
                ),
                (
                    "ended after silence of",
                    f"`dicom.network_timeout_s`, {default.network_timeout_s:g} s",
                    f"{scu.CONNECT_TIMEOUT_S:g} s at first, {scu.ANSWER_TIMEOUT_S:g} s for answers",
                ),
                (
                    "presentation contexts",
                    "128",
                    f"up to {scu.CONTEXTS_LIMIT}; more instances need further associations",
                ),
                ("asynchronous operations", "not negotiated: one at a time", "not proposed"),
                (
                    "role selection",
                    "answered for C-GET's storage; not needed else",
                    "SCP role for storage in C-GET and for storage commitment reports",
                ),
                ("extended negotiation, user identity", "not supported", "not proposed"),
            ],
        )
    }

An association is rejected (result, source, reason of PS3.8 table 9-21):

{
        _table(
            ("answer", "why"),
            [
                (", ".join(map(str, rejection.value)), rejection.name.lower().replace("_", " "))
                for rejection in Rejection
            ],
        )
    }

Callers are those of `[[dicom.peers]]`, by AE title and address. From other addresses, and beyond
`dicom.max_connections_per_s` new connections a second, connections are closed unread. A peer that
breaks PS3.8 is sent an A-ABORT of source 2 with one of the reasons
{", ".join(f"{reason.value} ({reason.name.lower().replace('_', ' ')})" for reason in AbortReason)}.

A presentation context is refused (PS3.8 table 9-18):

{_table(("result", "for"), CONTEXT_RESULTS.items())}

### 2.3 Transfer syntaxes

As SCP of storage every transfer syntax is accepted, by default the first that is proposed for a
context; `dicom.accepted_transfer_syntaxes` narrows and orders them. Instances are kept and sent on
as they came, nothing is transcoded. As SCU each instance is proposed in its own transfer syntax
alone. Retrieving by C-GET, these are proposed for CT images, a context each:

{_table(("transfer syntax", "UID"), [(_name(uid), uid) for uid in proposal.TRANSFER_SYNTAXES])}

All other services use {_listed(query_scp.contexts()[0].transfer_syntax)}.

### 2.4 Verification

SCP: C-ECHO is answered with 0x0000. SCU: `appliance dicom echo`.

### 2.5 Storage

SCP, level 2 (full): the data set is stored byte for byte, the preamble is zeroed and the meta
information written anew. Success is answered after the file is synced and the row committed.

{_statuses(STORE_STATUSES)}

The same SOP Instance UID with other bytes in one study is answered with Success, kept aside and
marked in the worklist; it is in no answer to a query. Images of several people under one Study
Instance UID are kept as a study each.

SCU: `appliance send`, the deliveries of `[[routing.rules]]` and the sub-operations of C-MOVE and
C-GET. Statuses of the categories Success and Warning count as taken. After a lost association the
rest goes over a new one (not in C-GET); what got no answer counts as not taken.

### 2.6 Query/Retrieve

{_table(("information model", "top level"), models)}

As SCU the study root is used: C-FIND at the levels STUDY and SERIES; C-GET at level STUDY, else
C-MOVE to the appliance's own AE title. Relational queries and fuzzy matching are not supported.

As SCP these attributes are held; any other is answered empty:

{_table(("attribute", "level", "matching"), keys)}

C-FIND:

{_statuses(FIND_STATUSES)}

C-MOVE and C-GET, each instance in the transfer syntax it is kept in or not at all; C-MOVE names
the AE title that asked as Move Originator:

{_statuses(RETRIEVE_STATUSES)}

### 2.7 Storage commitment, Push Model

SCP. The answer to an N-ACTION:

{_statuses(ACTION_STATUSES)}

An instance is committed to if its row is committed and its bytes on disk have the digest they came
with; it is kept until its study is removed by a person or by `[retention]`, which is off by
default. The N-EVENT-REPORT (event type {commitment.COMMITTED}, or {commitment.SOME_FAILED} with a
Failed SOP Sequence) goes out over the association of the question if the peer holds it open for
{commitment.PATIENCE_S:g} s, else over a new one to the destination in the settings with the peer's
AE title, with the SCP role proposed: {commitments.MAX_ATTEMPTS} tries, {commitments.RETRY_S:g} s
apart at first, later {commitments.LONGEST_DELAY_S / 3600:g} h. A peer that is no destination is
answered on its own association or not at all. Failure reasons:

{_statuses(FAILURE_REASONS)}

### 2.8 Network interfaces

TCP/IP: port {default.port} by default, and `dicom.tls_port` for TLS.

As SCU, for destinations with `commitment = true`: a request when all of a delivery was taken; the
report is taken on the same association or on one that the destination opens, whenever it comes.
Without one it is asked for again after `delivery.commitment_wait_s`, `delivery.commitment_asks`
times. What is reported as not kept is sent again. A report on a transaction that was never opened
is answered with 0x0115.
"""


def _media() -> str:
    return """\
## 4 Media interchange

`appliance import` is a file-set reader for CDs, folders and zip files: Part 10 files of every SOP
class, found by their content. A DICOMDIR is compared with the files that are there and leads to
none. Nothing is written to media. `appliance deidentify` and `appliance analyse --dicom` write Part
10 files to a folder, without a DICOMDIR.
"""


def _character_sets() -> str:
    return f"""\
## 5 Character sets

Received: every Specific Character Set of PS3.3 C.12.1.1.2, with and without code extensions.
Identifiers that are sent, and the answers to queries: `{CHARACTER_SET}`.
"""


def _security() -> str:
    options = [(f"DCM {code}", meaning) for code, meaning in deidentification.OPTIONS]
    return f"""\
## 6 Security

### 6.1 Secure transport

BCP 195 TLS Profile (PS3.15 annex B): TLS 1.2 and 1.3; of TLS 1.2 the cipher suites `{tls.CIPHERS}`
alone.

- Accepting (`dicom.tls_port`): each peer must show a certificate of `dicom.tls_authorities`.
- Opening (`tls = true` in `[[dicom.destinations]]`): the peer's certificate must lead to its
  `tls_authorities`, else to `dicom.tls_authorities`, and bear its host, or `tls_name`, as a subject
  alternative name. `tls_name = "*"` takes any certificate of the destination's own
  `tls_authorities`, which may be that one certificate. Ours is `dicom.tls_certificate`, if there
  is one.

### 6.2 De-identification

`appliance deidentify` is a de-identifier by the {deidentification.METHOD}:

{_table(("code", "profile and options"), options)}

### 6.3 Audit

Who signed in, looked at, retrieved or changed what is in an append-only, hash-chained table.
"""


def _created() -> str:
    rows = [(_name(made.uid), made.uid, str(made.series_number), made.what) for made in CREATED]
    return f"""\
## 7 Objects that are created

Made of an analysis, in the study that was analysed, with its patient's and study's attributes;
series of their own. `appliance analyse --dicom` writes them to a folder.

{_table(("SOP class", "UID", "Series Number", "content"), rows)}

Their UIDs are digests of all they say. Manufacturer, model, software version and
`dicom.serial_number` are in the equipment modules. Concepts are those of SNOMED CT, DICOM, LOINC
and UCUM, and of the private coding scheme `{codes.SCHEME}`, which each object declares. Explicit VR
Little Endian.
"""


def _configuration() -> str:
    tables = [
        f"### `[{name}]`\n\n{_settings(cls)}\n"
        for name, cls in SECTIONS.items()
        if name in {"dicom", "receive", "retrieve", "web"} and cls is not None
    ]
    tables += [
        f"### Each of `[[{name}]]`\n\n{_settings(cls)}\n"
        for name, cls in (
            ("dicom.peers", PeerSettings),
            ("dicom.destinations", DestinationSettings),
            ("retrieve.standing_queries", StandingQuerySettings),
            ("routing.rules", RuleSettings),
        )
    ]
    return "## 8 Configuration\n\n" + "\n".join(tables)


def _settings(cls: Any) -> str:
    rows = [
        (f"`{key.name}`", _default(key.name, key.default), _meaning(key.metadata))
        for key in fields(cls)
    ]
    return _table(("key", "default", "meaning"), rows)


def _meaning(metadata: Mapping[str, Any]) -> str:
    values = ", ".join(f"`{value}`" for value in metadata["one_of"])
    return f"{metadata['doc']}; {values}" if values else metadata["doc"]


def _default(name: str, value: Any) -> str:
    if value is MISSING:
        return "required"
    return "" if value is None else f"`{to_toml({name: value}).partition(' = ')[2].strip()}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


def _statuses(table: Mapping[int, str]) -> str:
    return _table(("status", "meaning"), [(f"0x{int(k):04X}", v) for k, v in table.items()])


def _listed(uids: Iterable[str]) -> str:
    return ", ".join(_name(uid) for uid in uids)


def _name(uid: str) -> str:
    return str(UID(uid).name)
