"""The kernels' files: where a function is defined, and which headers it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from edgeshrink.errors import EdgeshrinkError
from edgeshrink.resources import resource_dir

_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


@cache
def kernel_file(function: str) -> Path:
    """Return the file that defines a kernel: `dsp/es_conv_s8__dsp.c` for `es_conv_s8__dsp`."""
    isa = function.rpartition("__")[2]
    path = resource_dir("kernels") / isa / f"{function}.c"
    if not path.is_file():
        raise EdgeshrinkError(str(path), "is missing from the installation", "reinstall edgeshrink")
    return path


def included_headers(texts: Iterable[str]) -> Mapping[str, Path]:
    """Return name -> path of every header of ours that the C texts include, indirectly too."""
    folder = resource_dir("kernels") / "include"
    found: dict[str, Path] = {}
    waiting = [name for text in texts for name in _INCLUDE.findall(text)]
    while waiting:
        name = waiting.pop()
        path = folder / name
        if name not in found and path.is_file():
            found[name] = path
            waiting += _INCLUDE.findall(path.read_text("utf-8"))
    return dict(sorted(found.items()))
