"""Run CMSIS-NN's int8 kernels on emulated cores over many layer shapes, behind simulated flash.

One program holds every shape as an operator of its own; `measure` runs it once per core and set of
caches and returns, for every shape, the cycles of the core's timing table and what the caches in
front of its flash did not hold. Used by `microcontroller_latency.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeshrink.costs.microcontroller import block_cycles
from edgeshrink.runtimes.firmware import harness_source, open_firmware
from edgeshrink.runtimes.flash_caches import FlashCaches, Waits
from edgeshrink.toolchain import compile_elf

FOLDERS: Final = (
    "ConvolutionFunctions", "FullyConnectedFunctions", "PoolingFunctions", "BasicMathFunctions",
    "SoftmaxFunctions", "NNSupportFunctions",
)  # fmt: skip
MAX_WEIGHTS: Final = 1_060_000
MAX_VALUES: Final = 100_000
MAX_CHANNELS: Final = 2060
OTHER_WORDS: Final = 16_384
KERNELS: Final = """
/* Fills every data cache with other constants, as the layers between do in a network. */
static int32_t sink;
__attribute__((noinline)) static void flush(void)
{
    for (unsigned i = 0; i < sizeof OTHER / sizeof *OTHER; i++)
        sink += OTHER[i];
}
static void conv(int ih, int iw, int ic, int oh, int ow, int oc, int kh, int kw, int s, int ph,
                 int pw)
{
    cmsis_nn_context c = {S, sizeof S};
    cmsis_nn_conv_params p = {128, 3, {s, s}, {pw, ph}, {1, 1}, {-128, 127}};
    cmsis_nn_per_channel_quant_params q = {MULTIPLIERS, SHIFTS};
    cmsis_nn_dims x = {1, ih, iw, ic}, f = {oc, kh, kw, ic}, b = {1, 1, 1, oc}, y = {1, oh, ow, oc};
    arm_convolve_wrapper_s8(&c, &p, &q, &x, X, &f, W, &b, B, &y, Y);
}
static void depthwise(int ih, int iw, int ic, int oh, int ow, int oc, int kh, int kw, int s, int ph,
                      int pw)
{
    cmsis_nn_context c = {S, sizeof S};
    cmsis_nn_dw_conv_params p = {128, 3, oc / ic, {s, s}, {pw, ph}, {1, 1}, {-128, 127}};
    cmsis_nn_per_channel_quant_params q = {MULTIPLIERS, SHIFTS};
    cmsis_nn_dims x = {1, ih, iw, ic}, f = {1, kh, kw, oc}, b = {1, 1, 1, oc}, y = {1, oh, ow, oc};
    arm_depthwise_conv_wrapper_s8(&c, &p, &q, &x, X, &f, W, &b, B, &y, Y);
}
static void dense(int ic, int oc)
{
    cmsis_nn_context c = {SUMS, sizeof SUMS};
    cmsis_nn_fc_params p = {128, 0, 3, {-128, 127}};
    cmsis_nn_per_tensor_quant_params q = {1300000000, -8};
    cmsis_nn_dims x = {1, 1, 1, ic}, f = {ic, 1, 1, oc}, b = {1, 1, 1, oc}, y = {1, 1, 1, oc};
    arm_fully_connected_s8(&c, &p, &q, &x, X, &f, W, &b, B, &y, Y);
}
static void pool(int is_max, int ih, int iw, int ic, int oh, int ow, int kh, int kw, int s)
{
    cmsis_nn_context c = {S, sizeof S};
    cmsis_nn_pool_params p = {{s, s}, {0, 0}, {-128, 127}};
    cmsis_nn_dims x = {1, ih, iw, ic}, f = {1, kh, kw, 1}, y = {1, oh, ow, ic};
    if (is_max)
        arm_max_pool_s8(&c, &p, &x, X, &f, &y, Y);
    else
        arm_avgpool_s8(&c, &p, &x, X, &f, &y, Y);
}
static void add(int n)
{
    arm_elementwise_add_s8(X, X, 128, 1300000000, 0, 128, 1300000000, 0, 20, Y, 3, 1300000000, -19,
                           -128, 127, n);
}
"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one layer did."""

    instructions: int
    cycles: float
    waits: Waits


def _integer(row: Mapping[str, str], key: str) -> int:
    return int(row[key]) if row[key] else 0


def _call(row: Mapping[str, str]) -> str:
    """Return the C statement that computes the layer of a row of the kernel table."""
    keys = ("in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "k_h", "k_w", "stride")
    ih, iw, ic, oh, ow, oc, kh, kw, s = (_integer(row, key) for key in keys)
    is_padded = row["padding"] == "same" and s > 0
    ph = max(0, ((oh - 1) * s + kh - ih) // 2) if is_padded else 0
    pw = max(0, ((ow - 1) * s + kw - iw) // 2) if is_padded else 0
    match row["op"]:
        case "CONV_2D":
            return f"conv({ih},{iw},{ic},{oh},{ow},{oc},{kh},{kw},{s},{ph},{pw});"
        case "DEPTHWISE_CONV_2D":
            return f"depthwise({ih},{iw},{ic},{oh},{ow},{oc},{kh},{kw},{s},{ph},{pw});"
        case "FULLY_CONNECTED":
            return f"dense({ic},{oc});"
        case "AVERAGE_POOL_2D":
            return f"pool(0,{ih},{iw},{ic},{oh},{ow},{kh},{kw},{s});"
        case "MAX_POOL_2D":
            return f"pool(1,{ih},{iw},{ic},{oh},{ow},{kh},{kw},{s});"
        case "ADD":
            return f"add({ih * iw * ic});"
        case "SOFTMAX":
            return f"arm_softmax_s8(X,{ih},{ic},1073741824,23,-248,Y);"
    return ""


def _numbers(values: np.ndarray) -> str:
    return ",".join(map(str, values.tolist()))


# TFLM keeps multipliers and shifts in its arena, weights and biases in flash.
def _source(rows: Sequence[Mapping[str, str]]) -> str:
    rng = np.random.default_rng(0)
    channels = MAX_CHANNELS
    arrays = (
        f"static const int8_t W[] __attribute__((aligned(4))) = "
        f"{{{_numbers(rng.integers(-100, 101, MAX_WEIGHTS))}}};\n"
        f"static const int32_t B[] = {{{_numbers(rng.integers(-1000, 1001, channels))}}};\n"
        f"static int32_t MULTIPLIERS[] = "
        f"{{{_numbers(rng.integers(1 << 30, (1 << 31) - 1, channels))}}};\n"
        f"static int32_t SHIFTS[] = {{{_numbers(np.full(channels, -9))}}};\n"
        f"static const int32_t OTHER[] = {{{_numbers(rng.integers(0, 100, OTHER_WORDS))}}};\n"
        f"static int8_t X[{MAX_VALUES}] __attribute__((aligned(4)));\n"
        f"static int8_t Y[{MAX_VALUES}] __attribute__((aligned(4)));\n"
        f"static int8_t S[{MAX_VALUES}] __attribute__((aligned(4)));\n"
        f"static int32_t SUMS[4 * {channels}];\n"
    )
    ops = "\n".join(
        f"__attribute__((noinline)) static void m_op_{k}(void) {{ {_call(row)} }}"
        for k, row in enumerate(rows)
    )
    calls = " ".join(f"flush(); m_op_{k}();" for k in range(len(rows)))
    return (
        '#include "arm_nnfunctions.h"\n#include "m.h"\n' + arrays + KERNELS + ops +
        "\nvoid m_init(void) { for (unsigned i = 0; i < sizeof X; i++) "
        "X[i] = (int8_t)((i * 2654435761u) >> 24); }\n"
        f"void m_invoke(void) {{ {calls} }}\n"
        "void *m_input(int i) { return X; }\nvoid *m_output(int i) { return Y; }\n"
    )  # fmt: skip


def build(rows: Sequence[Mapping[str, str]], core: str, cmsis_nn: Path, out: Path) -> Path:
    """Compile the kernels and every shape for a core with gcc, as TFLM's makefile does (-O3)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.c").write_text(_source(rows), "utf-8")
        (folder / "m.h").write_text(
            "void m_init(void); void m_invoke(void);\n"
            "void *m_input(int i); void *m_output(int i);\n"
            "#define M_INPUT_0_BYTES 4\n#define M_OUTPUT_0_BYTES 4\n", "utf-8"
        )  # fmt: skip
        (folder / "harness.c").write_text(harness_source("m", 1, 1), "utf-8")
        kernels = [
            path
            for part in FOLDERS
            for path in sorted((cmsis_nn / "Source" / part).glob("*.c"))
            if not any(word in path.name for word in ("f16", "f32", "flt"))
            and ("s8" in path.name or part == "NNSupportFunctions" or "common" in path.name)
        ]
        return compile_elf(
            [folder / "m.c", folder / "harness.c", *kernels], core, out,
            include=[cmsis_nn / "Include", folder], compiler="gcc",
        )  # fmt: skip


def measure(elf: Path, core: str, caches: FlashCaches | None, n_rows: int) -> list[Measured]:
    """Return what every shape did on the core."""
    with open_firmware(elf, core, timeout_s=900, caches=caches) as runner:
        run, _ = runner.count(*[np.zeros(spec.shape, spec.dtype) for spec in runner.inputs])
    cycles, instructions = [0.0] * n_rows, [0] * n_rows
    for block, took in zip(run.blocks, block_cycles(run.blocks, core), strict=True):
        if block.op is not None:
            cycles[block.op] += took
            instructions[block.op] += block.entries * block.n_instructions
    nothing = Waits(fetched=0, jumps=0, successors=0, reads=0, misses=0)
    return [
        Measured(
            instructions=instructions[k], cycles=cycles[k], waits=run.waits.get(k, nothing)
        )
        for k in range(n_rows)
    ]  # fmt: skip
