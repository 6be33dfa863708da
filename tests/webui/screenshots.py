"""Takes the pictures of the README from the running pages: `python -m tests.webui.screenshots`.

They show the synthetic chest alone, with its true lesions as the result. Give a folder to write
elsewhere than into webui/screenshots.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from appliance import studies
from appliance.studies import PatientAttributes, SeriesAttributes, StudyAttributes
from pipelines.findings import Analysis
from pipelines.phantom import chest
from pipelines.volume import CTVolume
from tests.webui.browser import Reader, chromium, serving
from tests.webui.world import World, truth

FOLDER = Path(__file__).parents[2] / "webui" / "screenshots"


def person(number: int) -> PatientAttributes:
    return PatientAttributes(
        patient_id=f"PHANTOM-{number:04d}",
        name=f"Phantom^{('Ada', 'Ben', 'Cleo', 'Dan', 'Eve', 'Finn', 'Gwen')[number]}",
        birth_date=f"19{50 + 5 * number}0101",
        sex="FMFMFMF"[number],
    )


def fill(world: World, volume: CTVolume, found: Analysis) -> int:
    """Studies in every state; the row id of the one to open."""

    def receive(number: int, description: str) -> int:
        study = StudyAttributes(
            description=description, study_date="20260305", accession_number=f"A{1000 + number}"
        )
        series = SeriesAttributes(modality="CT", description="Topogram", series_number="1")
        return world.receive(
            f"1.{number}", patient=person(number), study=study, series=series, instances=120
        )

    failed = receive(6, "CT thorax")
    reason = "Series 1 (Topogram) is a localiser, not a stack of slices."
    refused = receive(5, "CT topogram")
    world.reject(refused, reason, {"1.5.series": reason})
    claim = world.claim(failed)
    world.fail(claim, "quarantined after 3 tries: the worker stopped answering")
    clear = receive(4, "CT thorax, follow-up")
    world.finish(clear, volume, replace(found, probability=0.08, positive=False, lesions=()))
    moderate = receive(3, "CT thorax")
    world.finish(moderate, volume, replace(found, probability=0.64, lesions=found.lesions[2:]))
    opened = receive(0, "CT thorax, low dose")
    world.finish(opened, volume, replace(found, probability=0.93))
    running = world.claim(receive(1, "CT thorax, contrast"))
    steps = {"reading": {"slices": 120}, "lungs": {"left_ml": 2310.0, "right_ml": 2745.0}}
    for position, (step, known) in enumerate(steps.items()):
        studies.record_step(
            world.database,
            running,
            step=step,
            position=position,
            total=5,
            seconds=2.1,
            summary=known,
        )
    receive(2, "CT thorax")
    return opened


def take(folder: Path) -> None:
    """Write worklist.png and viewer.png."""
    folder.mkdir(parents=True, exist_ok=True)
    phantom = chest()
    with tempfile.TemporaryDirectory() as data:
        world = World.at(Path(data) / "data")
        opened = fill(world, phantom.volume, truth(phantom))
        with serving(world.app()) as address, chromium() as browser:
            reader = Reader.signed_in(browser, address)
            reader.page.wait_for_selector("progress")
            reader.page.screenshot(path=folder / "worklist.png")
            reader.open_study(opened)
            reader.page.mouse.move(420, 620)
            reader.frames()
            reader.page.screenshot(path=folder / "viewer.png")
            assert reader.troubles == []


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
