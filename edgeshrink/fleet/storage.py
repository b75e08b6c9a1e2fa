"""Write several files of a folder as one: all of them, in an order, or none.

What is to be written is staged in `.staged` with a plan beside it, brought onto the disk, and
renamed to `.commit`: that is the decision. Then each file is renamed into its place, in the plan's
order. Whoever takes the lock next finishes a `.commit` that he finds, and throws a `.staged` away.
Staging takes all the space there will be needed; renaming takes none.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeshrink.errors import EdgeshrinkError

LOCK: Final = ".lock"
STAGED: Final = ".staged"
COMMIT: Final = ".commit"
DONE: Final = ".done"
PLAN: Final = "plan.json"
_POLL_S: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Write:
    """A file to be written. Those of a later phase appear after all of an earlier one."""

    path: str  # below the folder
    data: bytes
    phase: int = 0


@contextmanager
def locked(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the only right to write into `folder`; finishes what a killed holder has decided.

    Raises:
        EdgeshrinkError: another process holds it for longer than `wait_s`, or `folder` can't be
            written.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as err:
        raise _unwritable(folder, err) from err
    try:
        _wait_for(descriptor, folder, wait_s)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            recover(folder)
        except OSError as err:
            raise _unwritable(folder, err) from err
        yield
    finally:
        os.close(descriptor)  # which lets go of the lock


def _wait_for(descriptor: int, folder: Path, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            if time.monotonic() < until:
                time.sleep(_POLL_S)
                continue
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            what = f"is being changed by another process (id {holder})"
            raise EdgeshrinkError(str(folder), what, "try again when it is done") from err
        return


def recover(folder: Path) -> None:
    """Finish what was decided, and throw away what was not. Needs the lock."""
    if (folder / COMMIT).is_dir():
        _apply(folder)
    for left_over in (STAGED, DONE):
        shutil.rmtree(folder / left_over, ignore_errors=True)


def write_together(folder: Path, writes: Sequence[Write]) -> None:
    """Write all files, or none. Needs the lock.

    Raises:
        EdgeshrinkError: nothing has changed; or, where the message says so, it was decided and the
            next one who takes the lock brings it to its end.
    """
    staged = folder / STAGED
    ordered = sorted(writes, key=lambda write: write.phase)
    try:
        staged.mkdir()
        for number, write in enumerate(ordered):
            _write(staged / str(number), write.data)
        plan = [[write.path, write.phase] for write in ordered]
        _write(staged / PLAN, json.dumps(plan).encode())
        _sync(staged)
        _move(staged, folder / COMMIT)
    except OSError as err:
        with suppress(OSError):
            shutil.rmtree(staged)
        raise _unwritable(folder, err) from err
    try:
        _sync(folder)
        _apply(folder)
    except OSError as err:
        what = f"can't be written ({err.strerror or err}) though all data are there"
        fix = "make it writable; the next command on this fleet finishes what was begun"
        raise EdgeshrinkError(str(folder), what, fix) from err


def _apply(folder: Path) -> None:
    """Bring the files of a commit into their places; can be repeated from any point."""
    commit = folder / COMMIT
    plan = json.loads((commit / PLAN).read_bytes())
    for phase in sorted({phase for _, phase in plan}):
        parents = set()
        for number, (path, its_phase) in enumerate(plan):
            source, destination = commit / str(number), folder / path
            if its_phase != phase:
                continue
            parents.add(destination.parent)
            if source.exists():
                _make_folder(destination.parent, folder)
                _move(source, destination)
        for parent in parents:
            _sync(parent)
    _move(commit, folder / DONE)
    _sync(folder)
    shutil.rmtree(folder / DONE, ignore_errors=True)


def _make_folder(path: Path, top: Path) -> None:
    if path.is_dir():
        return
    if path != top:
        _make_folder(path.parent, top)
    path.mkdir(exist_ok=True)
    _sync(path.parent)


def _unwritable(folder: Path, err: OSError) -> EdgeshrinkError:
    what = f"can't be written ({err.strerror or err}); nothing was changed"
    return EdgeshrinkError(str(folder), what, "free space, or give yourself the right to write")


def _write(path: Path, data: bytes) -> None:
    """Write a new file and bring it onto the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _move(old: Path, new: Path) -> None:
    old.replace(new)


def _sync(folder: Path) -> None:
    """Bring the names in `folder` onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
