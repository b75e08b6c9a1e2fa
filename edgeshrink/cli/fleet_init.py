"""`edgeshrink fleet init FLEET --name NAME`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("init")
@click.argument("folder", metavar="FLEET", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the fleet is called.")
@click.option("--threshold", type=int, default=2, show_default=True, metavar="N",
              help="How many people must sign.")  # fmt: skip
@click.option("--keys", "n_keys", type=int, default=3, show_default=True, metavar="N",
              help="How many people's keys to make: signer-1, signer-2, …")  # fmt: skip
@click.option("--signer", "names", multiple=True, metavar="NAME",
              help="Name of a person's key, instead of --keys; again for each.")  # fmt: skip
@click.option("--keys-dir", metavar="DIR", type=click.Path(path_type=Path),
              help="Where people's keys go.  [default: FLEET/keys]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    folder: Path,
    name: str,
    threshold: int,
    n_keys: int,
    names: tuple[str, ...],
    keys_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a fleet in FLEET: encrypted keys of people, keys of this machine, a repository."""
    from edgeshrink.cli.fleet_options import ask_new_passphrase
    from edgeshrink.cli.output import print_json
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.keys import check_key_name, check_signers
    from edgeshrink.fleet.metadata import KEYS, PUBLISHED, ROOT
    from edgeshrink.fleet.repository import check_new, create_fleet
    from edgeshrink.fleet.settings import Settings, check_name

    check_name(name)
    signers = names or tuple(f"signer-{number}" for number in range(1, min(n_keys, 65) + 1))
    for signer in signers:
        check_key_name(signer, "--signer")
    if len(set(signers)) < len(signers):
        raise ConfigError("--signer", "names somebody twice", "give every key its own name")
    check_signers(len(signers), threshold)
    check_new(folder)  # before anybody types
    passphrases = {signer: ask_new_passphrase(signer) for signer in signers}
    repository = create_fleet(
        folder, Settings(name=name), passphrases=passphrases, threshold=threshold,
        keys_folder=keys_dir,
    )  # fmt: skip
    keys = keys_dir or folder / KEYS
    if as_json:
        content = {
            "fleet": str(folder),
            "name": name,
            "threshold": threshold,
            "keys": {s: str(keys / f"{s}.pem") for s in signers},
            "root": str(folder / ROOT),
            "publish": str(folder / PUBLISHED),
            "expiries": {r: when.isoformat() for r, when in repository.expiries().items()},
        }
        print_json(content)
        return
    days = repository.settings.expiry_days["timestamp"]
    print(f"fleet {name} in {folder}: {threshold} of {len(signers)} keys must sign")
    for signer in signers:
        print(f"  {keys / f'{signer}.pem'}  encrypted; belongs to one person, and not on this disk")
    print(f"  {folder / ROOT}  for devices: edgeshrink agent --root {ROOT}")
    print(f"  {folder / PUBLISHED}/  to be served: nothing else of this folder")
    print(f"next: edgeshrink fleet refresh {folder}, daily: the timestamp holds {days} days")
