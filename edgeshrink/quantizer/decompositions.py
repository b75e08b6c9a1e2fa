"""Operators without an int8 kernel of their own, written with operators that have one.

Each function takes what the ATen operator takes and is traced in its place; `NotImplemented` keeps
the operator. All of them are exact in real arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _hardsigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3.0) * (1.0 / 6.0)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    shape = [1, -1, *[1] * (x.dim() - 2)] if weight.numel() > 1 else [1]
    negative = torch.minimum(x, torch.zeros([1] * x.dim(), dtype=x.dtype))
    return F.relu(x) + negative * weight.reshape(shape)


def _layer_norm(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    variance = (centred * centred).mean(dims, keepdim=True)
    y = centred * torch.rsqrt(variance + eps)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    n, c = x.shape[:2]
    flat = x.reshape(n, num_groups, -1)  # (n, groups, channels/groups * positions)
    y = _layer_norm(flat, [flat.shape[-1]], eps=eps).reshape(x.shape)
    per_channel = [1, c, *[1] * (x.dim() - 2)]
    if weight is not None:
        y = y * weight.reshape(per_channel)
    return y if bias is None else y + bias.reshape(per_channel)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if is_causal or attn_mask is not None or enable_gqa:
        return NotImplemented
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))  # (..., queries, keys)
    return torch.matmul(torch.softmax(scores, -1), value)


def _pair(value: Any, first: int) -> list[int]:
    """Return a 1-D setting as the 2-D one of a map with height 1."""
    return [first, value[0] if isinstance(value, (list, tuple)) else value]


def _conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    y = F.conv2d(
        x.unsqueeze(2),  # (n, c, 1, length)
        weight.unsqueeze(2),
        bias,
        _pair(stride, 1),
        _pair(padding, 0),
        _pair(dilation, 1),
        groups,
    )
    return y.squeeze(2)


def _same_padding(x: Tensor, weight: Tensor, dilation: Any) -> Tensor:
    """Pad `x` (n, c, *positions) by hand, the odd element last, as `padding="same"` does."""
    pads: list[int] = []
    for axis in reversed(range(weight.dim() - 2)):
        step = dilation[axis % len(dilation)] if isinstance(dilation, (list, tuple)) else dilation
        total = step * (weight.shape[2 + axis] - 1)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


def _conv_named_padding(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if padding == "same":
        x = _same_padding(x, weight, dilation)
    if weight.dim() == 3:
        return _conv1d(x, weight, bias, stride, 0, dilation, groups)
    return F.conv2d(x, weight, bias, stride, 0, dilation, groups)


def _max_pool1d(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int] | None = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    y = F.max_pool2d(
        x.unsqueeze(2),
        _pair(kernel_size, 1),
        _pair(stride or kernel_size, 1),
        _pair(padding, 0),
        _pair(dilation, 1),
        ceil_mode,
    )
    return y.squeeze(2)


def _avg_pool1d(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int] | None = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    y = F.avg_pool2d(
        x.unsqueeze(2),
        _pair(kernel_size, 1),
        _pair(stride or kernel_size, 1),
        _pair(padding, 0),
        ceil_mode,
        count_include_pad,
    )
    return y.squeeze(2)


def _adaptive_avg_pool1d(x: Tensor, output_size: list[int]) -> Any:
    if list(output_size) != [1]:
        return NotImplemented
    return F.adaptive_avg_pool2d(x.unsqueeze(2), (1, 1)).squeeze(2)


def _upsample_nearest1d(
    x: Tensor, output_size: list[int] | None, scale_factors: list[float] | None
) -> Tensor:
    y = F.interpolate(
        x.unsqueeze(2),  # (n, c, 1, length)
        None if output_size is None else (1, output_size[0]),
        None if scale_factors is None else (1.0, scale_factors[0]),
    )
    return y.squeeze(2)


def _mean(
    x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    """A mean over all positions of a map is a global average pool, which stays int8 everywhere."""
    axes = {d % x.dim() for d in dim or range(x.dim())}
    if x.dim() == 4 and axes == {2, 3}:
        y = F.adaptive_avg_pool2d(x, (1, 1))
        return y if keepdim else y.flatten(1)
    if x.dim() == 3 and axes == {2} and not keepdim:  # (n, c, length); with keepdim: a norm's mean
        return F.adaptive_avg_pool2d(x.unsqueeze(2), (1, 1)).flatten(1)
    return NotImplemented


def _avg_pool2d(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int] | None = None,
    padding: Any = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    kernel = list(kernel_size) * (2 if len(kernel_size) == 1 else 1)
    if kernel == list(x.shape[-2:]) and not any(padding) and divisor_override is None:
        return F.adaptive_avg_pool2d(x, (1, 1))
    return NotImplemented


def _pad(x: Tensor, pad: list[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode != "constant":
        return NotImplemented
    return aten.constant_pad_nd.default(x, pad, value or 0.0)


def _pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    n, c, h, w = x.shape
    r = upscale_factor
    y = x.reshape(n, c // (r * r), r, r, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (r * r), h * r, w * r)


def _pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    n, c, h, w = x.shape
    r = downscale_factor
    y = x.reshape(n, c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4)
    return y.reshape(n, c * r * r, h // r, w // r)


def _channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, *positions = x.shape
    y = x.reshape(n, groups, c // groups, *positions).transpose(1, 2)
    return y.reshape(x.shape)


def _slice(x: Tensor, dim: int, start: int, end: int) -> Tensor:
    part: Tensor = aten.slice.Tensor(x, dim, start, end)
    return part


def _slices(x: Tensor, sizes: list[int], dim: int) -> list[Tensor]:
    parts, start = [], 0
    for size in sizes:
        parts.append(_slice(x, dim, start, start + size))
        start += size
    return parts


def _split(x: Tensor, split_size: int, dim: int = 0) -> list[Tensor]:
    total = x.shape[dim]
    sizes = [min(split_size, total - start) for start in range(0, total, split_size)]
    return _slices(x, sizes, dim)


def _split_with_sizes(x: Tensor, split_sizes: list[int], dim: int = 0) -> list[Tensor]:
    return _slices(x, list(split_sizes), dim)


def _unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    shape = [size for d, size in enumerate(x.shape) if d != dim % x.dim()]
    return [part.reshape(shape) for part in _slices(x, [1] * x.shape[dim], dim)]


def _select(x: Tensor, dim: int, index: int) -> Tensor:
    shape = [size for d, size in enumerate(x.shape) if d != dim % x.dim()]
    start = index % x.shape[dim]
    return _slice(x, dim, start, start + 1).reshape(shape)


def _conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    output_padding: Any = (0, 0),
    groups: int = 1,
    dilation: Any = (1, 1),
) -> Any:
    """Padding of a transposed convolution crops its output; the crop is written out."""
    if not any(padding) and not any(output_padding):
        return NotImplemented
    if any(extra > crop for extra, crop in zip(output_padding, padding, strict=True)):
        return NotImplemented
    y = F.conv_transpose2d(x, weight, bias, stride, 0, 0, groups, dilation)
    for axis, (crop, extra) in enumerate(zip(padding, output_padding, strict=True)):
        end = y.shape[2 + axis] - crop + extra
        y = _slice(y, 2 + axis, crop, end)
    return y


def _hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return _clamp(x, min_val, max_val)


def _clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    if (low, high) == (0, None):
        return F.relu(x)
    if (low, high) == (0, 6):
        return F.relu6(x)
    if low is not None:
        x = torch.maximum(x, torch.full([1] * x.dim(), float(low), dtype=x.dtype))
    if high is not None:
        x = torch.minimum(x, torch.full([1] * x.dim(), float(high), dtype=x.dtype))
    return x


def _clamp_max(x: Tensor, high: float) -> Tensor:
    return _clamp(x, None, high)


def _neg(x: Tensor) -> Tensor:
    return x * -1.0


def _rsub(x: Tensor, other: float, alpha: float = 1) -> Tensor:
    return x * float(-alpha) + other


def _mean_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return x.mean(list(range(x.dim())), dtype=dtype)


def _sum_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return x.sum(list(range(x.dim())), dtype=dtype)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    half = x.shape[dim] // 2
    return _slice(x, dim, 0, half) * torch.sigmoid(_slice(x, dim, half, 2 * half))


def _div(x: Tensor, divisor: Any) -> Any:
    return x * (1.0 / divisor) if isinstance(divisor, (int, float)) else NotImplemented


def _pow(x: Tensor, exponent: float) -> Any:
    return x * x if exponent == 2 else NotImplemented


def _rms_norm(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * torch.rsqrt((x * x).mean(dims, keepdim=True) + eps)
    return y if weight is None else y * weight


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    return _group_norm(x, x.shape[1], weight, bias, eps) if use_input_stats else NotImplemented


def _repeat(x: Tensor, repeats: list[int]) -> Tensor:
    x = x.reshape([1] * (len(repeats) - x.dim()) + list(x.shape))
    for axis, count in enumerate(repeats):
        if count > 1:
            x = torch.cat([x] * count, axis)
    return x


def _flip(x: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        x = torch.cat(_slices(x, [1] * x.shape[dim], dim)[::-1], dim)
    return x


def _stack(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return torch.cat([t.unsqueeze(dim) for t in tensors], dim)


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Return ATen operator -> function, for `ExportedProgram.run_decompositions`."""
    table: dict[Any, Callable[..., Any]] = dict(
        get_decompositions([aten.lstm.input, aten.gru.input])
    )
    table |= OURS
    return table


OURS: Final[dict[Any, Callable[..., Any]]] = {
    aten.silu.default: _silu,
    aten.hardsigmoid.default: _hardsigmoid,
    aten.prelu.default: _prelu,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.conv1d.default: _conv1d,
    aten.conv1d.padding: _conv_named_padding,
    aten.conv2d.padding: _conv_named_padding,
    aten.max_pool1d.default: _max_pool1d,
    aten.avg_pool1d.default: _avg_pool1d,
    aten.adaptive_avg_pool1d.default: _adaptive_avg_pool1d,
    aten.upsample_nearest1d.vec: _upsample_nearest1d,
    aten.mean.dim: _mean,
    aten.pad.default: _pad,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.unbind.int: _unbind,
    aten.select.int: _select,
    aten.conv_transpose2d.input: _conv_transpose2d,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: _clamp_max,
    aten.neg.default: _neg,
    aten.rsub.Scalar: _rsub,
    aten.mean.default: _mean_of_all,
    aten.sum.default: _sum_of_all,
    aten.glu.default: _glu,
    aten.div.Tensor: _div,
    aten.pow.Tensor_Scalar: _pow,
    aten.square.default: lambda x: x * x,
    aten.rms_norm.default: _rms_norm,
    aten.instance_norm.default: _instance_norm,
    aten.repeat.default: _repeat,
    aten.flip.default: _flip,
    aten.stack.default: _stack,
}
