"""Joins in a canonical graph: of values with fixed scales, and of more values than a kernel takes.

A join (`cat`, `maximum`, `minimum`) stores its inputs and its output with one scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import fx

from edgeshrink.quantizer.operators import RULES, Rule

aten = torch.ops.aten
MOST_INPUTS: Final = 10  # of TensorFlow Lite Micro's CONCATENATION
_LEAST, _MOST = -128, 127

Fixed = tuple[float, int]  # scale, zero point
Constant = Callable[[fx.Node], torch.Tensor | None]


def sources_of(node: fx.Node) -> list[fx.Node]:
    """Return the float values that a node reads."""
    found = []
    for source in node.all_input_nodes:
        value = source.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype.is_floating_point:
            found.append(source)
    return found


def fixed_scale(node: fx.Node, constant: Constant) -> Fixed | None:
    """Return the scale and zero point that the specification fixes for `node`; None: no such."""
    rule = _rule(node)
    if rule is None or rule.kind in ("weighted", "own"):
        return None
    if rule.kind == "lookup":
        return rule.scale, rule.zero_point
    computed = [n for n in sources_of(node) if n.op != "get_attr"]
    scales = {fixed_scale(n, constant) for n in computed}
    scale = scales.pop() if len(scales) == 1 else None
    if scale is None:
        return None
    constants = [constant(n) for n in sources_of(node) if n.op == "get_attr"]
    return scale if all(c is not None and _holds(scale, c) for c in constants) else None


def _rule(node: fx.Node) -> Rule | None:
    return RULES.get(node.target) if node.op == "call_function" else None


def _holds(scale: Fixed, values: torch.Tensor) -> bool:
    step, zero = scale
    low, high = (_LEAST - zero - 0.5) * step, (_MOST - zero + 1) * step
    return bool((values >= low).all() and (values <= high).all())


def requantize(graph_module: fx.GraphModule, constant: Constant) -> None:
    """Multiply what has a fixed scale by 1 before a join with values of other scales, in place.

    The product has a scale of its own, which the join can share.
    """
    for node in list(graph_module.graph.nodes):
        rule = _rule(node)
        if rule is None or rule.kind != "join" or fixed_scale(node, constant) is not None:
            continue
        if len(sources_of(node)) < 2:
            continue
        for source in sources_of(node):
            if source.op == "get_attr" or fixed_scale(source, constant) is None:
                continue
            with graph_module.graph.inserting_before(node):
                product = graph_module.graph.call_function(aten.mul.Tensor, (source, 1.0))
            product.meta = {**node.meta, "val": source.meta["val"]}
            node.replace_input_with(source, product)


def _axis(cat: fx.Node) -> int:
    axis = int(cat.args[1]) if len(cat.args) > 1 else 0  # type: ignore[arg-type]
    return axis % int(cat.meta["val"].dim())


def split_long(graph_module: fx.GraphModule) -> None:
    """Write a `cat` of more than `MOST_INPUTS` as a tree of such that take no more, in place."""
    for node in list(graph_module.graph.nodes):
        if node.target != aten.cat.default:
            continue
        given: Any = node.args[0]
        parts: list[fx.Node] = list(given)
        axis = _axis(node)
        while len(parts) > MOST_INPUTS:
            made: list[fx.Node] = []
            while parts and len(made) + len(parts) > MOST_INPUTS:
                count = min(MOST_INPUTS, len(made) + len(parts) - MOST_INPUTS + 1)
                made.append(_cat(node, parts[:count], axis))
                parts = parts[count:]
            parts = made + parts
        node.args = (parts, *node.args[1:])


def _cat(before: fx.Node, parts: list[fx.Node], axis: int) -> fx.Node:
    if len(parts) == 1:
        return parts[0]
    with before.graph.inserting_before(before):
        new = before.graph.call_function(aten.cat.default, (parts, axis))
    value: Any = torch.cat([n.meta["val"] for n in parts], axis)
    new.meta = {**before.meta, "val": value}
    return new
