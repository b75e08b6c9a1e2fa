"""`edgeshrink report ARTIFACT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeshrink.cli.output import print_json

if TYPE_CHECKING:
    from edgeshrink.reporting import Table

WIDEST = 60  # characters of a cell on the terminal


@click.command("report")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Default: report.html in ARTIFACT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(artifact: Path, out: Path | None, as_json: bool) -> None:
    """Show what an artifact is worth: tables here, and a page that needs no network.

    Scores of all its models, figures with how each was got and its band, the budget, what each
    step of compression did, how far the engines agree, what each operator costs, and, where a
    search made it (build --trials), the Pareto front with the recipe that was chosen.
    """
    from edgeshrink.artifact import read_artifact
    from edgeshrink.errors import ConfigError
    from edgeshrink.reporting import REPORT, html_report, read_facts, tables

    if not artifact.is_dir():
        fault = "is a file, not an artifact's folder" if artifact.exists() else "does not exist"
        raise ConfigError(str(artifact), fault, "give the folder that a build made")
    found = read_artifact(artifact)
    facts = read_facts(found)
    page = html_report(facts).encode()
    path = _place(artifact, out, page, is_part=REPORT in found.files)
    shown = tables(facts)
    if as_json:
        content = {t.title: [dict(zip(t.head, row, strict=True)) for row in t.rows] for t in shown}
        print_json({"report": str(path), "tables": content})
        return
    print(f"{found.name} on {found.target}: {path}")
    for table in shown:
        print()
        print_table(table)


def _place(artifact: Path, out: Path | None, page: bytes, *, is_part: bool) -> Path:
    """Write the page; one that is part of the artifact is never changed."""
    from edgeshrink.errors import ConfigError, EdgeshrinkError
    from edgeshrink.reporting import REPORT

    path = out or artifact / REPORT
    try:
        if path.is_file() and path.read_bytes() == page:
            return path
        if out is None and is_part:
            fault = "is a part of the artifact, and this version draws it differently"
            raise ConfigError(str(path), fault, "name another file with --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as err:
        fault = f"can't be written ({err.strerror or err})"
        raise EdgeshrinkError(str(path), fault, "name another file with --out") from err
    return path


def print_table(table: Table) -> None:
    """Print a table with columns as wide as they must be; long words end in the page alone."""
    rows = [tuple(_short(cell) for cell in row) for row in (table.head, *table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    print(f"  {table.title}")
    for row in rows:
        print(f"    {_line(row, widths, table.numbers)}".rstrip())
    if table.note:
        print(f"    ({table.note})")


def _line(row: Sequence[str], widths: Sequence[int], numbers: frozenset[int]) -> str:
    cells = [
        cell.rjust(width) if i in numbers else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells)


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
