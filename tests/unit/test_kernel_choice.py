"""Which kernels the plans choose, on variants made up for it."""

from __future__ import annotations

import numpy as np

from edgeshrink.graph import Graph
from edgeshrink.lowering import Call, ConstArg, Variant, kernel_folders
from edgeshrink.lowering.lower import CYCLES_PER_BYTE, _choose

GRAPH = Graph(name="none", tensors=(), ops=(), inputs=(), outputs=())


def variant(function: str, code_bytes: int, cycles_in_bytes: int) -> Variant:
    return Variant(
        name=function,
        calls=(Call(function=function, args=()),),
        cycles=cycles_in_bytes * CYCLES_PER_BYTE,
        code_bytes=code_bytes,
    )


def chosen(n_layers: int, *variants: Variant) -> list[str]:
    # Each layer has variants of its own, as lowering makes them.
    options = {i: tuple(variant(v.name, v.code_bytes, round(v.cycles / CYCLES_PER_BYTE))
                        for v in variants) for i in range(n_layers)}  # fmt: skip
    return [v.name for v in _choose(options, "flash", GRAPH).values()]


SMALL, FAST = variant("small", 600, 500), variant("fast", 900, 150)


def test_one_layer_takes_the_smaller_kernel_where_speed_does_not_pay_for_the_faster():
    assert chosen(1, SMALL, variant("fast", 900, 250)) == ["small"]


def test_layers_change_together_to_a_kernel_that_only_pays_when_it_replaces_the_other():
    # A layer alone would add 900 bytes to save 350; three together replace 600 and save 1050.
    assert chosen(3, SMALL, FAST) == ["fast"] * 3
    assert chosen(3, FAST, SMALL) == ["fast"] * 3


def test_with_many_layers_speed_outweighs_the_size_of_code():
    assert set(chosen(9, SMALL, FAST, variant("rare", 100, 700))) == {"fast"}


def test_a_constant_that_layers_share_is_paid_once():
    one = ConstArg(name="weights", values=np.zeros(1000, np.int8))
    own = [ConstArg(name="weights", values=np.full(400, n, np.int8)) for n in range(3)]

    def reading(name: str, arg: ConstArg) -> Variant:
        return Variant(name=name, calls=(Call(function="dense", args=(arg,)),), code_bytes=100)

    options = {i: (reading("own", own[i]), reading("shared", one)) for i in range(3)}
    assert {v.name for v in _choose(options, "flash", GRAPH).values()} == {"shared"}
    del options[2]
    assert {v.name for v in _choose(options, "flash", GRAPH).values()} == {"own"}


def test_cores_with_simd_get_no_kernels_of_cores_without():
    assert kernel_folders(("dsp", "fpu", "mul")) == ("dsp", "ref")
    assert kernel_folders(("mul",)) == ("scalar", "ref")
    assert kernel_folders(()) == ("ref",)
