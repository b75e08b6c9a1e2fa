"""The export of a model: canonicalise, quantize once, lower twice, pass the gates."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgeshrink.artifact import IoSpec, Layout, Structure
from edgeshrink.errors import ConfigError, ModelError, ToolchainError
from edgeshrink.exporting.executorch import lower_to_pte
from edgeshrink.exporting.gates import (
    EQUAL,
    Agreement,
    Difference,
    check_int8,
    check_operators,
    compare,
    difference,
    engine_limit,
    is_exact,
    output_steps,
)
from edgeshrink.exporting.tflite import Names, lower_to_tflite
from edgeshrink.graph import Graph
from edgeshrink.graph_reader import read_graph
from edgeshrink.predict import (
    dequantize_array,
    from_file_layout,
    quantize_array,
    to_file_layout,
)
from edgeshrink.program import ProgramModule
from edgeshrink.quantizer import Quantized, canonical_program, quantize
from edgeshrink.quantizer.annotate import refuse_unsupported
from edgeshrink.quantizer.batching import free_batch, joined
from edgeshrink.quantizer.canonical import layer_of
from edgeshrink.quantizer.operators import Engines
from edgeshrink.quantizer.precision import Chosen, Precision
from edgeshrink.quantizer.qat import GraphModel
from edgeshrink.quantizer.quantize import prepare
from edgeshrink.quantizer.samples import calibration_samples
from edgeshrink.quantizer.widths import asked_values, values_of
from edgeshrink.quiet import quiet
from edgeshrink.recipe import Quantize, TrainQuantized, uses_int16
from edgeshrink.runtimes import open_model
from edgeshrink.scoring import score
from edgeshrink.target import Target
from edgeshrink.task import Arrays, Task
from edgeshrink.training import float_predict

N_VERIFIED = 32  # samples on which the engines are compared
MOST_ERROR = 1e-3  # of the outputs' variance, where neither recipe nor budget has a limit
N_PROBED = 32  # calibration samples by which ranges and widths are chosen
N_GOLDEN = 8  # samples kept for the device's self-test

Progress = Callable[[float, str], None]  # share done in [0, 1], what is being done


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The lowered files with what was proved about them.

    `reference` is the float model that was quantized: the task's, or what training made of it.
    `golden_inputs` and `golden_outputs` are raw arrays of the `.tflite`, (n, ...) each. `chosen`:
    which activations are int16, and why. `notes`: which engines can't run that.
    """

    tflite: bytes
    pte: bytes | None
    graph: Graph
    inputs: tuple[IoSpec, ...]
    outputs: tuple[IoSpec, ...]
    structure: Structure
    reference: nn.Module
    quantization: Literal["one", "separate", "none"]
    agreements: tuple[Agreement, ...]
    golden_inputs: Mapping[str, npt.NDArray[Any]]
    golden_outputs: Mapping[str, npt.NDArray[Any]]
    chosen: Chosen | None = None
    notes: tuple[str, ...] = ()


def export(
    task: Task,
    target: Target,
    step: Quantize | TrainQuantized,
    *,
    progress: Progress,
    quantized: Quantized | None = None,
    most_drop: float | None = None,
    baseline: float | None = None,
) -> Exported:
    """Lower the task's model for `target`.

    Args:
        task: Its model is left as it is; its `calibration` split (else `train`) gives the ranges.
        target: Decides which operators and types are allowed, and whether a `.pte` is made.
        step: The data type and how ranges are observed.
        progress: Called as the export advances.
        quantized: What a step of quantization-aware training ended with (`compression.qat` leaves
            it in the model it returns: `changed.model.quantized`); nothing is calibrated then, and
            `task.model` is the float model that it came from. It is left as it is.
        most_drop: What a choice of int16 activations may lose of the score on `validation`.
        baseline: That score before any compression; left out, that of the model given.

    Raises:
        ConfigError: `step` asks for int16 where the target has none, or names a layer that is none.
        ModelError: the model can't be traced, holds an operator that can't be lowered or that the
            target does not allow, or the files disagree.
        ToolchainError: an exporter or runtime is missing.
    """
    check_widths(step, target)
    examples = _examples(task)
    progress(0.0, "tracing")
    structure, output_names, output_shapes = describe_outputs(task.model, examples)
    samples = calibration_samples(task, step.n_samples)
    quantizer = wide = chosen = None
    reference = task.model
    if quantized is not None:
        quantizer = quantized.quantizer
        reference = reference if quantized.reference is None else quantized.reference
        with quiet():  # a copy of a graph warns of what PyTorch itself does
            folded, unfolded = copy.deepcopy((quantized.folded, quantized.unfolded))
    else:
        folded = unfolded = canonical_program(_source(task.model), examples)
        if isinstance(step, TrainQuantized) or step.dtype == "int8":
            refuse_unsupported(folded, micro=target.kind == "microcontroller")
            progress(0.1, f"calibrating on {len(samples)} samples")
            precision = _precision(task, target, step, folded, samples, most_drop, baseline)
            made = _quantize(folded, samples, step, precision)
            quantizer, folded, unfolded = made.quantizer, made.folded, made.unfolded
            wide, chosen = made.wide, made.chosen
    wants_pte = any(runtime.name == "executorch" for runtime in target.runtimes)
    pte = None
    if wants_pte and wide is None:
        progress(0.4, "lowering to .pte")
        pte = lower_to_pte(folded, examples)
    progress(0.6, "lowering to .tflite")
    names = Names(
        inputs=input_names(task.model, len(examples)),
        outputs=output_names,
        layers=_layers_by_scale(folded),
    )
    tflite, input_layouts, output_layouts = lower_to_tflite(
        unfolded, examples, names, quantizer, wide
    )
    graph = read_graph(tflite, name="model.tflite")
    if quantizer is not None:
        check_int8(graph)
    check_operators(graph, target)
    inputs = _specs(graph, graph.inputs, names.inputs, input_layouts, [x.shape for x in examples])
    outputs = _specs(graph, graph.outputs, names.outputs, output_layouts, output_shapes)
    progress(0.8, "comparing engines")
    raw_inputs = stored_inputs(samples[:N_VERIFIED], inputs)
    needs_tflm = any(runtime.name in ("tflm", "c") for runtime in target.runtimes)
    agreements, raw_outputs = _agree(
        reference, tflite, pte, graph, folded, raw_inputs, inputs, outputs, needs_tflm=needs_tflm
    )
    progress(1.0, "exported")
    return Exported(
        tflite=tflite,
        pte=pte,
        graph=graph,
        inputs=inputs,
        outputs=outputs,
        structure=structure,
        reference=reference,
        quantization="one" if quantizer is not None else "none",
        agreements=agreements,
        golden_inputs=_golden(inputs, raw_inputs),
        golden_outputs=_golden(outputs, raw_outputs),
        chosen=chosen,
        notes=() if wide is None else _wide_notes(graph, target),
    )


def check_widths(step: Quantize | TrainQuantized, target: Target) -> None:
    """Raise ConfigError where `step` asks for int16 activations and `target` takes none."""
    if uses_int16(step) and "int16" not in target.ops.dtypes:
        allowed = ", ".join(target.ops.dtypes)
        raise ConfigError(
            "recipe step 'quantize': activations",
            f"ask for int16, and {target.name} takes {allowed}",
            'say "int8" (or "auto", which uses int16 only where it is allowed), '
            "or choose another target",
        )


def _tensors(samples: Sequence[Arrays]) -> list[tuple[Tensor, ...]]:
    return [tuple(torch.from_numpy(a) for a in sample) for sample in samples]


def _precision(
    task: Task,
    target: Target,
    step: Quantize | TrainQuantized,
    graph_module: fx.GraphModule,
    samples: Sequence[Arrays],
    most_drop: float | None,
    baseline: float | None,
) -> Precision | None:
    """Return what there is to choose, None for nothing; then the graph takes batches, if it can."""
    if isinstance(step, TrainQuantized):
        return None
    if step.activations == "int8" and not step.int16 and step.observer != "auto":
        return None
    any_batch = free_batch(graph_module, _source(task.model), _examples(task))
    probed = _tensors(samples[:: -(-len(samples) // N_PROBED)])
    drop = None
    is_scored = task.evaluate is not None and "validation" in task.data
    if most_drop is not None and is_scored and not step.most_error and step.activations == "auto":
        before = score(task, float_predict(task.model), "validation")
        if baseline is not None and task.metric.drop(baseline, before) < most_drop:
            before = baseline  # else the drop is not one that int16 could undo

        def drop(frozen: fx.GraphModule) -> float:
            with quiet():
                body = fx.GraphModule(frozen, copy.deepcopy(frozen.graph))  # a graph has one owner
            predict = float_predict(GraphModel(body, any_batch=any_batch))
            return task.metric.drop(before, score(task, predict, "validation"))

    return Precision(
        activations=step.activations,
        int16=step.int16,
        int8=step.int8,
        engines=_wide_engines(target),
        most_error=step.most_error or MOST_ERROR,
        drop=drop,
        most_drop=most_drop,
        choose_ranges=step.observer == "auto",
        batches=joined(probed) if any_batch else probed,
    )


def _wide_notes(graph: Graph, target: Target) -> tuple[str, ...]:
    """Say how many operators have 16 bits, and which engines have no part in that."""
    wide = sum(graph.tensors[op.outputs[0]].dtype == "int16" for op in graph.ops)
    count = f"{wide} of {len(graph.ops)} operators give int16"
    if target.kind == "microcontroller":
        return (f"{count}: their kernels take more cycles than those of int8",)
    notes = [f"{count}: XNNPACK has no kernels for them, LiteRT's built-in ones compute them"]
    if any(runtime.name == "executorch" for runtime in target.runtimes):
        notes.append("no model.pte: ExecuTorch has no kernels for int16 activations")
    return tuple(notes)


def _quantize(
    graph_module: fx.GraphModule,
    samples: Sequence[Arrays],
    step: Quantize | TrainQuantized,
    precision: Precision | None,
) -> Quantized:
    """Quantize after training, as `step` says."""
    tensors = _tensors(samples)
    if isinstance(step, TrainQuantized):
        return quantize(graph_module, tensors, observer=step.observer)
    return quantize(
        graph_module,
        tensors,
        observer=step.observer,
        equalize=step.equalize,
        correct_bias=step.correct_bias,
        adaround=step.adaround,
        precision=precision,
    )


def check_exportable(
    task: Task,
    step: Quantize | TrainQuantized,
    target: Target | None = None,
    *,
    names_stay: bool = True,
) -> None:
    """Raise ModelError when the model can't be traced, or holds an operator without a kernel.

    `export` finds that as well; this takes seconds, and is for the time before a long training.

    Args:
        task: Its model is traced.
        step: Whether it quantizes, and which layers it wants in 16 bits.
        target: Whose kernels count; None: every operator with an int8 form will do.
        names_stay: Whether layers keep their names until they are quantized: then ConfigError tells
            of one that `step` names and the model has not.
    """
    graph_module = canonical_program(_source(task.model), _examples(task))
    if isinstance(step, Quantize) and step.dtype != "int8":
        return
    is_micro = target is not None and target.kind == "microcontroller"
    refuse_unsupported(graph_module, micro=is_micro)
    if target is None or not names_stay or not uses_int16(step):
        return
    assert isinstance(step, Quantize)
    prepared, _ = prepare(graph_module, step.observer)
    values = values_of(prepared, _wide_engines(target))
    asked_values(values, step.activations, step.int16, step.int8)


def _wide_engines(target: Target) -> frozenset[Engines]:
    """Return whose kernels of 16 bits a target can use."""
    if "int16" not in target.ops.dtypes:
        return frozenset()
    if target.kind == "microcontroller":
        return frozenset({"every"})
    return frozenset({"every", "litert"})


def _examples(task: Task) -> tuple[Tensor, ...]:
    """Return example inputs with memory of their own: tracing takes one passed twice for one."""
    return tuple(
        x.detach().clone(memory_format=torch.contiguous_format) for x in task.example_inputs
    )


def _source(model: nn.Module) -> nn.Module | ExportedProgram:
    """Return the program that a `ProgramModule` stands for, or the module itself."""
    return model.exported_program if isinstance(model, ProgramModule) else model


def input_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Return the names of the first `count` parameters of the model's `forward`."""
    parameters = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(parameters) < count:
        parameters = [f"input_{i}" for i in range(count)] if count > 1 else ["input"]
    return tuple(parameters[:count])


def describe_outputs(
    model: nn.Module, examples: tuple[Tensor, ...]
) -> tuple[Structure, tuple[str, ...], list[tuple[int, ...]]]:
    """Run the model once; return the structure, the names and the shapes of its outputs."""
    with torch.no_grad():
        result = model.eval()(*examples)
    if isinstance(result, Tensor):
        return "single", ("output",), [tuple(result.shape)]
    if isinstance(result, Mapping) and all(isinstance(v, Tensor) for v in result.values()):
        names = tuple(str(key) for key in result)
        return "dict", names, [tuple(v.shape) for v in result.values()]
    leaves = torch.utils._pytree.tree_leaves(result)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise ModelError(
            f"model {type(model).__name__}",
            f"returns {type(result).__name__}, not tensors",
            "return a tensor, a tuple of tensors or a dict of tensors",
        )
    names = tuple(f"output_{i}" for i in range(len(leaves)))
    return "tuple", names, [tuple(leaf.shape) for leaf in leaves]


def _layers_by_scale(graph_module: fx.GraphModule) -> dict[tuple[float, int], str]:
    """Map the (scale, zero point) of every activation to the layer that made it."""
    layers: dict[tuple[float, int], str] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and "quantize_per_tensor" in str(node.target):
            source = node.args[0]
            if isinstance(source, fx.Node) and source.meta.get("nn_module_stack"):
                key = (float(np.float32(node.args[1])), int(node.args[2]))
                layers.setdefault(key, layer_of(source))
    return layers


def _specs(
    graph: Graph,
    tensors: Sequence[int],
    names: Sequence[str],
    layouts: Sequence[Layout],
    model_shapes: Sequence[Sequence[int]],
) -> tuple[IoSpec, ...]:
    specs = []
    for index, name, layout, shape in zip(tensors, names, layouts, model_shapes, strict=True):
        tensor = graph.tensors[index]
        q = tensor.quantization
        specs.append(
            IoSpec(
                name=name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                scale=None if q is None else float(q.scales[0]),
                zero_point=None if q is None else int(q.zero_points[0]),
                layout=layout,
                model_shape=tuple(int(size) for size in shape),
            )
        )
    return tuple(specs)


def stored_inputs(samples: Sequence[Arrays], inputs: Sequence[IoSpec]) -> list[npt.NDArray[Any]]:
    """Return one array (n, ...) per input as the `.tflite` takes it."""
    return [
        quantize_array(to_file_layout(np.concatenate(column), spec), spec)
        for column, spec in zip(zip(*samples, strict=True), inputs, strict=True)
    ]


def float_inputs(
    stored: Sequence[npt.NDArray[Any]], inputs: Sequence[IoSpec]
) -> list[npt.NDArray[Any]]:
    """Return what `stored` stands for, in the model's own layout: the input of a `.pte`."""
    return [
        np.ascontiguousarray(from_file_layout(dequantize_array(a, spec), spec))
        for a, spec in zip(stored, inputs, strict=True)
    ]


def stored_outputs(
    values: Sequence[npt.NDArray[Any]], outputs: Sequence[IoSpec]
) -> list[npt.NDArray[Any]]:
    """Return a `.pte`'s float outputs as the `.tflite` would have stored them."""
    return [
        quantize_array(to_file_layout(np.asarray(a), spec), spec)
        for a, spec in zip(values, outputs, strict=True)
    ]


def quantization_error(
    model: nn.Module,
    batches: Iterable[Sequence[npt.NDArray[Any]]],
    raw: Sequence[npt.NDArray[Any]],
    inputs: Sequence[IoSpec],
    outputs: Sequence[IoSpec],
    steps: Sequence[float] = (),
) -> Difference:
    """Compare quantized outputs with those of the float model, rounded to the same codes.

    Args:
        model: The float model: `Exported.reference`.
        batches: Inputs as the `.tflite` takes them; one array (batch, ...) per input in each.
        raw: The quantized outputs for all of them, (n, ...) each.
        inputs, outputs: How the file stores them.
        steps: Of every output, as `output_steps` has them; left out, codes count.
    """
    predict = float_predict(model)
    results = [
        torch.utils._pytree.tree_leaves(predict(*float_inputs(stored, inputs)))
        for stored in batches
    ]
    columns = [np.concatenate(column) for column in zip(*results, strict=True)]
    return difference(raw, stored_outputs(columns, outputs), steps)


def _agree(
    reference_model: nn.Module,
    tflite: bytes,
    pte: bytes | None,
    graph: Graph,
    folded: fx.GraphModule,
    stored: list[npt.NDArray[Any]],
    inputs: tuple[IoSpec, ...],
    outputs: tuple[IoSpec, ...],
    *,
    needs_tflm: bool,
) -> tuple[tuple[Agreement, ...], list[npt.NDArray[Any]]]:
    """Run every engine; return how they agree with LiteRT on XNNPACK, and its outputs."""

    def run(engine: str) -> list[npt.NDArray[Any]]:
        with open_model(tflite, engine, name="model.tflite") as runner:
            return list(runner.run(*stored))

    reference = run("litert")
    real = float_inputs(stored, inputs)
    with torch.no_grad():
        rows = [
            torch.utils._pytree.tree_leaves(folded(*(torch.from_numpy(a[i : i + 1]) for a in real)))
            for i in range(len(real[0]))
        ]
    simulated = stored_outputs(
        [np.concatenate([leaf.numpy() for leaf in column]) for column in zip(*rows, strict=True)],
        outputs,
    )
    is_quantized = all(spec.scale is not None for spec in outputs)
    steps = output_steps(graph)
    error = None
    if is_quantized:
        singles = ([a[i : i + 1] for a in stored] for i in range(len(real[0])))
        error = quantization_error(reference_model, singles, simulated, inputs, outputs, steps)
    limit = engine_limit(graph, error)
    found = []
    if pte is not None:
        with open_model(pte, "executorch", name="model.pte") as runner:
            got = stored_outputs(runner.run(*real), outputs)
        pair = EQUAL if is_quantized and is_exact(graph) else limit
        found.append(compare("executorch", "litert", got, reference, limit=pair))
    found.append(compare("torch", "litert", simulated, reference, limit=limit, steps=steps))
    for engine, is_run in (("litert-builtin", False), ("tflm", needs_tflm)):
        try:
            got = run(engine)
        except (ModelError, ToolchainError) as err:
            # TFLM is the one engine that a host can do without, and it has the fewest operators.
            if engine != "tflm" or (needs_tflm and isinstance(err, ModelError)):
                raise
            continue
        found.append(
            compare(engine, "litert", got, reference, limit=limit, is_run=is_run, steps=steps)
        )
    return tuple(found), reference


def _golden(
    specs: Sequence[IoSpec], arrays: Sequence[npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    return {spec.name: a[:N_GOLDEN] for spec, a in zip(specs, arrays, strict=True)}


def golden_samples(exported: Exported) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of `golden.npz`: `input/NAME` and `output/NAME`, raw, (n, ...) each."""
    arrays = {f"input/{name}": a for name, a in exported.golden_inputs.items()}
    arrays |= {f"output/{name}": a for name, a in exported.golden_outputs.items()}
    return arrays
