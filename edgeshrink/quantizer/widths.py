"""Which activations are stored in 16 bits, and how a file that holds them is asked for.

Int16x8: symmetric int16 activations, symmetric int8 weights per channel, int64 bias (TFLite's
specification). An operator has one width for all its activations, so what is chosen are values:
operators that write or read a value of 16 bits compute in 16 bits.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.observer import ObserverBase, PerChannelMinMaxObserver

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.quantizer.annotate import operator_name
from edgeshrink.quantizer.canonical import constant_of, layer_of, operand
from edgeshrink.quantizer.fake_quantize import (
    FakeQuantize,
    bias_of,
    fake_quantizers,
    quantizer_of,
    weighted_nodes,
)
from edgeshrink.quantizer.operators import RULES, Engines
from edgeshrink.quiet import quiet

aten = torch.ops.aten
MOST_BIAS: Final = 2.0**31 - 1  # of a bias on its way through a converter that stores int32


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """Activations that are stored with one scale.

    Attributes:
        store: What observes them, or quantizes them in a frozen graph.
        layer: The layer that makes them, by its path; of several that share the scale, the first.
        names: All layers that make or pass them on, and names of model inputs.
        blocker: Operator and layer that write or read them and have no int16 form, if there is one.
    """

    store: ObserverBase
    layer: str
    names: frozenset[str]
    blocker: tuple[str, str] | None

    @property
    def quantizer(self) -> FakeQuantize:
        """What quantizes them, in a frozen graph."""
        assert isinstance(self.store, FakeQuantize)
        return self.store


@dataclass(frozen=True, kw_only=True)
class Wide:
    """What a pass needs to know about a file in which values of 16 bits are marked by their scale.

    Attributes:
        scales: Scale (as a float32) and zero point that stand for a value of 16 bits in the file,
            and the scale that it has.
        constants: Numbers that are stored with such a scale, in the order in which they are read.
    """

    scales: Mapping[tuple[float, int], float]
    constants: tuple[np.ndarray[Any, Any], ...]


def values_of(prepared: fx.GraphModule, engines: Container[Engines]) -> tuple[Value, ...]:
    """Return every value that is stored with a scale, in the order of the graph.

    Constants that have a scale of their own are none: they are weights.

    Args:
        prepared: From `prepare`, frozen or not.
        engines: Whose kernels of 16 bits the target can use.
    """
    nodes: dict[ObserverBase, list[fx.Node]] = {}
    for node in prepared.graph.nodes:
        module = _store(prepared, node)
        if module is not None:
            nodes.setdefault(module, []).append(node)
    order = {node: position for position, node in enumerate(prepared.graph.nodes)}
    found = []
    for module, places in nodes.items():
        makers = [n for place in places for n in _makers(operand(place, 0))]
        if not makers:
            continue
        readers = [n for place in places for n in _readers(place)]
        blocked = [
            n
            for n in (*makers, *readers)
            if n.target in RULES and RULES[n.target].wide not in engines
        ]
        first = min(makers, key=lambda n: order[n])
        blocker = None
        if blocked:
            blocker = (operator_name(blocked[0].target), layer_of(blocked[0]))
        found.append(
            Value(
                store=module,
                layer=_name(first),
                names=frozenset(_name(n) for n in makers),
                blocker=blocker,
            )
        )
    return tuple(found)


def _store(prepared: fx.GraphModule, node: fx.Node) -> ObserverBase | None:
    """Return what observes or quantizes activations in `node`; None where it does neither."""
    module = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, FakeQuantize) and module.is_weight:
        return None
    is_one = isinstance(module, ObserverBase) and not isinstance(module, PerChannelMinMaxObserver)
    return module if is_one else None


def _name(node: fx.Node) -> str:
    """Return a layer's path; of a model's input the name that its `forward` has for it."""
    return str(node.target) if node.op == "placeholder" else layer_of(node)


def _makers(node: fx.Node) -> list[fx.Node]:
    """Return `node` and what it is fused with; nothing for a constant."""
    if node.op == "get_attr":
        return []
    found = [node]
    if node.op == "call_function":
        for source in node.all_input_nodes:
            if source.op == "call_function":  # not stored in between
                found += _makers(source)
    return found


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.op == "call_function":
            yield user
            yield from _readers(user)


def named_values(values: Sequence[Value], names: Iterable[str], where: str) -> list[Value]:
    """Return the values that layers make; ConfigError for a name that is none, with the nearest."""
    known = sorted({name for value in values for name in value.names})
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            fix = f"did you mean {near[0]!r}?" if near else "the model has no layer to name"
            raise ConfigError(where, f"{name!r} is no layer that is quantized", fix)
    asked = set(names)
    return [value for value in values if value.names & asked]


def asked_values(
    values: Sequence[Value], activations: str, int16: Iterable[str], int8: Iterable[str]
) -> tuple[list[Value], list[Value]]:
    """Return the values that are int16 in any case, and those that are int8.

    Args:
        values: From `values_of`.
        activations: `int16`: all that `int8` does not name.
        int16, int8: Layers by their path, model inputs by their name.

    Raises:
        ConfigError: a name that no layer has.
        ModelError: an operator that writes or reads a value of int16 has no kernel for it.
    """
    wide = named_values(values, int16, "recipe step 'quantize': int16")
    narrow = named_values(values, int8, "recipe step 'quantize': int8")
    if activations == "int16":
        wide = [value for value in values if value not in narrow or value in wide]
    for value in wide:
        if value.blocker is not None:
            name, layer = value.blocker
            raise ModelError(
                f"layer {layer!r}",
                f"operator {name!r} has no int16 form here, and what {value.layer!r} gives is to "
                "be int16",
                f'add int8 = ["{value.layer}"] to the recipe, or say activations = "auto"',
            )
    return wide, narrow


def widen(values: Iterable[Value]) -> None:
    """Store values in 16 bits."""
    for value in values:
        value.quantizer.widen()


def wide_quantizers(frozen: fx.GraphModule) -> list[FakeQuantize]:
    """Return what stores 16 bits."""
    return [m for m in fake_quantizers(frozen).values() if m.is_wide]


def tell_apart(frozen: fx.GraphModule) -> Wide:
    """Give values of 16 bits scales that no other value has, in place; return what they stand for.

    They move by the last bit, and up to where the converter's int32 holds all biases.
    """
    _bound_biases(frozen)
    wide = wide_quantizers(frozen)
    taken = {_key(m) for m in fake_quantizers(frozen).values() if not m.is_wide and not m.is_weight}
    for module in wide:
        while _key(module) in taken:
            module.scale.copy_(torch.nextafter(module.scale, torch.full_like(module.scale, 1e9)))
    return Wide(
        scales={_key(module): float(module.scale) for module in wide},
        constants=tuple(_wide_constants(frozen)),
    )


def marked_int8(frozen: fx.GraphModule) -> fx.GraphModule:
    """Return a copy that is int8 throughout, in which scales tell what is to be 16 bits wide.

    Converters know int8 graphs; `exporting.widen_file` makes of their file what was meant.
    """
    with quiet():
        marked = copy.deepcopy(frozen)
    for module in wide_quantizers(marked):
        module.dtype, module.qscheme = torch.int8, torch.per_tensor_affine
        module.quant_min, module.quant_max = -128, 127
    return marked


def _key(module: FakeQuantize) -> tuple[float, int]:
    return float(module.scale.reshape(-1)[0]), int(module.zero_point.reshape(-1)[0])


def _bound_biases(frozen: fx.GraphModule) -> None:
    """Make scales that biases are stored by large enough for the converter's int32."""
    for node in weighted_nodes(frozen):
        source, weight = quantizer_of(frozen, node.args[0]), quantizer_of(frozen, node.args[1])
        bias = constant_of(frozen, bias_of(node))
        if source is None or weight is None or bias is None or not source.is_wide:
            continue
        if weight.scale.numel() == bias.numel():
            least = float((bias.abs() / weight.scale).max()) / MOST_BIAS
            source.scale.clamp_(min=least)


def _wide_constants(frozen: fx.GraphModule) -> Iterator[np.ndarray[Any, Any]]:
    """Yield what operators read as constants of 16 bits, as codes, in the order of the graph."""
    for node in frozen.graph.nodes:
        if node.op != "call_function":
            continue
        fill = _fill(node)
        if fill:
            module = quantizer_of(frozen, node.args[0])
            if module is not None and module.is_wide:
                yield _codes(torch.tensor([fill]), module)
            continue
        for source in node.all_input_nodes:
            module = quantizer_of(frozen, source)
            if module is None or not module.is_wide:
                continue
            value = constant_of(frozen, operand(source, 0))
            if value is not None:
                yield _codes(value, module)


def _fill(node: fx.Node) -> float:
    """Return what an operator fills borders with that a file has to name; 0 for nothing."""
    if node.target == aten.constant_pad_nd.default and len(node.args) > 2:
        return float(node.args[2])  # type: ignore[arg-type]
    if node.target == aten.max_pool2d.default and len(node.args) > 3:
        padding = node.args[3]
        is_padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
        return -math.inf if is_padded else 0.0
    return 0.0


def _codes(value: Tensor, module: FakeQuantize) -> np.ndarray[Any, Any]:
    codes = torch.round(value.detach().double() / float(module.scale))
    return codes.clamp(module.quant_min, module.quant_max).numpy().astype(np.int16)
