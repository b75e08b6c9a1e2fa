"""Read what an ExecuTorch `.pte` holds: operator calls, delegates, planned arenas, inputs, outputs.

Needs numpy alone: the program is a flatbuffer, read with the same bounds checks as a `.tflite`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgeshrink.artifact import IoSpec
from edgeshrink.errors import ModelError
from edgeshrink.flatbuffer import FlatbufferError, parse_schema, read_flatbuffer

IDENTIFIER: Final = b"ET12"
DAMAGED: Final = "the file is damaged, or not a .pte of ExecuTorch 1.x: export or download it again"

# Facts of executorch 1.5.1's program.fbs and scalar_type.fbs.
SCHEMA: Final = parse_schema("""
union KernelTypes  Null Int Bool Double Tensor String IntList DoubleList BoolList TensorList
  OptionalTensorList
union InstructionArguments  KernelCall DelegateCall MoveCall JumpFalseCall FreeCall

table Program  version:u32  execution_plan:[ExecutionPlan]  constant_buffer:[Buffer]
  backend_delegate_data:[BackendDelegateInlineData]  segments:[DataSegment]
  constant_segment:SubsegmentOffsets  mutable_data_segments:[SubsegmentOffsets]
  named_data:[NamedData]
table ExecutionPlan  name:str  container_meta_type:ContainerMetadata  values:[EValue]
  inputs:[i32]  outputs:[i32]  chains:[Chain]  operators:[Operator]
  delegates:[BackendDelegate]  non_const_buffer_sizes:[i64]
table ContainerMetadata  encoded_inp_str:str  encoded_out_str:str
table EValue  val:KernelTypes
table Null
table Int  int_val:i64
table Bool  bool_val:bool
table Double  double_val:f64
table String  string_val:str
table IntList  items:[i64]
table DoubleList  items:[f64]
table BoolList  items:[bool]
table TensorList  items:[i32]
table OptionalTensorList  items:[i32]
table Tensor  scalar_type:i8  storage_offset:i32  sizes:[i32]  dim_order:[u8]
  requires_grad:bool  data_buffer_idx:u32  -  layout:i8  shape_dynamism:i8
table Chain  inputs:[i32]  outputs:[i32]  instructions:[Instruction]
table Instruction  instr_args:InstructionArguments
table KernelCall  op_index:i32  args:[i32]
table DelegateCall  delegate_index:i32  args:[i32]
table MoveCall  move_from:i32  move_to:i32
table JumpFalseCall  cond_value_index:i32  destination_instruction:i32
table FreeCall  value_index:i32
table Operator  name:str  overload:str
table BackendDelegate  id:str
table Buffer  storage:[u8]
table BackendDelegateInlineData  data:[u8]
table DataSegment  offset:u64  size:u64
table SubsegmentOffsets  segment_index:u32  offsets:[u64]
table NamedData  key:str  segment_index:u32
""")
DTYPES: Final = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32",
    7: "float64", 11: "bool", 15: "bfloat16", 27: "uint16", 28: "uint32", 29: "uint64",
}  # fmt: skip
STATIC_SHAPE: Final = 0


@dataclass(frozen=True, kw_only=True)
class PteInfo:
    """What one method of a `.pte` consists of."""

    method: str
    calls: Mapping[str, int]  # "aten::add.out", "delegate:XnnpackBackend" -> instructions
    planned_arena_bytes: tuple[int, ...]  # without what a delegate allocates for itself
    segment_bytes: tuple[int, ...]  # constants and delegates' data, behind the program
    inputs: tuple[IoSpec, ...]  # named args_0, args_1, ...: the file has no names
    outputs: tuple[IoSpec, ...]  # named output_0, ...
    input_dim_orders: tuple[tuple[int, ...], ...]  # (0, 2, 3, 1): the memory is channels-last
    is_dynamic: bool  # some input's shape is an upper bound


def read_pte(data: bytes, *, name: str = "model.pte") -> PteInfo:
    """Return what the method `forward` of a `.pte` (or its only method) consists of.

    Args:
        data: The file.
        name: What to call it in errors.

    Raises:
        ModelError: The file is damaged, or the method takes or returns something else than
            tensors. Time and memory are bounded by the size of the file.
    """
    if not data:
        raise ModelError(name, "is empty", DAMAGED)
    try:
        program = read_flatbuffer(data, SCHEMA, "Program", IDENTIFIER)
    except FlatbufferError as err:
        raise ModelError(f"{name}: {err.path}", err.fault, DAMAGED) from err
    segments = program["segments"] or []
    _check_segments(segments, data, name)
    plans = {plan["name"]: plan for plan in program["execution_plan"] or ()}
    if not plans:
        raise ModelError(name, "has no method", DAMAGED)
    if "forward" not in plans and len(plans) > 1:
        what = f"has the methods {', '.join(map(str, plans))}, and none is called forward"
        raise ModelError(name, what, "export the model with one method")
    plan = plans.get("forward") or next(iter(plans.values()))
    place = f"{name}: method {plan['name']}"
    sizes = plan["non_const_buffer_sizes"]
    inputs = _tensors(plan, "inputs", place)
    outputs = _tensors(plan, "outputs", place)
    return PteInfo(
        method=plan["name"] or "",
        calls=_calls(plan, place),
        planned_arena_bytes=() if sizes is None else tuple(sizes[1:].tolist()),  # 0 is reserved
        segment_bytes=tuple(segment["size"] for segment in segments),
        inputs=tuple(_spec(t, f"args_{i}", place) for i, t in enumerate(inputs)),
        outputs=tuple(_spec(t, f"output_{i}", place) for i, t in enumerate(outputs)),
        input_dim_orders=tuple(_dim_order(t, f"args_{i}", place) for i, t in enumerate(inputs)),
        is_dynamic=any(tensor["shape_dynamism"] != STATIC_SHAPE for tensor in inputs),
    )


def _check_segments(segments: list[dict[str, Any]], data: bytes, name: str) -> None:
    """Check that segments lie in the file; an extended header says where the first one starts."""
    if not segments:
        return
    if data[8:12] != b"eh00" or len(data) < 32:
        raise ModelError(name, "has segments, but no header that says where", DAMAGED)
    base = struct.unpack_from("<Q", data, 24)[0]
    for index, segment in enumerate(segments):
        end = base + segment["offset"] + segment["size"]
        if end > len(data):
            what = f"ends at byte {end}, the file at byte {len(data)}"
            raise ModelError(f"{name}: segments[{index}]", what, DAMAGED)


def _calls(plan: dict[str, Any], place: str) -> Mapping[str, int]:
    operators = [_operator_name(op) for op in plan["operators"] or ()]
    delegates = [f"delegate:{delegate['id'] or ''}" for delegate in plan["delegates"] or ()]
    calls: Counter[str] = Counter()
    for chain in plan["chains"] or ():
        for instruction in chain["instructions"] or ():
            no_call: tuple[str, dict[str, Any]] = ("", {})
            kind, arguments = instruction["instr_args"] or no_call
            if kind == "KernelCall":
                calls[_at(operators, arguments["op_index"], f"{place}: operators")] += 1
            elif kind == "DelegateCall":
                calls[_at(delegates, arguments["delegate_index"], f"{place}: delegates")] += 1
    return dict(calls)


def _operator_name(op: dict[str, Any]) -> str:
    return f"{op['name'] or ''}.{op['overload']}" if op["overload"] else op["name"] or ""


def _at(items: list[Any], index: int, place: str) -> Any:
    if not 0 <= index < len(items):
        raise ModelError(place, f"number {index} is called, there are {len(items)}", DAMAGED)
    return items[index]


def _tensors(plan: dict[str, Any], key: str, place: str) -> list[dict[str, Any]]:
    values = plan["values"] or []
    tensors: list[dict[str, Any]] = []
    for number, index in enumerate([] if plan[key] is None else plan[key].tolist()):
        kind, table = _at(values, index, f"{place}: values")["val"] or ("Null", {})
        if kind != "Tensor":
            what = f"is of kind {kind}, only tensors are supported"
            raise ModelError(f"{place}: {key}[{number}]", what, "export a model of tensors")
        tensors.append(table)
    return tensors


def _spec(tensor: dict[str, Any], name: str, place: str) -> IoSpec:
    shape = () if tensor["sizes"] is None else tuple(tensor["sizes"].tolist())
    dtype = DTYPES.get(tensor["scalar_type"])
    if dtype is None or any(size < 0 for size in shape):
        what = f"has type number {tensor['scalar_type']} and shape {shape}"
        raise ModelError(f"{place}: {name}", what, DAMAGED)
    return IoSpec(name=name, shape=shape, dtype=dtype)


def _dim_order(tensor: dict[str, Any], name: str, place: str) -> tuple[int, ...]:
    rank = 0 if tensor["sizes"] is None else tensor["sizes"].size
    order = tensor["dim_order"]
    if order is None or not order.size:
        return tuple(range(rank))
    if sorted(order.tolist()) != list(range(rank)):
        raise ModelError(f"{place}: {name}", f"has the dim_order {order.tolist()}", DAMAGED)
    return tuple(order.tolist())
