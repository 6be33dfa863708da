"""`appliance listen`, `appliance send`, and what `appliance analyse --dicom` writes."""

import logging
import random
import signal
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from appliance import logs
from appliance.config import Settings

if TYPE_CHECKING:
    from dicom_node.scu import Sent
    from pipelines.findings import Analysis


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
def send(
    source: Path,
    host: str | None,
    port: int | None,
    called_ae: str | None,
    calling_ae: str,
    associations: int,
    *,
    shuffle: bool,
) -> None:
    """Send SOURCE, a DICOM file, a folder of them or a zip file, to a DICOM peer."""
    from appliance import collection
    from dicom_node import scu

    logs.configure("send")
    # What it logs, the results say in other words.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    dicom = Settings.load().dicom
    destination = scu.Destination(
        host=host or dicom.host,
        port=port or dicom.port,
        called_ae=called_ae or dicom.ae_title,
        calling_ae=calling_ae,
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
    from dicom_node.objects.build import build_objects, write_objects
    from dicom_node.objects.provenance import Equipment

    with TemporaryDirectory(prefix="objects-") as scratch:
        collected = collection.collect(source, scratch=Path(scratch))
        objects = build_objects(
            analysis,
            [instance.path for instance in collected.instances],
            analysed_at=datetime.now(UTC).astimezone(),
            equipment=Equipment.here(Settings.load().dicom.serial_number),
        )
    write_objects(objects, folder)


def _conclude(sent: "list[Sent]") -> None:
    """Print what became of the instances; exits with the reasons if some were not taken."""
    problems = Counter(result.problem for result in sent if result.problem)
    click.echo(f"{len(sent) - problems.total()} of {len(sent)} instances taken")
    if problems:
        reasons = "; ".join(f"{count} × {problem}" for problem, count in problems.most_common())
        raise click.ClickException(reasons)
