"""`edgeshrink pack ARTIFACT --format mcuboot|swupdate|rauc`."""

from __future__ import annotations

from pathlib import Path

import click

FORMATS = ("mcuboot", "swupdate", "rauc")


@click.command("pack")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True)
@click.option("--version", required=True, help="Semantic version of the release, as 1.3.0.")
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Private key (PEM).")
@click.option("--cert", type=click.Path(path_type=Path), help="swupdate, rauc: its certificate.")
@click.option("--image", type=click.Path(path_type=Path), help="mcuboot: the application's binary.")
@click.option("--counter", type=int, help="mcuboot: security counter.")
@click.option("--header-size", default="0x200", show_default=True, help="mcuboot.")
@click.option("--slot-size", default="384KiB", show_default=True, help="mcuboot.")
@click.option("--align", type=int, default=8, show_default=True, help="mcuboot: of flash writes.")
@click.option("--compatible", help="swupdate, rauc: hardware that may take it.  [default: target]")
@click.option("--place", help="swupdate: folder on the device; rauc: slot class.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="[default: .]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    artifact: Path,
    kind: str,
    version: str,
    key: Path,
    cert: Path | None,
    image: Path | None,
    counter: int | None,
    header_size: str,
    slot_size: str,
    align: int,
    compatible: str | None,
    place: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Write ARTIFACT as a signed package of another updater.

    The key's passphrase, if it has one, is taken from EDGESHRINK_PACK_PASSPHRASE.
    """
    from edgeshrink.artifact import read_artifact
    from edgeshrink.cli.output import print_json
    from edgeshrink.errors import ConfigError
    from edgeshrink.fleet.packages.keys import read_key
    from edgeshrink.fleet.packages.mcuboot import Slot
    from edgeshrink.fleet.packages.pack import pack_bundle, pack_mcuboot

    of_mcuboot = {"--image": image, "--counter": counter}
    of_bundles = {"--cert": cert, "--compatible": compatible, "--place": place}
    for option, value in (of_bundles if kind == "mcuboot" else of_mcuboot).items():
        if value is not None:
            raise ConfigError(option, f"does not go with --format {kind}", "leave it out")
    if kind == "mcuboot":
        if image is None or counter is None:
            missing = "--image" if image is None else "--counter"
            fix = "the application's plain binary" if image is None else "a number, 0 at first"
            raise ConfigError(missing, "is missing: --format mcuboot needs it", fix)
        slot = Slot(
            header_bytes=_size("--header-size", header_size),
            slot_bytes=_size("--slot-size", slot_size),
            align=align,
        )
        packed = pack_mcuboot(
            read_artifact(artifact), image, read_key(key),
            version=version, counter=counter, slot=slot, out=out,
        )  # fmt: skip
    else:
        if cert is None:
            raise ConfigError("--cert", f"is missing: --format {kind} needs it", "X.509, PEM")
        packed = pack_bundle(
            read_artifact(artifact), kind, read_key(key), cert,
            version=version, compatible=compatible, place=place, out=out,
        )  # fmt: skip
    if as_json:
        files = [{"path": str(path), "bytes": path.stat().st_size} for path in packed.files]
        print_json({"files": files, "settings": list(packed.settings)})
        return
    for path in packed.files:
        print(f"wrote {path} ({path.stat().st_size:,} B)")
    print("the receiving side needs:")
    for line in packed.settings:
        print(f"  {line}")


def _size(option: str, text: str) -> int:
    """Return a size in bytes, "0x200" or "384KiB"."""
    from edgeshrink.errors import ConfigError
    from edgeshrink.units import parse_bytes

    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        return parse_bytes(text)
    except ValueError as err:
        raise ConfigError(option, f"{text!r} is not a size", "as in 0x200 or 384KiB") from err
