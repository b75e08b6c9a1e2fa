"""C text for values: arrays, structs, literals."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

C_TYPES: Final = {
    "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t",
    "int32": "int32_t", "uint32": "uint32_t", "int64": "int64_t", "float32": "float",
    "bool": "uint8_t",
}  # fmt: skip


def c_type(dtype: Any) -> str:
    """Return the C type of a numpy dtype or of its name."""
    return C_TYPES[np.dtype(dtype).name]


def literal(value: Any, dtype: Any) -> str:
    """Return one value as a C literal of its type, exactly."""
    kind = np.dtype(dtype)
    if kind == np.float32:
        text = f"{float(value):.9g}"
        return text + ("f" if any(c in text for c in ".en") else ".0f")
    number = int(value)
    if kind == np.int32 and number == -(2**31):
        return "INT32_MIN"
    if kind == np.int64:
        return "INT64_MIN" if number == -(2**63) else f"INT64_C({number})"
    return str(number)


def wrapped(items: Iterable[str]) -> str:
    """Return comma-separated items in lines of at most 100 columns, indented by two."""
    text = ", ".join(items)
    return textwrap.fill(
        text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


def array(name: str, values: npt.NDArray[Any], *, align: int, storage: str = "") -> str:
    """Return the definition of a constant array; an empty one gets a single unused element."""
    flat = np.asarray(values).reshape(-1)
    if not flat.size:
        flat = np.zeros(1, flat.dtype)
    kind = c_type(flat.dtype)
    body = wrapped(literal(v, flat.dtype) for v in flat.tolist())
    return f"ES_ALIGN({align}) {storage}const {kind} {name}[{flat.size}] = {{\n{body}}};\n"


def comment(text: str) -> str:
    """Return text that can neither end a C comment nor seem to start one, in one line."""
    spaced = "".join(c if c.isprintable() else " " for c in text)
    while "*/" in spaced or "/*" in spaced:
        spaced = spaced.replace("*/", "* /").replace("/*", "/ *")
    return spaced
