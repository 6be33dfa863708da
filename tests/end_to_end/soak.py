"""Ten thousand associations on one listener: `make soak`, or `python -m tests.end_to_end.soak`.

Associations of every kind, at random: stores, echoes, aborts in the middle of an instance, halves
of a PDU, wrong titles, connections that say nothing, queries. Threads, descriptors and memory are
read between them, while none is open; after a tenth of the associations each must stay within 5 %
of what it was then, descriptors and threads within 2 at least. Prints a table, writes it to
--results and ends with 1 if one does not.
"""

import argparse
import datetime as dt
import random
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind, Verification

from dicom_node.pdu import AbortReason
from tests.support import upper_layer
from tests.support.instances import Names, ct_instance, encoded
from tests.support.listeners import ListenerProcess, listener_process
from tests.support.pacs import HOST

RESULTS: Final = Path(__file__).parents[2] / "bench/results/soak.md"
SAMPLES: Final = 50
DRIFT: Final = 0.05
KINDS: Final = {  # how often of 100
    "store": 40,
    "echo": 20,
    "abort within an instance": 15,
    "half a PDU": 10,
    "wrong title": 5,
    "nothing": 5,
    "query, by pynetdicom": 5,
}


@dataclass(frozen=True)
class Sample:
    """What the listener held when no association was open."""

    associations: int
    threads: int
    descriptors: int
    rss_kib: int


def associate(port: int, kind: str, message: bytes) -> None:
    """Open one association of a kind, and end it."""
    with socket.create_connection((HOST, port), timeout=20) as connection:
        if kind == "nothing":
            return
        contexts = [(CTImageStorage, upper_layer.EXPLICIT), (Verification, ImplicitVRLittleEndian)]
        if kind == "query, by pynetdicom":
            contexts.append((PatientRootQueryRetrieveInformationModelFind, ImplicitVRLittleEndian))
        called = "OTHER" if kind == "wrong title" else "CHESTCT"
        connection.sendall(upper_layer.request(*contexts, called=called).encode())
        upper_layer.read_pdu(connection)
        match kind:
            case "store":
                connection.sendall(message)
                upper_layer.read_pdu(connection)
            case "echo" | "query, by pynetdicom":
                connection.sendall(upper_layer.echo(3))
                upper_layer.read_pdu(connection)
            case "abort within an instance":
                connection.sendall(message[:-100])
                connection.sendall(AbortReason.NOT_SPECIFIED.pdu())
                return
            case "half a PDU":
                connection.sendall(message[:-100])
                return
            case _:
                return
        connection.sendall(upper_layer.RELEASE)
        with suppress(ConnectionError):
            upper_layer.read_pdu(connection)


def sample(listener: ListenerProcess, associations: int, idle_threads: int) -> Sample:
    """Wait until the threads of the last associations have ended, and read."""
    deadline = time.monotonic() + 10
    while listener.threads > idle_threads and time.monotonic() < deadline:
        time.sleep(0.02)
    return Sample(associations, listener.threads, listener.descriptors, listener.rss_kib)


def run(listener: ListenerProcess, count: int, seed: int) -> tuple[list[Sample], Counter[str]]:
    """Open the associations one after the other; returns what was read between them."""
    chance = random.Random(seed)
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(20)]
    messages = [
        upper_layer.store(encoded(ds), uid=str(ds.SOPInstanceUID).encode()) for ds in instances
    ]
    kinds: Counter[str] = Counter()
    idle_threads = listener.threads
    samples = []
    for number in range(1, count + 1):
        (kind,) = chance.choices(list(KINDS), KINDS.values())
        kinds[kind] += 1
        associate(listener.port, kind, chance.choice(messages))
        if number % max(1, count // SAMPLES) == 0:
            samples.append(sample(listener, number, idle_threads))
    return samples, kinds


def drifts(samples: list[Sample]) -> dict[str, tuple[float, float, bool]]:
    """Each figure after a tenth and in the end, and whether it stayed; medians of three samples."""
    settled = samples[len(samples) // 10 :]
    found = {}
    for name, slack in (("threads", 2), ("descriptors", 2), ("rss_kib", 0)):
        first, last = (
            statistics.median(getattr(each, name) for each in part)
            for part in (settled[:3], settled[-3:])
        )
        found[name] = (first, last, last - first <= max(slack, DRIFT * first))
    return found


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--associations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        listener_process(Path(folder), max_connections_per_s=1000) as running,
    ):
        samples, kinds = run(running, asked.associations, asked.seed)
    figures = drifts(samples)
    rows = "\n".join(
        f"| {name} | {first:.0f} | {last:.0f} | {'flat' if flat else 'GREW'} |"
        for name, (first, last, flat) in figures.items()
    )
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    report = (
        f"# {asked.associations} associations, {dt.datetime.now(tz=dt.UTC).date()}\n\n"
        f"{counts}; in {time.monotonic() - began:.0f} s.\n\n"
        f"| held | after a tenth | in the end | |\n|---|---|---|---|\n{rows}\n"
    )
    click.echo(report)
    asked.results.write_text(report)
    sys.exit(not all(flat for _, _, flat in figures.values()))


if __name__ == "__main__":
    main()
