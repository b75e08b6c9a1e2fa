"""A sketch has the operators, shapes and weights that an export writes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.costs import graph_macs
from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from edgeshrink.passes import run_passes
from edgeshrink.quantizer.sketch import sketch
from tests.layers import REFUSED
from tests.zoo import ZOO, zoo_task


def kinds(graph) -> list[str]:
    return [op.kind for op in graph.ops]


def shapes(graph) -> list[tuple[int, ...]]:
    return [graph.tensors[op.outputs[0]].shape for op in graph.ops]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.point(self.deep(x)))
        return torch.softmax(self.last(x.mean(dim=(2, 3))), dim=-1)


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    return sketch(Net().eval(), (torch.randn(1, 3, 8, 8),))


def test_operators_stand_in_the_order_of_the_model_channels_last(drawn):
    assert kinds(drawn.graph) == [
        "PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED",
        "SOFTMAX",
    ]  # fmt: skip
    assert shapes(drawn.graph) == [
        (1, 10, 10, 3), (1, 4, 4, 8), (1, 4, 4, 8), (1, 4, 4, 8), (1, 4, 4, 8), (1, 8), (1, 5),
        (1, 5),
    ]  # fmt: skip


def test_equal_padding_that_tflite_calls_same_needs_no_pad(drawn):
    depthwise = drawn.graph.ops[2]
    assert depthwise.options["padding"] == "SAME"
    assert drawn.graph.ops[1].options["padding"] == "VALID"


def test_activations_are_fused_into_the_layer_before_them(drawn):
    assert [op.options.get("activation") for op in drawn.graph.ops[1:4]] == ["RELU", "NONE", "RELU"]


def test_weights_are_the_models_rounded_to_their_largest(drawn):
    torch.manual_seed(0)
    weight = Net().point.weight.detach().numpy()[:, :, 0, 0]  # (out, in)
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    stored = drawn.graph.tensors[drawn.graph.ops[3].inputs[1]].data[:, 0, 0, :]
    assert np.abs(stored * scale - weight).max() <= scale.max() / 2 * (1 + 1e-4)
    assert np.abs(stored).max(axis=1).tolist() == [127] * 8


def test_layers_name_the_operators_that_compute_them(drawn):
    named = {path: kinds(drawn.graph)[ops[0]] for path, ops in drawn.layers.items()}
    assert named == {
        "first": "CONV_2D", "deep": "DEPTHWISE_CONV_2D", "point": "CONV_2D",
        "last": "FULLY_CONNECTED",
    }  # fmt: skip


def test_softmax_has_the_scale_of_the_specification(drawn):
    q = drawn.graph.tensors[drawn.graph.outputs[0]].quantization
    assert (float(q.scales[0]), int(q.zero_points[0])) == (1 / 256, -128)


@pytest.mark.parametrize("isa", [("dsp", "fpu"), ("mul",)])
def test_a_sketch_can_be_lowered(drawn, isa):
    clean, _ = run_passes(drawn.graph)
    assert lower(clean, isa, arena_seconds=0).arena.n_bytes >= 4 * 4 * 8


def test_the_model_stays_as_it_was():
    model = Net().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sketch(model, (torch.randn(1, 3, 8, 8),))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_operator_without_int8_form_is_named_with_its_layer():
    layer = REFUSED["Softplus"]
    model = layer.make()
    model(torch.randn(layer.shape))  # makes lazy layers real
    with pytest.raises(ModelError, match="softplus"):
        sketch(model.eval(), (torch.randn(layer.shape),))


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        token = self.token.expand(x.shape[0], -1, -1)
        return self.head(torch.cat([token, patches], 1))


def test_a_class_token_is_a_constant_with_the_scale_of_its_join():
    torch.manual_seed(0)
    model = ClassToken().eval()
    graph = sketch(model, (torch.randn(1, 3, 8, 8),)).graph
    (join,) = [op for op in graph.ops if op.kind == "CONCATENATION"]
    token, patches = (graph.tensors[i] for i in join.inputs)
    (result,) = (graph.tensors[i] for i in join.outputs)
    assert token.quantization.scales == patches.quantization.scales == result.quantization.scales
    scale, zero = token.quantization.scales[0], token.quantization.zero_points[0]
    real = (token.data.astype(np.float32) - zero) * scale
    assert np.abs(real - model.token.detach().numpy()).max() <= scale
    clean, _ = run_passes(graph)
    assert lower(clean, ("mul",), arena_seconds=0).arena.n_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_an_export_writes_what_the_sketch_says(name):
    from edgeshrink.exporting import export
    from edgeshrink.recipe import Quantize
    from edgeshrink.target import load_target

    task = zoo_task(name)
    drawn = sketch(task.model, task.example_inputs).graph
    exported = export(
        task, load_target("nucleo-l4r5zi"), Quantize(), progress=lambda share, detail: None
    )
    real = read_graph(exported.tflite)
    assert Counter(kinds(drawn)) == Counter(kinds(real))
    assert graph_macs(drawn) == graph_macs(real)

    def weight_bytes(graph) -> int:
        weighted = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        return sum(
            graph.tensors[i].n_bytes for op in graph.ops if op.kind in weighted
            for i in op.inputs[1:]
        )  # fmt: skip

    assert weight_bytes(drawn) == weight_bytes(real)
