"""The README's table of layers, walked row by row."""

from __future__ import annotations

import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from edgeshrink.errors import ModelError
from edgeshrink.exporting.gates import check_int8, compare, engine_limit
from edgeshrink.exporting.tflite import Names, lower_to_tflite
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from edgeshrink.passes import run_passes
from edgeshrink.quantizer import canonical_program, quantize
from edgeshrink.quantizer.annotate import refuse_unsupported
from edgeshrink.runtimes import open_model
from edgeshrink.target import load_target
from tests.layers import REFUSED, SUPPORTED, Layer

pytestmark = pytest.mark.slow

CASES = [
    pytest.param(layer, id=f"{name}-{i}")
    for name, layers in SUPPORTED.items()
    for i, layer in enumerate(layers)
]


def _made(layer: Layer) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model, example = layer.make().eval(), torch.randn(*layer.shape)
    with torch.no_grad():
        model(example)  # lazy layers learn their shapes
    return model, (example,)


@pytest.mark.parametrize("layer", CASES)
def test_supported_layer_is_int8_throughout_and_agrees_with_the_quantized_graph(layer):
    model, example = _made(layer)
    graph_module = canonical_program(model, example)
    with torch.no_grad():
        expected = model(*example)
    assert torch.allclose(graph_module(*example), expected, atol=1e-4)
    is_refused = _is_refused_on_microcontrollers(graph_module)
    samples = [(torch.randn(*layer.shape),) for _ in range(8)]
    quantized = quantize(graph_module, samples, observer="minmax")
    results = [quantized.folded(*s).detach() for s in samples]
    names = Names(inputs=("x",), outputs=("y",), layers={})
    data, inputs, outputs = lower_to_tflite(quantized.unfolded, example, names, quantized.quantizer)
    graph = read_graph(data)
    check_int8(graph)
    source, sink = (graph.tensors[i] for i in (graph.inputs[0], graph.outputs[0]))
    assert source.dtype == sink.dtype == "int8"

    def stored(value, tensor, layout):
        if layout == "channels-last":
            value = np.moveaxis(value, 1, -1)
        q = tensor.quantization
        codes = np.round(value.reshape(1, *tensor.shape[1:]) / q.scales[0]) + q.zero_points[0]
        return np.clip(codes, -128, 127).astype(np.int8)

    with open_model(data, "litert") as runner:
        got = runner.run(np.concatenate([stored(s[0].numpy(), source, inputs[0]) for s in samples]))
    reference = np.concatenate([stored(r.numpy(), sink, outputs[0]) for r in results])
    compare("litert", "torch", got, [reference], limit=engine_limit(graph))
    _check_on_microcontrollers(data, graph, is_refused=is_refused)


def _is_refused_on_microcontrollers(graph_module):
    try:
        refuse_unsupported(graph_module, micro=True)
    except ModelError as err:
        return "no kernel on microcontrollers" in err.what
    return False


def _check_on_microcontrollers(data, graph, *, is_refused):
    """TFLM and our compiler take the file, or neither does and the layer is refused beforehand."""
    with pytest.raises(ModelError) if is_refused else nullcontext(), open_model(data, "tflm"):
        pass
    with pytest.raises(ModelError, match="has no kernel") if is_refused else nullcontext():
        lower(run_passes(graph)[0], load_target("rp2040").cpu.isa)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_layer_is_named_with_a_remedy_before_any_conversion(name):
    model, example = _made(REFUSED[name])
    with pytest.raises(ModelError, match="has no int8 form; ") as caught:
        quantize(canonical_program(model, example), [example])
    assert caught.value.fix
    assert "see the table" not in caught.value.fix, "a refused layer deserves a remedy of its own"


def test_readme_names_exactly_the_layers_that_are_tested(repo):
    table = (repo / "README.md").read_text("utf-8").split("<!-- layers -->")[1]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)[1:]
    said = {name: verdict for name, verdict in rows if not set(name) <= {"-", "|", " "}}
    assert {n for n, v in said.items() if v.startswith("int8")} == set(SUPPORTED)
    assert {n for n, v in said.items() if v.startswith("refused")} == set(REFUSED)
