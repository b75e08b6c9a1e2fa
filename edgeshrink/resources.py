"""Where the data files of the package are: inside an installed wheel, or in the checkout."""

from __future__ import annotations

from pathlib import Path

from edgeshrink.errors import EdgeshrinkError


def resource_dir(name: str) -> Path:
    """Return the folder `name` (`targets`, `kernels`): the wheel's, else the checkout's."""
    package = Path(__file__).parent
    for candidate in (package / "_data" / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise EdgeshrinkError(
        str(package / "_data" / name), "is missing from the installation", "reinstall edgeshrink"
    )
