"""What all commands print with: tables on stdout, progress on stderr, JSON alone if asked for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from edgeshrink.profile import Figure
from edgeshrink.units import format_bytes, format_hours, format_ms, format_scaled

Report = Callable[[str, float, str], None]


def print_json(content: object) -> None:
    """Print one JSON document."""
    print(json.dumps(content, indent=1, allow_nan=False))


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what the block prints, on whatever way: for `--json`, stdout is ours alone."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def progress(*, shown: bool = True) -> Iterator[Report]:
    """Yield a callback (stage, share done, detail) that draws a bar if stderr is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield lambda stage, share, detail: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    # Converters are silenced by redirecting descriptor 2; the bar writes to a copy of it.
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as terminal:
        bar = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(file=terminal, force_terminal=True),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        stages: dict[str, int] = {}
        shown_last: tuple[str, str] = ("", "")

        def report(stage: str, share: float, detail: str) -> None:
            nonlocal shown_last
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=1.0, detail="")
            # What is short would fall between two drawings: every new text is drawn at once.
            bar.update(
                stages[stage],  # type: ignore[arg-type]
                completed=share,
                detail=detail,
                refresh=(stage, detail) != shown_last,
            )
            shown_last = (stage, detail)

        with bar:
            yield report


def show_figure(figure: Figure) -> str:
    """Return a figure as people read it: value, band where there is one, how it was got."""

    def plain(value: float) -> str:
        return f"{value:,.0f} {figure.unit}"

    forms: dict[str, Callable[[float], str]] = {
        "B": format_bytes,
        "ms": format_ms,
        "h": format_hours,
        "uJ": lambda value: format_scaled(value, "uJ"),
        "uW": lambda value: format_scaled(value, "uW"),
    }
    form = forms.get(figure.unit, plain)
    text = form(figure.value)
    if figure.low != figure.high:
        text += f" [{form(figure.low)} to {form(figure.high)}]"
    how: str = figure.how
    if figure.validated is False:
        how += ", unvalidated"
    return f"{text} ({how})"
