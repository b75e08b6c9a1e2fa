"""State between inferences, against TensorFlow Lite Micro, which keeps it too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as S

from edgeshrink.errors import ModelError
from edgeshrink.graph_reader import read_graph
from edgeshrink.lowering import lower
from edgeshrink.passes import run_passes
from tests.kernels.host import HostModel, check_against_tflm, random_inputs
from tests.kernels.recurrent_models import lstm_model, svdf_model
from tests.kernels.stateful_models import computed_initial_values, delay_line, faulty, like
from tests.tiny_models import edited

INITIAL = np.array([[11, -128, 127, 0]], np.int8)
MODELS = {
    "a variable that starts at its zero point": delay_line(),
    "a variable that starts at zero": delay_line(zero=0),
    "two variables": delay_line(twice=True),
    "an initial value": delay_line(initial=INITIAL),
    "two initial values": delay_line(initial=INITIAL // 2, twice=True),
    "computed initial values": computed_initial_values(),
    "an int8 variable tensor with a zero point": svdf_model(wide=False, zeros=(0, 77, 0)),
    "variable tensors of an LSTM": lstm_model(zeros=(0, -90)),
}


@pytest.mark.parametrize("name", MODELS)
def test_state_equals_that_of_tensorflow_lite_micro(name):
    check_against_tflm(MODELS[name], *random_inputs(MODELS[name], 10))


@pytest.mark.parametrize("name", MODELS)
def test_passes_keep_state(name):
    graph, _ = run_passes(read_graph(MODELS[name]))
    check_against_tflm(MODELS[name], *random_inputs(MODELS[name], 10), graph=graph)


def test_a_view_of_a_variable_keeps_the_value_it_was_taken_at():
    """Two SVDF share a state; a RESHAPE shows it in between."""
    data = svdf_model(wide=False)
    graph = read_graph(data)
    state = graph.ops[0].inputs[4]
    seen = replace(graph.tensors[state], index=len(graph.tensors), name="seen", is_variable=False)
    view = replace(
        graph.ops[0], index=0, kind="RESHAPE", inputs=(state,), outputs=(seen.index,), options={}
    )
    graph = replace(
        graph,
        tensors=(*graph.tensors, seen),
        ops=(view, replace(graph.ops[0], index=1)),
        outputs=(*graph.outputs, seen.index),
    )
    model = HostModel(lower(graph, ()))
    zero = int(seen.quantization.zero_points[0])
    _, before = model.run(np.full((1, 3), 100, np.int8))
    assert (before == zero).all()
    _, before = model.run(np.full((1, 3), 100, np.int8))
    assert (before != zero).any()


def _reads_unassigned(build, x):
    return [build.read(build.handle("never"), like())]


def _two_sizes(build, x):
    handle = build.handle("v")
    build.assign(handle, x)
    return [build.read(handle, like(8))]


def _late_call(build, x):
    number = build.subgraph("initialise")
    build.main()
    build.assign(build.handle("v"), x)
    build.call_once(number)
    return [x]


def _nested_call(build, x):
    last = build.subgraph("second")
    first = build.subgraph("first")
    build.call_once(last)
    build.main()
    build.call_once(first)
    return [x]


FAULTS = {
    _reads_unassigned: "reads a variable that nothing assigns",
    _two_sizes: "gives its variable two sizes",
    _late_call: "stands behind a use of a variable",
    _nested_call: "is nested",
}


@pytest.mark.parametrize("edit", FAULTS, ids=lambda f: f.__name__)
def test_impossible_use_of_variables_names_operator_and_remedy(edit):
    with pytest.raises(ModelError, match=FAULTS[edit]) as caught:
        lower(read_graph(faulty(edit)), ())
    assert caught.value.where.startswith("operator ")
    assert caught.value.fix


def test_a_handle_that_is_marked_as_a_variable_still_stands_for_its_variable():
    def mark(model):
        for tensor in model.subgraphs[0].tensors:
            tensor.isVariable = tensor.type == S.TensorType.RESOURCE

    data = edited(MODELS["two variables"], mark)
    model, twin = (HostModel(lower(read_graph(d), ())) for d in (data, MODELS["two variables"]))
    for row in random_inputs(data, 5)[0]:
        np.testing.assert_array_equal(model.run(row), twin.run(row))
