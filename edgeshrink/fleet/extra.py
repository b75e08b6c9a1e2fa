"""The libraries that a fleet needs, or the line that installs them."""

from __future__ import annotations

import importlib.util

from edgeshrink.errors import ToolchainError


def require_fleet(extra: str = "fleet", *more: str) -> None:
    """Raise ToolchainError unless tuf and cryptography are installed.

    Args:
        extra: The extra to install: `fleet` to publish, `device` to run what is published.
        more: Other modules of that extra that are needed.
    """
    for module in ("tuf", "securesystemslib", "cryptography", "urllib3", *more):
        if importlib.util.find_spec(module) is None:
            fix = f"python -m pip install 'edgeshrink[{extra}]'"
            raise ToolchainError(module, "is not installed", fix)
