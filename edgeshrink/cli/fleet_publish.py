"""`edgeshrink fleet publish FLEET REQUEST...`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("publish")
@click.argument("folder", metavar="FLEET", type=click.Path(path_type=Path))
@click.argument("requests", metavar="REQUEST...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--without-rollout", is_flag=True,
              help="Only what people have signed: offer it to no device yet.")  # fmt: skip
@click.option("--wait", default="10s", show_default=True, metavar="TIME",
              help="How long to wait for another publisher.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    folder: Path, requests: tuple[Path, ...], without_rollout: bool, wait: str, as_json: bool
) -> None:
    """Publish a request that enough people have signed.

    Several REQUESTs are copies of one, each signed by somebody else.
    """
    from edgeshrink.cli.fleet_options import seconds
    from edgeshrink.cli.output import print_json
    from edgeshrink.fleet.metadata import open_repository, read_root
    from edgeshrink.fleet.signing import merge, publish_request, read_request

    open_repository(folder)
    trusted = read_root(folder)
    request = merge([read_request(path, trusted) for path in requests])
    roles = publish_request(folder, request, with_rollout=not without_rollout, wait_s=seconds(wait))
    versions = {name: request.new[name].signed.version for name in roles}
    if as_json:
        print_json({"published": versions, "signed_by": sorted(request.signed_by)})
        return
    told = ", ".join(f"{name} version {version}" for name, version in versions.items())
    print(f"published {told}; signed by {', '.join(sorted(request.signed_by))}")
