"""Time the viewer beside OHIF on Orthanc, at 100 Mbit/s and unshaped: `make bench-viewer`. Root.

Usage: python -m bench.viewer [--rounds N] [--slices N] [--out FILE]. Both show the same synthetic
chests of 512 x 512 x 300 with the same lesions. Our web server, Orthanc and the server of OHIF's
pages, which are compressed as in OHIF's own container, run in a network namespace; a `tc` tbf at
both ends of its cable makes it slow. Ours is asked by HTTPS, as in a hospital, OHIF and Orthanc by
HTTP, for Debian's Orthanc does not survive HTTPS; Orthanc compresses what it answers. Chromium has
no GPU: ours draws without WebGL, for OHIF it computes WebGL by SwiftShader. Each visit has a
browser of its own with an empty cache.

What is measured, in seconds from the address until it is on the screen:

- first picture: ours, the first lesion's slice with its mask; OHIF, any slice, without a mask.
- all slices: ours, in the page's memory and drawn; OHIF, the last one's bytes have come.
- next study, first picture: the same with another study, when the browser has the program already.
- next study, mask: ours, as before; OHIF shows no Segmentation until somebody asks for it, so its
  thumbnail is double-clicked and the first lesion clicked as soon as they are there.

Scroll is the time from one slice to the next, from the stack's first to its last with everything
there: a notch of the wheel, and the next one as soon as its slice has been drawn. Ours draws three
planes, OHIF one.
A slab is a MIP of 10 mm, which OHIF's first view does not have. Wire is what came through the cable
until all slices were there; scripts, the JavaScript in it as it travels; heap, what JavaScript
holds after a collection, array buffers too; memory, the whole browser's.

Printed and kept in `bench/results/viewer.json`: medians of the rounds, and ours as a share of
OHIF's. OHIF comes from npm once, see `bench.ohif`.
"""

import argparse
import base64
import datetime as dt
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import APIResponse, Browser, BrowserContext, Page, Request

from appliance import web_certificate
from appliance.config import Settings
from appliance.web_certificate import Certificate
from bench import ohif
from bench.inference import machine
from bench.shaped_link import Link, link
from pipelines.phantom import chest
from tests.support.pacs import await_port
from tests.webui.browser import CHROMIUM, WINDOW, chromium
from tests.webui.world import NAME, PASSWORD, World

RESULT = Path(__file__).parent / "results" / "viewer.json"
OURS, OHIF = "ours", "OHIF"
LINKS: dict[str, int | None] = {"100 Mbit/s": 100, "unshaped": None}
WEB_PORT, ARCHIVE_PORT, PAGES_PORT = 8443, 8444, 8445
SLICES = 300
PATIENCE_S = 240.0
QUIET_MS = 3000
ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin") or "Orthanc"

FIRST, ALL = "first picture (s)", "all slices (s)"
NEXT_FIRST, NEXT_MASK = "next study, first picture (s)", "next study, mask (s)"
SCROLL, SLAB = "scroll p95 (ms)", "slab scroll p95 (ms)"
SCRIPTS = "scripts (kB)"
TARGETS = {
    FIRST: 1.0,
    ALL: 8.0,
    NEXT_FIRST: 1.0,
    NEXT_MASK: 1.0,
    SCROLL: 25.0,
    SLAB: 25.0,
    SCRIPTS: 60.0,
}
SHARES = {FIRST: 1 / 4, ALL: 1 / 3}
Figures = dict[str, float]


DRAWN_BY_OURS = """(drawn) => {
  const watch = new MutationObserver(drawn);
  const title = document.querySelector(".viewport.axial .top-left");
  watch.observe(title, { childList: true, characterData: true, subtree: true });
}"""
"""Calls `drawn` whenever a slice has been: its number is written in the same frame."""

DRAWN_BY_OHIF = """(drawn) => addEventListener("CORNERSTONE_IMAGE_RENDERED", drawn, true)"""

SCROLL_THROUGH = """async ([selector, notches, quiet]) => {
  const target = document.querySelector(selector);
  const { left, top, width, height } = target.getBoundingClientRect();
  const middle = { clientX: left + width / 2, clientY: top + height / 2 };
  let drawn = () => {};
  (WATCH)(() => drawn());
  const scroll = async (deltaY) => {
    const spans = [];
    let last = performance.now();
    while (spans.length < notches) {
      const next = new Promise((resolve) => {
        drawn = () => resolve(true);
        setTimeout(resolve, quiet, false);
      });
      const notch = { deltaY, ...middle, bubbles: true, cancelable: true };
      target.dispatchEvent(new WheelEvent("wheel", notch));
      if (!(await next)) break;
      const now = performance.now();
      spans.push(now - last);
      last = now;
      await new Promise((resolve) => setTimeout(resolve));
    }
    return spans;
  };
  await scroll(-100);
  return scroll(100);
}"""

WATCH_OHIF = """
const seen = { first: 0, mask: 0, wanted: false, frames: new Set(), all: 0 };
window.seen = seen;
new PerformanceObserver((list) => {
  for (const { name, responseEnd } of list.getEntries()) {
    if (!name.includes("/frames/")) continue;
    seen.frames.add(name);
    seen.all = Math.max(seen.all, responseEnd);
  }
}).observe({ type: "resource" });
const small = new OffscreenCanvas(128, 128).getContext("2d", { willReadFrequently: true });
addEventListener("CORNERSTONE_IMAGE_RENDERED", ({ target }) => {
  if (seen.first && !(seen.wanted && !seen.mask)) return;
  small.drawImage(target.querySelector("canvas"), 0, 0, 128, 128);
  const { data } = small.getImageData(0, 0, 128, 128);
  let bright = false, coloured = false;
  for (let i = 0; i < data.length; i += 4) {
    const [r, g, b] = data.subarray(i, i + 3);
    bright ||= r > 40;
    coloured ||= Math.max(r, g, b) - Math.min(r, g, b) > 40;
  }
  setTimeout(() => {
    if (bright) seen.first ||= performance.now();
    if (coloured) seen.mask ||= performance.now();
  });
}, true);
"""
"""Notes when the first slice was drawn, the first colour over one, and the slices' bytes came."""


def until(page: Page, expression: str, what: str) -> float:
    """Wait for a number above 0 that a JavaScript expression gives."""
    # Not page.wait_for_function: it compiles text in the page, which our policy forbids.
    end = time.monotonic() + PATIENCE_S
    while not (value := page.evaluate(expression)):
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {PATIENCE_S:.0f} s")
        page.wait_for_timeout(100)
    return float(value)


class Viewer(Protocol):
    """One of the two, with its studies."""

    arguments: tuple[str, ...]
    drawn: str
    scrolled: str

    def enter(self, context: BrowserContext) -> None:
        """Do what comes before any study."""

    def address(self, study: int) -> str:
        """Where a study is seen."""

    def first_s(self, page: Page) -> float:
        """Wait for the first picture."""

    def all_s(self, page: Page) -> float:
        """Wait for all slices."""

    def mask_s(self, page: Page) -> float:
        """Wait for a slice with a mask over it."""

    def more(self, page: Page, slices: int, /) -> Figures:
        """Return what only this one can do."""


class OurViewer:
    """The appliance's own."""

    drawn = DRAWN_BY_OURS
    scrolled = ".viewport.axial > canvas"

    def __init__(self, root: str, studies: list[int], certificate: Certificate) -> None:
        self._root = root
        self._studies = studies
        # Not by Playwright's ignoring of errors: what came with one, Chromium does not keep.
        trust = f"--ignore-certificate-errors-spki-list={key_digest(certificate)}"
        self.arguments: tuple[str, ...] = ("--disable-3d-apis", trust)

    def enter(self, context: BrowserContext) -> None:
        address = f"{self._root}/sign-in"
        page = context.request.get(address).text()
        token = page.split('name="csrf_token" value="')[1].split('"')[0]
        form: dict[str, str | float | bool] = {
            "name": NAME,
            "password": PASSWORD,
            "csrf_token": token,
        }
        answer: APIResponse = context.request.post(
            address, form=form, headers={"Referer": address}, max_redirects=0
        )
        if answer.status != 302:
            raise RuntimeError(f"signing in was answered with {answer.status}")

    def address(self, study: int) -> str:
        return f"{self._root}/studies/{self._studies[study]}"

    def first_s(self, page: Page) -> float:
        return self._mark_s(page, "first-lesion-slice")

    def all_s(self, page: Page) -> float:
        return self._mark_s(page, "volume")

    def mask_s(self, page: Page) -> float:
        return self.first_s(page)

    def more(self, page: Page, slices: int) -> Figures:
        page.keyboard.press("m")
        return {SLAB: p95(scroll_ms(page, self, slices))}

    def _mark_s(self, page: Page, name: str) -> float:
        find = f"() => performance.getEntriesByName('{name}')[0]?.startTime"
        return until(page, find, f"our mark {name}") / 1000


class Ohif:
    """OHIF's basic viewer on Orthanc."""

    drawn = DRAWN_BY_OHIF
    scrolled = "canvas.cornerstone-canvas"

    def __init__(self, root: str, studies: list[str], slices: int) -> None:
        self._root = root
        self._studies = studies
        self._slices = slices
        # Its pages and Orthanc are two origins, for a proxy before both would take time of its own.
        secure = f"--unsafely-treat-insecure-origin-as-secure={root}"
        self.arguments: tuple[str, ...] = (*ohif.SWIFTSHADER, "--disable-web-security", secure)

    def enter(self, context: BrowserContext) -> None:
        context.add_init_script(WATCH_OHIF)

    def address(self, study: int) -> str:
        return f"{self._root}/viewer?StudyInstanceUIDs={self._studies[study]}"

    def first_s(self, page: Page) -> float:
        return until(page, "() => seen.first", "OHIF's first slice") / 1000

    def all_s(self, page: Page) -> float:
        find = f"() => seen.frames.size >= {self._slices} && seen.all"
        return until(page, find, "OHIF's last slice") / 1000

    def mask_s(self, page: Page) -> float:
        page.evaluate("() => { seen.wanted = true; }")
        ohif.open_segmentation(page)
        return until(page, "() => seen.mask", "OHIF's mask") / 1000

    def more(self, _page: Page, _slices: int) -> Figures:
        return {}


# --- Measuring


def p95(spans: list[float]) -> float:
    """Return what 95 of 100 do not exceed."""
    return sorted(spans)[int(0.95 * (len(spans) - 1))]


def scroll_ms(page: Page, viewer: Viewer, slices: int) -> list[float]:
    """Scroll through the stack; the milliseconds from each slice to the next."""
    script = SCROLL_THROUGH.replace("WATCH", viewer.drawn)
    spans: list[float] = page.evaluate(script, [viewer.scrolled, slices, QUIET_MS])
    if len(spans) < 0.9 * slices:
        raise RuntimeError(f"{len(spans)} of {slices} slices were seen while scrolling")
    return spans


def heap_mib(page: Page) -> float:
    """Return what the page's JavaScript holds, array buffers too, after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.enable")
    session.send("HeapProfiler.collectGarbage")
    usage = session.send("Runtime.getHeapUsage")
    session.detach()
    return float(usage["usedSize"] + usage["backingStorageSize"]) / 2**20


def memory_mib(browser: Browser) -> float:
    """Return what all processes of a browser hold, shared pages counted once."""
    session = browser.new_browser_cdp_session()
    found = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    total = 0
    for process in found:
        rollup = Path(f"/proc/{process['id']}/smaps_rollup").read_text().splitlines()
        total += int(next(line for line in rollup if line.startswith("Pss:")).split()[1])
    return total / 1024


def scripts_kb(requests: list[Request]) -> float:
    """Return how much JavaScript travelled; of a worker, what it imports."""
    total = 0
    for request in requests:
        answer = request.response()
        if answer is not None and "javascript" in answer.headers.get("content-type", ""):
            total += max(0, request.sizes()["responseBodySize"])  # below 0: it was in the cache
    return total / 1000


def visited(viewer: Viewer, line: Link, slices: int) -> Figures:
    """Return the figures of one fresh browser."""
    with chromium(*viewer.arguments) as browser:
        # Signing in is not done by Chromium, which is told by its arguments whom to trust.
        context = browser.new_context(
            viewport=WINDOW, ignore_https_errors=True, service_workers="block"
        )
        viewer.enter(context)
        page = context.new_page()
        requests: list[Request] = []
        page.on("requestfinished", lambda request: requests.append(request))  # noqa: PLW0108
        before = line.received()
        page.goto(viewer.address(0), wait_until="commit")
        figures = {FIRST: viewer.first_s(page), ALL: viewer.all_s(page)}
        figures["wire (MB)"] = (line.received() - before) / 1e6
        figures[SCRIPTS] = scripts_kb(requests)
        spans = scroll_ms(page, viewer, slices)
        figures |= {"scroll median (ms)": statistics.median(spans), SCROLL: p95(spans)}
        figures |= viewer.more(page, slices)
        figures |= {"heap (MiB)": heap_mib(page), "memory (MiB)": memory_mib(browser)}
        page.close()
        page = context.new_page()
        page.goto(viewer.address(1), wait_until="commit")
        figures[NEXT_FIRST] = viewer.first_s(page)
        figures[NEXT_MASK] = viewer.mask_s(page)
    return figures


# --- Servers


def examples(slices: int, place: Path) -> list[ohif.Example]:
    """Write two chests that differ in their vessels and noise."""
    made = []
    for seed in range(2):
        painted = chest(seed, shape=(slices, 512, 512), spacing=(300 / slices, 0.75, 0.75))
        made.append(ohif.write_study(painted, place / f"study{seed}"))
        print(f"study {seed + 1} of 2 written", file=sys.stderr)
    return made


def key_digest(certificate: Certificate) -> str:
    """Return the digest of a certificate's public key, by which Chromium is told to trust it."""
    public = x509.load_pem_x509_certificate(certificate.file.read_bytes()).public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def our_studies(world: World, shown: list[ohif.Example]) -> list[int]:
    """Give the appliance the studies and their results; their row ids."""
    ids = []
    for example in shown:
        ids.append(world.receive(example.study_uid))
        world.finish(ids[-1], example.volume, example.analysis)
    return ids


@contextmanager
def both(slices: int, line: Link, place: Path) -> Iterator[dict[str, Viewer]]:
    """The two viewers and their servers, with the same studies."""
    shown = examples(slices, place)
    ohif.pack(ohif.fetch_viewer())
    world = World.at(place / "box")
    ids = our_studies(world, shown)
    world.database.dispose()
    files = [path for example in shown for path in example.files]
    with ohif.in_orthanc(files, place):
        pass  # it keeps them
    written = place / "settings.toml"
    written.write_text(
        f'data_dir = "{world.settings.data_dir}"\n'
        f'[web]\nhost = "{line.address}"\nport = {WEB_PORT}\n'
    )
    certificate = web_certificate.prepare(Settings.load(written))
    assert certificate is not None
    tls = ("--certfile", str(certificate.file), "--keyfile", str(certificate.key))
    archive = f"http://{line.address}:{ARCHIVE_PORT}{ohif.DICOMWEB}"
    gunicorn = (sys.executable, "-m", "gunicorn", "-c", "python:appliance.web_server", "-b")
    servers = (
        (*gunicorn, f"{line.address}:{WEB_PORT}", *tls, "webui.app:create_app()"),
        (*gunicorn, f"{line.address}:{PAGES_PORT}", f"bench.ohif:ohif({archive!r})"),
        orthanc_again(place),
    )
    environment = {**os.environ, "APPLIANCE_SETTINGS": str(written)}
    with ExitStack() as stack:
        for command in servers:
            stack.enter_context(line.inside(command, environment))
        for port in (WEB_PORT, ARCHIVE_PORT, PAGES_PORT):
            await_port(port, host=line.address)
        uids = [example.study_uid for example in shown]
        viewers: dict[str, Viewer] = {
            OURS: OurViewer(f"https://{line.address}:{WEB_PORT}", ids, certificate),
            OHIF: Ohif(f"http://{line.address}:{PAGES_PORT}", uids, slices),
        }
        yield viewers


def orthanc_again(place: Path) -> tuple[str, str]:
    """Return the command of the Orthanc that was filled in this folder, now for other machines."""
    path = place / "orthanc.json"
    more = {"HttpPort": ARCHIVE_PORT, "RemoteAccessAllowed": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return ORTHANC, str(path)


# --- The report


def medians(runs: list[Figures]) -> Figures:
    """Return the median of each figure."""
    return {figure: round(statistics.median(run[figure] for run in runs), 2) for figure in runs[0]}


def shares(found: dict[str, Figures]) -> Figures:
    """Return ours divided by OHIF's, of each figure that both have."""
    ours, theirs = found[OURS], found[OHIF]
    return {figure: round(ours[figure] / theirs[figure], 3) for figure in ours if figure in theirs}


def show(link_name: str, found: dict[str, Figures], share: Figures) -> None:
    """Print a row for each figure."""
    print(f"\n{link_name:30}{OURS:>10}{'target':>10}{OHIF:>10}{'share':>10}{'target':>10}")
    for figure, value in found[OURS].items():
        cells = (value, TARGETS.get(figure), found[OHIF].get(figure))
        shown = "".join(f"{'' if cell is None else f'{cell:.1f}':>10}" for cell in cells)
        both_cells = (share.get(figure), SHARES.get(figure))
        shown += "".join(f"{'' if cell is None else f'{cell:.2f}':>10}" for cell in both_cells)
        print(f"{figure:30}{shown}")


def software() -> dict[str, str]:
    """Return the versions of what was measured beside ours, and in what."""

    def said(*command: str) -> str:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()[0].strip()

    return {
        "chromium": said(str(CHROMIUM), "--version"),
        "OHIF": ohif.VERSION,
        "Orthanc": said(ORTHANC, "--version"),
    }


def main() -> None:
    """Visit both in turn, over each link."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    load = round(os.getloadavg()[0], 1)  # what else computes makes every figure worse
    runs: dict[str, dict[str, list[Figures]]] = {name: {OURS: [], OHIF: []} for name in LINKS}
    with (
        tempfile.TemporaryDirectory() as place,
        link() as line,
        both(asked.slices, line, Path(place)) as viewers,
    ):
        for number in range(asked.rounds):
            for link_name, mbit_s in LINKS.items():
                for name in (OURS, OHIF)[:: 1 if number % 2 == 0 else -1]:
                    with line.shaped(mbit_s):
                        figures = visited(viewers[name], line, asked.slices)
                    runs[link_name][name].append(figures)
                    print(f"round {number + 1}, {link_name}, {name}: {figures}", file=sys.stderr)
    table = {
        link_name: {name: medians(each) for name, each in found.items()}
        for link_name, found in runs.items()
    }
    share = {link_name: shares(found) for link_name, found in table.items()}
    for link_name, found in table.items():
        show(link_name, found, share[link_name])
    report = {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "rounds": asked.rounds,
        "load_before": load,
        "shape": (asked.slices, 512, 512),
        "machine": machine(),
        "software": software(),
        "medians": table,
        "ours / OHIF": share,
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
