"""Where work runs beside this process: in processes of this machine, or on a Dask cluster.

One seam for both: an `Executor` of `concurrent.futures`. Nobody above it knows which one it is.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final

from edgeshrink.errors import ToolchainError
from edgeshrink.quiet import reason

CONNECT_S: Final = 5.0  # to find a cluster
INSTALL: Final = "python -m pip install 'edgeshrink[cluster]'"


@contextlib.contextmanager
def open_executor(*, jobs: int = 1, cluster: str = "") -> Iterator[Executor]:
    """Yield where work runs; when the block ends, what has not ended yet is ended.

    Args:
        jobs: Processes on this machine, each started anew (no copy of this one's threads).
        cluster: Address of a Dask scheduler, "host:port"; empty: this machine.

    Raises:
        ToolchainError: There is no such cluster, it has no workers, or Dask is not installed.
    """
    if cluster:
        with _cluster(cluster) as executor:
            yield executor
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        pool.shutdown(wait=True)


def is_lost(future: Future[Any]) -> bool:
    """Say whether the work of a future that ended was lost with its worker: it can run again."""
    if future.cancelled():
        return True
    return isinstance(future.exception(), BrokenProcessPool) or _names(future) in _LOST


# What Dask raises where a worker or the connection went while something ran, by name: it need not
# be installed. It starts lost work again by itself; these are for when it gives up.
_LOST: Final = frozenset({
    "KilledWorker", "CommClosedError", "FutureCancelledError", "FuturesCancelledError",
})  # fmt: skip


def _names(future: Future[Any]) -> str:
    return type(future.exception()).__name__


def _start() -> None:
    """Prepare a worker: Ctrl-C is the parent's affair, its end is ours, and nothing is printed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    where = f"--cluster {address}"
    try:
        from distributed import Client
    except ImportError as err:
        raise ToolchainError(where, "needs Dask, which is not installed", INSTALL) from err
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError, RuntimeError, KeyError) as err:
        fix = 'start "dask scheduler", and give the address that it prints (tcp://HOST:8786)'
        raise ToolchainError(where, f"can't be reached ({reason(err)})", fix) from err
    try:
        if not client.scheduler_info()["workers"]:
            fix = f'start "dask worker {address} --nthreads 1" on each machine'
            raise ToolchainError(where, "has no workers", fix)
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.close(timeout=CONNECT_S)
