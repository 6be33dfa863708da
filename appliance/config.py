"""The settings: one TOML file, read once by each process, handed on as a frozen object.

Every key with its default and meaning is a field below; `reference()` prints them all as TOML. An
unknown key is refused with the nearest known one, so that a misspelling never silently means the
default.
"""

import difflib
import math
import os
import re
import secrets
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from appliance.errors import ConfigError

SETTINGS_VARIABLE: Final = "APPLIANCE_SETTINGS"
"""The environment variable by which a parent tells its children which file to read."""

PROCESS_VARIABLE: Final = "APPLIANCE_PROCESS"
"""The environment variable by which a process knows its own name, for its log lines and claims."""

Built = TypeVar("Built")

GIB: Final = 2**30
MIB: Final = 2**20


HIGHEST_PORT: Final = 65535
ROLES: Final = (
    "radiologist",
    "senior radiologist",
    "annotator",
    "inspector",
    "administrator",
    "viewer",
)
"""The values of `Account.role`; `accounts.Role` gives them their meaning."""

ANY_NAME: Final = "*"
THIS_MACHINE_NAMES: Final = ("127.0.0.1", "::1", "localhost")
WEB_SCHEMES: Final = ("https://", "http://")
SECRET_BYTES: Final = 32
# PS3.5 table 6.2-1; a blank at either end does not count, hence none is allowed there.
AE_TITLE: Final = re.compile(r"(?! )[\x20-\x5b\x5d-\x7e]{1,16}(?<! )")


def _required(
    doc: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    one_of: tuple[str, ...] = (),
) -> Any:
    """A setting that must be given."""
    bounds = {"at_least": at_least, "at_most": at_most, "one_of": one_of}
    return field(metadata={"doc": doc, **bounds})


def _key(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    one_of: tuple[str, ...] = (),
    longest: int | None = None,
    example: str | int | None = None,
) -> Any:
    """A setting with its meaning, its unit and what it may be; an example where it has no value."""
    bounds = {
        "at_least": at_least,
        "at_most": at_most,
        "one_of": one_of,
        "longest": longest,
        "example": example,
    }
    return field(default=default, metadata={"doc": doc, **bounds})


@dataclass(frozen=True, kw_only=True)
class ReceiveSettings:
    """When a study counts as complete."""

    quiet_s: float = _key(
        10.0, "seconds without a new instance after which a study is analysed", at_least=0
    )


@dataclass(frozen=True, kw_only=True)
class LifecycleSettings:
    """How long work may take, and how often it is tried."""

    lease_s: float = _key(
        30.0,
        "seconds after which a worker that stopped renewing its claim counts as dead",
        at_least=1,
    )
    max_attempts: int = _key(3, "tries before a study is quarantined as FAILED", at_least=1)
    sweep_s: float = _key(10.0, "seconds between two looks for stuck studies", at_least=0.1)
    ring_again_s: float = _key(
        30.0, "seconds a study waits unclaimed before its message is sent again", at_least=1
    )
    task_time_limit_s: int = _key(
        3600,
        "seconds after which a task is killed; the broker redelivers later than this",
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """One machine that may send; "*" stands for any."""

    ae_title: str = _key("*", 'the calling AE title (PS3.8), "*" for any')
    address: str = _key("*", 'an IP address or network such as 10.1.0.0/16, "*" for any')


THIS_MACHINE: Final = (PeerSettings(address="127.0.0.1"),)


@dataclass(frozen=True, kw_only=True)
class DestinationSettings:
    """Another DICOM node that this one talks to."""

    name: str = _required("what it is called in these settings and in commands")
    ae_title: str = _required("its AE title (PS3.8)")
    host: str = _required("its address")
    port: int = _required("its TCP port", at_least=1, at_most=HIGHEST_PORT)
    query: bool = _key(
        False,  # noqa: FBT003 - a default, as every other
        "whether it is a PACS that is asked for studies: standing queries, prior studies, people",
    )
    commitment: bool = _key(
        False,  # noqa: FBT003
        "whether it is asked to commit itself to keep what it is sent (PS3.4 annex J)",
    )
    tls: bool = _key(
        False,  # noqa: FBT003 - a default, as every other
        "whether it is called over DICOM TLS; it is shown [dicom] tls_certificate, if there is one",
    )
    tls_name: str = _key(
        "",
        'the name or address that its certificate must bear; "" for host; "*" for any, which needs'
        " tls_authorities of its own",
    )
    tls_authorities: Path | None = _key(  # noqa: RUF009 - a field, as every other
        None,
        "the authorities that may have signed its certificate, or that certificate itself, PEM;"
        " absent: [dicom] tls_authorities",
        example="/etc/chest-ct-appliance/pacs.crt",
    )


@dataclass(frozen=True, kw_only=True)
class DicomSettings:
    """The DICOM listener."""

    ae_title: str = _key("CHESTCT", "the AE title that senders must call")
    host: str = _key("127.0.0.1", "the address to listen on; 0.0.0.0 for every interface")
    port: int = _key(11112, "the TCP port to listen on", at_least=1, at_most=HIGHEST_PORT)
    serial_number: str = _key(
        "0", "this box's own number, in every object it makes; 1 to 64 characters"
    )
    organisation: str = _key(
        "not named",
        "for whom people here confirm results, as verified reports name it; 1 to 64 characters",
        longest=64,
    )
    peers: tuple[PeerSettings, ...] = _key(
        THIS_MACHINE, "who may send and query; by default this machine"
    )
    destinations: tuple[DestinationSettings, ...] = _key(
        (),
        "other nodes: name, ae_title, host, port, query, commitment, tls, tls_name,"
        " tls_authorities; C-MOVE and results go to these alone",
    )
    accepted_sop_classes: tuple[str, ...] = _key(
        (),
        'storage SOP classes that are accepted by C-STORE, by name ("CTImageStorage") or UID;'
        " empty: every",
    )
    accepted_transfer_syntaxes: tuple[str, ...] = _key(
        (),
        'transfer syntaxes that instances may come in, by name ("ExplicitVRLittleEndian") or UID,'
        ' preferred ones first, "*" for all others; empty: all, the first that a sender names',
    )
    max_answers: int = _key(
        2000, "answers to one C-FIND; a query that matches more is told so (0xA700)", at_least=1
    )
    max_associations: int = _key(64, "associations open at once; more are refused", at_least=1)
    max_connections_per_s: float = _key(
        50.0,
        "new connections a second from one address, after a burst of ten times as many; more are"
        " closed unread",
        at_least=1,
    )
    min_free_bytes: int = _key(
        2 * GIB, "free disk space below which senders are told to try later (0xA700)", at_least=0
    )
    max_pdu_bytes: int = _key(
        128 * 1024, "the longest P-DATA-TF PDU that a sender may use (PS3.8)", at_least=4096
    )
    max_instance_bytes: int = _key(2 * GIB, "the largest instance that is accepted", at_least=MIB)
    tls_port: int | None = _key(
        None,
        "the TCP port to listen on for DICOM TLS; absent: none",
        at_least=1,
        at_most=HIGHEST_PORT,
        example=2762,
    )
    tls_only: bool = _key(
        False,  # noqa: FBT003 - a default, as every other
        "listen on tls_port alone, not on port",
    )
    tls_certificate: Path | None = _key(  # noqa: RUF009 - a field, as every other
        None, "our certificate with its chain, PEM", example="/etc/chest-ct-appliance/dicom.crt"
    )
    tls_key: Path | None = _key(  # noqa: RUF009
        None, "its private key, PEM", example="/etc/chest-ct-appliance/dicom.key"
    )
    tls_authorities: Path | None = _key(  # noqa: RUF009
        None,
        "the authorities that sign the certificates of peers, PEM; each peer must show one",
        example="/etc/chest-ct-appliance/authorities.crt",
    )
    durability: str = _key(
        "instance",
        "when files are synced before Success: each by itself, or together those that wait at the"
        " same time, of all associations",
        one_of=("instance", "association"),
    )
    network_timeout_s: float = _key(
        60.0, "seconds of silence after which an association is aborted", at_least=1
    )

    @property
    def ports(self) -> Mapping[bool, int]:
        """The TCP ports that are listened on, by whether that is for TLS."""
        plain = {} if self.tls_only else {False: self.port}
        return plain if self.tls_port is None else {**plain, True: self.tls_port}

    def destination(self, name: str) -> DestinationSettings:
        """The destination of this name; raises ConfigError with the nearest if there is none."""
        for destination in self.destinations:
            if destination.name == name:
                return destination
        known = [destination.name for destination in self.destinations]
        raise ConfigError(
            f"no destination is called {name!r}: {_nearest(name, known)}"
            if known
            else f"no destination is called {name!r}: there is none in [[dicom.destinations]]"
        )


@dataclass(frozen=True, kw_only=True)
class StandingQuerySettings:
    """What is asked of a PACS again and again."""

    destination: str = _required("the name of the destination that is asked")
    modality: str = _key("CT", "the modality that a study must have")
    description: str = _key(
        "",
        'the study description, wildcards allowed ("*thorax*"); many PACS tell upper from lower'
        ' case; "" for any',
    )
    days: int = _key(1, "how many days back, today included", at_least=1, at_most=366)
    every_s: float = _key(300.0, "seconds between two queries", at_least=1)


@dataclass(frozen=True, kw_only=True)
class RetrieveSettings:
    """What this node gets from a PACS by itself."""

    standing_queries: tuple[StandingQuerySettings, ...] = _key(
        (), "what to look for: destination, modality, description, days, every_s"
    )
    priors: int = _key(
        0,
        "how many earlier CT studies of a new study's patient are retrieved; 0 for none",
        at_least=0,
        at_most=20,
    )
    priors_max_age_days: int = _key(
        1825, "days before the new study beyond which no prior is retrieved", at_least=1
    )
    max_answers: int = _key(
        500, "answers to one query of ours after which it is cancelled", at_least=1
    )
    max_attempts: int = _key(24, "tries to retrieve a study before it is given up", at_least=1)
    retry_s: float = _key(
        60.0, "seconds before the second try; doubled after each, up to an hour", at_least=1
    )

    @property
    def active(self) -> bool:
        """Whether anything is retrieved without somebody's asking."""
        return bool(self.standing_queries) or self.priors > 0


RESULTS: Final = ("seg", "sr", "sc", "pdf")
"""What can be sent of an analysis: Segmentation, report, key images, document."""

IMAGES: Final = "images"
"""The instances of the study, as they came."""

MESSAGE: Final = "message"
"""What a system of `[messages]` is told, the only thing that it can be sent."""


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """Where what goes, and when; every condition must hold, and those left out do."""

    name: str = _required("what it is called, in `appliance dicom route` too")
    destinations: tuple[str, ...] = _required("the names of the destinations that get it")
    objects: tuple[str, ...] = _required(
        "what they get: Segmentation, report, key images, document; the study's own instances; of"
        " [[messages.hl7]] and [[messages.fhir]], the message",
        one_of=(*RESULTS, IMAGES, MESSAGE),
    )
    when: str = _key(
        "analysed",
        "as soon as the study ended, once a person confirmed the result, or on request alone",
        one_of=("analysed", "confirmed", "request"),
    )
    outcome: str = _key("READY", "how the study ended", one_of=("READY", "REJECTED"))
    source_ae: str = _key("", 'the AE title that sent the study, wildcards allowed; "" for any')
    study_description: str = _key("", 'the study description ("*thorax*"); "" for any')
    modality: str = _key("", 'the modality of a series; "" for any')
    series_description: str = _key("", 'the description of the same series; "" for any')
    body_part: str = _key("", 'the body part examined in the same series; "" for any')
    manufacturer: str = _key("", 'the manufacturer of the same series\' scanner; "" for any')
    positive: bool | None = _key(
        None,
        "whether the case was called positive, by who confirmed it where somebody did; absent:"
        " either",
    )
    probability_at_least: float | None = _key(
        None,
        "the least probability of the case; absent: any, also none",
        at_least=0,
        at_most=1,
    )
    lesions: bool | None = _key(
        None, "whether there are lesions that nobody rejected; absent: either"
    )
    priors: bool = _key(
        False,  # noqa: FBT003
        "whether it also holds for older studies that came because [retrieve] priors asked for"
        " them; what a person confirms or requests is sent anyway",
    )


@dataclass(frozen=True, kw_only=True)
class RoutingSettings:
    """Where results go; without a rule nothing is sent."""

    rules: tuple[RuleSettings, ...] = _key(
        (),
        "what goes where: name, destinations, objects (seg, sr, sc, pdf, images, message), when"
        " (analysed, confirmed, request); on condition of outcome, source_ae, study_description,"
        " modality, series_description, body_part, manufacturer, positive, probability_at_least,"
        " lesions; priors",
    )


@dataclass(frozen=True, kw_only=True)
class DeliverySettings:
    """How results are sent."""

    retry_s: float = _key(
        60.0, "seconds before the second try; doubled after each, up to an hour", at_least=1
    )
    max_age_days: float = _key(
        7.0, "days of tries before a delivery is given up and waits for a person", at_least=0.01
    )
    commitment_wait_s: float = _key(
        3600.0, "seconds before a destination that did not commit itself is asked again", at_least=1
    )
    commitment_asks: int = _key(
        5, "times that a commitment is asked for before the delivery is given up", at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    """When studies are removed that nothing is left to be done with; by default never."""

    keep_days: int = _key(
        0, "days after its last image when a study is removed; 0 for never", at_least=0
    )
    free_bytes: int = _key(
        0, "free disk space below which the oldest studies are removed; 0 for never", at_least=0
    )
    at_least_days: int = _key(
        7, "days for which a study is kept however full the disk is", at_least=0
    )
    unconfirmed: bool = _key(
        False,  # noqa: FBT003 - a default, as every other
        "whether a study may go whose result nobody confirmed",
    )


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """The web server."""

    host: str = _key("127.0.0.1", "the address to listen on; 0.0.0.0 for every interface")
    port: int = _key(8080, "the TCP port to listen on", at_least=1, at_most=HIGHEST_PORT)
    https: str = _key(
        "auto",
        "whether pages are served by HTTPS; auto: where other machines reach them",
        one_of=("auto", "on", "off"),
    )
    certificate: Path | None = _key(  # noqa: RUF009 - a field, as every other
        None,
        "the certificate to serve with, and its chain, PEM; absent: one that we make and sign",
        example="/etc/chest-ct-appliance/web.crt",
    )
    private_key: Path | None = _key(  # noqa: RUF009
        None,
        "the key of the certificate, PEM, without a password",
        example="/etc/chest-ct-appliance/web.key",
    )
    session_hours: float = _key(12.0, "hours after which a user signs in again", at_least=0.1)
    idle_minutes: float = _key(
        15.0,
        "minutes without a key or the pointer after which a page asks for the password",
        at_least=0.1,
    )
    metrics_token_file: Path | None = _key(  # noqa: RUF009 - a field, as every other
        None,
        "a file that holds the bearer token with which /metrics is read from other machines;"
        " absent: from this one alone, and not through a proxy",
        example="/etc/chest-ct-appliance/metrics.token",
    )

    @property
    def serves_https(self) -> bool:
        """Whether the web server speaks TLS itself; on the loopback a proxy may do it."""
        return self.https == "on" or (self.https == "auto" and self.host not in THIS_MACHINE_NAMES)

    @property
    def address(self) -> str:
        """Where the pages are."""
        return f"{'https' if self.serves_https else 'http'}://{self.host}:{self.port}/"


@dataclass(frozen=True, kw_only=True)
class OpenIDRoleSettings:
    """The role that a value of the role claim gives."""

    value: str = _required("a value of the claim that role_claim names")
    role: str = _required("the role of people who have it", one_of=ROLES)


@dataclass(frozen=True, kw_only=True)
class OpenIDSettings:
    """Sign-in at an identity provider, by OpenID Connect; name and password stay beside it."""

    issuer: str | None = _key(
        None,
        "the provider's address; absent: people sign in here alone",
        example="https://login.hospital.example/realms/staff",
    )
    client_id: str | None = _key(
        None, "by what name the provider knows this appliance", example="chest-ct"
    )
    client_secret_file: Path | None = _key(  # noqa: RUF009 - a field, as every other
        None,
        "the file with the secret that the provider gave for it; absent: none, PKCE alone",
        example="/etc/chest-ct-appliance/openid.secret",
    )
    label: str = _key("Sign in with the hospital's account", "what the button says", longest=64)
    scopes: tuple[str, ...] = _key(("profile",), "what is asked for besides openid")
    name_claim: str = _key("preferred_username", "the claim that holds a person's name here")
    role_claim: str = _key(
        "roles", "the claim that decides on the role; dots lead into it, as realm_access.roles"
    )
    roles: tuple[OpenIDRoleSettings, ...] = _key(
        (),
        "[[openid.roles]]: which value gives which role, value, role; the first that fits counts,"
        " and who has none stays outside",
    )

    @property
    def client_secret(self) -> str | None:
        """The secret, read from its file. Raises ConfigError."""
        if self.client_secret_file is None:
            return None
        try:
            return self.client_secret_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"cannot read [openid] client_secret_file {self.client_secret_file}:"
                f" {error.strerror}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """The networks and what they run on."""

    engine: str = _key(
        "auto",
        "what runs the networks; auto takes the fastest that is there",
        one_of=("auto", "torch", "openvino"),
    )
    threads: int = _key(0, "processor threads for one analysis; 0 for all", at_least=0)
    at_once: int = _key(
        1,
        "studies analysed at once; with 2, one is read while a GPU is busy with another",
        at_least=1,
    )
    weights_dir: Path | None = _key(  # noqa: RUF009 - a field, as every other
        None,
        "the folder with one folder per network; absent: the one shipped",
        example="/srv/chest-ct-appliance/weights",
    )
    second_opinion: bool = _key(
        False,  # noqa: FBT003 - a default, as every other
        "whether a second network says which kind of pneumonia it sees; needs weights/pneumonia",
    )
    heat_map: bool = _key(
        False,  # noqa: FBT003 - a default, as every other
        "whether heat maps show where a classifier saw what speaks for its answer",
    )


@dataclass(frozen=True, kw_only=True)
class PriorityRuleSettings:
    """One kind of study that is urgent: all that is given holds of the study or one series.

    Values may have the wildcards * and ?; case does not count.
    """

    name: str = _required("why such a study is urgent, as the worklist says it")
    source_ae: str = _key("*", "the AE title it comes from")
    description: str = _key("*", "the study's or the series' description")
    modality: str = _key("*", "the modality")
    protocol_name: str = _key("*", "the protocol (0018,1030)")
    station_name: str = _key("*", "the scanner's own name (0008,1010)")
    requested_priority: str = _key(
        "*", "Requested Procedure Priority (0040,1003), where the sender copies it: STAT, HIGH, ..."
    )


STAT_REQUESTS: Final = (PriorityRuleSettings(name="STAT request", requested_priority="STAT"),)


@dataclass(frozen=True, kw_only=True)
class PrioritySettings:
    """Which studies overtake others."""

    rules: tuple[PriorityRuleSettings, ...] = _key(
        STAT_REQUESTS,
        "what is urgent: name, source_ae, description, modality, protocol_name, station_name,"
        " requested_priority",
    )
    quiet_s: float | None = _key(
        None,
        "seconds without a new instance after which an urgent study is analysed, where that is"
        " less than receive.quiet_s",
        at_least=0,
        example=3,
    )
    in_a_row: int = _key(
        4,
        "urgent studies that go first one after the other, before the oldest that waits has its"
        " turn",
        at_least=1,
        at_most=1000,
    )


@dataclass(frozen=True, kw_only=True)
class Hl7Settings:
    """A system that is told results as HL7 v2 messages over MLLP."""

    name: str = _required("what it is called in commands")
    host: str = _required("its address")
    port: int = _required("its TCP port", at_least=1, at_most=HIGHEST_PORT)
    sending_application: str = _key("CHESTCT", "our name in MSH-3")
    sending_facility: str = _key("", "our facility in MSH-4")
    receiving_application: str = _key("", "its name in MSH-5")
    receiving_facility: str = _key("", "its facility in MSH-6")
    assigning_authority: str = _key(
        "", "who assigns patient numbers (PID-3.4), where the images name no issuer"
    )
    processing_id: str = _key(
        "P", "MSH-11: production, training or debugging", one_of=("P", "T", "D")
    )
    timeout_s: float = _key(30.0, "seconds to wait for the connection and the answer", at_least=1)
    tls: bool = _key(
        False,  # noqa: FBT003 - a default, as every other
        "whether the connection is encrypted",
    )
    tls_authorities: Path | None = _key(  # noqa: RUF009 - a field, as every other
        None, "the authorities that sign its certificate, PEM; absent: the system's"
    )
    tls_certificate: Path | None = _key(  # noqa: RUF009
        None, "our certificate with its chain, PEM, where it asks for one"
    )
    tls_key: Path | None = _key(None, "its private key, PEM")  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class FhirSettings:
    """A FHIR R4 server that is told results."""

    name: str = _required("what it is called in commands")
    url: str = _required("its base address, https://fhir.example.org/r4")
    patient_system: str = _key(
        "", "the URI of the system that patient numbers are of, where no issuer names an OID"
    )
    token_file: Path | None = _key(  # noqa: RUF009 - a field, as every other
        None, "a file that holds the bearer token; it is read for each message"
    )
    authorities: Path | None = _key(  # noqa: RUF009
        None, "the authorities that sign its certificate, PEM; absent: those browsers know"
    )
    timeout_s: float = _key(30.0, "seconds of silence after which it counts as away", at_least=1)


@dataclass(frozen=True, kw_only=True)
class MessagesSettings:
    """Who is told of results, besides the PACS."""

    viewer_url: str | None = _key(
        None,
        "the address at which people reach these pages; results then carry a link",
        example="https://chestct.example.org",
    )
    hl7: tuple[Hl7Settings, ...] = _key(
        (),
        "HL7 v2 systems: name, host, port, sending_application, sending_facility,"
        " receiving_application, receiving_facility, assigning_authority, processing_id,"
        " timeout_s, tls, tls_authorities, tls_certificate, tls_key",
    )
    fhir: tuple[FhirSettings, ...] = _key(
        (),
        "FHIR servers: name, url, patient_system, token_file, authorities, timeout_s",
    )

    @property
    def destinations(self) -> tuple[Hl7Settings | FhirSettings, ...]:
        """All of them, of whatever kind."""
        return (*self.hl7, *self.fhir)

    def destination(self, name: str) -> Hl7Settings | FhirSettings:
        """The destination of this name; raises ConfigError with the nearest if there is none."""
        known = {destination.name: destination for destination in self.destinations}
        if name in known:
            return known[name]
        raise ConfigError(
            f"no destination is called {name!r}: {_nearest(name, list(known))}"
            if known
            else f"no destination is called {name!r}: there is none in [[messages.hl7]] or"
            " [[messages.fhir]]"
        )


def _default_data_dir() -> Path:
    shared = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(shared).expanduser() / "chest-ct-appliance"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set, valid once built."""

    data_dir: Path
    database_url: str
    broker_url: str | None = None
    receive: ReceiveSettings = field(default_factory=ReceiveSettings)
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    dicom: DicomSettings = field(default_factory=DicomSettings)
    retrieve: RetrieveSettings = field(default_factory=RetrieveSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    priority: PrioritySettings = field(default_factory=PrioritySettings)
    messages: MessagesSettings = field(default_factory=MessagesSettings)
    web: WebSettings = field(default_factory=WebSettings)
    openid: OpenIDSettings = field(default_factory=OpenIDSettings)
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """The settings of `path`, else of the file named by $APPLIANCE_SETTINGS, else the defaults.

        Raises:
            ConfigError: the file is missing or a key is unknown or out of range.
        """
        chosen = path or (Path(named) if (named := os.environ.get(SETTINGS_VARIABLE)) else None)
        if chosen is None:
            return cls.parse({})
        try:
            document = tomllib.loads(chosen.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"cannot read the settings file {chosen}: {error.strerror}"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{chosen} is not valid TOML: {error}") from error
        return cls.parse(document, folder=chosen.parent)

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, folder: Path = Path()) -> Self:
        """The settings of a parsed TOML document; relative paths start at `folder`."""
        _refuse_unknown(document, known=[*SECTIONS, "data_dir"], where="")
        tables = {name: _table(document, name) for name in SECTIONS}
        for name, key in (("database", "url"), ("broker", "url")):
            _refuse_unknown(tables[name], known=[key], where=name)
        data_dir = _data_dir(document, folder=folder)
        dicom = _build(DicomSettings, tables["dicom"], where="dicom", folder=folder)
        retrieve = _build(RetrieveSettings, tables["retrieve"], where="retrieve", folder=folder)
        routing = _build(RoutingSettings, tables["routing"], where="routing", folder=folder)
        web = _build(WebSettings, tables["web"], where="web", folder=folder)
        if (web.certificate is None) != (web.private_key is None):
            raise ConfigError("[web] certificate and private_key go together: name both or neither")
        openid = _build(OpenIDSettings, tables["openid"], where="openid", folder=folder)
        _check_openid(openid)
        _check_ports(dicom)
        _check_destinations(dicom, retrieve)
        priority = _build(PrioritySettings, tables["priority"], where="priority", folder=folder)
        _check_priority(priority)
        messages = _build(MessagesSettings, tables["messages"], where="messages", folder=folder)
        _check_messages(messages, dicom)
        _check_rules(dicom, messages, routing)
        return cls(
            data_dir=data_dir,
            database_url=_text(tables["database"], "url", where="database")
            or f"sqlite:///{data_dir / 'appliance.db'}",
            broker_url=_text(tables["broker"], "url", where="broker"),
            receive=_build(ReceiveSettings, tables["receive"], where="receive", folder=folder),
            lifecycle=_build(
                LifecycleSettings, tables["lifecycle"], where="lifecycle", folder=folder
            ),
            dicom=dicom,
            retrieve=retrieve,
            retention=_build(
                RetentionSettings, tables["retention"], where="retention", folder=folder
            ),
            routing=routing,
            delivery=_build(DeliverySettings, tables["delivery"], where="delivery", folder=folder),
            priority=priority,
            messages=messages,
            web=web,
            openid=openid,
            analysis=_build(AnalysisSettings, tables["analysis"], where="analysis", folder=folder),
        )

    @property
    def asks_others(self) -> bool:
        """Whether another node is asked for studies, by itself or by a person."""
        return self.retrieve.active or any(node.query for node in self.dicom.destinations)

    @property
    def tells_others(self) -> bool:
        """Whether there is anybody to whom results could go."""
        return bool(self.dicom.destinations or self.messages.destinations)

    @property
    def store_dir(self) -> Path:
        """Where received bytes lie, by content."""
        return self.data_dir / "store"

    @property
    def analyses_dir(self) -> Path:
        """Where results lie, a folder each; `Analysis.folder` is relative to `data_dir`."""
        return self.data_dir / "analyses"

    @property
    def deliveries_dir(self) -> Path:
        """Where objects lie until they are delivered, a folder for each result."""
        return self.data_dir / "deliveries"

    @property
    def uploads_dir(self) -> Path:
        """Where files that people upload wait until they were taken in."""
        return self.data_dir / "uploads"

    @property
    def run_dir(self) -> Path:
        """What lives no longer than the running appliance: lock, sockets, schedules."""
        return self.data_dir / "run"

    def prepare(self) -> None:
        """Make the data folders, readable by nobody else: they hold patients' images."""
        try:
            for folder in (
                self.data_dir,
                self.store_dir,
                self.analyses_dir,
                self.deliveries_dir,
                self.uploads_dir,
                self.run_dir,
            ):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the data folder {self.data_dir}: {error.strerror};"
                " set data_dir to a folder that this user may write"
            ) from error


NAMED: Final[Mapping[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}
"""What a value of each type is called in TOML."""

SECTIONS: Final[Mapping[str, type | None]] = {
    "database": None,
    "broker": None,
    "receive": ReceiveSettings,
    "lifecycle": LifecycleSettings,
    "dicom": DicomSettings,
    "retrieve": RetrieveSettings,
    "retention": RetentionSettings,
    "routing": RoutingSettings,
    "delivery": DeliverySettings,
    "priority": PrioritySettings,
    "messages": MessagesSettings,
    "web": WebSettings,
    "openid": OpenIDSettings,
    "analysis": AnalysisSettings,
}
"""The tables of the settings file; those without a class hold one key, `url`."""


def secret_key(settings: Settings) -> bytes:
    """The key that signs sessions: made at first use, readable by this user alone."""
    return _secret(settings, "secret.key")


def deidentification_key(settings: Settings) -> bytes:
    """The key that pseudonyms, UIDs and dates of exports are made with, made at first use.

    Whoever has it can tell whom an export is of; without it the next export of the same patient is
    one of somebody else. So it is kept as secret as the images and saved with them.
    """
    return _secret(settings, "deidentification.key")


def _secret(settings: Settings, name: str) -> bytes:
    path = settings.data_dir / name
    if not path.exists():
        _make_secret(settings, path)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"{path} is damaged: restore it from a backup")
    return secret


def _make_secret(settings: Settings, path: Path) -> None:
    settings.prepare()
    aside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link and no rename: the first process wins, and the others read what it wrote.
        os.link(aside, path)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def reference() -> str:
    """Every key with its default and meaning, as a TOML file that changes nothing when used.

    Keys that are absent by default stand with an example.
    """
    lines = [
        "# where everything is kept; relative paths start at this file's folder",
        f"# data_dir = {_toml(str(_default_data_dir()))}",
        "",
        "[database]",
        "# the database; absent: SQLite in data_dir",
        '# url = "postgresql+psycopg://user:password@host/name"',
        "",
        "[broker]",
        "# the broker; absent: an embedded one behind a private socket",
        '# url = "redis://host:6379/0"',
    ]
    for name, cls in SECTIONS.items():
        if cls is None:
            continue
        lines += ["", f"[{name}]"]
        for key in fields(cls):
            value = key.default if key.default is not None else key.metadata["example"]
            lines += [f"# {key.metadata['doc']}", f"# {key.name} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def to_toml(document: Mapping[str, Any]) -> str:
    """A settings document as TOML, one level of tables as such and those in lists inline."""
    top = [f"{key} = {_toml(value)}" for key, value in document.items() if not _is_table(value)]
    for name, table in document.items():
        if _is_table(table):
            top += ["", f"[{name}]"]
            top += [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(top) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str() | Path():
            # A TOML basic string escapes as JSON does, so quoting is safe for any path.
            escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'
        case _ if is_dataclass(value):
            keys = ((key.name, getattr(value, key.name)) for key in fields(value))
            told = (f"{name} = {_toml(item)}" for name, item in keys if item is not None)
            return "{ " + ", ".join(told) + " }"
        case tuple():
            return f"[{', '.join(_toml(item) for item in value)}]"
        case list():
            return _toml(tuple(value))
        case dict():
            return f"{{ {', '.join(f'{name} = {_toml(item)}' for name, item in value.items())} }}"
        case _:
            raise TypeError(f"no TOML for {type(value).__name__}")


def _refuse_unknown(table: Mapping[str, Any], *, known: list[str], where: str) -> None:
    for key in table:
        if key in known:
            continue
        place = f"[{where}] {key}" if where else key
        raise ConfigError(f"unknown setting {place}: {_nearest(key, known)}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"


def _check_openid(openid: OpenIDSettings) -> None:
    """Refuse a provider that could not work, or that anybody on the network could play."""
    if openid.issuer is None:
        return
    parts = urlsplit(openid.issuer)
    if parts.scheme != "https" and parts.hostname not in THIS_MACHINE_NAMES:
        raise ConfigError("[openid] issuer must begin with https://")
    if not openid.client_id:
        raise ConfigError("[openid] lacks client_id, the name that the provider gave")


def _check_ports(dicom: DicomSettings) -> None:
    """Refuse a node that nobody could call."""
    if not dicom.ports:
        raise ConfigError("[dicom] tls_only needs tls_port: nothing would be listened to")


def _check_destinations(dicom: DicomSettings, retrieve: RetrieveSettings) -> None:
    """Refuse destinations that are no use or ambiguous, and standing queries to none of them."""
    place = "[dicom.destinations]"
    for destination in dicom.destinations:
        for key in ("name", "host"):
            if not getattr(destination, key).strip():
                raise ConfigError(f"{place} {key} must not be empty")
        if not AE_TITLE.fullmatch(destination.ae_title):
            raise ConfigError(
                f"{place} ae_title must be 1 to 16 printable ASCII characters without a backslash,"
                f" not {destination.ae_title!r}"
            )
        _check_tls(dicom, destination)
    for key in ("name", "ae_title"):
        values = [getattr(destination, key) for destination in dicom.destinations]
        if twice := {value for value in values if values.count(value) > 1}:
            raise ConfigError(f"{place} {key} {min(twice)!r} is there twice")
    for query in retrieve.standing_queries:
        if not dicom.destination(query.destination).query:
            raise ConfigError(
                f"[retrieve.standing_queries] asks {query.destination!r}:"
                " set query = true in its [[dicom.destinations]]"
            )


def _check_rules(
    dicom: DicomSettings, messages: MessagesSettings, routing: RoutingSettings
) -> None:
    """Refuse rules that are ambiguous, send nothing or nowhere, or can never match."""
    place = "[routing.rules]"
    names = [rule.name for rule in routing.rules]
    for rule in routing.rules:
        if not rule.name.strip():
            raise ConfigError(f"{place} name must not be empty")
        if names.count(rule.name) > 1:
            raise ConfigError(f"{place} name {rule.name!r} is there twice")
        for key in ("destinations", "objects"):
            if not getattr(rule, key):
                raise ConfigError(f"{place} {rule.name!r}: {key} must not be empty")
        if MESSAGE in rule.objects and set(rule.objects) != {MESSAGE}:
            raise ConfigError(
                f'{place} {rule.name!r}: "{MESSAGE}" goes to other systems than the other objects:'
                " make two rules"
            )
        known = messages if MESSAGE in rule.objects else dicom
        for name in rule.destinations:
            known.destination(name)
        if rule.outcome == "REJECTED":
            _check_rejected(rule, place)


def _check_rejected(rule: RuleSettings, place: str) -> None:
    conditions = (rule.positive, rule.probability_at_least, rule.lesions)
    if set(rule.objects) not in ({IMAGES}, {MESSAGE}):
        wrong = f'objects must be ["{IMAGES}"] or ["{MESSAGE}"]'
    elif any(condition is not None for condition in conditions):
        wrong = "leave out positive, probability_at_least and lesions"
    elif rule.when == "confirmed":
        wrong = 'when must be "analysed" or "request"'
    else:
        return
    raise ConfigError(f"{place} {rule.name!r}: a rejected study has no result: {wrong}")


def _check_tls(dicom: DicomSettings, destination: DestinationSettings) -> None:
    """Refuse a destination of which nobody could tell whether it is the right one."""
    place = f"[dicom.destinations] {destination.name!r}"
    if not destination.tls:
        if destination.tls_name or destination.tls_authorities:
            raise ConfigError(f"{place} names what its TLS must show: set tls = true as well")
        return
    if destination.tls_authorities is None:
        if dicom.tls_authorities is None:
            raise ConfigError(
                f"{place} has tls = true: name who signs its certificate, in its tls_authorities"
                " or in [dicom] tls_authorities"
            )
        if destination.tls_name == ANY_NAME:
            raise ConfigError(
                f'{place} tls_name "*" needs tls_authorities of its own, or every certificate of'
                " the hospital would do"
            )
    if (dicom.tls_certificate is None) != (dicom.tls_key is None):
        raise ConfigError("[dicom] tls_certificate and tls_key go together: name both or neither")


def _check_priority(priority: PrioritySettings) -> None:
    """Refuse rules that nobody would understand in the worklist, or that make all urgent."""
    for rule in priority.rules:
        if not rule.name.strip():
            raise ConfigError("[priority.rules] name must not be empty")
        given = {key.name: getattr(rule, key.name) for key in fields(rule) if key.name != "name"}
        if all(value == "*" for value in given.values()):
            raise ConfigError(
                f"[priority.rules] {rule.name!r} would make every study urgent: give at least one"
                f" of {', '.join(given)}"
            )


def _check_messages(messages: MessagesSettings, dicom: DicomSettings) -> None:
    """Refuse destinations that are ambiguous, and ways on which others could read along."""
    names = [destination.name for destination in messages.destinations]
    if not all(name.strip() for name in names):
        raise ConfigError("[messages] name must not be empty")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"[messages] name {min(twice)!r} is there twice")
    if shared := {node.name for node in dicom.destinations} & set(names):
        raise ConfigError(
            f"[messages] name {min(shared)!r} is one of [[dicom.destinations]] too: give it another"
        )
    for hl7 in messages.hl7:
        files = (hl7.tls_authorities, hl7.tls_certificate, hl7.tls_key)
        if not hl7.tls and any(file is not None for file in files):
            raise ConfigError(f"[messages.hl7] {hl7.name!r} names TLS files: set tls = true")
        if (hl7.tls_certificate is None) != (hl7.tls_key is None):
            raise ConfigError(
                f"[messages.hl7] {hl7.name!r} needs both tls_certificate and tls_key, or neither"
            )
    for fhir in messages.fhir:
        address = urlsplit(fhir.url)
        if address.scheme != "https" and not (
            address.scheme == "http" and address.hostname in THIS_MACHINE_NAMES
        ):
            raise ConfigError(
                f"[messages.fhir] {fhir.name!r}: url must begin with https:// (http:// is for this"
                " machine alone)"
            )
    if messages.viewer_url is not None and not messages.viewer_url.startswith(WEB_SCHEMES):
        raise ConfigError("[messages] viewer_url must begin with https:// or http://")


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{name} must be a table, written [{name}]")
    return table


def _text(table: Mapping[str, Any], key: str, *, where: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"[{where}] {key} must be text")
    return value


def _data_dir(document: Mapping[str, Any], *, folder: Path) -> Path:
    value = document.get("data_dir")
    if value is None:
        return _default_data_dir()
    if not isinstance(value, str) or not value:
        raise ConfigError("data_dir must be the path of a folder")
    return (folder / Path(value).expanduser()).absolute()


def _build(cls: type[Built], table: Mapping[str, Any], *, where: str, folder: Path) -> Built:
    """An instance of the settings class `cls` from one TOML table, every value checked."""
    hints = get_type_hints(cls)
    keys = {key.name: key for key in fields(cls)}  # type: ignore[arg-type]
    _refuse_unknown(table, known=list(keys), where=where)
    values = {}
    for name, value in table.items():
        place = f"[{where}] {name}"
        values[name] = _convert(value, hints[name], place=place, folder=folder)
        _check(values[name], keys[name].metadata, place=place)
    missing = [k for k, v in keys.items() if k not in values and v.default is MISSING]
    if missing:
        raise ConfigError(f"[{where}] lacks {', '.join(missing)}")
    return cls(**values)


def _convert(value: Any, hint: Any, *, place: str, folder: Path) -> Any:
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(option for option in get_args(hint) if option is not types.NoneType)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is Path and isinstance(value, str) and value:
        return (folder / Path(value).expanduser()).absolute()
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if item is str:
            if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
                raise ConfigError(f"{place} must be a list of texts")
            return tuple(value)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ConfigError(f"{place} must be a list of tables")
        where = place.removeprefix("[").replace("] ", ".")
        return tuple(_build(item, entry, where=where, folder=folder) for entry in value)
    if hint in NAMED and type(value) is hint:
        return value
    raise ConfigError(f"{place} must be {NAMED[hint]}, not {value!r}")


def _check(value: Any, metadata: Mapping[str, Any], *, place: str) -> None:
    least = metadata.get("at_least")
    if least is not None and not (value >= least and math.isfinite(value)):
        raise ConfigError(f"{place} must be at least {least}, not {value}")
    most = metadata.get("at_most")
    if most is not None and value > most:
        raise ConfigError(f"{place} must be at most {most}, not {value}")
    longest = metadata.get("longest")
    # What an attribute of DICOM's LO can hold (PS3.5 6.2).
    if longest is not None and not (
        0 < len(value.strip()) <= len(value) <= longest
        and value.isprintable()
        and "\\" not in value
    ):
        raise ConfigError(
            f"{place} must have 1 to {longest} printable characters, none of them a backslash"
        )
    choices = metadata.get("one_of")
    for chosen in value if isinstance(value, tuple) else (value,):
        if choices and chosen not in choices:
            near = difflib.get_close_matches(chosen, choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{place} must be one of {', '.join(choices)}, not {chosen!r}{hint}")
