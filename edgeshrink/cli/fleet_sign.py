"""`edgeshrink fleet sign REQUEST --key KEY`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeshrink.fleet.signing import Request


@click.command("sign")
@click.argument("request", metavar="REQUEST", type=click.Path(path_type=Path))
@click.option("--key", "keys", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
              help="A person's key; again for each. Without one, nothing is signed.")  # fmt: skip
@click.option("--root", metavar="FILE", type=click.Path(path_type=Path),
              help="root.json that you trust: a request of another fleet is refused.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(request: Path, keys: tuple[Path, ...], root: Path | None, as_json: bool) -> None:
    """Show what REQUEST asks to sign, and sign it. Needs no fleet, no network, only the key."""
    from edgeshrink.cli.fleet_options import ask_one_passphrase
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.keys import read_private
    from edgeshrink.fleet.signing import describe, read_request, sign_request

    trusted = None
    if root is not None:
        try:
            trusted = root.read_bytes()
        except OSError as err:
            what = f"can't be read ({err.strerror})"
            raise ConfigError(str(root), what, "check the path") from err
    draft = read_request(request, trusted)
    # Who types a passphrase has seen what it is for.
    for line in describe(draft):
        print(line, file=sys.stderr if as_json else sys.stdout)
    if trusted is None:
        print("note: --root root.json would check which fleet this is", file=sys.stderr)
    for path in keys:
        sign_request(request, read_private(path, ask_one_passphrase(path.stem)), trusted)
    show_request(request, as_json=as_json)


def show_request(path: Path, *, as_json: bool) -> None:
    """Print who has signed a request, and who must."""
    from edgeshrink.cli.output import print_json
    from edgeshrink.fleet.signing import read_request

    request = read_request(path)
    if as_json:
        missing = [{"count": count, "of": sorted(names)} for count, names in request.missing()]
        content = {
            "request": str(path),
            "roles": {name: m.signed.version for name, m in request.new.items()},
            "signed_by": sorted(request.signed_by),
            "missing": missing,
        }
        print_json(content)
        return
    print(f"{path}: signed by {', '.join(sorted(request.signed_by)) or 'nobody'}")
    if not request.missing():
        print(f"next: edgeshrink fleet publish FLEET {path}")
    for line in who_is_missing(request):
        print(line)
    if request.missing():
        print(f"next: edgeshrink fleet sign {path} --key KEY")


def who_is_missing(request: Request) -> list[str]:
    """Return in words how many more must sign, and of whom."""
    return [
        f"{count} more of {', '.join(sorted(names))} must sign"
        for count, names in dict.fromkeys(request.missing())
    ]
