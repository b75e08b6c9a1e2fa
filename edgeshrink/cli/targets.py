"""`edgeshrink targets [NAME]`."""

from __future__ import annotations

import click

from edgeshrink.cli.output import print_json


@click.command("targets")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(name: str | None, as_json: bool) -> None:
    """List the devices, or print all facts of the device NAME with their sources.

    NAME is a target of the package, of the folder ./targets, or the path of a .toml file.
    """
    from edgeshrink.target import describe, list_targets, load_target
    from edgeshrink.units import format_bytes

    if name is not None:
        facts = describe(load_target(name))
        if as_json:
            print_json({key: {"value": v, "source": s} for key, v, s in facts})
            return
        width = max(len(key) for key, _, _ in facts)
        for key, value, source in facts:
            text = " ".join(value) if isinstance(value, list) else str(value)
            print(f"{key:<{width}}  {text:<24}  {source}".rstrip())
        return
    targets = list_targets()
    if as_json:
        print_json(
            [{"name": t.name, "title": t.title, "kind": t.kind, "core": t.cpu.core,
              "clock_mhz": t.cpu.clock_mhz, "cores": t.cpu.n_cores,
              "flash_bytes": t.memory.flash_bytes, "ram_bytes": t.memory.ram_bytes,
              "dtypes": list(t.ops.dtypes)} for t in targets]
        )  # fmt: skip
        return
    rows = [("target", "device", "core", "clock", "flash", "RAM", "types")]
    for t in targets:
        flash = "-" if t.memory.flash_bytes is None else format_bytes(t.memory.flash_bytes)
        clock = f"{t.cpu.n_cores} x {t.cpu.clock_mhz:g} MHz" if t.cpu.clock_mhz else "-"
        rows.append((t.name, t.title, t.cpu.core, clock, flash, format_bytes(t.memory.ram_bytes),
                     " ".join(t.ops.dtypes)))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
