"""Servers behind a network cable that can be made slow: a namespace of the kernel. Needs root.

What is started `inside` is reached at the link's address and from this machine alone. Namespace and
cable are gone when the block ends, also after Ctrl-C and SIGTERM.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("ip", "tc")
BURST, QUEUE = "128kb", "50ms"  # Linux joins packets to as many as 64 kB before they are shaped


@dataclass(frozen=True)
class Link:
    """A namespace, and the two ends of its cable."""

    namespace: str
    here: str
    there: str
    address: str

    @contextmanager
    def inside(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a server in the namespace for as long as the block."""
        whole = ["ip", "netns", "exec", self.namespace, *command]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(whole, env=dict(environment), stdout=quiet, stderr=quiet) as server:
            try:
                yield server
            finally:
                server.terminate()

    @contextmanager
    def shaped(self, mbit_s: int | None) -> Iterator[None]:
        """Let no more through in either direction; None lets everything through."""
        if mbit_s is None:
            yield
            return
        shape = ("root", "tbf", "rate", f"{mbit_s}mbit", "burst", BURST, "latency", QUEUE)
        there = ("tc", "-n", self.namespace, "qdisc")
        try:
            run("tc", "qdisc", "add", "dev", self.here, *shape)
            run(*there, "add", "dev", self.there, *shape)
            yield
        finally:
            run("tc", "qdisc", "del", "dev", self.here, "root", check=False)
            run(*there, "del", "dev", self.there, "root", check=False)

    def received(self) -> int:
        """Bytes that have come out of the namespace, with what TCP, IP and Ethernet add."""
        return int(Path(f"/sys/class/net/{self.here}/statistics/rx_bytes").read_text())


@contextmanager
def link() -> Iterator[Link]:
    """A namespace with a cable to it."""
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        sys.exit("A slow network is made by root, with ip and tc of Debian's iproute2.")
    number = os.getpid()
    network = f"10.249.{number % 256}"
    made = Link(f"bench-{number}", f"vb{number}h", f"vb{number}t", f"{network}.2")
    with ending_on_sigterm():
        try:
            run("ip", "netns", "add", made.namespace)
            pair = ("type", "veth", "peer", "name", made.there, "netns", made.namespace)
            run("ip", "link", "add", made.here, *pair)
            run("ip", "address", "add", f"{network}.1/30", "dev", made.here)
            run("ip", "link", "set", made.here, "up")
            within = ("ip", "-n", made.namespace)
            run(*within, "address", "add", f"{made.address}/30", "dev", made.there)
            run(*within, "link", "set", made.there, "up")
            run(*within, "link", "set", "lo", "up")
            yield made
        finally:
            run("ip", "link", "del", made.here, check=False)
            run("ip", "netns", "del", made.namespace, check=False)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that what was begun is cleaned up."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(*command: str, check: bool = True) -> None:
    """Run a tool of the system; with `check` false, quietly whatever comes of it."""
    errors = None if check else subprocess.DEVNULL
    subprocess.run(command, check=check, stderr=errors)
