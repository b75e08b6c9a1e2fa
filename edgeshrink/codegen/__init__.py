"""A graph as a folder of plain C: `cc *.c` and nothing else."""

from edgeshrink.codegen.generate import Generated, Golden, c_name, generate

__all__ = ["Generated", "Golden", "c_name", "generate"]
