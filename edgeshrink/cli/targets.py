"""`edgeshrink targets [NAME]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgeshrink.cli.output import print_json

if TYPE_CHECKING:
    from edgeshrink.target import Target


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
        target = load_target(name)
        facts = describe(target)
        checked = _validation(target)
        if as_json:
            print_json(
                {key: {"value": v, "source": s} for key, v, s in facts}
                | {f"validation.{engine}": entry for engine, entry in checked.items()}
            )
            return
        width = max(len(key) for key, _, _ in facts)
        for key, value, source in facts:
            text = " ".join(value) if isinstance(value, list) else str(value)
            print(f"{key:<{width}}  {text:<24}  {source}".rstrip())
        for engine, entry in checked.items():
            print(f"{f'validation.{engine}':<{width}}  {_words(entry)}")
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


def _validation(target: Target) -> dict[str, dict[str, object]]:
    """Return, for every engine, how modelled times compare with published results."""
    if target.kind == "microcontroller":
        from edgeshrink.costs.microcontroller import board_validation

        found = {}
        for runtime in target.runtimes:
            if runtime.name in ("c", "tflm"):
                board = board_validation(target, runtime.name)
                found[runtime.name] = {**vars(board), "validated": board.is_validated}
        return found
    if target.kind == "application-processor":
        from edgeshrink.costs.application import validation

        entries = {}
        for dtype in ("int8", "float32"):
            rows = validation(target.cpu.core, dtype)
            entries[dtype] = {
                "rows": rows.rows, "mean_error": rows.mean_abs_error, "within_10": rows.within_10,
                "low": rows.band[0], "high": rows.band[1], "validated": rows.rows > 0,
                "basis": "published ncnn results of models left out of the fit",
            }  # fmt: skip
        return entries
    return {}


def _words(entry: dict[str, object]) -> str:
    low, high, rows = (float(str(entry[key])) for key in ("low", "high", "rows"))
    band = f"90 % band {low:.2f} to {high:.2f} times the estimate"
    if not entry["validated"]:
        return f"unvalidated; {band}; {entry['basis']}"
    error, within = (100 * float(str(entry[key])) for key in ("mean_error", "within_10"))
    return (
        f"{rows:.0f} results, mean error {error:.1f} %, {within:.0f} % within 10 %; {band}; "
        f"{entry['basis']}"
    )
