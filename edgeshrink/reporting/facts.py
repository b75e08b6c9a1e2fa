"""Everything that a report draws on, read from an artifact's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgeshrink.artifact import Artifact
from edgeshrink.errors import ConfigError
from edgeshrink.profile import Figure

REPORT: Final = "report.html"
MODEL_CARD: Final = "MODEL_CARD.md"
PARETO: Final = "pareto.json"
PROFILE: Final = "profile.json"
AUDIT: Final = "audit.json"
# What a limit of the budget counts against, in the order in which they are shown.
LIMITS: Final = {
    "flash_bytes": "flash_bytes", "ram_bytes": "ram_bytes", "latency_ms": "latency_ms",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """An artifact with what its documents say; `pareto` is None where nothing was searched."""

    artifact: Artifact
    figures: Mapping[str, Figure]
    profile: Mapping[str, Any]
    audit: Mapping[str, Any]
    pareto: Mapping[str, Any] | None = None

    @property
    def limits(self) -> Mapping[str, float]:
        """Limits of the budget, under the names of the figures."""
        found: Mapping[str, float] = self.audit.get("budget", {})
        return found


def read_facts(artifact: Artifact) -> Facts:
    """Read the documents of an artifact.

    Raises:
        ConfigError: One of them is missing or damaged.
    """
    profile, audit = _read(artifact, PROFILE), _read(artifact, AUDIT)
    try:
        figures = {name: Figure(**content) for name, content in profile["figures"].items()}
    except (KeyError, TypeError, AttributeError) as err:
        raise _damaged(artifact, PROFILE, str(err)) from err
    has_search = artifact.path(PARETO).is_file()
    return Facts(
        artifact=artifact, figures=figures, profile=profile, audit=audit,
        pareto=_read(artifact, PARETO) if has_search else None,
    )  # fmt: skip


def _read(artifact: Artifact, name: str) -> Mapping[str, Any]:
    try:
        content = json.loads(artifact.path(name).read_bytes())
    except OSError as err:
        fault = f"can't be read ({err.strerror or err})"
        raise ConfigError(str(artifact.path(name)), fault, "build the artifact again") from err
    except (ValueError, RecursionError) as err:
        raise _damaged(artifact, name, str(err)) from err
    if not isinstance(content, dict):
        raise _damaged(artifact, name, "no object")
    return content


def _damaged(artifact: Artifact, name: str, reason: str) -> ConfigError:
    return ConfigError(str(artifact.path(name)), f"is damaged ({reason})", "build it again")
