"""The commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from edgeshrink import __version__
from edgeshrink.errors import EdgeshrinkError

INTERRUPTED: Final = 130

# Command -> module with a click command of the name `command`. Loaded when it is called for.
COMMANDS: Final = {
    "targets": "edgeshrink.cli.targets",
    "init": "edgeshrink.cli.init",
    "build": "edgeshrink.cli.build",
    "plan": "edgeshrink.cli.plan",
    "profile": "edgeshrink.cli.profile",
    "compile": "edgeshrink.cli.compile",
    "report": "edgeshrink.cli.report",
    "ship": "edgeshrink.cli.ship",
    "fleet": "edgeshrink.cli.fleet",
    "agent": "edgeshrink.cli.agent",
    "pack": "edgeshrink.cli.pack",
    "setup": "edgeshrink.cli.setup",
}
SUMMARIES: Final = {
    "targets": "List the devices, or all facts of one with their sources.",
    "init": "Write a working task to start from.",
    "build": "Compress a model until it fits a device, and prove it.",
    "plan": "Say what it would take to make a model fit, before any training.",
    "profile": "Say what a model file or a firmware costs on a device.",
    "compile": "Turn a quantized .tflite into plain C for a microcontroller.",
    "report": "Show what an artifact is worth, and write the page of it.",
    "ship": "Sign an artifact and offer it to a part of a fleet.",
    "fleet": "Look after a fleet: keys, signatures, rollout, reports.",
    "agent": "Keep the models of this device up to date.",
    "pack": "Write an artifact as a signed package for MCUboot, SWUpdate or RAUC.",
    "setup": "Fetch and prepare optional tools; nothing else fetches.",
}


class _Group(click.Group):
    """Lists every command without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        from importlib import import_module

        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from edgeshrink.strict_toml import nearest

            raise click.UsageError(
                f"No such command {args[0]!r}; {nearest(args[0], COMMANDS)}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeshrink")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where an error came from.")
@click.pass_context
def cli(ctx: click.Context, show_traceback: bool) -> None:
    """Get neural networks onto small devices: compress, lower, verify, profile and ship."""
    ctx.obj = {"traceback": show_traceback}


def _fail(message: str, code: int, err: BaseException, show_traceback: bool) -> NoReturn:
    if show_traceback:
        traceback.print_exception(err)
    print(message, file=sys.stderr)
    raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command; never returns. Exit codes are those of `edgeshrink.errors`."""
    arguments: list[Any] = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what stdout can't encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(arguments or ["--help"])
        sys.stdout.flush()
    except click.ClickException as err:
        _fail(f"error: {_told(err)}", err.exit_code, err, show_traceback)
    except (KeyboardInterrupt, click.exceptions.Abort) as err:
        _fail("interrupted; the last good artifact is intact", INTERRUPTED, err, show_traceback)
    except EdgeshrinkError as err:
        _fail(f"error: {err}", err.exit_code, err, show_traceback)
    except BrokenPipeError:
        _discard_output()  # the reader of our output has seen enough
    except OSError as err:
        place = err.filename or "this machine"
        if err.filename is None and _is_of_output(err):
            place = "standard output"
            _discard_output()
        _fail(f"error: {place}: {err.strerror or err}", 1, err, show_traceback)
    raise SystemExit(0)


def _run(arguments: list[str]) -> None:
    """Parse and call. Unlike `cli.main` of click, this leaves every exception to the caller."""
    try:
        with cli.make_context("edgeshrink", arguments) as context:
            cli.invoke(context)
    except click.exceptions.Exit as err:
        if err.exit_code:
            raise SystemExit(err.exit_code) from None


def _told(err: click.ClickException) -> str:
    """Return the message, with a remedy where click has none."""
    message = err.format_message().rstrip()
    if isinstance(err, click.UsageError) and err.ctx is not None:
        separator = " " if message.endswith((".", ")", "?")) else "; "
        return f"{message}{separator}See: {err.ctx.command_path} --help"
    return message


def _is_of_output(err: OSError) -> bool:
    """Say whether the error was raised by a line that prints: only the CLI and click do."""
    *_, (frame, _) = traceback.walk_tb(err.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(("edgeshrink.cli", "click"))


def _discard_output() -> None:
    """Send what is still buffered for stdout nowhere, so that leaving Python can't fail on it."""
    with suppress(io.UnsupportedOperation), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
