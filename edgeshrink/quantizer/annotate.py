"""The int8 quantizer: an annotation for every operator the specification covers, and no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import fx
from torchao.quantization.pt2e.observer import (
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgeshrink.errors import ModelError
from edgeshrink.quantizer.canonical import add_constant, constant_of, layer_of, operand
from edgeshrink.quantizer.joins import fixed_scale
from edgeshrink.quantizer.observers import (
    AnyObserver,
    EntropyObserver,
    MseObserver,
    PercentileObserver,
)
from edgeshrink.quantizer.operators import MICRO_REMEDIES, REMEDIES, RULES, Rule

aten = torch.ops.aten
KEY: Final = "quantization_annotation"
EPSILON: Final = 2.0**-12  # smallest scale

OBSERVERS: Final[dict[str, Any]] = {
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": MseObserver,
    "entropy": EntropyObserver,
    "auto": AnyObserver,
}
# Observers that find the same range however values are batched; torchao's histogram does not.
BATCHABLE: Final = frozenset(OBSERVERS) - {"histogram"}

WEIGHT: Final = {
    axis: QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=EPSILON),
    )
    for axis in (0, 1)
}


def operator_name(target: Any) -> str:
    """Return `softplus` for `aten.softplus.default`."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1].strip("_")
    return getattr(target, "__name__", str(target))


def is_float(value: Any) -> bool:
    """Say whether a node's value is, or holds, a floating-point tensor."""
    if isinstance(value, (tuple, list)):
        return any(is_float(v) for v in value)
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def refuse_unsupported(graph_module: fx.GraphModule, *, micro: bool = False) -> None:
    """Raise ModelError for the first operator that can't be int8, before any conversion starts.

    Args:
        graph_module: In canonical form.
        micro: Whether it is for a microcontroller, which has fewer operators.
    """
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in RULES:
            if micro and not RULES[node.target].micro:
                name = operator_name(node.target)
                raise ModelError(
                    f"layer {layer_of(node)!r}",
                    f"operator {name!r} has no kernel on microcontrollers",
                    MICRO_REMEDIES[name],
                )
            continue
        inputs_float = any(is_float(n.meta.get("val")) for n in node.all_input_nodes)
        if not is_float(node.meta.get("val")) and not inputs_float:
            continue
        name = operator_name(node.target)
        raise ModelError(
            f"layer {layer_of(node)!r}",
            f"operator {name!r} has no int8 form",
            REMEDIES.get(name, "replace it by supported operators (see the table in the README)"),
        )


def scalars_to_constants(graph_module: fx.GraphModule) -> None:
    """Make the number in `x + 1.0` a constant of one element and of x's rank."""
    for node in list(graph_module.graph.nodes):
        if node.target not in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
            continue
        if not is_float(node.meta.get("val")):
            continue
        for position, argument in enumerate(node.args[:2]):
            if isinstance(argument, (int, float)):
                rank = node.meta["val"].dim()
                value = torch.full([1] * rank, float(argument))
                constant = add_constant(graph_module, node, f"{node.name}_constant", value)
                node.update_arg(position, constant)
    graph_module.recompile()


class Int8Quantizer(Quantizer):  # type: ignore[misc]
    """Annotates the whole graph by `RULES`.

    Args:
        observer: How activation ranges are found, a word of `OBSERVERS`.
    """

    # litert-torch asks its quantizer for this one attribute.
    global_config = SimpleNamespace(is_dynamic=False)

    def __init__(self, observer: str = "histogram") -> None:
        super().__init__()
        self.activation = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=OBSERVERS[observer].with_args(eps=EPSILON),
        )

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Make number operands tensors, so that they are quantized too."""
        scalars_to_constants(model)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing is left to check: `annotate` refuses what it has no rule for."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate every float node of the canonical graph; ModelError names one without a rule."""
        refuse_unsupported(model)
        for node in model.graph.nodes:
            if node.op == "placeholder" and is_float(node.meta.get("val")):
                node.meta[KEY] = QuantizationAnnotation(
                    output_qspec=self.activation, _annotated=True
                )
            elif node.op == "call_function" and KEY not in node.meta and is_float(node.meta["val"]):
                is_fixed = fixed_scale(node, lambda n: constant_of(model, n)) is not None
                self._annotate(node, RULES[node.target], is_fixed=is_fixed)
        return model

    def _annotate(self, node: fx.Node, rule: Rule, *, is_fixed: bool) -> None:
        if rule.kind == "weighted":
            source, weight = operand(node, 0), operand(node, 1)
            inputs = {source: self._edge(source), weight: WEIGHT[rule.weight_axis]}
            self._own_output(node, inputs)
        elif rule.kind in ("own", "lookup"):
            inputs = {n: self._edge(n) for n in node.all_input_nodes if is_float(n.meta["val"])}
            if rule.kind == "own":
                self._own_output(node, inputs)
                return
            fixed = FixedQParamsQuantizationSpec(
                dtype=torch.int8,
                scale=rule.scale,
                zero_point=rule.zero_point,
                quant_min=-128,
                quant_max=127,
                qscheme=torch.per_tensor_affine,
            )
            node.meta[KEY] = QuantizationAnnotation(
                input_qspec_map=inputs, output_qspec=fixed, _annotated=True
            )
        else:
            self._share(node, is_fixed=is_fixed)

    def _edge(self, source: fx.Node) -> Any:
        """Read `source` with the scale it was written with; constants get one of their own."""
        return SharedQuantizationSpec(source) if KEY in source.meta else self.activation

    def _own_output(self, node: fx.Node, inputs: dict[Any, Any]) -> None:
        """Give the output its scale, behind a ReLU that can be fused where there is one."""
        users = list(node.users)
        fusable = node.target in FUSES_ACTIVATION and len(users) == 1
        if fusable and RULES.get(users[0].target) == RULES[aten.relu.default]:
            node.meta[KEY] = QuantizationAnnotation(input_qspec_map=inputs, _annotated=True)
            users[0].meta[KEY] = QuantizationAnnotation(
                output_qspec=self.activation, _annotated=True
            )
        else:
            node.meta[KEY] = QuantizationAnnotation(
                input_qspec_map=inputs, output_qspec=self.activation, _annotated=True
            )

    def _share(self, node: fx.Node, *, is_fixed: bool) -> None:
        """Give inputs and output one scale; `is_fixed`: all computed inputs have the same one."""
        sources = [n for n in node.all_input_nodes if is_float(n.meta.get("val"))]
        if is_fixed:
            sources.sort(key=lambda n: n.op == "get_attr")
        first = sources[0]
        shared = SharedQuantizationSpec((first, node))
        joined = len(sources) > 1  # then the scale must cover all of them, not the first alone
        is_own = joined and not is_fixed
        inputs: dict[Any, Any] = {first: self.activation if is_own else self._edge(first)}
        for source in sources[1:]:
            has_scale = is_fixed and source.op != "get_attr"
            inputs[source] = self._edge(source) if has_scale else shared
        node.meta[KEY] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=shared, _annotated=True
        )


FUSES_ACTIVATION: Final = {
    aten.conv2d.default,
    aten.linear.default,
    aten.conv_transpose2d.input,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
}
