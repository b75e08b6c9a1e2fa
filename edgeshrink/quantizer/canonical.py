"""A traced float model in canonical form: functional, folded, one spelling per operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from edgeshrink.errors import ModelError
from edgeshrink.quantizer.decompositions import decomposition_table
from edgeshrink.quantizer.joins import requantize, split_long
from edgeshrink.quiet import quiet

aten = torch.ops.aten

# What PyTorch and the converters on top of it raise when a model does not suit them.
TORCH_ERRORS: Final = (
    torch._dynamo.exc.TorchDynamoException,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
    IndexError,
    AssertionError,
    NotImplementedError,
)

IDENTITIES: Final = {
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
}
VIEWS: Final = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze_.dim,
    aten.unsqueeze.default,
}


def layer_of(node: fx.Node) -> str:
    """Return the path of the user's module that made `node` (`features.3.conv`), or its name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [value[0] for value in stack.values() if value[0]]
    return str(paths[-1]) if paths else node.name


def trace(model: torch.nn.Module, example_inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """Trace `model` in eval mode; ModelError if that fails."""
    name = type(model).__name__
    try:
        with quiet():  # it logs the graph of what it can't trace
            return torch.export.export(model.eval(), example_inputs)
    except TORCH_ERRORS as err:
        reason = str(err).strip().splitlines()[0][:300] if str(err).strip() else type(err).__name__
        fix = "write the branch with tensor operations or make its condition a constant; "
        dynamic = "data-dependent" in str(err) or "GuardOnDataDependent" in type(err).__name__
        raise ModelError(
            f"model {name}",
            f"can't be traced by torch.export ({type(err).__name__}: {reason})",
            (fix if dynamic else "") + "torch.export.export(model, example_inputs) must succeed",
        ) from err


def canonical_program(
    model: torch.nn.Module | ExportedProgram, example_inputs: tuple[Tensor, ...]
) -> fx.GraphModule:
    """Return `model` as a functional ATen graph in which every operation has one spelling.

    Dropout and copies are gone, batch norms folded, 1-D convolutions and pools written in 2-D,
    global means and pools as `adaptive_avg_pool2d`, recurrent layers unrolled, attention and norms
    written out, constants folded, joins such as every engine can store. Outputs equal the model's
    up to float rounding.

    Args:
        model: A module, or a program that `torch.export.export` made.
        example_inputs: One tensor per input, batch of 1, contiguous (N, C, ...).

    Raises:
        ModelError: the model can't be traced.
    """
    program = model if isinstance(model, ExportedProgram) else trace(model, example_inputs)
    with quiet():
        functional = program.run_decompositions(decomposition_table())
        graph_module: fx.GraphModule = functional.module(check_guards=False)
        for apply in PASSES:
            apply(graph_module)
            graph_module.graph.eliminate_dead_code()
            graph_module.recompile()
        _drop_unused_state(graph_module)
        propagate_shapes(graph_module, example_inputs)
        _cancel_views(graph_module)
        _settle_joins(graph_module)
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
    return graph_module


def propagate_shapes(graph_module: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    """Fill `meta["val"]` of every node from `example_inputs`."""
    FakeTensorProp(graph_module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(
        *example_inputs
    )


def operand(node: fx.Node, position: int) -> fx.Node:
    """Return the argument of `node` at `position`, which is a node."""
    value = node.args[position]
    assert isinstance(value, fx.Node)
    return value


def constant_of(graph_module: fx.GraphModule, node: Any) -> Tensor | None:
    """Return the tensor that a `get_attr` node holds; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner: Any = graph_module
    for part in str(node.target).split("."):
        owner = getattr(owner, part)
    return owner.detach() if isinstance(owner, Tensor) else None


def add_constant(
    graph_module: fx.GraphModule, before: fx.Node, name: str, value: Tensor
) -> fx.Node:
    """Register `value` under a free name; return its `get_attr` node, put before `before`."""
    base = name.replace(".", "_")
    free, count = base, 0
    while hasattr(graph_module, free):
        count += 1
        free = f"{base}_{count}"
    graph_module.register_buffer(free, value.detach().clone().contiguous())
    with graph_module.graph.inserting_before(before):
        node = graph_module.graph.get_attr(free)
    node.meta["val"] = value
    return node


def own_constants(graph_module: fx.GraphModule) -> None:
    """Copy every constant, in place: a trace shares them with the model that it was made from."""
    copies: dict[int, Tensor] = {}  # by what they are of: shared ones stay shared
    done: set[str] = set()
    for node in graph_module.graph.nodes:
        path = str(node.target)
        if node.op != "get_attr" or path in done or constant_of(graph_module, node) is None:
            continue
        done.add(path)
        owner_path, _, leaf = path.rpartition(".")
        owner = graph_module.get_submodule(owner_path)
        held = getattr(owner, leaf)
        if id(held) not in copies:
            value = held.detach().clone()
            is_parameter = isinstance(held, torch.nn.Parameter)
            copies[id(held)] = (
                torch.nn.Parameter(value, held.requires_grad) if is_parameter else value
            )
        setattr(owner, leaf, copies[id(held)])


def add_biases(graph_module: fx.GraphModule) -> None:
    """Give convolutions and linear layers that have none a bias of 0, in place."""
    for node in graph_module.graph.nodes:
        if node.target not in _WEIGHTED or (len(node.args) > 2 and node.args[2] is not None):
            continue
        value = node.meta["val"]
        n_channels = value.shape[-1 if node.target == aten.linear.default else 1]
        zeros = torch.zeros(n_channels, dtype=value.dtype)
        bias = add_constant(graph_module, node, f"{node.name}_bias", zeros)
        node.args = (*node.args[:2], bias, *node.args[3:])
    graph_module.recompile()


def _replace(node: fx.Node, new: fx.Node) -> None:
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _remove_identities(graph_module: fx.GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        same_type = node.target == aten._to_copy.default and (
            node.meta["val"].dtype == node.args[0].meta["val"].dtype
        )
        no_growth = node.target == aten.expand.default and (
            node.meta["val"].shape == node.args[0].meta["val"].shape
        )
        if node.target in IDENTITIES or same_type or no_growth:
            _replace(node, node.args[0])


def _reshape_only(graph_module: fx.GraphModule) -> None:
    """Write every operator that keeps the order of the elements as `reshape` to a fixed shape."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in VIEWS:
            node.target = aten.reshape.default
            node.args, node.kwargs = (node.args[0], list(node.meta["val"].shape)), {}


def _fold_constants(graph_module: fx.GraphModule) -> None:
    """Evaluate what depends on constants alone."""
    with torch.no_grad():
        for node in list(graph_module.graph.nodes):
            if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
                continue
            constants = {n: constant_of(graph_module, n) for n in node.all_input_nodes}
            if any(value is None for value in constants.values()):
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), constants.__getitem__)
            value = node.target(*args, **kwargs)
            if isinstance(value, Tensor):
                _replace(node, add_constant(graph_module, node, node.name, value))


def _fold_batch_norms(graph_module: fx.GraphModule) -> None:
    """Fold each batch norm into the layer before it, or make it a 1x1 depthwise convolution."""
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or node.target not in (
            aten._native_batch_norm_legit_no_training.default,
            aten.batch_norm.default,
        ):
            continue
        x, weight, bias, mean, variance = (
            node.args[0],
            *(constant_of(graph_module, a) for a in node.args[1:5]),
        )
        eps = node.args[6] if node.target != aten.batch_norm.default else node.args[7]
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance.double() + eps)  # (channels,)
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale + (0 if bias is None else bias.double())
        result = node
        if node.target != aten.batch_norm.default:
            result = next(u for u in node.users if u.target is operator.getitem and u.args[1] == 0)
        if not _fold_into_producer(graph_module, x, scale, shift):
            _replace(result, _affine(graph_module, result, x, scale, shift))
        else:
            _replace(result, x)
        graph_module.graph.eliminate_dead_code()  # else `x` has a reader too many for the next one


_WEIGHTED: Final = {
    aten.conv2d.default: 0,
    aten.linear.default: 0,
    aten.conv_transpose2d.input: 1,
}  # operator -> axis of the output channels in its weight


def _keeps_order(node: fx.Node) -> bool:
    """Say whether `node` only reshapes (conv1d leaves that behind) or crops positions."""
    if node.target == aten.slice.Tensor:
        axis = node.args[1]
        return isinstance(axis, int) and axis >= 2
    return node.target in VIEWS


def _keeps_channels(node: fx.Node) -> bool:
    """Say whether axis 1 of `node`'s result is axis 1 of its input."""
    if not _keeps_order(node):
        return False
    before, after = operand(node, 0).meta["val"].shape, node.meta["val"].shape
    return bool(min(len(before), len(after)) >= 2 and before[:2] == after[:2])


def _fold_into_producer(
    graph_module: fx.GraphModule, producer: fx.Node, scale: Tensor, shift: Tensor
) -> bool:
    views = []
    while len(producer.users) == 1 and _keeps_channels(producer):
        views.append(producer)
        producer = operand(producer, 0)
    if producer.target not in _WEIGHTED or len(producer.users) != 1:
        return False
    if producer.target == aten.linear.default and (views or producer.meta["val"].dim() != 2):
        return False
    weight = constant_of(graph_module, producer.args[1])
    bias = constant_of(graph_module, producer.args[2]) if len(producer.args) > 2 else None
    if weight is None or (len(producer.args) > 2 and producer.args[2] is not None and bias is None):
        return False
    axis = _WEIGHTED[producer.target]
    if axis == 1 and len(producer.args) > 6 and producer.args[6] != 1:
        return False  # grouped transposed convolutions interleave their output channels
    shape = [-1 if d == axis else 1 for d in range(weight.dim())]
    folded = (weight.double() * scale.reshape(shape)).to(weight.dtype)
    offset = shift if bias is None else bias.double() * scale + shift
    new_weight = add_constant(graph_module, producer, f"{producer.name}_weight", folded)
    new_bias = add_constant(
        graph_module, producer, f"{producer.name}_bias", offset.to(weight.dtype)
    )
    rest = producer.args[3:]
    producer.args = (producer.args[0], new_weight, new_bias, *rest)
    return True


def _affine(
    graph_module: fx.GraphModule, before: fx.Node, x: fx.Node, scale: Tensor, shift: Tensor
) -> fx.Node:
    """Return `x * scale + shift` per channel: a 1x1 depthwise convolution, or mul and add."""
    dims = x.meta["val"].dim()
    dtype = x.meta["val"].dtype
    graph, channels = graph_module.graph, scale.numel()
    shape = [channels, 1, 1, 1] if dims == 4 else [1, channels, *[1] * (dims - 2)]
    weight = add_constant(graph_module, before, "norm_scale", scale.reshape(shape).to(dtype))
    offset = shift if dims == 4 else shift.reshape(shape)
    bias = add_constant(graph_module, before, "norm_shift", offset.to(dtype))
    with graph.inserting_before(before):
        if dims == 4:
            args = (x, weight, bias, [1, 1], [0, 0], [1, 1], channels)
            new = graph.call_function(aten.conv2d.default, args)
        else:
            scaled = graph.call_function(aten.mul.Tensor, (x, weight))
            scaled.meta = dict(before.meta)
            new = graph.call_function(aten.add.Tensor, (scaled, bias))
    new.meta = dict(before.meta)
    return new


def _cancel_views(graph_module: fx.GraphModule) -> None:
    """Drop reshapes that change nothing, alone or in a row (as 1-D layers leave them)."""
    for node in list(graph_module.graph.nodes):
        if node.target not in VIEWS:
            continue
        source = node.args[0]
        while source.target in VIEWS:
            source = source.args[0]
        if source.meta["val"].shape == node.meta["val"].shape:
            _replace(node, source)
        elif source is not node.args[0]:
            with graph_module.graph.inserting_before(node):
                shape = list(node.meta["val"].shape)
                new = graph_module.graph.call_function(aten.reshape.default, (source, shape))
            new.meta = dict(node.meta)
            _replace(node, new)


def _settle_joins(graph_module: fx.GraphModule) -> None:
    requantize(graph_module, lambda node: constant_of(graph_module, node))
    split_long(graph_module)


def _lift_elementwise_over_views(graph_module: fx.GraphModule) -> None:
    """Write `relu(view(conv(x)))` as `view(relu(conv(x)))`, so that the activation can be fused."""
    for node in list(graph_module.graph.nodes):
        if node.target not in (aten.relu.default, aten.relu6.default):
            continue
        chain, source = [], node.args[0]
        while _keeps_order(source) and len(source.users) == 1:
            chain.append(source)
            source = source.args[0]
        if not chain or source.target not in _WEIGHTED:
            continue
        first_view = chain[-1]
        with graph_module.graph.inserting_before(first_view):
            lifted = graph_module.graph.call_function(node.target, (source,))
        lifted.meta = {**node.meta, "val": source.meta["val"]}
        first_view.replace_input_with(source, lifted)
        _replace(node, chain[0])


def _drop_unused_state(graph_module: fx.GraphModule) -> None:
    """Remove parameters and buffers that no node reads (folded batch norms)."""
    used = {str(n.target) for n in graph_module.graph.nodes if n.op == "get_attr"}
    for name, _ in [*graph_module.named_parameters(), *graph_module.named_buffers()]:
        if name in used:
            continue
        owner_path, _, leaf = name.rpartition(".")
        delattr(graph_module.get_submodule(owner_path), leaf)


PASSES: Final[tuple[Callable[[fx.GraphModule], None], ...]] = (
    _remove_identities,
    _reshape_only,
    _fold_constants,
    _fold_batch_norms,
    _lift_elementwise_over_views,
)
