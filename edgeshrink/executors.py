"""Where work runs beside this process: in processes of this machine, or on a Dask cluster.

One seam for both: an `Executor` of `concurrent.futures`. Nobody above it knows which one it is.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Final

from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.quiet import quiet, reason

CONNECT_S: Final = 5.0  # to find a cluster
INSTALL: Final = "python -m pip install 'edgeshrink[cluster]'"
_ADDRESS: Final = re.compile(r"((tcp|tls|ucx|wss?)://)?[^/\s]+:\d{1,5}")
# What Dask raises when it gives up on work whose worker or connection went, by name: Dask need not
# be installed. Before that it starts such work again by itself.
_LOST: Final = frozenset({
    "KilledWorker", "CommClosedError", "FutureCancelledError", "FuturesCancelledError",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where work goes, and how much of it at a time."""

    executor: Executor
    count: int


@contextlib.contextmanager
def open_workers(*, jobs: int = 1, cluster: str = "") -> Iterator[Workers]:
    """Yield where work runs; when the block ends, what still runs on this machine is killed.

    Args:
        jobs: Processes on this machine, each started anew (no copy of this one's threads).
        cluster: Address of a Dask scheduler, "tcp://host:port"; empty: this machine.

    Raises:
        ConfigError: That is no address.
        ToolchainError: There is no such cluster, it has no workers, or Dask is not installed.
    """
    if cluster:
        with _cluster(cluster) as workers:
            yield workers
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start
    )
    try:
        yield Workers(executor=pool, count=jobs)
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)  # waits for their end


def is_lost(future: Future[Any]) -> bool:
    """Say whether work that ended was lost together with its worker: it may run again."""
    if future.cancelled():
        return True
    error = future.exception()
    return isinstance(error, BrokenProcessPool) or type(error).__name__ in _LOST


def _start() -> None:
    """Prepare a worker: it leaves Ctrl-C to its parent, ends with it, and prints nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Workers]:
    where = f"--cluster {address}"
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(where, "is no address of a scheduler", "write it as tcp://HOST:8786")
    try:
        from distributed import Client
    except ImportError as err:
        raise ToolchainError(where, "needs Dask, which is not installed", INSTALL) from err
    with quiet():  # it logs each try
        try:
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as err:
            fix = 'start "dask scheduler", and give the address that it prints (tcp://HOST:8786)'
            raise ToolchainError(where, f"can't be reached ({reason(err)})", fix) from err
    try:
        count = len(client.nthreads())
        if not count:
            fix = f'start "dask worker {address} --nthreads 1" on each machine'
            raise ToolchainError(where, "has no workers", fix)
        executor = client.get_executor(pure=False)
        try:
            yield Workers(executor=executor, count=count)
        finally:
            executor.shutdown(wait=False)
    finally:
        with contextlib.suppress(OSError), quiet():
            client.close(timeout=CONNECT_S)
