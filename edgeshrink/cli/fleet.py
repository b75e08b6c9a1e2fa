"""`edgeshrink fleet COMMAND`: the publisher's side of a fleet."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

# Command -> (module with a click command of the name `command`, what it does). Loaded when called.
SUBCOMMANDS: Final = {
    "init": ("edgeshrink.cli.fleet_init", "Make keys, and a repository without a release."),
    "status": ("edgeshrink.cli.fleet_status", "Show releases, offers, and what devices report."),
    "rollout": (
        "edgeshrink.cli.fleet_rollout",
        "Offer a release to more devices, halt it, withdraw it.",
    ),
    "collect": ("edgeshrink.cli.fleet_collect", "Take in status files of devices."),
    "receive": ("edgeshrink.cli.fleet_receive", "Take in reports of devices over HTTP."),
    "refresh": ("edgeshrink.cli.fleet_refresh", "Let signatures hold from now on: run it daily."),
    "signers": ("edgeshrink.cli.fleet_signers", "Show, add, remove and replace keys."),
    "sign": ("edgeshrink.cli.fleet_sign", "Sign a request on another machine."),
    "publish": ("edgeshrink.cli.fleet_publish", "Publish a request that was signed."),
}


class _Group(click.Group):
    """Lists every command without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        from edgeshrink.fleet.extra import require_fleet

        require_fleet()
        command: click.Command = import_module(SUBCOMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in SUBCOMMANDS and not args[0].startswith("-"):
            from edgeshrink.strict_toml import nearest

            raise click.UsageError(
                f"No such command {args[0]!r}; {nearest(args[0], SUBCOMMANDS)}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in SUBCOMMANDS.items()])


@click.group("fleet", cls=_Group)
def command() -> None:
    """Publish models to a fleet of devices: a folder of signed files that any web server serves.

    Passphrases are asked for, or taken from EDGESHRINK_PASSPHRASE_<KEY> or EDGESHRINK_PASSPHRASE.
    """
