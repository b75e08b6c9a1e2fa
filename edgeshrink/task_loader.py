"""Find the function that makes a task, give it its parameters, call it, check what it returns."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import os
import random
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeshrink.budget import Budget, read_budget
from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.strict_toml import nearest, read_toml
from edgeshrink.task import Metric, Task
from edgeshrink.user_code import UserCode

TASK_FILE: Final = "edgeshrink.toml"
DATA_VARIABLE: Final = "EDGESHRINK_DATA"
# Parameters that have an option of their own.
DEPLOYED: Final = (".tflite", ".pte")
RESERVED: Final = {"data": "--data DIR", "seed": "--seed N"}
BOOLEANS: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
KINDS: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}

_counter = itertools.count()
_siblings: set[str] = set()  # modules that the last task imported from its own folder


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Where a task comes from, and what its `edgeshrink.toml` says about it."""

    file: Path
    function: str
    name: str
    metric_name: str | None = None
    metric_direction: str | None = None
    budget: Budget = field(default_factory=Budget)
    parameters: Mapping[str, Any] = field(default_factory=dict)  # as in the TOML
    toml: Path | None = None

    @property
    def where(self) -> str:
        """`path/to/task.py:build`, for messages."""
        return f"{self.file}:{self.function}"


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Return the values of `--set KEY=VALUE` by key; the last one of a key counts."""
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError("--set", f"is {text!r}", "write it as KEY=VALUE")
        settings[key.strip()] = value
    return settings


def load_task(
    spec: str, *, settings: Mapping[str, str], data: Path | None = None, seed: int = 0
) -> Task:
    """Return the task that `spec` names.

    The user's file is imported under a name of its own, with its folder on `sys.path` while it
    is imported and called. Python's, numpy's and torch's global generators are seeded with `seed`
    just before the call, so that the model's first weights are the same in every run.

    Args:
        spec: A folder with `edgeshrink.toml`, `file.py:function`, or an exported program `.pt2`;
            empty: the current folder.
        settings: Values of `--set` for parameters of the user's function. They go before
            `[parameters]` of the TOML file, which go before the function's own defaults.
        data: Folder with the user's data; None takes the variable EDGESHRINK_DATA. Handed to a
            parameter named `data`. For a `.pt2`: the `.npz` with calibration samples.
        seed: Handed to a parameter named `seed`.

    Raises:
        ConfigError: The task can't be found or read, a setting is wrong, the user's code raises,
            or what it returns is not a usable task.
        ModelError: The model does not run on its example inputs, or holds NaN or infinity.
        ToolchainError: PyTorch is not installed.
    """
    if data is None and os.environ.get(DATA_VARIABLE):
        data = Path(os.environ[DATA_VARIABLE])
    _prepare_torch()
    if Path(spec).suffix == ".pt2":
        from edgeshrink.program import load_program

        if settings:
            key = next(iter(settings))
            raise ConfigError("--set", f"{key!r} has no meaning for {spec}", "leave it out")
        return load_program(Path(spec), calibration=data)
    source = find_task(spec)
    from edgeshrink.task_checks import check_task  # imports PyTorch

    with _importable(source.file.parent):
        function = _function(source, _import(source))
        arguments = _arguments(source, function, settings, data=data, seed=seed)
        _seed_everything(seed)
        with UserCode(source.where, source.file.parent):
            task = function(**arguments)
    task = check_task(task, source.where, folder=source.file.parent)
    return replace(
        task,
        name=source.name,
        folder=source.file.parent,
        metric=_metric(source, task.metric),
        budget=source.budget.over(task.budget),
    )


def _prepare_torch() -> None:
    """Raise ToolchainError when PyTorch is not installed; does not import it.

    OpenMP reads its wait policy once, when PyTorch is first imported. Threads that spin instead
    of sleeping made training two to three times slower where other processes shared the cores.
    """
    if importlib.util.find_spec("torch") is None:
        install = "python -m pip install 'edgeshrink[build]'"
        raise ToolchainError("torch", "is not installed, and a task needs it", install)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def find_task(spec: str) -> TaskSource:
    """Return the file and function that `spec` names, without importing anything."""
    place = Path(spec or ".").expanduser()
    if place.is_dir():
        return _read_task_file(place.resolve())
    file, colon, function = spec.rpartition(":")
    if colon and file.endswith(".py"):
        path = Path(file).expanduser().resolve()
        return _existing(TaskSource(file=path, function=function, name=path.stem), place=spec)
    if place.suffix == ".py" and place.is_file():
        example = ", ".join(_functions_in(place)) or "FUNCTION"
        raise ConfigError(str(place), "names no function", f"write {place}:{example}")
    if place.name == TASK_FILE and place.is_file():
        return _read_task_file(place.resolve().parent)
    if place.suffix in DEPLOYED and place.is_file():
        fix = "`edgeshrink profile` takes it as it is; a build starts from the PyTorch model"
        raise ConfigError(str(place), "is a model that is lowered already", fix)
    fix = f"give a folder with {TASK_FILE}, or file.py:function; `edgeshrink init` makes one"
    fault = "is neither a folder nor file.py:function" if place.exists() else "does not exist"
    raise ConfigError(f"task {spec!r}", fault, fix)


def init_task(folder: Path) -> list[Path]:
    """Write a task that works as it is into `folder`, to start from; return the files written.

    Raises:
        ConfigError: One of the files is there already (nothing is written then), or the folder
            can't be written.
    """
    template = Path(__file__).parent / "task_template"
    contents = {folder / name: (template / name).read_bytes() for name in (TASK_FILE, "task.py")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in contents:
            if path.exists():
                raise ConfigError(
                    str(path), "exists already", "name another folder, or move it away"
                )
        for path, content in contents.items():
            with path.open("xb") as file:
                file.write(content)
    except OSError as err:
        fault = f"can't be written ({err.strerror})"
        raise ConfigError(str(err.filename or folder), fault, "name another folder") from err
    return list(contents)


def _read_task_file(folder: Path) -> TaskSource:
    path = folder / TASK_FILE
    if not path.is_file():
        fix = "name a folder that has one, or `edgeshrink init` writes it"
        raise ConfigError(f"task {folder}", f"has no {TASK_FILE}", fix)
    top = read_toml(path)
    table = top.table("task", required=True)
    entry = table.text("entry")
    file, colon, function = entry.rpartition(":")
    if not colon or not file or not function.isidentifier():
        raise table.error("entry", f"is {entry!r}", 'write it as "task.py:build"')
    name = table.text("name", None)
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise table.error("name", f"is {name!r}", "use letters, digits, '-', '_' and '.'")
    source = TaskSource(
        file=(folder / file).resolve(),
        function=function,
        name=name or re.sub(r"[^\w.-]+", "-", folder.name).strip("-.") or "task",
        metric_name=table.text("metric", None),
        metric_direction=table.text("direction", None, choices=("higher", "lower")),
        budget=read_budget(top.table("budget")),
        parameters=top.table("parameters").rest(),
        toml=path,
    )
    top.finish()
    return _existing(source, place=f"{path}: task.entry")


def _existing(source: TaskSource, *, place: str) -> TaskSource:
    if not source.file.is_file():
        others = (p.name for p in source.file.parent.glob("*.py"))
        raise ConfigError(place, f"{source.file} is not a file", nearest(source.file.name, others))
    return source


def _functions_in(file: Path) -> list[str]:
    """Return the names of the functions that stand at the top of `file`, which is not run."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return []
    return [node.name for node in body if isinstance(node, ast.FunctionDef)]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put `folder` on `sys.path`, without what an earlier task imported from its own folder."""
    for name in _siblings:
        sys.modules.pop(name, None)
    _siblings.clear()
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and folder in Path(file).parents:
                _siblings.add(name)


def _import(source: TaskSource) -> types.ModuleType:
    name = f"_edgeshrink_task_{next(_counter)}"
    spec = importlib.util.spec_from_file_location(name, source.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch look a class's module up there
    with UserCode(str(source.file), source.file.parent):
        spec.loader.exec_module(module)
    return module


def _function(source: TaskSource, module: types.ModuleType) -> Callable[..., Any]:
    function = getattr(module, source.function, None)
    if function is None:
        fault = f"has no function {source.function!r}"
        raise ConfigError(
            str(source.file), fault, nearest(source.function, _functions_in(source.file))
        )
    if not callable(function):
        raise ConfigError(source.where, f"is {function!r}", "it must be a function")
    return typing.cast("Callable[..., Any]", function)


def _seed_everything(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _metric(source: TaskSource, own: Metric) -> Metric:
    changes: dict[str, Any] = {}
    if source.metric_name is not None:
        changes["name"] = source.metric_name
    if source.metric_direction is not None:
        changes["direction"] = source.metric_direction
    return replace(own, **changes)


# ---- parameters of the user's function


def _arguments(
    source: TaskSource,
    function: Callable[..., Any],
    settings: Mapping[str, str],
    *,
    data: Path | None,
    seed: int,
) -> dict[str, Any]:
    """Return keyword arguments: from `settings`, then the TOML file; defaults are left out."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as err:
        raise ConfigError(source.where, "has no signature", "name a plain function") from err
    parameters = {}
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            fix = "parameters are given by name: remove the '/'"
            raise ConfigError(source.where, f"{parameter.name!r} is positional-only", fix)
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            parameters[parameter.name] = parameter
    known = parameters.keys() - RESERVED.keys()
    arguments: dict[str, Any] = {}
    for key, value in source.parameters.items():
        place = f"{source.toml}: parameters.{key}"
        _refuse_unknown(key, known, place, source)
        target = _type_of(function, parameters[key])
        arguments[key] = _from_toml(value, target, place, source.file.parent)
    for key, text in settings.items():
        _refuse_unknown(key, known, "--set", source)
        arguments[key] = _from_text(text, _type_of(function, parameters[key]), f"--set {key}")
    arguments |= {k: v for k, v in (("data", data), ("seed", seed)) if k in parameters}
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            fix = f"give it with --set {name}=VALUE, or a default in the function"
            raise ConfigError(source.where, f"parameter {name!r} has no value", fix)
    return arguments


def _refuse_unknown(key: str, known: set[str], place: str, source: TaskSource) -> None:
    if key in RESERVED:
        raise ConfigError(place, f"{key!r} is not set this way", f"use {RESERVED[key]}")
    if key not in known:
        fault = f"{source.where} has no parameter {key!r}"
        raise ConfigError(place, fault, nearest(key, known))


def _type_of(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the parameter's annotation, else its default's type, else str."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        holder = types.SimpleNamespace(__annotations__={parameter.name: annotation})
        names = getattr(inspect.unwrap(function), "__globals__", {})
        try:
            annotation = typing.get_type_hints(holder, names)[parameter.name]
        except (NameError, TypeError, AttributeError, SyntaxError):
            annotation = parameter.empty  # names that only a type checker sees
    if annotation is not parameter.empty:
        return annotation
    default = parameter.default
    return str if default is None or default is parameter.empty else type(default)


def _options(target: Any) -> tuple[Any, ...]:
    """Return the members of a union (`int | None`), or `target` alone."""
    is_union = typing.get_origin(target) in (typing.Union, types.UnionType)
    return typing.get_args(target) if is_union else (target,)


def _describe(target: Any) -> str:
    words = []
    for option in _options(target):
        if typing.get_origin(option) is typing.Literal:
            words += [str(choice) for choice in typing.get_args(option)]
        else:
            other = f"{option} (only the function itself can set that)"
            words.append("none" if option is type(None) else KINDS.get(option, other))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _from_text(text: str, target: Any, place: str) -> Any:
    """Convert the text of `--set` to `target`, the first member of a union that takes it."""
    options = _options(target)
    if type(None) in options and text.strip().lower() == "none":
        return None
    for option in sorted(options, key=lambda o: o is str):  # text takes anything: it comes last
        found, value = _convert(text, option)
        if found:
            return value
    raise _refusal(text, target, place)


def _convert(text: str, option: Any) -> tuple[bool, Any]:
    """Return whether `text` is an `option`, and its value."""
    if typing.get_origin(option) is typing.Literal:
        choices = {str(choice): choice for choice in typing.get_args(option)}
        return text in choices, choices.get(text)
    if option is bool:
        return text.strip().lower() in BOOLEANS, BOOLEANS.get(text.strip().lower())
    if option in (int, float):
        try:
            return True, option(text)
        except ValueError:
            return False, None
    if option is Path:
        return bool(text), Path(text).expanduser()
    return option in (str, Any, object), text


def _from_toml(value: Any, target: Any, place: str, folder: Path) -> Any:
    """Check a TOML value against `target`. Paths are relative to the folder of the file."""
    for option in _options(target):
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
        if option is Path and isinstance(value, str):
            return folder / Path(value).expanduser()
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if option in (Any, object) or (isinstance(option, type) and type(value) is option):
            return value
    raise _refusal(value, target, place)


def _refusal(value: Any, target: Any, place: str) -> ConfigError:
    choices = [
        str(choice)
        for option in _options(target)
        if typing.get_origin(option) is typing.Literal
        for choice in typing.get_args(option)
    ]
    hint = nearest(str(value), choices) if choices else ""
    close = f" ({hint})" if hint.startswith("did") else ""
    return ConfigError(place, f"is {value!r}", f"it must be {_describe(target)}{close}")
