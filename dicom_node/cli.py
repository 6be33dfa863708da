"""`appliance listen`, `send` and `dicom`, and what `appliance analyse --dicom` writes."""

import getpass
import logging
import random
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import click

from appliance import logs
from appliance.config import IMAGES, MESSAGE, RESULTS, Settings

if TYPE_CHECKING:
    from appliance.database import Database
    from appliance.reception import Reception
    from appliance.tables import DeliveredObject
    from dicom_node.query import StudyAnswer
    from dicom_node.scu import Destination, Sent
    from pipelines.findings import Analysis

DATES: Final = re.compile(r"[0-9]{8}(-([0-9]{8})?)?|-[0-9]{8}")  # PS3.4 section C.2.2.2.5


@click.command()
def listen() -> None:
    """Receive instances from scanners and the PACS, until SIGTERM."""
    from dicom_node.scp import serve

    logs.configure("listener")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    serve(Settings.load(), stopping)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--host", help="The peer's address; by default this appliance.")
@click.option("--port", type=int, help="The peer's port; by default this appliance's.")
@click.option("--called-ae", help="The peer's AE title; by default this appliance's.")
@click.option("--calling-ae", default="CHESTCT-SEND", show_default=True, help="Our AE title.")
@click.option(
    "--associations",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="How many associations send at once.",
)
@click.option("--shuffle", is_flag=True, help="Send in random order.")
@click.option("--tls", is_flag=True, help="Over DICOM TLS, with the files of [dicom].")
@click.option("--tls-name", default="", help="The name in the peer's certificate; else the host.")
def send(
    source: Path,
    host: str | None,
    port: int | None,
    called_ae: str | None,
    calling_ae: str,
    associations: int,
    tls_name: str,
    *,
    shuffle: bool,
    tls: bool,
) -> None:
    """Send SOURCE, a DICOM file, a folder of them or a zip file, to a DICOM peer."""
    from appliance import collection
    from dicom_node import scu
    from dicom_node.tls import Trust

    logs.configure("send")
    # What it logs, the results say in other words.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    dicom = Settings.load().dicom
    destination = scu.Destination(
        host=host or dicom.host,
        port=port or (dicom.tls_port if tls and dicom.tls_port else dicom.port),
        called_ae=called_ae or dicom.ae_title,
        calling_ae=calling_ae,
        tls=Trust.of_node(dicom, tls_name or host or dicom.host) if tls else None,
    )
    with TemporaryDirectory(prefix="send-") as scratch:
        collected = collection.collect(source, scratch=Path(scratch))
        for path, reason in collected.skipped:
            click.echo(f"skipped {path}: {reason}", err=True)
        if not collected.instances:
            raise click.ClickException(f"{source} holds no DICOM instance")
        instances = list(collected.instances)
        if shuffle:
            random.shuffle(instances)
        with click.progressbar(length=len(instances), label="sending") as bar:
            sent = scu.send(
                instances,
                destination,
                associations=associations,
                report=lambda _sent: bar.update(1),
            )
    _conclude(sent)


def write_dicom(analysis: "Analysis", source: Path, folder: Path) -> None:
    """Write the result objects of an analysis that has just ended into a new folder.

    Args:
        analysis: Of a series in `source`.
        source: A DICOM file, a folder of them or a zip file.
        folder: Where to; it is made.

    Raises:
        ApplianceError: The source cannot be read again, or no object can be made of it.
        DecodeError: The pixel data of a key image are damaged.
    """
    from appliance import collection
    from dicom_node.objects.build import build_objects, trace, write_objects
    from dicom_node.objects.provenance import Equipment

    with TemporaryDirectory(prefix="objects-") as scratch:
        collected = collection.collect(source, scratch=Path(scratch))
        provenance = trace(
            analysis,
            [instance.path for instance in collected.instances],
            analysed_at=datetime.now(UTC).astimezone(),
            equipment=Equipment.here(Settings.load().dicom.serial_number),
        )
        objects = build_objects(provenance)
    write_objects(objects, folder)


def _conclude(sent: "list[Sent]") -> None:
    """Print what became of the instances; exits with the reasons if some were not taken."""
    problems = Counter(result.problem for result in sent if result.problem)
    click.echo(f"{len(sent) - problems.total()} of {len(sent)} instances taken")
    if problems:
        reasons = "; ".join(f"{count} × {problem}" for problem, count in problems.most_common())
        raise click.ClickException(reasons)


@click.group()
def dicom() -> None:
    """Ask other nodes, those of [[dicom.destinations]], and send results to them and others."""
    from pydicom.config import IGNORE
    from pydicom.config import settings as pydicom_settings

    logs.configure("dicom")
    # What it logs, the results say in other words.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    pydicom_settings.reading_validation_mode = IGNORE
    pydicom_settings.writing_validation_mode = IGNORE


@dicom.command()
@click.argument("node")
def echo(node: str) -> None:
    """Send NODE a C-ECHO."""
    from dicom_node import query
    from dicom_node.scu import Destination

    query.echo(Destination.configured(Settings.load().dicom, node))
    click.echo(f"{node} answers")


@dicom.command()
@click.argument("node")
@click.option("--patient-id", default="", help="The patient's number.")
@click.option("--accession", default="", help="The accession number.")
@click.option("--date", default="", help="A day, 20260131, or a range, 20260101-20260131.")
@click.option("--modality", default="", help="The modality, CT.")
@click.option("--description", default="", help='The study description, "*thorax*".')
def find(
    node: str, patient_id: str, accession: str, date: str, modality: str, description: str
) -> None:
    """List the studies that NODE holds."""
    from dicom_node import query
    from dicom_node.scu import Destination

    settings = Settings.load()
    if date and not DATES.fullmatch(date):
        raise click.UsageError("--date is a day, 20260131, or a range of them, 20260101-20260131")
    keys = query.StudyKeys(
        patient_id=patient_id,
        accession_number=accession,
        study_date=date,
        modality=modality,
        description=description,
    )
    if keys == query.StudyKeys():
        raise click.UsageError("name at least one key, or the node would list all that it has")
    with _stopping_on_interrupt() as stop:
        found = query.find_studies(
            Destination.configured(settings.dicom, node),
            keys,
            at_most=settings.retrieve.max_answers,
            stop=stop,
        )
    for line in _table(found.answers):
        click.echo(line)
    click.echo(f"{len(found.answers)} studies")
    if found.cut_off:
        click.echo(f"{node} has more: narrow the query, or raise [retrieve] max_answers", err=True)


@dicom.command()
@click.argument("node")
@click.option("--study-uid", "study_uids", multiple=True, help="A Study Instance UID.")
@click.option("--accession", default="", help="The accession number of the studies.")
@click.option("--patient-id", default="", help="The patient whose studies are wanted.")
@click.option(
    "--prior",
    type=click.IntRange(0, 20),
    default=0,
    show_default=True,
    help="As many earlier chest CT studies of the patient as well.",
)
def fetch(
    node: str, study_uids: tuple[str, ...], accession: str, patient_id: str, prior: int
) -> None:
    """Retrieve studies from NODE: by C-GET, else by C-MOVE to this appliance."""
    from appliance.database import open_database, require_tables
    from appliance.reception import Reception
    from appliance.store import Store
    from dicom_node import query
    from dicom_node.priors import NewStudy, find_priors
    from dicom_node.scu import Destination

    settings = Settings.load()
    if not (study_uids or accession or patient_id):
        raise click.UsageError("name what to fetch: --study-uid, --accession or --patient-id")
    destination = Destination.configured(settings.dicom, node)
    require_tables(settings)
    at_most = settings.retrieve.max_answers
    keys = query.StudyKeys(
        study_uid="\\".join(study_uids), accession_number=accession, patient_id=patient_id
    )
    found = query.find_studies(destination, keys, at_most=at_most)
    if found.cut_off:
        raise click.ClickException(f"that is more than {at_most} studies: name fewer")
    wanted = {answer.study_uid: answer for answer in found.answers}
    if not wanted:
        raise click.ClickException(f"{node} holds no such study")
    for answer in found.answers if prior else ():
        new = NewStudy(
            study_uid=answer.study_uid,
            patient_id=answer.patient_id,
            birth_date=answer.birth_date,
            study_date=answer.study_date,
            study_time=answer.study_time,
        )
        max_age_days = settings.retrieve.priors_max_age_days
        for earlier in find_priors(
            destination, new, count=prior, max_age_days=max_age_days, at_most=at_most
        ):
            wanted[earlier.study_uid] = earlier
    database = open_database(settings)
    reception = Reception(
        database, Store(settings.store_dir), min_free_bytes=settings.dicom.min_free_bytes
    )
    with _stopping_on_interrupt() as stop:
        complete = [
            _fetch_one(destination, answer, reception, stop)
            for answer in wanted.values()
            if not stop.is_set()
        ]
    if complete.count(True) < len(wanted):
        raise click.ClickException(
            f"{complete.count(True)} of {len(wanted)} studies came whole;"
            " what came is kept, run the command again for the rest"
        )


def _fetch_one(
    destination: "Destination",
    answer: "StudyAnswer",
    reception: "Reception",
    stop: threading.Event,
) -> bool:
    """Retrieve one study with a progress bar; whether all of it came."""
    from appliance import retrievals
    from dicom_node import query
    from dicom_node.errors import AssociationError, QueryError

    name = f"{_shown(answer.study_date)} {_shown(answer.description)}".strip() or "study"
    bar: Any
    with click.progressbar(length=answer.instance_count or None, label=name) as bar:

        def report(counts: query.Counts) -> None:
            bar.update(max(0, counts.completed + counts.failed + counts.warning - bar.pos))

        try:
            got = query.retrieve(destination, answer.study_uid, reception, report=report, stop=stop)
        except (AssociationError, QueryError) as error:
            click.echo(f"{name}: {error}", err=True)
            return False
    with reception.database.snapshot() as db:
        here = retrievals.held(db, answer.study_uid)
    told = f"; the node has {answer.instance_count}" if answer.instance_count else ""
    click.echo(f"{name}: {got.service}, {here} instances are here{told}")
    if got.problem:
        click.echo(f"{name}: {_shown(got.problem)}", err=True)
    if got.counts.failed:
        click.echo(f"{name}: {got.counts.failed} instances did not come", err=True)
    for uid in got.failed_uids:
        click.echo(f"  {_shown(uid)}", err=True)
    return not got.problem and here >= answer.instance_count


@dicom.command()
@click.option("--out", type=click.Path(path_type=Path), help="A file to write; else it is shown.")
def conformance(out: Path | None) -> None:
    """Write the DICOM conformance statement of this release, in Markdown."""
    from dicom_node.conformance import chapters, statement

    text = statement(chapters())
    if out is None:
        click.echo(text, nl=False)
        return
    out.write_text(text, encoding="utf-8")


@dicom.command()
def retrievals() -> None:
    """List what waits to be retrieved, and what was given up."""
    from appliance import retrievals as core
    from appliance.database import open_database, require_tables

    settings = Settings.load()
    require_tables(settings)
    with open_database(settings).snapshot() as db:
        rows = core.unfinished(db)
    for row in rows:
        problem = f": {_shown(row.last_problem)}" if row.last_problem else ""
        click.echo(
            f"{row.id}  {row.state}  {row.destination}  {row.aim} ({row.why})"
            f"  {_shown(row.study_uid)}  try {row.attempts}{problem}"
        )
    click.echo(f"{len(rows)} retrievals")


@dicom.command()
@click.argument("study_id", type=int)
def route(study_id: int) -> None:
    """Say which rules match STUDY_ID, its number in `appliance status`, and why others do not."""
    from dicom_node import dispatch

    settings = Settings.load()
    if not settings.routing.rules:
        click.echo("There is no rule in [[routing.rules]]: nothing is sent.")
    with _database(settings) as database:
        for line in dispatch.explain(settings, database, study_id):
            click.echo(line)


@dicom.command()
@click.argument("study_id", type=int)
@click.argument("destination")
@click.option(
    "--objects",
    type=click.Choice((*RESULTS, IMAGES, MESSAGE)),
    multiple=True,
    help='What to send; by default what a rule with when = "request" says.',
)
def deliver(study_id: int, destination: str, objects: tuple[str, ...]) -> None:
    """Send the newest result of STUDY_ID to DESTINATION, also once more."""
    from appliance.deliveries import Content
    from dicom_node import dispatch

    settings = Settings.load()
    with _database(settings) as database:
        delivery_id = dispatch.request(
            settings,
            database,
            study_id,
            destination,
            contents=[Content(name) for name in objects],
            actor=_actor(),
        )
    click.echo(f"Delivery {delivery_id} waits to be sent to {destination}.")


@dicom.command("deliveries")
@click.option("--failed", is_flag=True, help="Only what was given up.")
@click.option("--all", "everything", is_flag=True, help="What has ended as well.")
@click.option("--study", "study_id", type=int, help="Everything of one study, by its number.")
def deliveries_(*, failed: bool, everything: bool, study_id: int | None) -> None:
    """List what waits to be sent or committed, and what was given up, with each refused object.

    With --all or --study every object is listed, and when it was last answered.
    """
    from appliance import deliveries as core

    whole = everything or study_id is not None
    if failed and whole:
        raise click.UsageError("--failed goes neither with --all nor with --study")
    with _database(Settings.load()) as database, database.snapshot() as db:
        if whole:
            rows = core.listed(db, study_id=study_id)
        else:
            chosen = core.unfinished(db, failed_only=failed)
            rows = ((row, core.objects_of(db, row.id)) for row in chosen)
        count = 0
        for row, objects in rows:
            count += 1
            problem = f": {_shown(row.last_problem)}" if row.last_problem else ""
            due = f"  next try {_moment(row.next_try_at)}" if row.next_try_at else ""
            click.echo(
                f"{row.id}  {row.state}  study {row.study_id}  {row.what} to {row.destination}"
                f"  queued {_moment(row.queued_at)}{due}  failures {row.failures}{problem}"
            )
            for each in objects:
                if whole or each.problem:
                    click.echo(_object_line(each))
    click.echo(f"{count} deliveries")


def _object_line(each: "DeliveredObject") -> str:
    """Return what became of one object of a delivery."""
    from pydicom.uid import UID

    answered = f"  {_moment(each.answered_at)}" if each.answered_at else ""
    problem = f": {_shown(each.problem)}" if each.problem else ""
    kind, uid = _shown(UID(each.sop_class_uid).name), _shown(each.sop_instance_uid)
    return f"    {each.state}{answered}  {kind}  {uid}{problem}"


def _moment(moment: datetime) -> str:
    """Return a moment as this machine's clock shows it."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


@dicom.command()
@click.argument("delivery_id", metavar="[ID]", type=int, required=False)
@click.option(
    "--all", "everything", is_flag=True, help="Every delivery that was given up or waits."
)
def retry(delivery_id: int | None, *, everything: bool) -> None:
    """Try a delivery now that FAILED or waits for its next try: the objects that are left."""
    from appliance import deliveries as core

    if (delivery_id is None) is not everything:
        raise click.UsageError("name a delivery, or --all")
    with _database(Settings.load()) as database, database.transaction() as db:
        if delivery_id is None:
            retried = core.retry_all(db, actor=_actor())
        else:
            core.retry(db, delivery_id, actor=_actor())
            retried = 1
    click.echo(f"{retried} deliveries wait to be sent.")


@dicom.command()
@click.argument("delivery_id", metavar="ID", type=int)
def drop(delivery_id: int) -> None:
    """Send no more of a delivery."""
    from appliance import deliveries as core

    with _database(Settings.load()) as database, database.transaction() as db:
        core.drop(db, delivery_id, actor=_actor())
    click.echo(f"Delivery {delivery_id} is dropped.")


@dicom.command()
@click.argument("study_id", metavar="ID", type=int)
@click.argument("name")
def notify(study_id: int, name: str) -> None:
    """Tell NAME, of [[messages.hl7]] or [[messages.fhir]], the result of study ID now."""
    from appliance import audit
    from dicom_node.messages import notify as messages
    from dicom_node.messages.result import read_result

    settings = Settings.load()
    destination = settings.messages.destination(name)
    with _database(settings) as database:
        result = read_result(database, settings, study_id)
        messages.send(destination, messages.build(result, destination))
        with database.transaction() as db:
            audit.record(
                db,
                actor=_actor(),
                tag="messages:result:told",
                subject=f"study {study_id}",
                detail={"destination": name},
            )
    click.echo(f"{name} was told of study {study_id}: {result.conclusion}")


@contextmanager
def _database(settings: Settings) -> "Iterator[Database]":
    """Yield the database, closed afterwards; one without this release's tables is refused."""
    from appliance.database import open_database, require_tables

    require_tables(settings)
    opened = open_database(settings)
    try:
        yield opened
    finally:
        opened.dispose()


def _actor() -> str:
    """Return who the audit says did it: the person at this machine's command line."""
    return f"command line: {getpass.getuser()}"


@contextmanager
def _stopping_on_interrupt() -> Iterator[threading.Event]:
    """Yield what the first Ctrl-C sets, so that the peer is sent a cancel; a second one ends us."""
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def interrupted(_number: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _table(answers: "Sequence[StudyAnswer]") -> Iterator[str]:
    """Yield the lines of a table, the columns as wide as what stands in them."""
    columns = {
        "date": "study_date",
        "time": "study_time",
        "modality": "modalities",
        "images": "instances",
        "patient": "patient_id",
        "name": "patient_name",
        "born": "birth_date",
        "accession": "accession_number",
        "description": "description",
        "study UID": "study_uid",
    }
    rows = [
        list(columns),
        *([_shown(getattr(answer, name)) for name in columns.values()] for answer in answers),
    ]
    widths = [max(len(row[number]) for row in rows) for number in range(len(columns))]
    for row in rows:
        yield "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True))


def _shown(text: str) -> str:
    """Return received text without what a terminal would take for a command."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
