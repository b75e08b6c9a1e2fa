"""Fetch files over HTTP from a server that may be slow, endless, broken or hostile.

Every wait has a limit: connecting, the head of an answer, a gap between bytes, and the rate in the
long run. Every length has one too. What is fetched is believed by nobody until it is compared with
a signature or a signed digest.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import urllib3
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface

from edgeshrink import __version__
from edgeshrink.errors import (
    EdgeshrinkError,
    EndlessDataError,
    MirrorError,
    OversizedMetadataError,
    SlowRetrievalError,
)

CHUNK_BYTES: Final = 1 << 16
ATTEMPTS: Final = 4  # of one file from one mirror, as long as each brings something
MIRROR_FIX: Final = "nothing was installed; give another mirror as well: --repo URL --repo URL"


class FetchError(EdgeshrinkError):
    """A server can't be reached, breaks off, or lacks a file. What is installed stays."""


class MissingFileError(MirrorError):
    """A mirror lacks a file that is signed."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a device waits for a server."""

    connect_s: float = 10.0
    head_s: float = 20.0  # from the request to the end of the answer's head
    gap_s: float = 20.0  # between two pieces
    least_bytes_per_s: float = 512.0  # on average, once the grace is over
    grace_s: float = 20.0


class _Watched:
    """A connection whose socket is known to the one that waits for it."""

    sockets: threading.local = threading.local()

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sockets.last = self.sock  # type: ignore[attr-defined]

    def request(self, *args: Any, **kwargs: Any) -> None:
        super().request(*args, **kwargs)  # type: ignore[misc]
        self.sockets.last = self.sock  # type: ignore[attr-defined]


class _HttpConnection(_Watched, urllib3.connection.HTTPConnection):
    pass


class _HttpsConnection(_Watched, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class Fetcher(FetcherInterface):
    """Fetches metadata for tuf's client, and files of releases.

    Args:
        patience: How long to wait.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        patience: Patience | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.patience, self.clock = patience or Patience(), clock
        self.n_requests = self.n_bytes = 0
        self._pools: dict[str | None, urllib3.PoolManager] = {}

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.clear()

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the content of a metadata file (tuf's client asks for these).

        Raises:
            OversizedMetadataError: The server announces more than `max_length` bytes.
            EndlessDataError: More than that arrive.
            SlowRetrievalError: They arrive too slowly.
            FetchError: The server can't be reached, or breaks off.
            DownloadHTTPError: An HTTP error; 404 ends tuf's search for newer roots.
        """
        with self._answer(url, {}) as answer:
            announced = _length_of(answer)
            if announced is not None and announced > max_length:
                what = f"has {announced:,} bytes, {max_length:,} are more than it can need"
                raise OversizedMetadataError(url, what, MIRROR_FIX)
            content = b"".join(self._pieces(url, answer, max_length))
            if announced is not None and len(content) < announced:
                what = f"broke off after {len(content):,} of {announced:,} bytes"
                raise FetchError(url, what, "it is tried again next time")
            return content

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self._answer(url, {}) as answer:
            yield from self._pieces(url, answer, 1 << 40)

    def download(self, base_url: str, path: str, part: Path, *, sha256: str, length: int) -> None:
        """Fetch a file of a release into `part`, going on where an earlier attempt ended.

        Args:
            base_url: Of the mirror's targets.
            path: Of the file below it.
            part: What is there already, of this file or of something else.
            sha256, length: As they were signed.

        Raises:
            MirrorError: The file is not the signed one, or not there.
            EndlessDataError: It is longer than signed.
            SlowRetrievalError: It arrives too slowly.
            FetchError: The server can't be reached or keeps breaking off; the part is kept.
        """
        url = f"{base_url.rstrip('/')}/{quote(path)}"
        if not length or (part.exists() and part.stat().st_size > length):
            part.write_bytes(b"")
        was_resumed, attempts = part.exists() and part.stat().st_size > 0, 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            if before < length:
                try:
                    self._append(url, part, before, length)
                except FetchError:
                    attempts += 1
                    got_more = part.exists() and part.stat().st_size > before
                    if attempts >= ATTEMPTS or not got_more:
                        raise
                    was_resumed = True
                    continue
            if _digest(part) == sha256:
                return
            part.unlink()
            if not was_resumed:
                raise MirrorError(url, "differs from the digest that was signed", MIRROR_FIX)
            was_resumed = False  # pieces of two files, perhaps: once more, all of it

    def _append(self, url: str, part: Path, start: int, length: int) -> None:
        """Append to `part` what is behind byte `start`, or all of it if that is what comes."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._answer(url, headers) as answer:
                is_rest = answer.status == 206 and answer.headers.get(
                    "Content-Range", ""
                ).startswith(f"bytes {start}-")
                start = start if is_rest else 0
                announced = _length_of(answer)
                if announced is not None and announced > length - start:
                    what = f"has {announced + start:,} bytes, signed are {length:,}"
                    raise EndlessDataError(url, what, MIRROR_FIX)
                with part.open("ab" if is_rest else "wb") as file:
                    for piece in self._pieces(url, answer, length - start):
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
        except DownloadHTTPError as err:
            if err.status_code == 416:  # what is there is no beginning of this file
                part.unlink(missing_ok=True)
            if err.status_code in (403, 404, 410):
                what = f"is signed, and not there (HTTP {err.status_code})"
                raise MissingFileError(url, what, MIRROR_FIX) from err
            what = f"answers HTTP {err.status_code}"
            raise FetchError(url, what, "it is tried again next time") from err
        if part.stat().st_size < length:
            what = f"broke off after {part.stat().st_size:,} of {length:,} bytes"
            raise FetchError(url, what, "it goes on from there next time")

    @contextmanager
    def _answer(self, url: str, headers: Mapping[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        """Yield the answer to a GET, its head read; FetchError or SlowRetrievalError if none."""
        patience = self.patience
        _Watched.sockets.last = None
        sockets = _Watched.sockets
        waiting = [sockets.__dict__]  # this thread's, for the timer's
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            last = waiting[0].get("last")
            if last is not None:
                with suppress(OSError):
                    last.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(patience.connect_s + patience.head_s, give_up)
        timer.daemon = True
        timer.start()
        self.n_requests += 1
        try:
            answer = self._pool(url).request(
                "GET",
                url,
                headers={"Accept-Encoding": "identity"} | dict(headers),
                preload_content=False,
                redirect=True,
                retries=urllib3.Retry(total=3, connect=1, read=0, status=0, other=0, redirect=3),
                timeout=urllib3.Timeout(connect=patience.connect_s, read=patience.gap_s),
            )
        except (urllib3.exceptions.HTTPError, HTTPException, OSError) as err:
            reason = getattr(err, "reason", None) or err
            is_read = isinstance(reason, urllib3.exceptions.ReadTimeoutError)
            if is_late.is_set() or is_read:
                what = f"sends no answer within {patience.head_s:g} s"
                raise SlowRetrievalError(url, what, MIRROR_FIX) from err
            # urllib3 puts the connection in front of what is wrong with it
            told = str(reason).partition("): ")[2] or str(reason)
            raise FetchError(url, f"can't be reached ({told})", "it is tried again") from err
        finally:
            timer.cancel()
        try:
            if answer.status >= 400:
                raise DownloadHTTPError(f"HTTP status {answer.status}", answer.status)
            yield answer
        except BaseException:
            answer.close()  # what is left of it is not worth waiting for
            raise
        else:
            answer.release_conn()

    def _pieces(self, url: str, answer: urllib3.BaseHTTPResponse, limit: int) -> Iterator[bytes]:
        """Yield the body; EndlessDataError beyond `limit` bytes, SlowRetrievalError if it drips."""
        patience, start, received = self.patience, self.clock(), 0
        while True:
            try:
                piece = answer.read1(CHUNK_BYTES, decode_content=False)
            except urllib3.exceptions.ReadTimeoutError as err:
                what = f"sent nothing for {patience.gap_s:g} s, after {received:,} bytes"
                raise SlowRetrievalError(url, what, MIRROR_FIX) from err
            except (urllib3.exceptions.HTTPError, HTTPException, OSError) as err:
                what = f"broke off after {received:,} bytes ({err})"
                raise FetchError(url, what, "it is tried again next time") from err
            if not piece:
                return
            received += len(piece)
            self.n_bytes += len(piece)
            if received > limit:
                what = f"goes on beyond the {limit:,} bytes that it may have"
                raise EndlessDataError(url, what, MIRROR_FIX)
            elapsed = self.clock() - start
            if elapsed > patience.grace_s and received < patience.least_bytes_per_s * elapsed:
                rate = received / elapsed
                what = (
                    f"sends {rate:.0f} bytes a second, {patience.least_bytes_per_s:g} is the least"
                )
                raise SlowRetrievalError(url, what, MIRROR_FIX)
            yield piece

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Return the pool for `url`: straight, or through the proxy that the environment names."""
        parts = urlsplit(url)
        proxy = urllib.request.getproxies().get(parts.scheme)
        if proxy and urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = None
        if proxy not in self._pools:
            headers = {"User-Agent": f"edgeshrink/{__version__}"}
            pool = (
                urllib3.PoolManager(headers=headers)
                if proxy is None
                else urllib3.ProxyManager(proxy, headers=headers)
            )
            pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
            self._pools[proxy] = pool
        return self._pools[proxy]


def _length_of(answer: urllib3.BaseHTTPResponse) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdecimal() else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
