"""`edgeshrink fleet signers list|create|add|remove|rotate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from edgeshrink.cli.fleet_options import on_a_fleet

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey


@click.group("signers")
def command() -> None:
    """Show, add, remove and replace keys.

    Whoever signs now must sign the change, and whoever signs from then on as well; `--request`
    collects their signatures elsewhere.
    """


_THRESHOLD = click.option("--threshold", type=int, metavar="N", help="How many must sign.")
_PUBLIC = click.option(
    "--public", metavar="FILE", type=click.Path(path_type=Path),
    help="The new public key (.pub).  [default: a new pair is made in --keys-dir]",
)  # fmt: skip


@command.command("list")
@click.argument("folder", metavar="FLEET", type=click.Path(path_type=Path))
@click.option("--keys-dir", metavar="DIR", type=click.Path(path_type=Path),
              help="Where people's keys are.  [default: FLEET/keys]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(folder: Path, keys_dir: Path | None, as_json: bool) -> None:
    """Show whose keys count, for what, and which are here."""
    from edgeshrink.cli.output import print_json
    from edgeshrink.fleet.metadata import KEYS, open_repository
    from edgeshrink.fleet.signers import list_signers

    repository = open_repository(folder)
    facts = list_signers(repository, keys_dir or folder / KEYS)
    if as_json:
        content = {
            "threshold": repository.threshold,
            "root": repository.root.version,
            "keys": [
                {"name": f.name, "keyid": f.keyid, "roles": list(f.roles), "here": f.is_here}
                for f in facts
            ],
        }
        print_json(content)
        return
    width = max(len(f.name) for f in facts)
    n_people = len(repository.signers)
    print(f"root version {repository.root.version}: {repository.threshold} of {n_people} must sign")
    for f in facts:
        here = "here" if f.is_here else "elsewhere"
        print(f"  {f.name:<{width}}  {f.keyid[:16]}  {here:<9}  {', '.join(f.roles)}")


@command.command("create")
@click.argument("name")
@click.option("--keys-dir", metavar="DIR", type=click.Path(path_type=Path), default=Path(),
              help="Where it goes.  [default: .]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def create(name: str, keys_dir: Path, as_json: bool) -> None:
    """Make a key pair on your own machine: keep NAME.pem, send NAME.pub."""
    from edgeshrink.cli.output import print_json
    from edgeshrink.fleet.keys import check_key_name

    check_key_name(name, "NAME")
    private = keys_dir / f"{name}.pem"
    _new_pair(name, keys_dir)
    if as_json:
        print_json({"private": str(private), "public": str(private.with_suffix(".pub"))})
        return
    print(f"{private}  encrypted; keep it")
    print(f"{private.with_suffix('.pub')}  for: edgeshrink fleet signers add FLEET {name} --public")


@command.command("add")
@on_a_fleet
@click.argument("name")
@_PUBLIC
@_THRESHOLD
def add(
    folder: Path,
    keys_dir: Path | None,
    wait: str,
    request: Path | None,
    as_json: bool,
    name: str,
    public: Path | None,
    threshold: int | None,
) -> None:
    """Let NAME sign as well."""
    from edgeshrink.cli.fleet_options import seconds, unlocking
    from edgeshrink.fleet.metadata import open_repository
    from edgeshrink.fleet.signers import add_signer, changing, check_new_name

    check_new_name(open_repository(folder), name)
    unlock = unlocking(folder, keys_dir)
    with (
        _new_key(name, public, folder, keys_dir, request) as key,
        changing(folder, unlock, request, wait_s=seconds(wait)) as change,
    ):
        add_signer(change, key, threshold)
    _show(folder, request, f"{name} signs from now on", as_json=as_json)


@command.command("remove")
@on_a_fleet
@click.argument("name")
@_THRESHOLD
def remove(
    folder: Path,
    keys_dir: Path | None,
    wait: str,
    request: Path | None,
    as_json: bool,
    name: str,
    threshold: int | None,
) -> None:
    """Revoke NAME's key: lost, stolen, or its owner has left."""
    from edgeshrink.cli.fleet_options import seconds, unlocking
    from edgeshrink.fleet.signers import changing, remove_signer

    with changing(folder, unlocking(folder, keys_dir), request, wait_s=seconds(wait)) as change:
        remove_signer(change, name, threshold)
    _show(folder, request, f"{name} signs no longer", as_json=as_json)


@command.command("rotate")
@on_a_fleet
@click.argument("name")
@click.option("--to", "new_name", metavar="NAME", help="Name of the new key, of a person.")
@_PUBLIC
def rotate(
    folder: Path,
    keys_dir: Path | None,
    wait: str,
    request: Path | None,
    as_json: bool,
    name: str,
    new_name: str | None,
    public: Path | None,
) -> None:
    """Replace NAME's key by a new one. NAME may be `timestamp` or `rollout`: this machine's."""
    from edgeshrink.cli.fleet_options import seconds, unlocking
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.metadata import ONLINE_KEYS, open_repository
    from edgeshrink.fleet.signers import changing, check_new_name, rotate_online, rotate_signer

    unlock = unlocking(folder, keys_dir)
    repository = open_repository(folder)
    if name in ONLINE_KEYS and name not in repository.signers:
        if new_name is not None or public is not None:
            option = "--to" if new_name is not None else "--public"
            raise ConfigError(option, "is for people's keys", "leave it out")
        online = cast(Literal["timestamp", "rollout"], name)
        rotate_online(folder, online, unlock, request, wait_s=seconds(wait))
        _show(folder, request, f"{name} has a new key", as_json=as_json)
        return
    if new_name is None:
        new_name = _next_name(name)
        while new_name in repository.signers:
            new_name = _next_name(new_name)
    check_new_name(repository, new_name, replaces=name)
    with (
        _new_key(new_name, public, folder, keys_dir, request) as key,
        changing(folder, unlock, request, wait_s=seconds(wait)) as change,
    ):
        rotate_signer(change, name, key)
    _show(folder, request, f"{new_name} signs in place of {name}", as_json=as_json)


def _next_name(name: str) -> str:
    """Return `alice-b` for `alice`, `alice-c` for that, and so on; numbers mean other people."""
    stem, dash, letter = name.rpartition("-")
    if dash and "b" <= letter < "z" and len(letter) == 1:
        return f"{stem}-{chr(ord(letter) + 1)}"
    return f"{name}-b"


@contextmanager
def _new_key(
    name: str, public: Path | None, folder: Path, keys_dir: Path | None, request: Path | None
) -> Iterator[SSlibKey]:
    """Yield a public key that was given, or that of a new pair, which goes if the block fails."""
    from edgeshrink.fleet.keys import read_public
    from edgeshrink.fleet.metadata import KEYS
    from edgeshrink.fleet.signers import may_count

    if public is not None:
        yield read_public(public, name)
        return
    keys = keys_dir or folder / KEYS
    _new_pair(name, keys)  # never one that lies there: it may be one that was revoked
    path = keys / f"{name}.pub"
    key = read_public(path, name)
    try:
        yield key
    except BaseException:
        if not may_count(folder, key.keyid, request):
            path.unlink(missing_ok=True)
            path.with_suffix(".pem").unlink(missing_ok=True)
        raise


def _new_pair(name: str, keys_dir: Path) -> None:
    from edgeshrink.cli.fleet_options import ask_new_passphrase
    from edgeshrink.fleet.keys import check_absent, generate, write_pair

    check_absent(keys_dir, name)  # before anybody types
    write_pair(keys_dir, generate(name), ask_new_passphrase(name))


def _show(folder: Path, request: Path | None, what: str, *, as_json: bool) -> None:
    from edgeshrink.cli.fleet_sign import show_request
    from edgeshrink.cli.output import print_json
    from edgeshrink.fleet.metadata import open_repository

    if request is not None:
        show_request(request, as_json=as_json)
        return
    repository = open_repository(folder)
    people = sorted(repository.signers)
    if as_json:
        content = {
            "root": repository.root.version,
            "threshold": repository.threshold,
            "signers": people,
        }
        print_json(content)
        return
    print(f"{what}; root version {repository.root.version}")
    print(f"{repository.threshold} of {', '.join(people)} must sign")
