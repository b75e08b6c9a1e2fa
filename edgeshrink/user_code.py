"""Faults in code that the user wrote, told in our words with the line they came from."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeshrink.errors import ConfigError, EdgeshrinkError, ToolchainError

BUILD_MODULES = frozenset({"torch", "sklearn", "scipy", "PIL", "executorch", "litert_torch"})
MAX_MESSAGE = 500  # characters of the user's exception that are shown


class UserCode:
    """Run a block of the user's code: whatever it raises becomes one error with its place.

    Our own errors and KeyboardInterrupt pass through. SystemExit is a fault as well: a task must
    not end the process.

    Args:
        where: What is run, for the message: "task.py:build".
        folder: The user's folder: the deepest line in it is the one shown. None: the deepest line.
        kind: The error to raise.
        fix: The remedy.
    """

    def __init__(
        self,
        where: str,
        folder: Path | None,
        *,
        kind: type[EdgeshrinkError] = ConfigError,
        fix: str = "--traceback shows the whole way there",
    ) -> None:
        self._where, self._kind, self._fix = where, kind, fix
        self._folder = None if folder is None else folder.resolve()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, (Exception, SystemExit)) or isinstance(error, EdgeshrinkError):
            return
        module = error.name if isinstance(error, ModuleNotFoundError) else None
        if module and module.partition(".")[0] in BUILD_MODULES:
            install = "python -m pip install 'edgeshrink[build]'"
            raise ToolchainError(
                self._where, f"needs {module}, which is missing", install
            ) from error
        message = " ".join(str(error).split())[:MAX_MESSAGE]
        what = f"raised {type(error).__name__}" + (f": {message}" if message else "")
        raise self._kind(
            self._where, what + _place(error, trace, self._folder), self._fix
        ) from error


def _place(error: BaseException, trace: TracebackType | None, folder: Path | None) -> str:
    """Return " (at task.py, line 12: x = y)" for the deepest line of the user's code."""
    if isinstance(error, SyntaxError) and error.filename and _is_in(error.filename, folder):
        return _line(error.filename, error.lineno)
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]
    mine = [place for place in frames if _is_in(place[0], folder)]
    return _line(*mine[-1]) if mine else ""


def _is_in(filename: str, folder: Path | None) -> bool:
    path = Path(filename).resolve()
    return folder is not None and folder in path.parents and "site-packages" not in path.parts


def _line(filename: str, number: int | None) -> str:
    if number is None:
        return f" (in {Path(filename).name})"
    text = linecache.getline(filename, number).strip()
    return f" (at {Path(filename).name}, line {number}" + (f": {text})" if text else ")")
