"""Damaged objects and damaged PDU streams: `make fuzz`, or `python -m tests.end_to_end.fuzz`.

A listener of its own is sent C-STOREs of damaged data sets, one association for all as long as it
lasts, and associations of which any byte may be wrong, each on a connection of its own. After each,
another association asks for a C-ECHO. In the end:

- the listener is alive, and answered every C-ECHO within 2 s;
- every data set that was answered with Success is in the store, byte for byte as it was sent;
- its memory has grown by no more than 256 MiB, and no descriptor is left behind.

A case is made from its number and the seed alone, so `--objects 4711:4712` sends one again, and a
campaign that was ended goes on with `--objects 5000:10000`. Prints a table, writes it to --results
and ends with 1 if anything of this does not hold.
"""

import argparse
import datetime as dt
import hashlib
import random
import socket
import sys
import tempfile
import time
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.sop_class import Verification

from appliance.part10 import file_head
from appliance.store import Store
from dicom_node.pdu import PduType
from tests.support import upper_layer
from tests.support.damage import mutated
from tests.support.instances import Names, ct_instance, encoded
from tests.support.listeners import ListenerProcess, listener_process
from tests.support.pacs import HOST

RESULTS: Final = Path(__file__).parents[2] / "bench/results/fuzz.md"
SYNTAXES: Final = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
ECHO_S: Final = 2.0
GROWTH_KIB: Final = 256 << 10
UID: Final = "1.2.826.0.1.3680043.9.1"
ECHO_CONTEXT: Final = 2 * len(SYNTAXES) + 1


@dataclass
class Campaign:
    """What came of the cases so far."""

    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_echo_s: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def case(self, kind: str, number: int) -> random.Random:
        """What a case is made from."""
        return random.Random(f"{self.seed} {kind} {number}")


class Peer:
    """An association with every context, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: socket.socket | None = None

    def asked(self, message: bytes) -> bytes:
        """Send a message and return the answer, empty if the association ended instead."""
        if self._connection is None:
            self._connection = connect(self._port)
            self._connection.sendall(whole_request())
            if upper_layer.read_pdu(self._connection)[:1] != bytes((PduType.ASSOCIATE_AC,)):
                raise ConnectionError("a true association is not accepted")
        try:
            self._connection.sendall(message)
            answer = upper_layer.read_pdu(self._connection)
        except (ConnectionError, TimeoutError):
            answer = b""
        if answer[:1] != bytes((PduType.DATA_TF,)):
            self.close()
            return b""
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def connect(port: int) -> socket.socket:
    """A connection that waits 5 s for an answer."""
    connection = socket.create_connection((HOST, port), timeout=5.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def whole_request() -> bytes:
    """A request for CT storage in each syntax, and for verification."""
    contexts = [(CTImageStorage, str(syntax)) for syntax in SYNTAXES]
    return upper_layer.request(*contexts, (Verification, ImplicitVRLittleEndian)).encode()


def data_set(syntax: str) -> bytes:
    """A true data set with sequences of every kind before and after what the database keeps."""
    inner = Dataset()
    inner.StudyDescription = "another one"
    inner.PatientID = "not this one"
    ds = ct_instance(Names("1.2.3", "1.2.3.4"), SOPInstanceUID=UID)
    for keyword, undefined in (("ReferencedStudySequence", True), ("ProcedureCodeSequence", False)):
        setattr(ds, keyword, Sequence([inner, inner]))
        ds[keyword].is_undefined_length = undefined
    ds.add_new(0x00091001, "UN", b"private")
    if syntax != DeflatedExplicitVRLittleEndian:
        return encoded(ds, syntax)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(encoded(ds)) + packer.flush()


def send_object(campaign: Campaign, peer: Peer, store: Store, number: int) -> None:
    """Store one damaged data set; what is answered with Success must be there."""
    chance = campaign.case("object", number)
    which = chance.randrange(len(SYNTAXES))
    damaged = mutated(data_set(SYNTAXES[which]), chance)
    size = chance.choice((100, 4096, 16_000))
    message = upper_layer.store(damaged, size=size, uid=UID.encode() + b"\0", context=2 * which + 1)
    answer = peer.asked(message)
    status = f"{upper_layer.status_in(answer):#06x}" if answer else "aborted"
    campaign.outcomes[f"object {status}"] += 1
    if status == "0x0000":
        head = file_head(
            sop_class_uid=CTImageStorage,
            sop_instance_uid=UID,
            transfer_syntax_uid=SYNTAXES[which],
        )
        digest = hashlib.sha256(head + damaged).hexdigest()
        if not store.path_of(digest).is_file():
            campaign.faults.append(f"object {number} was taken and is not there")
    elif not answer:
        campaign.faults.append(f"object {number} was not answered")


def send_stream(campaign: Campaign, port: int, number: int) -> None:
    """Send an association of which any byte may be wrong, cut anywhere, and read what comes."""
    chance = campaign.case("stream", number)
    stored = upper_layer.store(data_set(ExplicitVRLittleEndian), size=500, uid=UID.encode() + b"\0")
    parts = [whole_request(), stored, upper_layer.echo(ECHO_CONTEXT), upper_layer.RELEASE]
    wounded = chance.randrange(len(parts) + 1)  # the last: all of them, as one
    if wounded < len(parts):
        parts[wounded] = mutated(parts[wounded], chance)
        stream = b"".join(parts)
    else:
        stream = mutated(b"".join(parts), chance)
    said = b""
    with connect(port) as connection, suppress(ConnectionError):
        while stream:
            cut = chance.randint(1, len(stream))
            connection.sendall(stream[:cut])
            stream = stream[cut:]
        connection.shutdown(socket.SHUT_WR)
        while pdu := upper_layer.read_pdu(connection):
            said = pdu
    last = said[0] if said else 0
    known = {3: "rejected", 4: "ended after an answer", 6: "released", 7: "aborted"}
    campaign.outcomes[f"stream {known.get(last, 'closed')}"] += 1


def echo(campaign: Campaign, peer: Peer, case: str) -> None:
    """Ask whether it still listens, and how fast."""
    began = time.monotonic()
    try:
        answered = bool(peer.asked(upper_layer.echo(ECHO_CONTEXT)))
    except OSError:
        answered = False
    took_s = time.monotonic() - began
    campaign.slowest_echo_s = max(campaign.slowest_echo_s, took_s)
    if not answered or took_s > ECHO_S:
        campaign.faults.append(f"C-ECHO after {case}: {took_s:.2f} s, answered: {answered}")


def run(listener: ListenerProcess, campaign: Campaign, objects: range, streams: range) -> str:
    """Send all cases; returns the table. Faults are in the campaign."""
    store = Store(listener.settings.store_dir)
    sender, watcher = Peer(listener.port), Peer(listener.port)
    echo(campaign, watcher, "the start")
    before_kib = most_kib = listener.rss_kib
    descriptors = listener.descriptors
    for kind, numbers in (("object", objects), ("stream", streams)):
        for number in numbers:
            try:
                if kind == "object":
                    send_object(campaign, sender, store, number)
                else:
                    send_stream(campaign, listener.port, number)
            except OSError as error:  # a refused connection, a silence of 5 s
                campaign.faults.append(f"{kind} {number}: {type(error).__name__}")
            if not listener.is_alive:
                raise SystemExit(f"the listener died of {kind} {number}, seed {campaign.seed}")
            echo(campaign, watcher, f"{kind} {number}")
            most_kib = max(most_kib, listener.rss_kib)
    sender.close()
    if most_kib - before_kib > GROWTH_KIB:
        campaign.faults.append(f"memory grew by {(most_kib - before_kib) >> 10} MiB")
    deadline = time.monotonic() + 10
    # SQLite opens its files with the first row: the database, its log and the log's index.
    while (left := listener.descriptors - descriptors) > 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    if left > 3:
        campaign.faults.append(f"{left} descriptors were left behind")
    watcher.close()
    return table(campaign, objects, streams, (most_kib - before_kib) / 1024)


def table(campaign: Campaign, objects: range, streams: range, growth_mib: float) -> str:
    """The campaign as Markdown."""
    counts = "\n".join(f"| {what} | {count} |" for what, count in sorted(campaign.outcomes.items()))
    faults = "\n".join(f"- {fault}" for fault in campaign.faults) or "- none"
    return (
        f"# Damaged objects and PDU streams, {dt.datetime.now(tz=dt.UTC).date()}\n\n"
        f"Seed {campaign.seed}; objects {objects.start} to {objects.stop}, streams"
        f" {streams.start} to {streams.stop}, in {time.monotonic() - campaign.began:.0f} s."
        f" Slowest C-ECHO {campaign.slowest_echo_s:.2f} s; memory grew by {growth_mib:.0f} MiB.\n\n"
        f"| outcome | cases |\n|---|---|\n{counts}\n\nFaults:\n\n{faults}\n"
    )


def numbers(text: str) -> range:
    """Parse N, for 0 to N, or FIRST:END."""
    first, _, end = text.rpartition(":")
    return range(int(first or 0), int(end))


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=numbers, default=range(10_000))
    parser.add_argument("--streams", type=numbers, default=range(1_000))
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    campaign = Campaign(asked.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        listener_process(Path(folder), network_timeout_s=10, max_connections_per_s=1000) as running,
    ):
        report = run(running, campaign, asked.objects, asked.streams)
    click.echo(report)
    asked.results.write_text(report)
    sys.exit(bool(campaign.faults))


if __name__ == "__main__":
    main()
