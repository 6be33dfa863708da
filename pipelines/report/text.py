"""A report as plain text, to be pasted into another system's report."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.report.content import NOTICE, TITLE, Report, Section, Table, identification, sections


def plain_text(report: Report) -> str:
    """Return the report without its pictures, columns kept apart by spaces."""
    parts = [
        "\n".join((*report.stamps, TITLE, NOTICE)),
        "\n".join(f"{label}: {_line(value)}" for label, value in identification(report)),
        *("\n".join(_section(part)) for part in sections(report) if not part.shows_pictures),
        # Whoever pastes a part of it takes its end along.
        "\n".join((*report.stamps, NOTICE)),
    ]
    return "\n\n".join(parts) + "\n"


def _section(part: Section) -> Iterator[str]:
    yield part.heading
    yield from _table(part.table) if part.table else ()
    yield from map(_line, part.lines)


def _table(table: Table) -> Iterator[str]:
    rows = (table.header, *table.rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *aligned]).rstrip()


def _line(text: str) -> str:
    """Return a text of somebody's on one line: it cannot pass for a part of the report."""
    return " ".join(text.split())
