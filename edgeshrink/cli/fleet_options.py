"""What commands share that change a fleet."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from edgeshrink.fleet.change import Unlock

Command = Callable[..., Any]

_FOLDER: Final = click.argument("folder", metavar="FLEET", type=click.Path(path_type=Path))
_WAIT: Final = click.option(
    "--wait", default="10s", show_default=True, metavar="TIME",
    help="How long to wait for another publisher.",
)  # fmt: skip
_KEYS: Final = click.option(
    "--keys-dir", metavar="DIR", type=click.Path(path_type=Path),
    help="Where people's keys are.  [default: FLEET/keys]",
)  # fmt: skip
_REQUEST: Final = click.option(
    "--request", metavar="FILE", type=click.Path(path_type=Path),
    help="Publish nothing: write what is to be signed, for `fleet sign` elsewhere.",
)  # fmt: skip
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def on_a_fleet(command: Command) -> Command:
    """Give a command a fleet to change, where keys are, and a request as the other way."""
    for option in (_JSON, _REQUEST, _WAIT, _KEYS, _FOLDER):
        command = option(command)
    return command


def seconds(text: str, option: str = "--wait") -> float:
    """Return the seconds that `10s` or `2min` say."""
    from edgeshrink.errors import ConfigError
    from edgeshrink.units import parse_period_ms

    try:
        return parse_period_ms(text) / 1000
    except ValueError as err:
        raise ConfigError(option, str(err), "such as 10s") from err


def unlocking(folder: Path, keys_dir: Path | None) -> Unlock:
    """Return a function that opens people's keys, asking for passphrases."""
    from edgeshrink.fleet.keys import unlock
    from edgeshrink.fleet.metadata import KEYS

    return partial(unlock, folder=keys_dir or folder / KEYS, ask=ask_passphrase)


def ask_passphrase(name: str) -> str | None:
    """Return a key's passphrase from the environment or the terminal; None: leave the key out."""
    return _passphrase(name, f"Passphrase of {name} (empty: leave this key out)") or None


def ask_one_passphrase(name: str) -> str:
    """Return the passphrase of the one key that is needed."""
    return _passphrase(name, f"Passphrase of {name}")


def ask_new_passphrase(name: str) -> str:
    """Return a passphrase for a new key, typed twice."""
    from edgeshrink.fleet.keys import MIN_PASSPHRASE, check_passphrase

    text = f"New passphrase of {name} (at least {MIN_PASSPHRASE} characters)"
    passphrase = _passphrase(name, text, twice=True)
    check_passphrase(name, passphrase)
    return passphrase


def _passphrase(name: str, text: str, *, twice: bool = False) -> str:
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.keys import VARIABLE, passphrase_from_environment, passphrase_variable

    known = passphrase_from_environment(name)
    if known is not None:
        return known
    if not sys.stdin.isatty():
        what = "needs a passphrase, and there is no terminal to ask on"
        raise ConfigError(f"key {name}", what, f"set {passphrase_variable(name)} or {VARIABLE}")
    answer: str = click.prompt(
        text, hide_input=True, confirmation_prompt=twice, default="", show_default=False, err=True
    )
    return answer
