"""Folders that appear in one step, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgeshrink.artifact import MANIFEST
from edgeshrink.errors import ConfigError, EdgeshrinkError


def check_writable(out: Path) -> None:
    """Raise EdgeshrinkError before hours of work when `out` can't be written in the end."""
    with staging(out, keep=False) as folder:
        (folder / "probe").write_bytes(b"\0" * 4096)


@contextmanager
def staging(out: Path, *, keep: bool = True, marker: str = MANIFEST) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place when the block ends well.

    Args:
        out: The folder to make or replace.
        keep: False throws the new folder away in the end.
        marker: The file by which a folder of ours is known; no other is replaced.

    Raises:
        ConfigError: `out` is a folder with something else than our files in it, or a root folder.
        EdgeshrinkError: writing failed.
    """
    out = out.resolve()  # where a link points, that is what is replaced
    if not out.name:
        raise ConfigError(
            f"--out {out}", "can't be replaced by an artifact", "name a folder below it"
        )
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder", str(out))
        if out.is_dir() and any(out.iterdir()) and not (out / marker).is_file():
            fault = f"holds files, and no {marker}: it was not made here, so it is not replaced"
            raise ConfigError(str(out), fault, "choose another folder with --out")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        if keep:
            _take_place(aside, out)
    except OSError as err:
        raise EdgeshrinkError(
            str(err.filename or out),
            f"can't be written ({err.strerror or err})",
            "free space, or choose another folder with --out; the last good artifact is untouched",
        ) from err
    finally:
        shutil.rmtree(aside, ignore_errors=True)


_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def _take_place(new: Path, out: Path) -> None:
    """Put the folder `new` where `out` is, in one step where the system can swap two names."""
    if not out.exists():
        new.rename(out)
        return
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = (os.fsencode(new), os.fsencode(out))
    if swap is None or swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        old = out.with_name(f".{out.name}.{os.getpid()}.old")
        try:
            out.rename(old)
            new.rename(out)
        finally:
            if old.exists() and not out.exists():
                old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
