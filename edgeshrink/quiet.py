"""Keep what converters print away from the user, and Ctrl-C away from converters."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Silence Python's and C++'s output (file descriptors 1 and 2), logging and warnings.

    Yields a list that holds the silenced text once the block has been left. Ctrl-C counts at the
    end of the block, see `interrupted_at_end`.
    """
    text: list[str] = []
    for each in (sys.stdout, sys.stderr):
        each.flush()
    level = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupted_at_end())
        sink = stack.enter_context(tempfile.TemporaryFile())
        memory = io.BytesIO()
        if not (_is_descriptor(sys.stdout) and _is_descriptor(sys.stderr)):
            # Never closed: a log handler made in the block may keep it.
            stream = io.TextIOWrapper(memory, "utf-8", "replace", write_through=True)
            stack.enter_context(contextlib.redirect_stdout(stream))
            stack.enter_context(contextlib.redirect_stderr(stream))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        saved = {fd: os.dup(fd) for fd in (1, 2)}
        try:
            for fd in saved:
                os.dup2(sink.fileno(), fd)
            yield text
        finally:
            for each in (sys.stdout, sys.stderr):
                each.flush()
            for fd, copy in saved.items():
                os.dup2(copy, fd)
                os.close(copy)
            logging.disable(level)
            sink.seek(0)
            text.append((memory.getvalue() + sink.read()).decode("utf-8", "replace"))


def _is_descriptor(stream: TextIO) -> bool:
    """Say whether `stream` is descriptor 1 or 2: in a notebook, or under pytest, none is."""
    try:
        return stream.fileno() in (1, 2)
    except (OSError, AttributeError, ValueError):
        return False


@contextlib.contextmanager
def interrupted_at_end() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block if Ctrl-C was pressed inside.

    Not at once: converters catch everything in places and would go on for minutes, and an exception
    that is raised in a callback from C++ ends the process. A message on the terminal says that it
    was heard; a second Ctrl-C is raised where it comes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody else decides what Ctrl-C means
        return
    pressed = threading.Event()
    terminal = os.dup(2)

    def note(number: int, frame: types.FrameType | None) -> None:
        if pressed.is_set():
            signal.default_int_handler(number, frame)
        pressed.set()
        with contextlib.suppress(OSError):
            os.write(terminal, b"\nstopping as soon as the converter lets go\n")

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(terminal)
        if pressed.is_set():
            raise KeyboardInterrupt


def reason(err: BaseException) -> str:
    """Return the first line of a foreign error that says something, at most 300 characters."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[0] if lines else type(err).__name__)[:300]
