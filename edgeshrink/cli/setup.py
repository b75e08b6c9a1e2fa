"""`edgeshrink setup qemu`: the only command that fetches anything."""

from __future__ import annotations

import click

from edgeshrink.cli.output import print_json, progress
from edgeshrink.units import format_bytes


@click.group("setup")
def command() -> None:
    """Fetch and prepare optional tools."""


@command.command("qemu")
@click.option("--executorch", is_flag=True, help="ExecuTorch and PyTorch too: 0.5 GB to fetch.")
@click.option("--mirror", help="Debian archive to use instead of those this host's apt knows.")
@click.option("--again", is_flag=True, help="Prepare it although it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def qemu(executorch: bool, mirror: str | None, again: bool, as_json: bool) -> None:
    """Prepare the arm64 runtimes for `profile --engine qemu`: 60 MB from Debian and PyPI."""
    from edgeshrink.runtimes.arm64.prepare import DEFAULT_RUNTIMES, prepare_root
    from edgeshrink.runtimes.arm64.root import size_bytes

    runtimes = (*DEFAULT_RUNTIMES, *(("executorch",) if executorch else ()))
    with progress(shown=not as_json) as report:
        root = prepare_root(
            runtimes=runtimes, mirror=mirror, again=again,
            progress=lambda share, detail: report("arm64 root", share, detail),
        )  # fmt: skip
    content = {
        "folder": str(root.folder),
        "bytes": size_bytes(root.folder),
        "runtimes": {name: list(pins) for name, pins in root.runtimes.items()},
        "packages": dict(root.packages),
    }
    if as_json:
        print_json(content)
        return
    print(f"{root.folder} ({format_bytes(size_bytes(root.folder))})")
    for name, pins in root.runtimes.items():
        print(f"  {name:<16} {', '.join(pins)}")
    python = root.packages.get("python3.11-minimal", "?")
    print(f"  {'Debian':<16} {len(root.packages)} packages, Python {python}")
    print("next: edgeshrink profile MODEL.tflite --target rpi4 --engine qemu")
