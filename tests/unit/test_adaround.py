"""Rounding that is learned, biases that keep means, and what each layer's quantization costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from edgeshrink.quantizer import canonical_program, quantize
from edgeshrink.quantizer.adapt import _rows, _terms, _unrows, rounded_codes
from edgeshrink.quantizer.batching import free_batch
from edgeshrink.quantizer.canonical import own_constants
from edgeshrink.quantizer.fake_quantize import FakeQuantize, freeze, weighted_nodes
from edgeshrink.quantizer.quantize import calibrate, prepare
from edgeshrink.quantizer.sensitivity import layer_sensitivity

MAP = (1, 4, 8, 8)
LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), MAP),
    "strided, dilated": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 0), dilation=(2, 1)), MAP),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), MAP),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), MAP),
    "linear": (lambda: nn.Linear(6, 5), (1, 6)),
    "linear over positions": (lambda: nn.Linear(6, 5), (1, 7, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3)), MAP),
    "transposed groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), MAP),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (1, 4, 9)),
}


def frozen_graph(model: nn.Module, samples):
    prepared, _ = prepare(canonical_program(model.eval(), samples[0]), "minmax")
    calibrate(prepared, samples)
    freeze(prepared)
    return prepared


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5),
    ).eval()  # fmt: skip


def samples_of(n: int = 32, shape=MAP, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    # Neighbours are alike, as in images: rounding errors then add up or cancel.
    return [
        (nn.functional.avg_pool2d(torch.randn(1, 4, 10, 10, generator=generator), 3, 1) * 2,)
        if shape == MAP
        else (torch.randn(shape, generator=generator),)
        for _ in range(n)
    ]


def error(folded, model, samples) -> float:
    with torch.no_grad():
        expected = torch.cat([model(*x) for x in samples])
        return float(((torch.cat([folded(*x) for x in samples]) - expected) ** 2).mean())


@pytest.mark.parametrize("name", LAYERS)
def test_terms_times_rows_are_the_layers_outputs(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = make().eval()
    (x,) = samples_of(1, shape)[0] if shape != MAP else (torch.randn(MAP),)
    frozen = frozen_graph(model, [(x,)])
    (node,) = weighted_nodes(frozen)
    weight = model.weight.detach()
    weight = weight.unsqueeze(2) if weight.dim() == 3 else weight
    rows = _rows(node, weight)
    assert torch.equal(_unrows(node, rows, weight.shape), weight)
    value = x.unsqueeze(2) if name == "conv1d" else x
    products = _terms(node, value) @ rows.transpose(1, 2)  # (groups, positions, outputs)
    model.bias.data.zero_()
    with torch.no_grad():
        expected = model(x)
    if isinstance(model, nn.Linear):
        expected = expected.reshape(-1, expected.shape[-1]).T  # (outputs, positions)
    else:
        expected = expected.flatten(2).transpose(0, 1).flatten(1)
    got = products.transpose(1, 2).flatten(0, 1)
    assert torch.allclose(got, expected, atol=1e-5)


def test_rounding_comes_near_the_best_of_all_ways_to_round():
    """All 2^10 ways for one row, inputs as behind a ReLU, by their outputs and not by moments."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(8):
        x = np.maximum(rng.normal(size=(400, 10)) + rng.normal(size=(400, 1)) + 0.5, 0)
        q = x + 0.05 * rng.normal(size=x.shape)
        weight, step = rng.normal(size=10), 0.2

        def cost(codes, x=x, q=q, weight=weight, step=step):
            return float(((q @ (codes * step) - x @ weight) ** 2).mean())

        floor = np.floor(weight / step)
        best = min(cost(floor + np.array(up)) for up in itertools.product((0, 1), repeat=10))
        nearest = cost(np.round(weight / step))
        quantizer = FakeQuantize(_weight_observer(torch.from_numpy(weight).float().reshape(1, 10)))
        codes = rounded_codes(
            torch.from_numpy(weight).reshape(1, 1, 10),
            torch.full((1, 1, 10), step, dtype=torch.float64),
            (torch.from_numpy(q.T @ q / 400)[None], torch.from_numpy(x.T @ q / 400)[None]),
            quantizer,
        )
        found = cost(codes.numpy().reshape(10))
        assert np.isin(codes.numpy().reshape(10) - floor, (0, 1)).all()
        assert found <= nearest
        if nearest > 1.05 * best:
            ratios.append((found - best) / (nearest - best))
    assert len(ratios) >= 5
    assert np.mean(ratios) < 0.25


def _weight_observer(weight):
    from edgeshrink.quantizer.annotate import WEIGHT

    observer = WEIGHT[0].observer_or_fake_quant_ctr(
        dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )  # fmt: skip
    observer(weight)
    return observer


def test_adaround_brings_outputs_nearer_to_the_float_model_on_fresh_data():
    """Inputs of a mean far from 0, as behind a ReLU: errors of a row's weights add up in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    mixing = torch.randn(6, 48).abs()
    samples, fresh = (
        [(torch.rand(1, 6) @ mixing + 0.1 * torch.rand(1, 48),) for _ in range(n)] for n in (64, 64)
    )
    errors = {
        adaround: error(
            quantize(
                canonical_program(model, samples[0]), samples, observer="minmax", adaround=adaround
            ).folded,
            model,
            fresh,
        )
        for adaround in (False, True)
    }
    assert errors[True] < 0.8 * errors[False]


def test_rounded_weights_lie_on_the_grid_beside_the_float_ones_in_both_graphs():
    model, samples = net(), samples_of(8)
    with torch.no_grad():
        model[0].weight[0, :2] = 0
    graph_module = canonical_program(model, samples[0])
    result = quantize(graph_module, samples, observer="minmax", adaround=True)
    with torch.no_grad():
        for x in samples:
            assert torch.equal(result.folded(*x), result.unfolded(*x))
    layers = [m for m in model if hasattr(m, "weight")]
    moved = 0
    for layer, node in zip(layers, weighted_nodes(result.folded), strict=True):
        state = result.folded.state_dict()
        codes = state[node.args[1].args[0].target].double()
        weight = layer.weight.detach().double()
        largest = weight.abs().flatten(1).amax(1)
        step = (largest / 127).reshape(-1, *[1] * (weight.dim() - 1))
        distance = (codes - weight / step).abs()
        assert float(distance.max()) < 1 + 1e-4
        moved += int((distance > 0.5 + 1e-3).sum())
        assert not codes[weight == 0].any()
    assert moved > 10, "nothing was rounded the other way"


def test_corrected_biases_keep_the_means_of_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()
    samples = samples_of()
    with torch.no_grad():
        expected = torch.cat([model(*x) for x in samples]).mean((0, 2, 3))
        shifts = []
        for correct_bias in (False, True):
            result = quantize(
                canonical_program(model, samples[0]),
                samples,
                observer="minmax",
                correct_bias=correct_bias,
            )
            got = torch.cat([result.folded(*x) for x in samples]).mean((0, 2, 3))
            shifts.append(float((got - expected).abs().max()))
            for x in samples[:4]:
                assert torch.equal(result.folded(*x), result.unfolded(*x))
    assert shifts[1] < 0.35 * shifts[0]


def test_adapting_leaves_the_users_model_as_it_was():
    model, samples = net(), samples_of(4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph_module = canonical_program(model, samples[0])
    quantize(graph_module, samples, adaround=True, correct_bias=True, equalize=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_weights_that_several_layers_read_are_rounded_to_the_nearest():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(self.layer(x).relu())

    torch.manual_seed(0)
    model, samples = Twice().eval(), samples_of(8, (1, 6))
    plain, rounded = (
        quantize(canonical_program(model, samples[0]), samples, observer="minmax", adaround=a)
        for a in (False, True)
    )
    for x in samples:
        assert torch.equal(plain.folded(*x), rounded.folded(*x))


def test_sensitivity_of_a_layer_is_the_error_when_it_alone_is_quantized():
    """Against a network in which that layer's weights and outputs are rounded by hand."""
    model, samples = net(), samples_of(16)
    graph_module = canonical_program(model, samples[0])
    found = layer_sensitivity(graph_module, samples, observer="minmax")
    x = torch.cat([s[0] for s in samples])
    with torch.no_grad():
        expected = model(x)
        wide = model[7].weight
        step = wide.abs().amax(1, keepdim=True) / 127
        hidden = model[:7](x)
        result = nn.functional.linear(hidden, torch.round(wide / step) * step, model[7].bias)
        low, high = min(float(expected.min()), 0), max(float(expected.max()), 0)
        scale = (high - low) / 255
        zero = round(-128 - low / scale)
        rounded = (np.clip(np.round(result.numpy() / scale) + zero, -128, 127) - zero) * scale
    noise = float(((rounded - expected.numpy()) ** 2).mean() / expected.numpy().var(0).mean())
    assert found["7"] == pytest.approx(noise, rel=0.1)
    assert {"0", "2", "4", "7"} <= set(found)
    assert all(0 <= value < 0.1 for value in found.values())


def test_sensitivity_finds_the_layer_that_suffers():
    model, samples = net(), samples_of(16)
    with torch.no_grad():
        model[2].weight[0] *= 300  # its output scale is lost to the other channels
        model[4].weight[:, 0] /= 300
    graph_module = canonical_program(model, samples[0])
    found = layer_sensitivity(graph_module, samples, observer="minmax")
    assert max(found, key=found.__getitem__) in ("2", "3")


# --- batches ----------------------------------------------------------------------------------


def test_batched_calibration_finds_the_ranges_of_single_samples():
    model, samples = net(), samples_of(24)
    batches = [(torch.cat([x for (x,) in samples[i : i + 8]]),) for i in (0, 8, 16)]
    for observer in ("minmax", "percentile", "mse", "entropy"):
        single = quantize(canonical_program(model, samples[0]), samples, observer=observer)
        graph_module = canonical_program(model, samples[0])
        assert free_batch(graph_module, model, samples[0])
        whole = quantize(graph_module, batches, observer=observer)
        scales = [
            np.array([
                float(n.args[1]) for n in result.folded.graph.nodes
                if ".quantize_per_tensor" in str(n.target)
            ])
            for result in (single, whole)
        ]  # fmt: skip
        assert np.allclose(*scales, rtol=1e-5), observer
        x = samples[3]
        with torch.no_grad():
            assert torch.allclose(single.folded(*x), whole.folded(*x), atol=float(scales[0][-1]))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (1, 5, 8)),
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
         (1, 4, 9)),
        (lambda: nn.Sequential(nn.PixelShuffle(2), nn.GroupNorm(1, 1)), MAP),
    ],
)  # fmt: skip
def test_graphs_that_are_freed_take_any_batch(make, shape):
    torch.manual_seed(0)
    model = make().eval()
    graph_module = canonical_program(model, (torch.randn(shape),))
    own_constants(graph_module)
    assert free_batch(graph_module, model, (torch.randn(shape),))
    x = torch.randn(5, *shape[1:])
    with torch.no_grad():
        got = torch.fx.Interpreter(graph_module).run(x)
        assert torch.allclose(got[0] if isinstance(got, tuple) else got, model(x), atol=1e-5)


def test_graphs_that_mix_samples_are_not_freed():
    class Mixing(nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)

    graph_module = canonical_program(Mixing().eval(), (torch.randn(1, 6),))
    before = str(graph_module.graph)
    assert not free_batch(graph_module, Mixing().eval(), (torch.randn(1, 6),))
    assert str(graph_module.graph) == before


def test_sample_that_is_not_finite_is_named_in_a_batch_as_well():
    from edgeshrink.errors import ModelError

    model, samples = net(), samples_of(8)
    graph_module = canonical_program(model, samples[0])
    assert free_batch(graph_module, model, samples[0])
    batch = torch.cat([x for (x,) in samples])
    batch[5, 1] = torch.nan
    with pytest.raises(ModelError) as caught:
        quantize(graph_module, [(batch[:4],), (batch[4:],)], observer="minmax")
    assert caught.value.where.startswith("calibration sample 5, ")
