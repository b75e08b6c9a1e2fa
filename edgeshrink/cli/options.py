"""Options that several commands share, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

Command = Callable[..., Any]

_ON_A_TASK: Final = (
    click.argument("task_spec", metavar="[TASK]", default=""),
    click.option("--target", "target_name", required=True, help="Device name, or path of a .toml."),
    click.option(
        "--budget", "budget_text", default="", help="ram=64KiB,latency=20ms,flash=1MiB,drop=0.01"
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Parameter of the task."
    ),
    click.option("--data", type=click.Path(path_type=Path), help="Folder with the task's data."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True),
    click.option(
        "--threads", type=int, default=1, show_default=True, help="Threads on the device."
    ),
    click.option(
        "--optimize",
        type=click.Choice(["latency", "ram", "flash"]),
        default="latency",
        show_default=True,
        help="What a microcontroller's kernels are chosen by.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
)


def on_a_task(command: Command) -> Command:
    """Give a command what names a task, its device and its budget."""
    for option in reversed(_ON_A_TASK):
        command = option(command)
    return command
