"""From a graph to kernel calls over planned memory; the code generator prints the result."""

from edgeshrink.lowering.calls import (
    Arg,
    Call,
    ConstArg,
    Emitted,
    Fill,
    IntArg,
    Lowered,
    Optimize,
    Place,
    ScratchArg,
    Step,
    StructArg,
    TensorArg,
    Variant,
)
from edgeshrink.lowering.lower import kernel_folders, lower
from edgeshrink.lowering.table import LOWERINGS

__all__ = [
    "LOWERINGS",
    "Arg",
    "Call",
    "ConstArg",
    "Emitted",
    "Fill",
    "IntArg",
    "Lowered",
    "Optimize",
    "Place",
    "ScratchArg",
    "Step",
    "StructArg",
    "TensorArg",
    "Variant",
    "kernel_folders",
    "lower",
]
