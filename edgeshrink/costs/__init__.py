"""Cost models: what an operator has to do, and what that costs on a core."""

from edgeshrink.costs.application import Latency, Validation, latency, validation
from edgeshrink.costs.work import OpWork, graph_macs, graph_work, op_work

__all__ = [
    "Latency",
    "OpWork",
    "Validation",
    "graph_macs",
    "graph_work",
    "latency",
    "op_work",
    "validation",
]
