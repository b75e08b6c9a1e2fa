"""Quantization-aware training: a graph that trains with the numbers it will be exported with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgeshrink.quantizer.annotate import BATCHABLE, Int8Quantizer
from edgeshrink.quantizer.batching import free_batch, joined
from edgeshrink.quantizer.canonical import canonical_program, constant_of, operand, own_constants
from edgeshrink.quantizer.fake_quantize import (
    bias_of,
    bound_mean_scales,
    fake_quantizers,
    freeze,
    quantizer_of,
    snap_constants,
    weighted_nodes,
)
from edgeshrink.quantizer.quantize import Quantized, calibrate, convert, prepare
from edgeshrink.quiet import quiet

LEAST_VARIANCE: Final = 1e-24  # its root's slope is still a float32, and far below any step
N_OBSERVATIONS: Final = 8  # of activation ranges, were they never frozen


class GraphModel(nn.Module):
    """A graph as a module: any batch, the user's structure of outputs, nothing to train."""

    def __init__(self, body: fx.GraphModule, *, any_batch: bool) -> None:
        super().__init__()
        self.body, self.any_batch = body, any_batch
        self.requires_grad_(False)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Return the outputs for a batch."""
        return _run(self.body, inputs, any_batch=self.any_batch)


class QuantizedModel(GraphModel):
    """A quantized graph as a module.

    It computes what `quantized.folded` computes, bit for bit, and faster.
    """

    def __init__(self, body: fx.GraphModule, *, any_batch: bool, quantized: Quantized) -> None:
        super().__init__(body, any_batch=any_batch)
        self._quantized = (quantized,)  # a tuple: its graphs are no submodules

    @property
    def quantized(self) -> Quantized:
        """The quantization, as `exporting.export` takes it."""
        return self._quantized[0]


class TrainableQuantized(nn.Module):
    """A canonical graph with fake quantization where the converted graph quantizes.

    It is annotated, observed, rounded and folded by the code that post-training quantization goes
    through, and so is that quantization as long as nothing was trained. What it is converted to
    computes the same bit for bit, but for biases: they are rounded to their int32 at the end, which
    moves few outputs, and those by one step.

    Batch norms are folded before the training, not during it. The folded graph is what a device
    runs: its weights have the scales that are exported, where a norm that still follows batches
    would move them at every step; and statistics of small batches of a network whose layers are
    being rounded are noise (Krishnamoorthi, 2018, section 3.2.2, freezes them for that). What a
    trace in eval mode leaves out, dropout, stays out.

    Weights keep the scale of their largest value at every step. Ranges of activations come from the
    same observers on the same calibration data, seen again by the weights of the moment at every
    eighth of the training until they are frozen; or they are learned, with those of the weights
    (LSQ), from what was observed first.

    Weights and biases are trained, and every other parameter of the model that the trace kept; what
    the trace folded into constants is not.

    Args:
        model: Float; it is left as it is.
        example_inputs: One tensor per input, batch of 1.
        calibration: Input tuples, batch of 1 each.
        observer: A word of `OBSERVERS`.
        learned_scales: Learn scales.
        freeze_at: Share of the training after which ranges stay.

    Raises:
        ModelError: as `canonical_program` and `quantize` do.
    """

    reached: Tensor  # how many observations have been made

    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        example_inputs: tuple[Tensor, ...],
        calibration: Sequence[tuple[Tensor, ...]],
        *,
        observer: str = "histogram",
        learned_scales: bool = False,
        freeze_at: float = 0.5,
    ) -> None:
        super().__init__()
        self.calibration, self.learned_scales = tuple(calibration), learned_scales
        graph_module = canonical_program(model, example_inputs)
        own_constants(graph_module)
        _make_trainable(graph_module)
        self.any_batch = free_batch(graph_module, model, example_inputs)
        if self.any_batch and observer in BATCHABLE:
            self.calibration = tuple(joined(self.calibration))
        prepared, quantizer = prepare(graph_module, observer)
        with quiet():
            pristine = copy.deepcopy(prepared)
        calibrate(prepared, self.calibration)
        freeze(prepared)
        bound_mean_scales(prepared)
        self.body = _with_gradients(prepared)
        # Not submodules: the graphs that are observed and converted, with the same parameters.
        self._sources: tuple[fx.GraphModule, fx.GraphModule, Int8Quantizer] = (
            prepared, pristine, quantizer,
        )  # fmt: skip
        for module in fake_quantizers(self.body).values():
            if module.is_weight and not learned_scales:
                module.follows = True
            elif learned_scales and not module.is_fixed:
                module.learn()
        steps = [i / N_OBSERVATIONS for i in range(1, N_OBSERVATIONS + 1)]
        self.moments = [share for share in steps if share < freeze_at] + [freeze_at] * (
            freeze_at > 0
        )
        self.register_buffer("reached", torch.zeros((), dtype=torch.int64))

    def forward(self, *inputs: Tensor) -> Any:
        """Return the outputs for a batch, through fake quantization."""
        return _run(self.body, inputs, any_batch=self.any_batch)

    def after_step(self, model: nn.Module, share: float) -> None:
        """Observe ranges again when it is time to; `training.fit` calls this after every step."""
        due = sum(share >= moment for moment in self.moments)
        if not self.learned_scales and due > int(self.reached):
            self.observe()
            self.reached.fill_(due)

    def observe(self) -> None:
        """Take the ranges of activations from the calibration data and the present weights."""
        with quiet():
            observed = copy.deepcopy(self._sources[1])
        for name, value in self.body.named_parameters():
            held = _parameter(observed, name)
            if held is not None:
                held.data.copy_(value.detach())
        calibrate(observed, self.calibration)
        freeze(observed)
        bound_mean_scales(observed)
        found = fake_quantizers(observed)
        for name, module in fake_quantizers(self.body).items():
            if not module.is_weight:
                module.scale.copy_(found[name].scale)
                module.zero_point.copy_(found[name].zero_point)

    def finish(self) -> QuantizedModel:
        """Return what was trained as a quantized model; this one is left as it is."""
        with quiet():
            again = copy.deepcopy(self)
        frozen, _, quantizer = again._sources
        reference = GraphModel(_without_quantizers(frozen), any_batch=self.any_batch)
        with torch.no_grad():
            for node in weighted_nodes(frozen):
                weight = constant_of(frozen, operand(operand(node, 1), 0))
                module = frozen.get_submodule(str(operand(node, 1).target))
                if weight is not None and not self.learned_scales:
                    module.follow(weight)  # type: ignore[operator]
            for module in fake_quantizers(frozen).values():
                module.follows = False
                module.settle()
            bound_mean_scales(frozen)
            snap_constants(frozen)
        with quiet():
            quantized = convert(copy.deepcopy(frozen), quantizer)
        quantized = replace(quantized, reference=reference)
        body = fx.GraphModule(frozen, frozen.graph)
        return QuantizedModel(body, any_batch=self.any_batch, quantized=quantized)


def _with_gradients(prepared: fx.GraphModule) -> fx.GraphModule:
    """Return a graph that computes the same, with the same parameters, and has gradients always.

    A variance that rounds to zero has an infinite reciprocal root. Its quantizer makes the largest
    value of that, and hands nothing back; nothing times the infinite slope would be NaN.
    """
    with quiet():
        graph = copy.deepcopy(prepared.graph)
    for node in graph.nodes:
        if node.target == torch.ops.aten.rsqrt.default:
            node.target = _reciprocal_root
    return fx.GraphModule(prepared, graph)


def _reciprocal_root(x: Tensor) -> Tensor:
    return torch.rsqrt(x.clamp_min(LEAST_VARIANCE))


def _without_quantizers(frozen: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of the graph in float."""
    with quiet():
        plain = copy.deepcopy(fx.GraphModule(frozen, frozen.graph))
    for node in list(plain.graph.nodes):
        if quantizer_of(plain, node) is not None:
            node.replace_all_uses_with(operand(node, 0))
            plain.graph.erase_node(node)
    plain.delete_all_unused_submodules()
    plain.recompile()
    return plain


def _make_trainable(graph_module: fx.GraphModule) -> None:
    """Make weights and biases parameters, where the trace made buffers of them."""
    for node in weighted_nodes(graph_module):
        for source in (node.args[1], bias_of(node)):
            value = constant_of(graph_module, source)
            if value is None or not value.is_floating_point():
                continue
            assert isinstance(source, fx.Node)
            owner_path, _, leaf = str(source.target).rpartition(".")
            owner = graph_module.get_submodule(owner_path)
            if not isinstance(getattr(owner, leaf), nn.Parameter):
                delattr(owner, leaf)
                owner.register_parameter(leaf, nn.Parameter(value.clone()))


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    owner_path, _, leaf = name.rpartition(".")
    try:
        found = getattr(module.get_submodule(owner_path), leaf, None)
    except AttributeError:  # of a scale that is learned
        return None
    return found if isinstance(found, nn.Parameter) else None


def _run(body: fx.GraphModule, inputs: tuple[Tensor, ...], *, any_batch: bool) -> Any:
    """Run a graph on a batch; sample by sample, where it takes no more than one."""
    n_samples = len(inputs[0])
    if any_batch or n_samples == 1:
        return body(*inputs)
    rows = [body(*(x[i : i + 1] for x in inputs)) for i in range(n_samples)]
    return torch.utils._pytree.tree_map(lambda *parts: torch.cat(parts), rows[0], *rows[1:])
