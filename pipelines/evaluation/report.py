"""HTML reports: tables and pictures in one folder, readable without a server or a network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from pipelines.evaluation.figures import save
from pipelines.files import whole_file

REPORT_FILE: Final = "report.html"
METRICS_FILE: Final = "metrics.json"


@dataclass(frozen=True)
class Section:
    """A heading with sentences, a table and figures below it."""

    title: str
    lines: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: dict[str, Figure] = field(default_factory=dict)


def write_report(
    out: Path,
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    metrics: Any,
    *,
    notes: Sequence[str] = (),
) -> None:
    """Write `report.html`, its pictures and `metrics.json` to `out`, each file whole.

    `notes` stand above the rest, where nobody overlooks them.
    """
    out.mkdir(parents=True, exist_ok=True)
    shown = []
    for section in sections:
        for name, figure in section.figures.items():
            save(figure, out / f"{name}.png")
        pictures = [f"{name}.png" for name in section.figures]
        shown.append({**vars(section), "pictures": pictures})
    environment = Environment(
        loader=PackageLoader("pipelines.evaluation"), autoescape=select_autoescape()
    )
    page = environment.get_template("report.html").render(
        title=title, notes=notes, lead=lead, sections=shown
    )
    for name, text in (
        (METRICS_FILE, json.dumps(metrics, indent=1)),
        (REPORT_FILE, page),
    ):
        with whole_file(out / name) as file:
            file.write(f"{text}\n".encode())
