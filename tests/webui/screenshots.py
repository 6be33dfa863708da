"""Takes the pictures of the README from the running pages: `python -m tests.webui.screenshots`.

They show the synthetic chest alone, with its true lesions as the result. Give a folder to write
elsewhere than into webui/screenshots.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from appliance import accounts, studies
from appliance.studies import PatientAttributes, SeriesAttributes, StudyAttributes
from pipelines.findings import Analysis
from pipelines.phantom import chest
from pipelines.volume import CTVolume
from tests.webui.browser import Reader, chromium, serving
from tests.webui.world import PASSWORD, World, truth

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

    def receive(number: int, description: str, *, day: str = "20260305") -> int:
        study = StudyAttributes(
            description=description, study_date=day, accession_number=f"A{1000 + number}"
        )
        series = SeriesAttributes(modality="CT", description="Topogram", series_number="1")
        return world.receive(
            f"1.{number}.{day}", patient=person(number), study=study, series=series, instances=120
        )

    failed = receive(6, "CT thorax")
    reason = "Series 1 (Topogram) is a localiser, not a stack of slices."
    refused = receive(5, "CT topogram")
    world.reject(refused, reason, {"1.5.20260305.series": reason})
    claim = world.claim(failed)
    world.fail(claim, "quarantined after 3 tries: the worker stopped answering")
    before = receive(0, "CT thorax, low dose", day="20260105")
    world.finish(before, volume, replace(found, probability=0.71, lesions=found.lesions[1:]))
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
    """Write the worklist, the viewer, a judgement, the report and the administration."""
    folder.mkdir(parents=True, exist_ok=True)
    phantom = chest()
    with tempfile.TemporaryDirectory() as data:
        world = World.at(Path(data) / "data")
        with world.database.transaction() as db:
            accounts.add(
                db, "admin", password=PASSWORD, role=accounts.Role.ADMINISTRATOR, actor="test"
            )
        opened = fill(world, phantom.volume, truth(phantom))
        with serving(world.app()) as address, chromium() as browser:
            reader = Reader.signed_in(browser, address)
            page = reader.page
            page.wait_for_selector("progress")
            page.screenshot(path=folder / "worklist.png")
            reader.open_study(opened)
            page.mouse.move(420, 620)
            reader.frames()
            page.screenshot(path=folder / "viewer.jpg", quality=85)
            page.wait_for_selector(".review h2")
            judge(reader)
            page.screenshot(path=folder / "judgement.jpg", quality=85)
            page.click(".review .rest")
            page.click(".review .confirm")
            page.wait_for_selector(".review >> text=Confirmed: positive")
            page.goto(f"{address}/studies/{opened}/report")
            page.wait_for_load_state("networkidle")
            page.screenshot(path=folder / "report.png")
            administrator = Reader.signed_in(browser, address, name="admin")
            administrator.page.goto(f"{address}/admin")
            administrator.page.wait_for_load_state("networkidle")
            administrator.page.screenshot(path=folder / "administration.png")
            assert reader.troubles + administrator.troubles == []


def judge(reader: Reader) -> None:
    """Accept a lesion, reject the next, add one that was missed, and say why."""
    reader.press("y", "n", "x", "n", "b")
    box = reader.page.locator(".viewport.axial").bounding_box()
    assert box is not None
    x, y = box["x"] + 0.25 * box["width"], box["y"] + 0.48 * box["height"]
    reader.page.mouse.move(x, y)
    reader.page.mouse.down()
    for step in range(8):
        reader.page.mouse.move(x + step, y + 2 * step)
    reader.page.mouse.up()
    reader.page.click(".review .answers button >> text=Positive")
    reader.page.fill(".review textarea", "The second is a vessel at the hilum.")
    reader.page.wait_for_selector(".lesions.added >> text=HU")  # it has been measured
    reader.frames()


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
