"""A small server that takes devices' reports by POST, and halts releases that fail.

It is made to stand behind a reverse proxy that does TLS and knows who may send. By itself it bounds
the size of a report, the time for one, how many are taken at once, and how many devices are kept.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from edgeshrink import __version__
from edgeshrink.errors import ConfigError, EdgeshrinkError
from edgeshrink.fleet.metadata import open_repository
from edgeshrink.fleet.reports import (
    DECISIONS,
    MAX_REPORT_BYTES,
    Census,
    Halted,
    Report,
    halt_failing,
    keep_report,
    load_reports,
    merge_reports,
    read_report,
    read_since,
)

TIMEOUT_S: Final = 10.0  # for a whole request
MAX_AT_ONCE: Final = 64
MAX_DEVICES: Final = 2_000_000
JUDGE_EVERY_S: Final = 2.0  # at most
LOCK_WAIT_S: Final = 30.0
Tell = Callable[[dict[str, Any]], None]


class Receiver:
    """Takes reports until it is closed.

    Args:
        fleet: The fleet's folder.
        host, port: Where to listen; port 0 takes a free one.
        tell: Told of every report and every halt, from several threads.
        now: The clock.

    Raises:
        ConfigError: `fleet` is none, or nothing can listen there.
    """

    def __init__(
        self,
        fleet: Path,
        host: str,
        port: int,
        tell: Tell,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        open_repository(fleet)
        self._fleet, self._tell, self._now = fleet, tell, now
        self._lock = threading.Lock()  # of all below
        self._reports: dict[str, Report] = load_reports(fleet, now())
        self._decided = self._decision_time()
        self._census = Census(self._reports.values(), read_since(fleet))
        self._news, self._is_closing = threading.Event(), threading.Event()
        self._telling = threading.Lock()
        self._server = _listen(host, port, self)
        self._judging = threading.Thread(target=self._judge, daemon=True)
        self._judging.start()
        self._news.set()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def run(self) -> None:
        """Serve until `stop` is called from another thread, or an exception comes."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._is_closing.set()
            self._news.set()
            self._server.server_close()
            self._judging.join(LOCK_WAIT_S)

    def stop(self) -> None:
        """Let `run` end."""
        self._server.shutdown()

    def tell(self, line: dict[str, Any]) -> None:
        """Tell one thing, from any thread."""
        with self._telling:
            self._tell(line)

    def take(self, data: bytes, sender: str) -> None:
        """Take in one report.

        Raises:
            ConfigError: it is none.
            EdgeshrinkError: it can't be kept.
        """
        report = read_report(data, "body", self._now())
        with self._lock:
            before = self._reports.get(report.device)
            if before is None and len(self._reports) >= MAX_DEVICES:
                what = f"has {MAX_DEVICES:,} devices"
                raise EdgeshrinkError(str(self._fleet), what, "remove old files from its reports")
            merged = merge_reports(before, report)
            keep_report(self._fleet, merged)
            if before is not None:
                self._census.count(before, -1)
            self._census.count(merged)
            self._reports[report.device] = merged
        self._news.set()
        self.tell(
            {
                "device": report.device,
                "target": report.target,
                "outcome": report.outcome,
                "models": {name: r.version for name, r in report.models.items()},
                "from": sender,
            }
        )

    def _decision_time(self) -> int:
        try:
            return (self._fleet / DECISIONS).stat().st_mtime_ns
        except OSError:
            return 0

    def _judge(self) -> None:
        """Halt what fails, now and then: not for every report, and never in a request."""
        while not self._is_closing.is_set():
            self._news.wait()
            self._news.clear()
            try:
                for halted in self.judge():
                    self.tell(_told(halted))
            except EdgeshrinkError as err:
                self.tell({"error": str(err)})
                self._news.set()  # try again
            self._is_closing.wait(JUDGE_EVERY_S)

    def judge(self) -> tuple[Halted, ...]:
        """Halt every release that crosses a limit by the reports so far."""
        with self._lock:
            decided = self._decision_time()
            if decided != self._decided:  # somebody let a release go on
                self._census = Census(self._reports.values(), read_since(self._fleet))
                self._decided = decided
            census = self._census.copy()
        return halt_failing(self._fleet, census, self._now(), wait_s=LOCK_WAIT_S)


def _told(halted: Halted) -> dict[str, Any]:
    return {
        "halted": halted.label,
        "target": halted.target,
        "channel": halted.channel,
        "reason": halted.reason,
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.slots = threading.BoundedSemaphore(MAX_AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a request, if there are not too many."""
        if not self.slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one request within its time."""
        # A socket's time-out is for each read: who sends a byte now and then would stay for ever.
        timer = threading.Timer(TIMEOUT_S, _hang_up, [request])
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that a sender hung up; what else ends here is a fault of ours, with its trace."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
        self.receiver.tell({"error": "the connection broke", "from": str(client_address[0])})


def _hang_up(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is gone already


class _Handler(BaseHTTPRequestHandler):
    server_version = f"edgeshrink/{__version__}"
    sys_version = ""
    timeout = TIMEOUT_S
    server: _Server

    def do_POST(self) -> None:
        """Take a report, at any path."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or len(length) > 12:
            self._refuse(411, "needs a Content-Length")
        elif int(length) > MAX_REPORT_BYTES:
            self._refuse(413, f"has {int(length):,} bytes, {MAX_REPORT_BYTES:,} are the limit")
        else:
            data = self.rfile.read(int(length))
            if len(data) < int(length):
                self._refuse(400, "ends too early")
                return
            try:
                self.server.receiver.take(data, self.client_address[0])
            except ConfigError as err:
                self._refuse(400, err.what)
            except EdgeshrinkError as err:
                self._refuse(507, str(err), told="can't be kept")
            else:
                self._answer(204, "")

    def do_GET(self) -> None:
        """Tell a browser what this is."""
        self._answer(405, "POST the status of a device here\n")

    def _refuse(self, code: int, fault: str, *, told: str | None = None) -> None:
        self.server.receiver.tell({"refused": fault, "from": self.client_address[0]})
        self._answer(code, f"{told or fault}\n")

    def _answer(self, code: int, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        if code == 405:
            self.send_header("Allow", "POST")
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        if code != 204:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if code != 204:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `tell` does."""


def _listen(host: str, port: int, receiver: Receiver) -> _Server:
    try:
        return _Server((host, port), receiver)
    except (OSError, OverflowError) as err:
        what = f"can't be listened on ({err})"
        fix = "choose an address of this machine and a free port"
        raise ConfigError(f"--listen {host}:{port}", what, fix) from err
