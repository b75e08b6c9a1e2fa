"""Keep what converters print away from the user; give it back when they fail."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Silence Python's and C++'s output (file descriptors 1 and 2), logging and warnings.

    Yields a list that holds the silenced text once the block has been left.
    """
    text: list[str] = []
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    level = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(tempfile.TemporaryFile())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        saved = {fd: os.dup(fd) for fd in (1, 2)}
        try:
            for fd in saved:
                os.dup2(sink.fileno(), fd)
            yield text
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for fd, copy in saved.items():
                os.dup2(copy, fd)
                os.close(copy)
            logging.disable(level)
            sink.seek(0)
            text.append(sink.read().decode("utf-8", "replace"))


def reason(err: BaseException) -> str:
    """Return the first line of a foreign error that says something, at most 300 characters."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[0] if lines else type(err).__name__)[:300]
