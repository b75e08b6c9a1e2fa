"""Print a lowered graph as C."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink import __version__
from edgeshrink.codegen.text import array, c_type, comment, literal, wrapped
from edgeshrink.graph import Graph, Tensor
from edgeshrink.lowering import (
    Arg,
    Call,
    ConstArg,
    IntArg,
    Lowered,
    ScratchArg,
    Step,
    StructArg,
    TensorArg,
)
from edgeshrink.lowering.calls import array_key, struct_key
from edgeshrink.lowering.kernel_files import included_headers, kernel_file

_KEYWORDS: Final = """
    alignas alignof and asm auto bool break case catch char class const constexpr continue
    default delete do double else enum explicit export extern false float for friend goto if inline
    int long mutable namespace new not operator or private protected public register restrict return
    short signed sizeof static struct switch template this throw true try typedef union unsigned
    using virtual void volatile while xor es main golden_test
"""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Inputs and the outputs they must give: one array (n, ...) per input and output, raw."""

    inputs: tuple[npt.NDArray[Any], ...]
    outputs: tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A folder of C before it is written.

    Attributes:
        name: The prefix of every public symbol.
        files: File name -> text.
        weight_bytes: Constants that hold the model's weights and biases.
        table_bytes: Other constants: multipliers, shifts, lookup tables, shapes.
    """

    name: str
    files: Mapping[str, str]
    weight_bytes: int
    table_bytes: int

    @property
    def sources(self) -> tuple[str, ...]:
        """The C files of the model, without the golden test."""
        return tuple(f for f in self.files if f.endswith(".c") and f != "golden_test.c")


def c_name(text: str) -> str:
    """Return `text` as a C identifier in lower case that is no keyword."""
    name = re.sub(r"[^0-9a-z]+", "_", text.lower()).strip("_")
    if not name or name[0].isdigit() or name in _KEYWORDS.split() or name.startswith("es_"):
        name = f"model_{name}" if name else "model"
    return name


def generate(lowered: Lowered, name: str, *, golden: Golden | None = None) -> Generated:
    """Return the C of a lowered graph.

    Args:
        lowered: From `lowering.lower`.
        name: Prefix of the public functions and constants; made an identifier by `c_name`.
        golden: Samples for `golden_test.c`; left out, there is no such file.
    """
    name = c_name(name)
    constants = _Constants(name, lowered)
    init = [
        _op_function(name, s, i - len(lowered.init), lowered, constants)
        for i, s in enumerate(lowered.init)
    ]
    steps = [_op_function(name, s, i, lowered, constants) for i, s in enumerate(lowered.steps)]
    calls = [c for step in (*lowered.init, *lowered.steps) for c in step.variant.calls]
    kernels = {c.function: kernel_file(c.function) for c in calls if c.emitted is None}
    files = {f"{f}.c": p.read_text("utf-8") for f, p in sorted(kernels.items())}
    files |= {f"{c.function}.c": c.emitted.text for c in calls if c.emitted is not None}
    family_headers = sorted(included_headers(files.values()))
    files[f"{name}.h"] = _header(name, lowered)
    files[f"{name}.c"] = _source(name, lowered, init, steps, calls, constants)
    files[f"{name}_data.h"] = constants.header(family_headers)
    files[f"{name}_data.c"] = constants.source()
    if golden is not None:
        files["golden_test.c"] = _golden_test(name, lowered.graph, golden)
    used = included_headers([*files.values(), '#include "es_base.h"'])
    files |= {header: path.read_text("utf-8") for header, path in used.items()}
    files["CMakeLists.txt"] = _cmake(name, files)
    return Generated(
        name=name,
        files=dict(sorted(files.items())),
        weight_bytes=constants.weight_bytes,
        table_bytes=constants.table_bytes,
    )


class _Constants:
    """Collects the arrays and structs that calls point to; equal ones are kept once."""

    def __init__(self, name: str, lowered: Lowered) -> None:
        self.name, self.lowered = name, lowered
        self._symbols: dict[tuple[Any, ...], str] = {}
        self._definitions: list[str] = []
        self._declarations: list[str] = []
        self.weight_bytes = self.table_bytes = 0

    def array(self, values: npt.NDArray[Any], label: str, align: int, *, is_weight: bool) -> str:
        values = np.ascontiguousarray(values)
        key = array_key(values, align)
        if key in self._symbols:
            return self._symbols[key]
        symbol = self._new(label)
        self._symbols[key] = symbol
        if is_weight:
            self.weight_bytes += values.nbytes
        else:
            self.table_bytes += values.nbytes
        self._definitions.append(array(symbol, values, align=max(align, values.itemsize)))
        size = max(1, values.size)
        self._declarations.append(f"extern const {c_type(values.dtype)} {symbol}[{size}];")
        return symbol

    def struct(self, arg: StructArg, label: str) -> str:
        key = struct_key(arg)
        if key in self._symbols:
            return self._symbols[key]
        symbol = self._new(label)
        self._symbols[key] = symbol
        self.table_bytes += 4 * len(arg.fields)
        values = wrapped(f"{literal(v, np.int32)} /* {k} */" for k, v in arg.fields.items())
        self._definitions.append(f"const {arg.type} {symbol} = {{\n{values}}};\n")
        self._declarations.append(f"extern const {arg.type} {symbol};")
        return symbol

    def _new(self, label: str) -> str:
        """Return a symbol that is not taken: a call may have two shapes."""
        symbols, symbol, n = set(self._symbols.values()), f"{self.name}_{label}", 1
        while symbol in symbols:
            n += 1
            symbol = f"{self.name}_{label}_{n}"
        return symbol

    def tensor(self, index: int) -> str:
        tensor = self.lowered.graph.tensors[index]
        assert tensor.data is not None
        return self.array(tensor.data, f"tensor_{index}", 4, is_weight=True)

    def header(self, includes: Sequence[str]) -> str:
        guard = f"{self.name.upper()}_DATA_H"
        lines = [f"/* Constants of {self.name}. */", f"#ifndef {guard}", f"#define {guard}", ""]
        lines += [f'#include "{h}"' for h in (includes or ["es_base.h"])]
        lines += ["", "ES_BEGIN", "", *self._declarations, "", "ES_END", "", "#endif", ""]
        return "\n".join(lines)

    def source(self) -> str:
        head = f'/* Constants of {self.name}. */\n#include "{self.name}_data.h"\n\n'
        return head + "\n".join(self._definitions)


WEIGHT_NAMES: Final = ("weights", "bias")


def _argument(
    arg: Arg,
    parameter: str,
    step: Step,
    position: int,
    lowered: Lowered,
    constants: _Constants,
    n: int,
) -> str:
    if isinstance(arg, IntArg):
        return literal(arg.value, np.int32)
    if isinstance(arg, ConstArg):
        label = f"op_{step.op}_{c_name(arg.name)}"
        label += f"_{n}" if n else ""
        is_weight = any(arg.name.startswith(w) for w in WEIGHT_NAMES)
        return constants.array(np.asarray(arg.values), label, arg.align, is_weight=is_weight)
    if isinstance(arg, StructArg):
        return "&" + constants.struct(arg, f"op_{step.op}_shape" + (f"_{n}" if n else ""))
    if isinstance(arg, ScratchArg):
        offset = lowered.scratch.get(position, 0)
        return f"({parameter})(arena.bytes + {offset})"
    place = lowered.places[arg.tensor]
    if place.where == "constant":
        return constants.tensor(place.constant)
    kind = c_type(lowered.graph.tensors[arg.tensor].dtype) if _typed(lowered, arg) else "void"
    return f"({kind} *)({place.where}.bytes + {place.offset})"


def _parameters(call: Call) -> list[str]:
    """Return the type of every parameter of the called function: "int32_t *"."""
    if call.emitted is not None:
        text = call.emitted.parameters
    else:
        source = kernel_file(call.function).read_text("utf-8")
        match = re.search(rf"^void {call.function}\(([^)]*)\)", source, re.MULTILINE)
        assert match is not None, call.function
        text = match[1]
    return [re.sub(r"\w+$", "", part.strip()).strip() for part in text.split(",")]


def _typed(lowered: Lowered, arg: TensorArg) -> bool:
    return lowered.graph.tensors[arg.tensor].dtype != "resource"


def _op_function(
    name: str, step: Step, position: int, lowered: Lowered, constants: _Constants
) -> str:
    """Return the function of one operator, or "" where there is nothing to do."""
    if not step.variant.calls:
        return ""
    label = f" {step.name}" if step.name else ""
    tensors = lowered.graph.tensors
    op = lowered.graph.ops[step.op]
    shapes = " -> ".join(
        "x".join(map(str, tensors[side[0]].shape)) or "scalar"
        for side in (op.inputs, op.outputs)
        if side and side[0] >= 0
    )
    note = comment(f"{step.kind}{label} ({step.variant.name}) {shapes}")
    lines = [f"/* {note} */", f"ES_NOINLINE static void {name}_op_{step.op}(void) {{"]
    for n, call in enumerate(step.variant.calls):
        args = [
            _argument(a, parameter, step, position, lowered, constants, n)
            for a, parameter in zip(call.args, _parameters(call), strict=True)
        ]
        text = f"  {call.function}({', '.join(args)});"
        if len(text) > 100:
            text = f"  {call.function}(\n{_indented(args)});"
        lines.append(text)
    return "\n".join([*lines, "}", ""])


def _indented(args: Sequence[str]) -> str:
    return "\n".join("  " + line for line in wrapped(args).splitlines())


def _header(name: str, lowered: Lowered) -> str:
    graph, upper = lowered.graph, name.upper()
    lines = [
        f"/* {name}: a neural network as plain C, written by edgeshrink {__version__}.",
        " *",
        f" *   {name}_init();                       once, and again to forget all state",
        f" *   memcpy({name}_input(0), ..., {upper}_INPUT_0_BYTES);",
        f" *   {name}_invoke();",
        f" *   ... = {name}_output(0);             valid until the next invoke",
        " *",
        " * Inputs may be overwritten by an invoke: fill them before each. Not reentrant.",
        f" * A quantized value v stands for {upper}_..._SCALE * (v - {upper}_..._ZERO_POINT). */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stdint.h>",
        "",
        f"#define {upper}_ARENA_BYTES {lowered.arena.n_bytes}",
        f"#define {upper}_STATE_BYTES {lowered.state_bytes}",
    ]
    for side, tensors in (("INPUT", graph.inputs), ("OUTPUT", graph.outputs)):
        lines += ["", f"#define {upper}_N_{side}S {len(tensors)}"]
        for i, index in enumerate(tensors):
            lines += _tensor_macros(f"{upper}_{side}_{i}", graph.tensors[index])
    lines += [
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"void {name}_init(void);",
        f"void {name}_invoke(void);",
        f"void *{name}_input(int i);         /* NULL when there is no such input */",
        f"const void *{name}_output(int i);  /* NULL when there is no such output */",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def _tensor_macros(prefix: str, tensor: Tensor) -> list[str]:
    lines = []
    if tensor.name:
        lines.append(f"/* {comment(tensor.name)} */")
    lines += [
        f"#define {prefix}_TYPE {c_type(tensor.dtype)}",
        f"#define {prefix}_RANK {len(tensor.shape)}",
        f"#define {prefix}_SHAPE {{{', '.join(map(str, tensor.shape)) or '1'}}}",
        f"#define {prefix}_ELEMENTS {int(np.prod(tensor.shape, dtype=np.int64))}",
        f"#define {prefix}_BYTES {tensor.n_bytes}",
    ]
    q = tensor.quantization
    if q is not None and q.scales.size == 1:
        lines.append(f"#define {prefix}_SCALE {literal(q.scales[0], np.float32)}")
        lines.append(f"#define {prefix}_ZERO_POINT ({int(q.zero_points[0])})")
    return lines


def _source(
    name: str,
    lowered: Lowered,
    init: Sequence[str],
    steps: Sequence[str],
    calls: Sequence[Call],
    constants: _Constants,
) -> str:
    upper = name.upper()
    emitted = {c.function: c.emitted.parameters for c in calls if c.emitted is not None}
    arena = max(1, lowered.arena.n_bytes)
    lines = [
        f"/* {name}: operators in order, over an arena of {lowered.arena.n_bytes} bytes. */",
        f'#include "{name}.h"',
        "",
        f'#include "{name}_data.h"',
        "",
        f"ES_ALIGN(16) static union {{ uint8_t bytes[{arena}]; uint64_t widest; }} arena;",
    ]
    if lowered.state_bytes:
        lines.append(
            f"ES_ALIGN(16) static union {{ uint8_t bytes[{lowered.state_bytes}]; "
            "uint64_t widest; } state;"
        )
    lines.append("")
    if emitted:
        lines.append("ES_BEGIN")
        lines += [f"void {f}({parameters});" for f, parameters in sorted(emitted.items())]
        lines += ["ES_END", ""]
    lines += [text for text in (*init, *steps) if text]
    lines += [f"void {name}_init(void) {{"]
    if lowered.state_bytes:
        lines.append("  es_fill(state.bytes, 0, sizeof state.bytes);")
    lines += [f"  es_fill(state.bytes + {f.offset}, {f.byte}, {f.n_bytes});" for f in lowered.fills]
    lines += [f"  {name}_op_{s.op}();" for s in lowered.init if s.variant.calls]
    lines += ["}", "", f"void {name}_invoke(void) {{"]
    lines += [f"  {name}_op_{s.op}();" for s in lowered.steps if s.variant.calls]
    lines += ["}", ""]
    for side, kind, tensors in (
        ("input", "void *", lowered.graph.inputs),
        ("output", "const void *", lowered.graph.outputs),
    ):
        lines += [f"{kind}{name}_{side}(int i) {{"]
        if tensors:
            lines += ["  switch (i) {"]
            lines += [f"    case {i}: return {_address(t, lowered, constants)};"
                      for i, t in enumerate(tensors)]  # fmt: skip
            lines += ["    default: return 0;", "  }"]
        else:
            lines += ["  (void)i;", "  return 0;"]
        lines += ["}", ""]
    del upper
    return "\n".join(lines)


def _address(tensor: int, lowered: Lowered, constants: _Constants) -> str:
    place = lowered.places[tensor]
    if place.where == "constant":
        return constants.tensor(place.constant)
    return f"{place.where}.bytes + {place.offset}"


def _golden_test(name: str, graph: Graph, golden: Golden) -> str:
    upper = name.upper()
    n_samples = len(golden.inputs[0]) if golden.inputs else 1
    lines = [
        f"/* Self-test of {name}: exits with 0 when every output is what it must be, bit for bit.",
        " * Not part of a firmware: leave this file out there. */",
        "#include <stdio.h>",
        "#include <string.h>",
        "",
        f'#include "{name}.h"',
        '#include "es_base.h"',
        "",
    ]
    for side, arrays in (("input", golden.inputs), ("output", golden.outputs)):
        for i, values in enumerate(arrays):
            flat = np.ascontiguousarray(values)
            raw = flat.view(np.uint8) if flat.dtype == np.bool_ else flat
            lines.append(array(f"{side}_{i}", raw, align=8, storage="static "))
    lines += [
        "static int differ(const void *got, const void *expected, int n_bytes) {",
        "  const uint8_t *a = (const uint8_t *)got, *b = (const uint8_t *)expected;",
        "  for (int i = 0; i < n_bytes; i++) {",
        "    if (a[i] != b[i]) return 1;",
        "  }",
        "  return 0;",
        "}",
        "",
        "int main(void) {",
        "  int failures = 0;",
        f"  for (int sample = 0; sample < {n_samples}; sample++) {{",
        f"    {name}_init();",
    ]
    for i in range(len(golden.inputs)):
        size = f"{upper}_INPUT_{i}_ELEMENTS"
        lines.append(f"    memcpy({name}_input({i}), input_{i} + sample * {size}, "
                     f"{upper}_INPUT_{i}_BYTES);")  # fmt: skip
    lines.append(f"    {name}_invoke();")
    for i in range(len(golden.outputs)):
        size = f"{upper}_OUTPUT_{i}_ELEMENTS"
        lines += [
            f"    if (differ({name}_output({i}), output_{i} + sample * {size}, "
            f"{upper}_OUTPUT_{i}_BYTES)) {{",
            f'      printf("sample %d: output {i} differs\\n", sample);',
            "      failures++;",
            "    }",
        ]
    lines += [
        "  }",
        f'  printf("{name}: %d of %d outputs differ\\n", failures, '
        f"{n_samples * len(golden.outputs)});",
        "  return failures != 0;",
        "}",
        "",
    ]
    return "\n".join(lines)


def _cmake(name: str, files: Mapping[str, str]) -> str:
    sources = sorted(f for f in files if f.endswith(".c") and f != "golden_test.c")
    listed = "\n".join(f"  {f}" for f in sources)
    text = (
        "cmake_minimum_required(VERSION 3.13)\n"
        f"project({name} C)\n\n"
        f"add_library({name} STATIC\n{listed})\n"
        f"target_include_directories({name} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}})\n"
        f"target_compile_features({name} PUBLIC c_std_11)\n"
    )
    if "golden_test.c" in files:
        text += (
            "\nif(NOT CMAKE_CROSSCOMPILING)\n"
            "  enable_testing()\n"
            f"  add_executable({name}_golden_test golden_test.c)\n"
            f"  target_link_libraries({name}_golden_test PRIVATE {name})\n"
            f"  add_test(NAME golden COMMAND {name}_golden_test)\n"
            "endif()\n"
        )
    return text
