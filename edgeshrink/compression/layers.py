"""A model's layers: which of them a step may touch, what they cost, how small they pack."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.program import ProgramModule
from edgeshrink.strict_toml import nearest

CONVOLUTIONS: Final = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED: Final = (*CONVOLUTIONS, nn.Linear, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One weight of a layer: the factors of its products, not its bias."""

    path: str  # of the layer
    name: str  # of the parameter in the layer
    layer: nn.Module
    value: nn.Parameter
    output_axis: int  # each of its slices makes one output channel
    input_axis: int


def weights_of(model: nn.Module, skip: Iterable[nn.Module] = ()) -> list[Weight]:
    """Return the weights of convolutions, linear, recurrent and attention layers, each once.

    Args:
        model: Weights that are computed (weight norm, other parametrizations) are not among them.
        skip: Layers that are left out.
    """
    seen, left_out = set[int](), set(map(id, skip))
    found = []
    for path, layer in model.named_modules():
        if not isinstance(layer, WEIGHTED) or id(layer) in left_out:
            continue
        for name, value in layer.named_parameters(recurse=False):
            if value.dim() < 2 or "weight" not in name or id(value) in seen:
                continue
            seen.add(id(value))
            axis = 1 if isinstance(layer, TRANSPOSED) else 0
            found.append(
                Weight(
                    path=path, name=name, layer=layer, value=value,
                    output_axis=axis, input_axis=1 - axis,
                )
            )  # fmt: skip
    return found


def require_layers(model: nn.Module, found: Sequence[object], kinds: str) -> None:
    """Raise ModelError if a step has found nothing to work on.

    Args:
        model: Named in the message.
        found: What it has found.
        kinds: What it looked for, in words.
    """
    if found:
        return
    where = f"model {type(model).__name__}"
    if isinstance(model, ProgramModule):
        fix = "bring the module itself in a task, or drop the step"
        raise ModelError(where, "is an exported program, which has operators, no layers", fix)
    raise ModelError(where, f"has no {kinds} that is not excluded", "drop the step")


def excluded_layers(model: nn.Module, exclude: Iterable[str]) -> set[nn.Module]:
    """Return the layers that `exclude` names by path, and all within them.

    Raises:
        ConfigError: The model has no such layer.
    """
    layers = {path: layer for path, layer in model.named_modules() if path}
    for path in exclude:
        if path not in layers:
            raise ConfigError("exclude", f"the model has no layer {path!r}", nearest(path, layers))
    return {layer for path in exclude for layer in layers[path].modules()}


def macs_of(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> int:
    """Return the multiply-accumulates of one inference on `example_inputs`.

    Convolutions and matrix products count, those of recurrent layers and attention included.
    """
    was_training, was_fast = model.training, torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    # Without oneDNN and fused attention, these layers too run as products that are counted.
    torch.backends.mha.set_fastpath_enabled(False)
    has_fused = any(isinstance(m, nn.RNNBase) for m in model.modules())
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of oneDNN being switched
            torch.no_grad(),
            torch.backends.mkldnn.flags(enabled=not has_fused),
            sdpa_kernel(SDPBackend.MATH),
            counter,
        ):
            model.eval()(*example_inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
        model.train(was_training)
    return int(counter.get_total_flops()) // 2


def int8_codes(weight: Tensor, output_axis: int) -> npt.NDArray[np.int8]:
    """Return the integers that a symmetric scale per output channel makes of `weight`.

    A batch norm that is folded in later multiplies channels and their scales alike: it changes no
    code.
    """
    rows = weight.detach().double().movedim(output_axis, 0).flatten(1).numpy()
    most = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    codes = np.rint(rows / np.where(most > 0, most / 127, 1))
    return codes.astype(np.int8)


def packed_bytes(chunks: Iterable[bytes]) -> int:
    """Return the size of `chunks` in a row after zlib's compression."""
    packer = zlib.compressobj(9)
    return sum(len(packer.compress(chunk)) for chunk in chunks) + len(packer.flush())


def download_bytes(weights: Sequence[Weight]) -> dict[str, int]:
    """Return what the weights alone take in a compressed download, by their stored type."""
    return {
        "float32": packed_bytes(w.value.detach().float().numpy().tobytes() for w in weights),
        "int8": packed_bytes(int8_codes(w.value, w.output_axis).tobytes() for w in weights),
    }


def names_of(model: nn.Module) -> dict[int, str]:
    """Return the path of every layer by its `id`."""
    return {id(layer): path for path, layer in model.named_modules()}


def replace_layer(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `model` holds `old`."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children tells each once
            if child is old:
                setattr(parent, name, new)


def tensors_in(outputs: object) -> Iterator[Tensor]:
    """Yield the tensors of a model's outputs, whatever structure holds them."""
    for leaf in torch.utils._pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            yield leaf
