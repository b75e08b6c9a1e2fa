"""`edgeshrink init [FOLDER]`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(folder: Path, as_json: bool) -> None:
    """Write a task that builds as it stands into FOLDER; then put in your model and data."""
    from edgeshrink.cli.output import print_json
    from edgeshrink.task_loader import init_task

    written = init_task(folder)
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        print(f"wrote {path}")
    print(f"next: edgeshrink build {shlex.quote(str(folder))} --target rpi4")
