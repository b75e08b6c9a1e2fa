"""Convolutions and matrix products by register blocks, written for one layer's shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeshrink.lowering.calls import (
    Call,
    ConstArg,
    Loop,
    ScratchArg,
    StructArg,
    TensorArg,
    Variant,
)
from edgeshrink.lowering.conv_layer import (
    Conv,
    abs_sums,
    bias_of,
    pair_distance,
    pixel_distance,
    row_distance,
)
from edgeshrink.lowering.emit_m4 import (
    MAX_OFFSET,
    TURNS,
    Block,
    Requantization,
    block_bytes,
    block_cycles,
    block_loop,
    block_stream,
    emit,
    padded_pairs,
    requantization,
    with_pixels,
    with_turns,
)
from edgeshrink.lowering.emit_pairs import (
    emit_pairs,
    pairs_bytes,
    pairs_cycles,
    pairs_loops,
    pairs_stream,
    plane_columns,
)


def block_variants(conv: Conv, stem: str = "es_conv_s8") -> list[Variant]:
    """Return the variants by register blocks that the layer's shape allows.

    Args:
        conv: The layer; `folded_bias` is not None.
        stem: What the kernels' names begin with.
    """
    s = conv.shape
    reach = np.abs(bias_of(conv).astype(np.int64)) + 128 * abs_sums(conv.weights)
    scales = requantization(conv.multiplier, conv.shift, s["y_zero"], reach)
    if scales is None or conv.groups > 1 or s["y_c"] < 2:
        return []
    has_rows = s["x_c"] % 4 == 0 and s["k_h"] * s["k_w"] > 1
    has_rows = has_rows and s["dilation_h"] == s["dilation_w"] == 1
    found = _by_columns(conv, scales, stem)
    return found + _by_rows(conv, scales, stem) if has_rows else found


def _by_columns(conv: Conv, scales: Requantization, stem: str) -> list[Variant]:
    is_pointwise = _is_pointwise(conv.shape)
    conv = _as_one_row(conv) if is_pointwise else conv
    s = conv.shape
    k, pixels = s["k_h"] * s["k_w"] * s["x_c"], s["y_h"] * s["y_w"]
    found: dict[Block, Variant] = {}
    for most_pairs in TURNS:
        block = _column_block(conv, k, pixels, most_pairs)
        if block.fits and block not in found:
            found[block] = _with_columns(conv, scales, stem, block, is_pointwise=is_pointwise)
    return list(found.values())


def _column_block(conv: Conv, k: int, pixels: int, most_pairs: int) -> Block:
    s = conv.shape
    pairs = padded_pairs(-(-k // 2), min(4, pixels), most_pairs)
    return with_turns(Block(
        channels=4 if pixels == 1 and s["y_c"] >= 4 else 2, pixels=min(4, pixels),
        runs=1, pairs=pairs, run_pitch=0,
        pixel_pitch=2 * pairs, n_out=s["y_c"], y_min=s["y_min"], y_max=s["y_max"],
    ), most_pairs)  # fmt: skip


def _with_columns(
    conv: Conv, scales: Requantization, stem: str, block: Block, *, is_pointwise: bool
) -> Variant:
    s = conv.shape
    k, pixels, pairs = s["k_h"] * s["k_w"] * s["x_c"], s["y_h"] * s["y_w"], block.pairs
    in_fours = s["k_w"] * s["x_c"] % 4 == 0
    values = conv.weights.reshape(s["y_c"], k)
    if in_fours:
        values = values.reshape(s["y_c"], k // 4, 4)[:, :, _WIDENED].reshape(s["y_c"], k)
    padded = np.zeros((s["y_c"], 2 * pairs), np.int8)
    padded[:, :k] = values
    widening = k * (2.75 if in_fours else 3.5)
    if is_pointwise:
        name, per_pixel = "by pixels", widening + (10 if k == 2 * pairs else 25)
        body = f"es_conv_by_pixels(x, stream, scratch, y, {{four}}, {{rest}}, {pixels}, {k}, "
        body += f"{s['y_c']}, {2 * pairs}, {int(in_fours)});"
    else:
        name, per_pixel = "by columns", widening + 30 + 20 * s["k_h"]
        body = "es_conv_by_columns(&s, x, stream, scratch, y, {four}, {rest}, "
        body += f"{2 * pairs}, {int(in_fours)});"
    return _block_variant(
        conv, stem, name, block, pixels % 4, padded, scales,
        scratch=2 * block.pixels * 2 * pairs,
        body=body,
        distance=pixel_distance(conv, np.arange(0, pixels, 4)),
        per_image=pixels // 4 * block_cycles(block) + pixels * per_pixel,
        n_fours=pixels // 4, n_rests=1, n_turns=-(-pixels // 4),
        outer_bytes=250 if is_pointwise else 700,
    )  # fmt: skip


def _is_pointwise(s: dict[str, int]) -> bool:
    """Whether every output pixel comes from the input pixel in its place."""
    same_size = all(s[f"x_{side}"] == s[f"y_{side}"] for side in "hw")
    no_border = s["pad_top"] == s["pad_left"] == 0
    return same_size and no_border and s["k_h"] == s["k_w"] == s["stride_h"] == s["stride_w"] == 1


def _as_one_row(conv: Conv) -> Conv:
    """Return a pointwise layer with the pixels of all images in one row."""
    s = conv.shape
    n = s["batches"] * s["y_h"] * s["y_w"]
    row = {"batches": 1, "x_h": 1, "x_w": n, "y_h": 1, "y_w": n}
    return replace(conv, shape={**s, **row})


def _by_rows(conv: Conv, scales: Requantization, stem: str) -> list[Variant]:
    s = conv.shape
    columns = (s["y_w"] - 1) * s["stride_w"] + s["k_w"]
    run = s["k_w"] * s["x_c"]
    whole = Block(
        channels=2, pixels=min(4, s["y_w"]), runs=s["k_h"], pairs=run // 2,
        run_pitch=columns * s["x_c"], pixel_pitch=s["stride_w"] * s["x_c"], n_out=s["y_c"],
        y_min=s["y_min"], y_max=s["y_max"],
    )  # fmt: skip
    values = conv.weights.reshape(s["y_c"], -1, 4)[:, :, _WIDENED].reshape(s["y_c"], -1)
    kept = max(0, s["k_h"] - s["stride_h"]) * columns * s["x_c"]
    new = min(s["k_h"], s["stride_h"]) * columns * s["x_c"]
    widening = kept * 1.5 + new * 2.75 + 100
    blocks = dict.fromkeys(with_turns(whole, most_pairs) for most_pairs in TURNS)
    return [
        _block_variant(
            conv, stem, "by rows", block, s["y_w"] % 4, values, scales,
            scratch=2 * s["k_h"] * columns * s["x_c"],
            body="es_conv_by_rows(&s, x, stream, scratch, y, {four}, {rest});",
            distance=row_distance(conv),
            per_image=s["y_h"] * (s["y_w"] // 4 * block_cycles(block) + widening),
            n_fours=s["y_h"] * (s["y_w"] // 4), n_rests=s["y_h"], n_turns=s["y_h"],
            outer_bytes=500,
        )
        for block in blocks if block.fits
    ]  # fmt: skip


def _block_variant(
    conv: Conv,
    stem: str,
    name: str,
    block: Block,
    n_rest: int,
    values: npt.NDArray[np.int8],
    scales: Requantization,
    *,
    scratch: int,
    body: str,
    distance: int,
    per_image: float,
    n_fours: int,
    n_rests: int,
    n_turns: int,
    outer_bytes: int,
) -> Variant:
    s = conv.shape
    blocks = [block] if block.pixels == 4 else []
    calls = [n_fours] if block.pixels == 4 else []
    if n_rest:
        blocks.append(with_pixels(block, n_rest))
        calls.append(n_rests)
        per_image += n_rests * block_cycles(blocks[-1])
    code = sum(block_bytes(b) for b in blocks)
    looped = code + _OUTER_LOOP[name]
    inner = tuple(block_loop(b, s["batches"] * n) for b, n in zip(blocks, calls, strict=True))
    shape = f"{s['k_h']}x{s['k_w']}x{s['x_c']}_{s['y_c']}"
    emitted = emit(f"{stem}_{shape}", blocks, s, body, f"{name}, {_sizes(s)}")
    stream = block_stream(values.reshape(s["y_c"], -1, 2), bias_of(conv), scales, block.channels)
    return Variant(
        name=name,
        calls=(
            Call(
                function=emitted[0],
                args=(
                    TensorArg(tensor=conv.x),
                    ConstArg(name="weights", values=stream),
                    ScratchArg(n_bytes=scratch),
                    TensorArg(tensor=conv.y),
                ),
                emitted=emitted[1],
            ),
        ),
        overlaps={conv.x: distance},
        cycles=s["batches"] * per_image,
        code_bytes=code + outer_bytes,
        loops=(Loop(n_bytes=looped, turns=s["batches"] * n_turns, entries=1, inner=inner),),
        passes=s["batches"] * sum(calls),
    )


def pairs_variants(conv: Conv) -> list[Variant]:
    """Return the depthwise variant by pairs of rows where the layer's shape allows it."""
    s = conv.shape
    stride = s["stride_h"]
    reach = np.abs(conv.bias.astype(np.int64)) + 255 * abs_sums(conv.weights)
    scales = requantization(conv.multiplier, conv.shift, s["y_zero"], reach)
    same = stride == 1 and s["pad_left"] == 1 and s["x_w"] == s["y_w"]
    columns = plane_columns(s["y_w"], stride, same=same)
    if (
        scales is None
        or reach.max() >= 2**30
        or s["x_c"] != s["y_c"]
        or (s["k_h"], s["k_w"], s["dilation_h"], s["dilation_w"]) != (3, 3, 1, 1)
        or stride != s["stride_w"]
        or stride not in (1, 2)
        or 8 * columns + 8 > MAX_OFFSET
    ):
        return []
    limits = s["y_min"], s["y_max"]
    name, emitted = emit_pairs(s["y_w"], stride, *limits, same=same)
    stream = pairs_stream(conv.weights[..., 0], conv.bias, scales)
    steps = -(-s["y_h"] // (3 - stride))
    per_channel = pairs_cycles(s["y_w"], stride, limits, same=same) + columns * 4.5 + 5
    return [
        Variant(
            name="by pairs",
            calls=(
                Call(
                    function=name,
                    args=(
                        StructArg(type="es_conv_shape", fields=s),
                        TensorArg(tensor=conv.x),
                        ConstArg(name="weights", values=stream),
                        ScratchArg(n_bytes=2 * 4 * columns * s["x_c"]),
                        TensorArg(tensor=conv.y),
                    ),
                    emitted=emitted,
                ),
            ),
            overlaps={conv.x: pair_distance(conv)},
            cycles=s["batches"] * steps * (s["x_c"] * per_channel + 150),
            code_bytes=pairs_bytes(s["y_w"], stride),
            loops=pairs_loops(s["y_w"], stride, s["batches"] * steps, s["x_c"], same=same),
            passes=s["batches"] * steps,
        )
    ]


# Code that runs between two calls of a block, as compiled.
_OUTER_LOOP: Final = {"by pixels": 280, "by columns": 450, "by rows": 850}
_WIDENED: Final = [0, 2, 1, 3]  # the order in which es_widen leaves four values


def _sizes(s: dict[str, int]) -> str:
    sizes = (f"{s[f'{t}_h']} x {s[f'{t}_w']} x {s[f'{t}_c']}" for t in ("x", "y"))
    return " to ".join(sizes) + f", stride {s['stride_h']} x {s['stride_w']}"
