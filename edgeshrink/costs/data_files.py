"""Read the files of fitted coefficients, and say what is wrong with one that can't be used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgeshrink.errors import ConfigError

FIX: Final = "restore the file from the package, or write it anew with the benchmark that made it"


def read_data(path: Path, keys: Sequence[str]) -> Mapping[str, Any]:
    """Return the content of a JSON file that is an object with `keys`.

    Raises:
        ConfigError: It can't be read, is no JSON, or lacks a key; with the line where it ends.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(str(path), f"can't be read ({err.strerror})", FIX) from err
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(str(path), f"is no JSON ({err})", FIX) from err
    if not isinstance(found, dict):
        raise ConfigError(str(path), "is no JSON object", FIX)
    missing = [key for key in keys if key not in found]
    if missing:
        raise ConfigError(str(path), f"has no {', '.join(missing)}", FIX)
    return found
