"""Mutated model files through the whole compiler: C, or an error that names place and remedy."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import LOWERINGS, lower
from edgeshrink.passes.check import MOVES
from tests.attacks.mutations import compile_bytes, mutated, seeds

SEEDS = seeds()
N_FAST = 8  # mutations of each seed


@pytest.mark.parametrize("name", SEEDS)
def test_the_unchanged_seed_compiles(name):
    assert compile_bytes(SEEDS[name]) == "compiled"


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_files_compile_or_are_refused_with_place_and_remedy(name):
    for number in range(N_FAST):
        compile_bytes(mutated(SEEDS[name], random.Random(f"{name} {number}")))


@pytest.mark.parametrize("kind", sorted(MOVES & set(LOWERINGS)))
def test_moving_values_between_types_is_refused(kind):
    """Sizes in bytes would differ: the firmware would read or write outside its buffers."""
    names = [n for n, data in SEEDS.items() if kind in {op.kind for op in read_graph(data).ops}]
    graph = read_graph(SEEDS[names[0]])
    op = next(op for op in graph.ops if op.kind == kind)
    tensors = list(graph.tensors)
    tensors[op.outputs[0]] = replace(tensors[op.outputs[0]], dtype="int16")
    graph = replace(graph, tensors=tuple(tensors), ops=(op,), outputs=op.outputs)
    with pytest.raises(ModelError, match=r"operator \d+ [A-Z_0-9]+ v\d+ .*types int16, int8"):
        lower(graph, ())
