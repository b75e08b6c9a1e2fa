"""Kernels with a fault put into their C text, which the tests must notice."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import Call, Emitted, Lowered, lower
from edgeshrink.lowering.kernel_files import included_headers, kernel_file
from tests.kernels.host import HostModel, lowered_each_way, tflm_outputs


def mutated(lowered: Lowered, old: str, new: str) -> Lowered:
    """The same calls with `old` replaced by `new` in the text of their kernels and headers."""
    steps = []
    for step in lowered.steps:
        calls = tuple(_mutated_call(call, old, new) for call in step.variant.calls)
        steps.append(replace(step, variant=replace(step.variant, calls=calls)))
    return replace(lowered, steps=tuple(steps))


def _mutated_call(call: Call, old: str, new: str) -> Call:
    text = flattened(kernel_file(call.function).read_text("utf-8"))
    assert text.count(old) >= 1, f"{call.function} has no {old!r}"
    return replace(call, emitted=Emitted(text=text.replace(old, new), parameters=""))


def flattened(text: str) -> str:
    """A C text with our headers written out in their place, each once."""
    headers = {name: path.read_text("utf-8") for name, path in included_headers([text]).items()}
    seen: set[str] = set()

    def expand(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen or name not in headers:
            return "" if name in seen else match[0]
        seen.add(name)
        return _INCLUDE.sub(expand, headers[name])

    return _INCLUDE.sub(expand, text)


_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)


def is_killed(data: bytes, inputs: list[np.ndarray], old: str, new: str, *, variant: str) -> bool:
    """Whether the outputs of TensorFlow Lite Micro differ from those of a mutant.

    The unchanged kernel must agree, or the mutant's death would prove nothing.
    """
    expected = tflm_outputs(data, *inputs)
    lowered = lower(read_graph(data), (), optimize="latency")
    lowered = _with_variant(lowered, variant)
    assert _agrees(lowered, inputs, expected)
    return not _agrees(mutated(lowered, old, new), inputs, expected)


def _with_variant(lowered: Lowered, name: str) -> Lowered:
    return dict(lowered_each_way(lowered.graph, ()))[f"op 0 {name}"]


def _agrees(lowered: Lowered, inputs: list[np.ndarray], expected: list[list[np.ndarray]]) -> bool:
    model = HostModel(lowered)
    return all(
        np.array_equal(model.run(*(array[row] for array in inputs))[0].reshape(e[0].shape), e[0])
        for row, e in enumerate(expected)
    )
