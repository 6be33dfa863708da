"""Show our Segmentation in OHIF, from Orthanc by DICOMweb: `python -m bench.ohif [--box]`.

A synthetic chest whose only lesion is in the patient's right lung goes to Orthanc, or to a box of
ours, with the Segmentation of its true masks; Chromium opens it in OHIF. `bench/results/ohif.png`,
or `ohif-box.png`, is what is seen: radiologists look from the feet, so the patient's right, with
the lesion, is on the picture's left. OHIF comes from npm once and stays in `.ohif`; Orthanc needs
its DICOMweb plug-in.
"""

import argparse
import gzip
import mimetypes
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import requests
from flask import Flask, Response, request, send_from_directory
from PIL import Image
from playwright.sync_api import Page, ViewportSize

from appliance.part10 import read_file, read_header
from appliance.reception import Command, Reception
from appliance.store import Store
from dicom_node.objects.build import trace, write_objects
from dicom_node.objects.provenance import Equipment
from dicom_node.objects.segmentation import build_segmentation
from pipelines.findings import Analysis
from pipelines.lesions import label_regions
from pipelines.phantom import Kind, Opacity, Phantom, chest, write_dicom
from pipelines.series import load_input
from pipelines.volume import CTVolume
from tests.support.archives import orthanc
from tests.support.results import analysis_of
from tests.webui.browser import chromium, serving
from tests.webui.world import NAME, PASSWORD, World

VERSION = "3.13.2"
FOLDER = Path(__file__).parents[1] / ".ohif"
RESULTS = Path(__file__).parent / "results"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
LESION = Opacity(Kind.CONSOLIDATION, (0.0, 20.0, -90.0), (30.0, 26.0, 26.0))  # x below 0: right
SHAPE, SPACING = (80, 256, 256), (3.75, 1.4, 1.4)
SWIFTSHADER = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WINDOW: ViewportSize = {"width": 1200, "height": 700}
PATIENCE_S = 120
STILL_MS = 3000
SMALLEST_VOXELS = 100  # vessels cut crumbs off the lesion
DICOMWEB = "/dicom-web"
PACKED = frozenset({".css", ".html", ".js", ".json", ".svg", ".wasm"})
YEAR_S = 365 * 24 * 3600
CONFIG = """
const root = new URL("ROOT", location.origin).href;
window.config = {
  routerBasename: null, extensions: [], modes: [], showStudyList: true,
  maxNumberOfWebWorkers: 2, strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: "never" }, disableConfirmationPrompts: true,
  customizationService: [{ "ohif.tours": { $set: [] } }],
  defaultDataSourceName: "archive",
  dataSources: [{
    namespace: "@ohif/extension-default.dataSourcesModule.dicomweb",
    sourceName: "archive",
    configuration: {
      friendlyName: "Archive", name: "archive",
      wadoUriRoot: root, qidoRoot: root, wadoRoot: root,
      qidoSupportsIncludeField: false, imageRendering: "wadors", thumbnailRendering: "wadors",
      enableStudyLazyLoad: true, supportsFuzzyMatching: false, supportsWildcard: true,
      bulkDataURI: { enabled: true, relativeResolution: "studies" },
    },
  }],
};
"""


def fetch_viewer() -> Path:
    """Return the folder of OHIF's built pages, downloaded if it is not there."""
    package = FOLDER / VERSION / "package"
    if not package.is_dir():
        if shutil.which("npm") is None:
            sys.exit("npm is not there, by which OHIF is downloaded: install Debian's npm.")
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as staging:
            command = ["npm", "pack", "--silent", "--pack-destination", staging]
            subprocess.run(
                [*command, f"@ohif/app@{VERSION}"], check=True, stdout=subprocess.DEVNULL
            )
            (archive,) = Path(staging).glob("*.tgz")
            whole = Path(staging) / "whole"
            with tarfile.open(archive) as files:
                files.extractall(whole, filter="data")
            whole.rename(FOLDER / VERSION)
    return package / "dist"


def pack(pages: Path) -> None:
    """Lay a compressed copy beside each page, as OHIF's own container has them."""
    for path in pages.rglob("*"):
        packed = path.with_name(f"{path.name}.gz")
        if path.suffix in PACKED and not packed.exists():
            aside = packed.with_suffix(".new")
            aside.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            aside.rename(packed)


@dataclass(frozen=True)
class Archive:
    """A web server with DICOMweb below /dicom-web, and the name and password it wants."""

    address: str
    account: tuple[str, str] | None = None


@contextmanager
def in_orthanc(files: Sequence[Path], folder: Path) -> Iterator[Archive]:
    """Orthanc with these files."""
    if not PLUGIN.is_file():
        sys.exit(f"{PLUGIN} is not there: install Debian's orthanc-dicomweb.")
    settings = {"Enable": True, "Root": "/dicom-web/"}
    with orthanc(folder, Plugins=[str(PLUGIN)], DicomWeb=settings) as running:
        for path in files:
            running.post("/instances", path.read_bytes())
        yield Archive(running.web)


@contextmanager
def in_the_box(files: Sequence[Path], folder: Path) -> Iterator[Archive]:
    """The appliance with these files."""
    world = World.at(folder / "box")
    reception = Reception(world.database, Store(world.settings.store_dir), min_free_bytes=0)
    for path in files:
        file = read_file(path.read_bytes())
        header = read_header(file.dataset, file.transfer_syntax_uid)
        command = Command(
            sop_class_uid=header.sop_class_uid,
            sop_instance_uid=header.sop_instance_uid,
            transfer_syntax_uid=file.transfer_syntax_uid,
            source_ae="BENCH",
        )
        reception.take(file.dataset, command)
    with serving(world.app()) as address:
        yield Archive(address, (NAME, PASSWORD))
    world.database.dispose()


def ohif(root: str = DICOMWEB) -> Flask:
    """OHIF's pages; `root` is the address of the archive's DICOMweb."""
    pages = fetch_viewer()
    app = Flask(__name__, static_folder=None)

    @app.get("/app-config.js")
    def config() -> Response:
        return Response(CONFIG.replace("ROOT", root), mimetype="text/javascript")

    @app.get("/", defaults={"path": ""})
    @app.get("/<path:path>")
    def page(path: str) -> Response:
        # Names carry a hash of the content, but for the page's own.
        name, age_s = (path, YEAR_S) if (pages / path).is_file() else ("index.html", None)
        if not ((pages / f"{name}.gz").is_file() and request.accept_encodings.quality("gzip")):
            return send_from_directory(pages, name, max_age=age_s)
        kind, _ = mimetypes.guess_type(name)
        answer = send_from_directory(pages, f"{name}.gz", mimetype=kind, max_age=age_s)
        answer.content_encoding = "gzip"
        return answer

    return app


def viewer(archive: Archive) -> Flask:
    """OHIF's pages and the archive's DICOMweb under one origin."""
    app = ohif()

    @app.get(f"{DICOMWEB}/<path:_>")
    def dicomweb(_: str) -> Response:
        # Answers hold addresses of the host that was asked.
        passed = {name: request.headers.get(name, "") for name in ("Accept", "Host")}
        address = archive.address + request.full_path.rstrip("?")
        answer = requests.get(address, headers=passed, auth=archive.account, timeout=PATIENCE_S)
        return Response(
            answer.content, answer.status_code, content_type=answer.headers.get("Content-Type")
        )

    return app


@dataclass(frozen=True)
class Example:
    """A chest, the analysis that finds its true lesions, and the files of both."""

    study_uid: str
    volume: CTVolume
    analysis: Analysis
    files: list[Path]


def write_study(made: Phantom, folder: Path) -> Example:
    """Write a chest and its Segmentation."""
    images = write_dicom(made, folder / "images")
    volume, _ = load_input(folder / "images")
    lesions = label_regions(made.lesions > 0, smallest=SMALLEST_VOXELS)
    analysis = analysis_of(volume, made.lungs, lesions)
    provenance = trace(
        analysis, images, analysed_at=datetime.now(UTC), equipment=Equipment("bench", VERSION)
    )
    (folder / "objects").mkdir()
    written = write_objects([build_segmentation(provenance)], folder / "objects")
    return Example(made.study_uid, volume, analysis, [*images, *written])


def photograph(page: Page, address: str) -> bytes:
    """Open a study, load its Segmentation, and return the picture of the lesion's middle."""
    page.set_default_timeout(1000 * PATIENCE_S)
    page.goto(address)
    page.wait_for_selector(".cornerstone-canvas")
    still(page)
    open_segmentation(page)
    return still(page)


def open_segmentation(page: Page) -> None:
    """Load the Segmentation of the study on the page and go to its first lesion."""
    page.dblclick('[data-cy="study-browser-thumbnail-no-image"]')
    page.click('[data-cy="side-panel-header-right"]')
    page.click("text=Lesion 1")


def still(page: Page) -> bytes:
    """Return the picture of a page once nothing on it moves."""
    before = b""
    while (now := page.screenshot()) != before:
        before = now
        page.wait_for_timeout(STILL_MS)
    return now


def main() -> None:
    """Start the archive, the viewer and the browser, and leave the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--box", action="store_true", help="from a box of ours, not from Orthanc")
    box = parser.parse_args().box
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        chest_shown = chest(shape=SHAPE, spacing=SPACING, opacities=(LESION,))
        example = write_study(chest_shown, folder)
        with (
            (in_the_box if box else in_orthanc)(example.files, folder) as archive,
            serving(viewer(archive)) as address,
            chromium(*SWIFTSHADER) as browser,
        ):
            context = browser.new_context(viewport=WINDOW, service_workers="block")
            shown = photograph(
                context.new_page(), f"{address}/viewer?StudyInstanceUIDs={example.study_uid}"
            )
    result = RESULTS / ("ohif-box.png" if box else "ohif.png")
    Image.open(BytesIO(shown)).quantize(256).save(result, optimize=True)  # a third of the size
    print(result)


if __name__ == "__main__":
    main()
