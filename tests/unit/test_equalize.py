"""Cross-layer equalization: the same function, weights of equal ranges, zeros where they were."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeshrink.quantizer import canonical_program, quantize
from edgeshrink.quantizer.canonical import own_constants
from edgeshrink.quantizer.equalize import equalize_layers

MAP = (1, 4, 8, 8)


class Of(nn.Module):
    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.parts)


def uneven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Channels of very different size, as depthwise networks have them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Conv1d, nn.Linear)):
                axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
                shape = [-1 if d == axis else 1 for d in range(module.weight.dim())]
                n = module.weight.shape[axis]
                factor = torch.exp(3 * torch.randn(n, generator=generator)).reshape(shape)
                module.weight.mul_(factor)
    return model.eval()


def _model(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


PAIRS = {
    "conv, conv": (lambda: _model(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)), MAP, 1),
    "conv, depthwise, pointwise": (
        lambda: _model(
            nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
            nn.Conv2d(6, 8, 1),
        ), MAP, 2,
    ),
    "depthwise with a multiplier": (
        lambda: _model(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4)), MAP, 1,
    ),
    "groups": (
        lambda: _model(
            nn.Conv2d(4, 8, 3, groups=2), nn.LeakyReLU(0.3), nn.Conv2d(8, 6, 3, groups=2)
        ), MAP, 1,
    ),
    "no bias, no activation": (
        lambda: _model(nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(6, 5, 3)), MAP, 1,
    ),
    "batch norm, pool": (
        lambda: _model(
            nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.ZeroPad2d(1), nn.Conv2d(6, 5, 3),
        ), MAP, 1,
    ),
    "flatten, linear": (
        lambda: _model(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)), MAP, 1,
    ),
    "global pool, linear": (
        lambda: Of(lambda x, c, f: f(c(x).relu().mean([2, 3])), c=nn.Conv2d(4, 6, 3),
                   f=nn.Linear(6, 5)), MAP, 1,
    ),
    "linear, linear": (lambda: _model(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)), (1, 8), 1),
    "linear over positions": (
        lambda: _model(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)), (1, 7, 8), 1,
    ),
    "transposed": (
        lambda: _model(
            nn.ConvTranspose2d(4, 6, 2, 2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
        ), MAP, 1,
    ),
    "signals": (lambda: _model(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Conv1d(6, 5, 3)), (1, 4, 9), 1),
}  # fmt: skip
KEPT = {
    "relu6": (lambda: _model(nn.Conv2d(4, 6, 3), nn.ReLU6(), nn.Conv2d(6, 5, 3)), MAP),
    "two readers": (
        lambda: Of(lambda x, a, b: (lambda y: b(y) + y)(a(x).relu()), a=nn.Conv2d(4, 6, 3),
                   b=nn.Conv2d(6, 6, 1)), MAP,
    ),
    "sigmoid": (lambda: _model(nn.Conv2d(4, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 5, 3)), MAP),
    "padding by another value": (
        lambda: Of(lambda x, a, b: b(F.pad(a(x), (1, 1), value=1.0)), a=nn.Conv2d(4, 6, 3),
                   b=nn.Conv2d(6, 5, 3)), MAP,
    ),
    "one weight for two layers": (
        lambda: Of(lambda x, a: a(a(x).relu()), a=nn.Conv2d(4, 4, 3)), MAP,
    ),
    "flatten of positions first": (
        lambda: Of(lambda x, a, f: f(a(x).permute(0, 2, 3, 1).flatten(1)), a=nn.Conv2d(4, 6, 3),
                   f=nn.Linear(216, 5)), MAP,
    ),
}  # fmt: skip


def equalized(make, shape):
    torch.manual_seed(0)
    model = uneven(make())
    graph_module = canonical_program(model, (torch.randn(shape),))
    own_constants(graph_module)
    with torch.no_grad():
        n_pairs = equalize_layers(graph_module)
    return model, graph_module, n_pairs


@pytest.mark.parametrize("name", PAIRS)
def test_equalized_network_computes_the_same(name):
    make, shape, n_pairs = PAIRS[name]
    model, graph_module, found = equalized(make, shape)
    assert found == n_pairs
    for seed in (1, 2):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected, got = model(x), graph_module(x)
        assert float((got - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", KEPT)
def test_layers_that_equalization_would_change_are_left_alone(name):
    make, shape = KEPT[name]
    torch.manual_seed(0)
    model = uneven(make())
    graph_module = canonical_program(model, (torch.randn(shape),))
    own_constants(graph_module)
    before = {key: value.clone() for key, value in graph_module.state_dict().items()}
    with torch.no_grad():
        assert equalize_layers(graph_module) == 0
    assert all(torch.equal(graph_module.state_dict()[k], v) for k, v in before.items())


def test_channels_between_two_layers_have_one_range_in_both():
    make, shape, _ = PAIRS["conv, conv"]
    _, graph_module, _ = equalized(make, shape)
    state = graph_module.state_dict()
    first, second = state["0.weight"], state["2.weight"]
    ranges = first.abs().amax((1, 2, 3)), second.abs().amax((0, 2, 3))
    assert torch.allclose(*ranges, rtol=1e-3)


def test_zeros_and_dead_channels_stay_as_they_are():
    torch.manual_seed(0)
    model = uneven(_model(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)))
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].weight[0, 1] = 0
        model[2].weight[:, 3] = 0
    zeros = {key: value == 0 for key, value in model.state_dict().items()}
    x = torch.randn(MAP)
    graph_module = canonical_program(model, (x,))
    own_constants(graph_module)
    with torch.no_grad():
        equalize_layers(graph_module)
        assert torch.allclose(graph_module(x), model(x), rtol=1e-4, atol=1e-5)
    for key, value in graph_module.state_dict().items():
        assert torch.isfinite(value).all()
        assert torch.equal(value == 0, zeros[key])


def test_equalization_saves_channels_that_one_scale_for_the_layer_would_lose():
    """Activations have one scale per tensor: channels of a thousandth of the largest vanish."""
    torch.manual_seed(1)
    model = _model(
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ).eval()
    with torch.no_grad():
        factor = torch.tensor([1, 200, 0.02, 3, 50, 0.1])
        model[0].weight.mul_(factor.reshape(-1, 1, 1, 1))
        model[0].bias.mul_(factor)
        model[2].weight.div_(factor.reshape(-1, 1, 1, 1))
    samples = [(torch.randn(MAP),) for _ in range(16)]
    errors = []
    with torch.no_grad():
        expected = torch.cat([model(*x) for x in samples])
        for equalize in (False, True):
            graph_module = canonical_program(model, samples[0])
            folded = quantize(graph_module, samples, observer="minmax", equalize=equalize).folded
            got = torch.cat([folded(*x) for x in samples])
            errors.append(float(((got - expected) ** 2).mean()))
    assert errors[1] < 0.25 * errors[0]
