"""Imports go down only, the verbs don't know each other, and starting is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = {
    "planning", "compression", "exporting", "codegen", "emulation", "auditing", "reporting",
    "fleet",
}  # fmt: skip
MECHANISMS = {
    "quantizer", "costs", "runtimes", "arena", "toolchain", "training", "task_loader",
    "task_checks", "scoring", "program", "predict", "quiet", "graph_reader", "flatbuffer",
    "tflite_schema", "user_code", "task_template", "passes", "lowering", "staging",
    "checkpoints", "executors",
}  # fmt: skip
TOP = {"build", "firmware", "outlook", "trials", "cli", "__main__"}
HEAVY = ("torch", "torchao", "executorch", "litert_torch", "ai_edge_litert", "ortools")


def _floor(module: str) -> int:
    if module in ("cli", "__main__"):
        return 4
    if module in ("build", "firmware", "outlook", "trials"):
        return 3
    return 2 if module in VERBS else 1 if module in MECHANISMS else 0


def _modules(repo: Path) -> list[Path]:
    return sorted((repo / "edgeshrink").rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """All imported modules, those inside functions included; not those under TYPE_CHECKING."""
    tree = ast.parse(path.read_text("utf-8"))
    guarded = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: import absolutely"
            found.add(node.module)
            if node.module == "edgeshrink":
                found |= {f"edgeshrink.{alias.name}" for alias in node.names}
    return found


def test_imports_go_down_only_and_verbs_do_not_know_each_other(repo):
    wrong = []
    for path in _modules(repo):
        here = path.relative_to(repo / "edgeshrink").parts[0].removesuffix(".py")
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] != "edgeshrink" or len(parts) < 2 or parts[1].startswith("__"):
                continue
            there = parts[1]
            if here == "__init__" or there == here:
                continue
            up = _floor(there) > _floor(here)
            sideways = _floor(here) == 2 and _floor(there) == 2
            if up or sideways:
                wrong.append(f"{path.relative_to(repo)} imports {name}")
    assert not wrong


def test_every_module_stands_on_a_known_floor(repo):
    names = {p.relative_to(repo / "edgeshrink").parts[0] for p in _modules(repo)}
    nouns = {
        "__init__", "artifact", "budget", "channels", "errors", "graph", "profile", "recipe",
        "release", "resources", "strict_toml", "target", "task", "units",
    }  # fmt: skip
    unknown = {n.removesuffix(".py") for n in names} - VERBS - MECHANISMS - TOP - nouns
    assert not unknown, "put the module into a floor's table here and in ARCHITECTURE.md"


def test_nouns_import_nothing_heavy(repo):
    for path in _modules(repo):
        here = path.relative_to(repo / "edgeshrink").parts[0].removesuffix(".py")
        if _floor(here) == 0:
            heavy = {n for n in _imports(path) if n.split(".")[0] in HEAVY}
            assert not heavy, f"{path.name} imports {heavy}"


@pytest.mark.parametrize("arguments", [["--help"], ["targets"], ["targets", "rpi4"], ["--version"]])
def test_light_commands_import_no_torch(arguments):
    code = (
        "import sys\n"
        "from edgeshrink.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
