"""Which activations are 16 bits wide: by name, all, or as few as are needed; refusals by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.quantizer import canonical_program
from edgeshrink.quantizer.fake_quantize import freeze
from edgeshrink.quantizer.operators import RULES
from edgeshrink.quantizer.precision import Chosen, Precision, choose
from edgeshrink.quantizer.quantize import Quantized, calibrate, prepare, quantize
from edgeshrink.quantizer.widths import Value, asked_values, values_of

EVERY = frozenset({"every"})
LITERT = frozenset({"every", "litert"})
OUTLIERS = 4000.0


class Chain(nn.Module):
    """Two layers, one whose outputs have an outlier (`gain`), and two more."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.third, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.relu = nn.ReLU()
        with torch.no_grad():
            # One channel of the second layer is huge, and the third hardly listens to it: with
            # int8 the other channels are lost.
            self.second.bias[0] = gain
            self.third.weight[:, 0] = 1e-6
            self.third.bias[:] = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x))
        return self.last(self.relu(self.third(x)))


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(self.before(image))


def samples_of(n: int, *shape: int) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(*shape, generator=generator),) for _ in range(n)]


def quantized(model: nn.Module, samples: list[tuple[Tensor, ...]], **asked) -> Quantized:
    precision = Precision(**{"engines": EVERY, "batches": samples, **asked})
    observer = "auto" if precision.choose_ranges else "minmax"
    graph_module = canonical_program(model.eval(), samples[0])
    return quantize(graph_module, samples, observer=observer, precision=precision)


def chosen(model: nn.Module, samples: list[tuple[Tensor, ...]], **asked) -> Chosen:
    """What is chosen, without the conversion that follows."""
    precision = Precision(**{"engines": EVERY, "batches": samples, **asked})
    prepared, _ = prepare(canonical_program(model.eval(), samples[0]), "minmax")
    calibrate(prepared, samples)
    freeze(prepared)
    found = choose(prepared, precision)
    assert found is not None
    return found


def values(model: nn.Module, *shape: int, engines: frozenset = EVERY) -> tuple[Value, ...]:
    graph_module = canonical_program(model.eval(), (torch.randn(*shape),))
    return values_of(prepare(graph_module, "minmax")[0], engines)


def stored_types(result: Quantized) -> dict[torch.dtype, int]:
    found: dict[torch.dtype, int] = {}
    for node in result.folded.graph.nodes:
        if ".quantize_per_tensor" in str(node.target):
            dtype = node.args[5]
            found[dtype] = found.get(dtype, 0) + 1
    return found


# --- values and their names -------------------------------------------------------------------


def test_a_value_is_named_by_its_layer_what_is_fused_with_it_and_what_passes_it_on():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    found = values(model, 1, 3, 8, 8)
    assert [value.layer for value in found] == ["input", "0", "4"]
    assert found[1].names >= {"0", "1", "2", "3"}
    assert found[2].names == {"4"}


def test_joined_branches_are_one_value():
    model = Of(lambda x: torch.cat([x, torch.tanh(x) * 2.0], 1))
    assert any("cat" in v.names and "before" in v.names for v in values(model, 1, 3, 8, 8))


def test_constants_are_no_values():
    assert [v.layer for v in values(Of(lambda x: x * 0.3), 1, 3, 8, 8)] == [
        "image",
        "before",
        "mul",
    ]


@pytest.mark.parametrize(
    ("function", "operator", "on_litert"),
    [
        (nn.functional.hardswish, "hardswish", False),
        (lambda x: nn.functional.log_softmax(x, -1), "log_softmax", False),
        (nn.functional.gelu, "gelu", True),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "upsample_bilinear2d", True),
    ],
    ids=["hardswish", "log_softmax", "gelu", "bilinear"],
)
def test_operator_without_a_kernel_is_named_with_its_layer_and_a_remedy(
    function, operator, on_litert
):
    model = Of(function)
    found = values(model, 1, 3, 8, 8)
    with pytest.raises(ModelError, match=f"operator '{operator}' has no int16 form here") as caught:
        asked_values(found, "int16", (), ())
    assert "int8 = [" in caught.value.fix
    blocked = tuple(value.layer for value in found if value.blocker is not None)
    wide, narrow = asked_values(found, "int16", (), blocked)
    assert [value.layer for value in wide] == ["image"]
    assert len(narrow) == len(blocked)
    if on_litert:
        everywhere = values(model, 1, 3, 8, 8, engines=LITERT)
        assert len(asked_values(everywhere, "int16", (), ())[0]) == len(everywhere)


def test_unknown_layers_are_told_with_the_nearest_name():
    found = values(Chain(), 1, 6)
    for key, names in (("int16", (("secnd",), ())), ("int8", ((), ("secnd",)))):
        with pytest.raises(ConfigError, match=f"{key}: 'secnd' is no layer") as caught:
            asked_values(found, "int16", *names)
        assert caught.value.fix == "did you mean 'second'?"


def test_every_rule_says_whose_kernels_there_are():
    assert {rule.wide for rule in RULES.values()} == {"every", "litert", "none"}


# --- what is stored ---------------------------------------------------------------------------


def test_named_layers_are_int16_and_no_others():
    model, samples = Chain(), samples_of(8, 1, 6)
    result = quantized(model, samples, int16=("second", "relu"))
    # "relu" is what follows three of the layers; the input and the last one stay
    assert stored_types(result) == {torch.int16: 3, torch.int8: 2}
    assert result.chosen is not None
    assert result.chosen.int16 == ("first", "second", "third")
    assert stored_types(quantized(model, samples, activations="int16")) == {torch.int16: 5}
    kept = quantized(model, samples, activations="int16", int8=("first", "x"))
    assert stored_types(kept) == {torch.int16: 3, torch.int8: 2}


def test_sixteen_bits_are_symmetric_and_cover_what_was_observed():
    """Against the steps of a layer computed by hand: int8 weights, a grid of 16 bits."""
    model, samples = nn.Sequential(nn.Linear(6, 4)), samples_of(16, 1, 6)
    result = quantized(model, samples, activations="int16")
    x = np.concatenate([s[0].numpy() for s in samples]).astype(np.float64)
    weight = model[0].weight.detach().numpy().astype(np.float64)
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    with torch.no_grad():
        largest = float(model(torch.from_numpy(x).float()).abs().max())
    x_scale, y_scale = np.abs(x).max() / 32767, largest / 32767
    y = np.round(x / x_scale) * x_scale @ (np.round(weight / step) * step).T
    expected = np.round((y + model[0].bias.detach().numpy()) / y_scale)
    expected = np.clip(expected, -32768, 32767)
    with torch.no_grad():
        got = np.concatenate([result.folded(*s).numpy() for s in samples]) / y_scale
    assert np.abs(got - expected).max() < 1.01, "a bias on its grid, and a tie"
    assert len(np.unique(expected)) > 40


def test_scales_of_the_specification_hold_for_sixteen_bits():
    for function in (torch.sigmoid, torch.tanh, nn.Softmax(-1)):
        result = quantized(Of(function), samples_of(2, 1, 3, 8, 8), activations="int16")
        scales = {
            n.args[1] for n in result.folded.graph.nodes
            if ".quantize_per_tensor" in str(n.target)
        }  # fmt: skip
        assert 2.0**-15 in scales


def test_marked_scales_are_found_in_the_int8_graph_and_nowhere_else():
    result = quantized(Chain(), samples_of(8, 1, 6), int16=("second",))
    assert result.wide is not None
    keys = [
        (float(np.float32(n.args[1])), int(n.args[2]))
        for n in result.unfolded.graph.nodes
        if ".quantize_per_tensor" in str(n.target)
    ]
    assert len(result.wide.scales) == 1
    assert sum(key in result.wide.scales for key in keys) == 1
    assert stored_types(result)[torch.int16] == 1


# --- the automatic choice ---------------------------------------------------------------------


def test_the_layer_that_int8_ruins_is_chosen_and_no_other():
    model, samples = Chain(OUTLIERS), samples_of(32, 1, 6)
    found = chosen(model, samples, activations="auto")
    assert found.int16 == ("second",)
    assert max(found.sensitivity, key=found.sensitivity.__getitem__) == "second"
    assert found.errors["int8"] > 0.1
    assert found.errors["chosen"] < 0.05 * found.errors["int8"]
    assert "second" in found.note
    assert chosen(Chain(), samples, activations="auto", most_error=0.05).int16 == ()


def test_explicit_layers_bind_the_automatic_choice():
    model, samples = Chain(OUTLIERS), samples_of(32, 1, 6)
    found = chosen(model, samples, activations="auto", int16=("last",), int8=("second",))
    assert "second" not in found.int16
    assert "last" in found.int16


def test_score_decides_where_there_is_a_limit_for_its_drop():
    model, samples = Chain(OUTLIERS), samples_of(32, 1, 6)
    x = torch.cat([s[0] for s in samples])
    with torch.no_grad():
        expected = model(x).argmax(1)
    calls = []

    def drop(frozen: fx.GraphModule) -> float:
        with torch.no_grad():
            found = torch.cat([frozen(*s) for s in samples]).argmax(1)
        calls.append(float((found != expected).float().mean()))
        return calls[-1]

    found = chosen(model, samples, activations="auto", drop=drop, most_drop=0.02)
    assert found.int16 == ("second",)
    assert found.drops["int8"] > 0.02 >= found.drops["chosen"]
    assert "drop in score" in found.note
    calls.clear()
    generous = chosen(model, samples, activations="auto", drop=drop, most_drop=0.9)
    assert generous.int16 == ()
    assert len(calls) <= 3


def test_where_no_width_helps_int8_is_kept():
    model, samples = Chain(OUTLIERS), samples_of(8, 1, 6)
    found = chosen(model, samples, activations="auto", drop=lambda frozen: 0.5, most_drop=0.1)
    assert found.int16 == ()
    assert "int8 kept" in found.note


def test_the_best_that_can_be_reached_is_taken_where_it_misses_the_limit():
    model, samples = Chain(OUTLIERS), samples_of(32, 1, 6)
    found = chosen(model, samples, activations="auto", int8=("last",), most_error=1e-9)
    assert "second" in found.int16
    assert found.errors["chosen"] < found.errors["int8"]


def test_a_target_of_int8_alone_keeps_int8():
    model, samples = Chain(OUTLIERS), samples_of(8, 1, 6)
    assert chosen(model, samples, activations="auto", engines=frozenset()).int16 == ()


def test_chosen_ranges_are_no_worse_than_any_observer_for_all():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    )
    samples = samples_of(48, 1, 6)
    samples[0] = (samples[0][0] * 30,)  # an outlier, which minmax makes room for
    expected = torch.cat([model(*s) for s in samples]).detach()

    def error(result: Quantized) -> float:
        with torch.no_grad():
            got = torch.cat([result.folded(*s) for s in samples])
        return float(((got - expected) ** 2).mean())

    ours = quantized(model, samples, choose_ranges=True)
    others = {
        observer: error(quantize(canonical_program(model, samples[0]), samples, observer=observer))
        for observer in ("minmax", "percentile", "mse", "entropy")
    }
    assert error(ours) <= min(others.values()) * 1.001
    assert ours.chosen is not None
    assert set(ours.chosen.ranges) <= set(others)
    assert sum(ours.chosen.ranges.values()) == 4, "tanh has a scale of its own by the specification"
