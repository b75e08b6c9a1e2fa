"""A fleet to test devices with: signed with tuf's own classes, served by a server that misbehaves.

Nothing here shares code with the publisher of edgeshrink, nor with its reading of releases: formats
are written down once more, as plain JSON.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import lzma
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from tests.tiny_models import expected_fully_connected, fully_connected

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
TARGET = "host"
ROLES = ("root", "targets", "snapshot", "timestamp", f"device-{TARGET}", "rollout")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------- releases


def artifact_files(
    seed: int = 0,
    *,
    n_in: int = 8,
    n_out: int = 4,
    target: str = TARGET,
    golden_shift: int = 0,
    samples: int = 4,
    extra: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """Return the files of an artifact with one int8 layer; its golden outputs may be off."""
    model = fully_connected(n_in, n_out, seed)
    x = np.random.default_rng(seed).integers(-9, 10, (samples, n_in), np.int8)
    y = expected_fully_connected(x, model) + np.int8(golden_shift)
    packed = io.BytesIO()
    np.savez(packed, **{"input/x": x, "output/y": y})
    files = {"model.tflite": model, "golden.npz": packed.getvalue()} | dict(extra or {})

    def spec(name: str, size: int) -> dict[str, Any]:
        return {
            "name": name, "shape": [1, size], "dtype": "int8", "scale": 1.0, "zero_point": 0,
            "layout": "as-is", "model_shape": [1, size],
        }  # fmt: skip

    manifest = {
        "format": 1, "name": "keywords", "target": target, "engine": "tflite",
        "quantization": "one", "inputs": [spec("x", n_in)], "outputs": [spec("y", n_out)],
        "structure": "single", "metric": {"name": "accuracy", "direction": "higher"},
        "scores": {"tflite": 0.9}, "recipe": {}, "versions": {}, "seed": seed,
        "files": {n: {"sha256": sha256(d), "bytes": len(d)} for n, d in files.items()},
    }  # fmt: skip
    return files | {"artifact.json": json.dumps(manifest).encode()}


def tar_xz(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return lzma.compress(buffer.getvalue(), preset=0)


def custom_of(
    files: Mapping[str, bytes],
    /,
    *,
    name: str = "keywords",
    version: str = "1.0.0",
    counter: int = 1,
    target: str = TARGET,
    **changes: Any,
) -> dict[str, Any]:
    """Return what is signed along with an archive."""
    facts = {
        "format": 1, "name": name, "version": version, "counter": counter, "target": target,
        "engine": "tflite", "runtimes": [{"name": "litert", "min_version": "2.0.0"}],
        "operators": {"FULLY_CONNECTED": 4},
        "files": {n: {"sha256": sha256(d), "bytes": len(d)} for n, d in files.items()},
        "max_lsb": 0, "deltas": [], "facts": {},
    }  # fmt: skip
    return {"edgeshrink": facts | changes}


# ------------------------------------------------------------------------------ repository


@dataclass
class Repository:
    """Metadata that is changed in place, signed by `publish`; `files` is what a server has.

    `signers` are those who sign a role; `thresholds` how many the role above demands.
    """

    metadata: dict[str, Metadata[Any]]
    signers: dict[str, list[CryptoSigner]]
    files: dict[str, bytes] = field(default_factory=dict)
    first_root: bytes = b""

    def fork(self) -> Repository:
        """Return one that goes its own way from here, with the same keys."""
        return Repository(
            metadata=copy.deepcopy(self.metadata),
            signers={role: list(signers) for role, signers in self.signers.items()},
            files=dict(self.files),
            first_root=self.first_root,
        )

    def signed(self, role: str) -> Any:
        return self.metadata[role].signed

    # what is offered

    def add_target(self, role: str, path: str, data: bytes, custom: Any = None) -> TargetFile:
        target = TargetFile.from_data(path, data, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        self.signed(role).targets[path] = target
        folder, _, name = path.rpartition("/")
        self.files[f"targets/{folder}/{sha256(data)}.{name}"] = data
        return target

    def release(
        self,
        files: Mapping[str, bytes],
        /,
        *,
        archive: bytes | None = None,
        target: str = TARGET,
        path: str | None = None,
        **facts: Any,
    ) -> str:
        """Sign a release for devices of `TARGET`; return its path."""
        custom = custom_of(files, target=target, **facts)
        told = custom["edgeshrink"]
        path = path or (
            f"releases/{TARGET}/{told['name']}-{told['version']}+{told['counter']}.tar.xz"
        )
        data = tar_xz(files) if archive is None else archive
        self.add_target(f"device-{TARGET}", path, data, custom)
        return path

    def archive_digest(self, path: str) -> str:
        return str(self.signed(f"device-{TARGET}").targets[path].hashes["sha256"])

    def offer(self, *offers: str | dict[str, Any], channel: str = "stable") -> None:
        """Say in a channel what devices may take, each a path or an offer."""
        full = [
            {"path": "", "share": 1.0, "groups": [], "not_before": None, "state": "active"}
            | ({"path": offer} if isinstance(offer, str) else offer)
            for offer in offers
        ]
        content = json.dumps({"format": 1, "releases": full}).encode()
        self.add_target("rollout", f"rollout/{TARGET}/{channel}.json", content)

    # signing

    def encode(self, role: str) -> bytes:
        """Return the metadata of a role, signed by its signers as it is."""
        metadata = self.metadata[role]
        metadata.signatures.clear()
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes(JSONSerializer(compact=True))

    def publish(self, *roles: str, days: float = 10) -> None:
        """Sign `roles` (all but root, if none is named) and what lists them, one version up."""
        changed = [*(roles or ROLES[1:])]
        changed += [r for r in ("snapshot", "timestamp") if r not in changed]
        for role in ("root", "targets", f"device-{TARGET}", "rollout"):
            if role in changed:
                self._next(role, days)
                data = self.encode(role)
                self.put(role, data)
                if role != "root":
                    self.signed("snapshot").meta[f"{role}.json"] = MetaFile(
                        self.signed(role).version, len(data), {"sha256": sha256(data)}
                    )
        self._next("snapshot", days)
        data = self.encode("snapshot")
        self.put("snapshot", data)
        self.signed("timestamp").snapshot_meta = MetaFile(
            self.signed("snapshot").version, len(data), {"sha256": sha256(data)}
        )
        self._next("timestamp", days)
        self.put("timestamp", self.encode("timestamp"))

    def _next(self, role: str, days: float) -> None:
        signed = self.signed(role)
        signed.version += 1
        signed.expires = NOW + timedelta(days=days)

    def put(self, role: str, data: bytes) -> None:
        """Serve these bytes as the newest metadata of a role."""
        version = "" if role == "timestamp" else f"{self.signed(role).version}."
        self.files[f"metadata/{version}{role}.json"] = data

    def resign(self, role: str, *, versioned: bool = True) -> None:
        """Serve a role as it is now, without a word to the roles that list it."""
        self.put(role, self.encode(role))

    def replace_key(self, role: str) -> CryptoSigner:
        """Replace the key of a top-level role in a new root; return the one that was."""
        former, new = self.signers[role][0], CryptoSigner.generate_ed25519()
        root: Root = self.signed("root")
        root.revoke_key(former.public_key.keyid, role)
        root.add_key(new.public_key, role)
        self.signers[role] = [new]
        return former


def new_repository(*, threshold: int = 2) -> Repository:
    """Return a repository of 1 version each: `threshold` of 3 keys for people's roles."""
    people = [CryptoSigner.generate_ed25519() for _ in range(3)]
    online = {role: [CryptoSigner.generate_ed25519()] for role in ("snapshot", "timestamp")}
    rollout = [CryptoSigner.generate_ed25519()]
    signers = {
        "root": people[:threshold], "targets": people[:threshold],
        f"device-{TARGET}": people[:threshold], "rollout": rollout,
    } | online  # fmt: skip
    root, targets = Root(consistent_snapshot=True), Targets()
    for role in ("root", "targets"):
        for signer in people:
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = threshold
    for role in ("snapshot", "timestamp"):
        root.add_key(online[role][0].public_key, role)
    targets.delegations = Delegations(
        keys={s.public_key.keyid: s.public_key for s in [*people, *rollout]},
        roles={
            f"device-{TARGET}": DelegatedRole(
                f"device-{TARGET}", [s.public_key.keyid for s in people], threshold, True,
                paths=[f"releases/{TARGET}/*"],
            ),
            "rollout": DelegatedRole(
                "rollout", [rollout[0].public_key.keyid], 1, True, paths=["rollout/*/*.json"]
            ),
        },
    )  # fmt: skip
    repository = Repository(
        metadata={
            "root": Metadata(root), "targets": Metadata(targets),
            f"device-{TARGET}": Metadata(Targets()),
            "rollout": Metadata(Targets()), "snapshot": Metadata(Snapshot()),
            "timestamp": Metadata(Timestamp()),
        },
        signers=signers,
    )  # fmt: skip
    for metadata in repository.metadata.values():
        metadata.signed.version = 0  # `publish` makes it 1
    repository.offer()
    repository.publish(*ROLES, days=300)
    repository.first_root = repository.files["metadata/1.root.json"]
    return repository


# ---------------------------------------------------------------------------------- server

Kind = Literal[
    "drop",  # closes the connection without an answer
    "cut",  # closes it in the middle of the body
    "flip",  # changes a bit in the middle
    "replace",  # sends `data` instead
    "unavailable",  # 503
    "missing",  # 404
    "drip",  # a byte now and then
    "stall",  # the head, half of the body, then nothing
    "mute",  # not even the head
    "endless",  # no length, and no end
    "announce",  # a length that is not true, and an end
]


@dataclass
class Fault:
    """What goes wrong with files whose path holds `where`, the first `times` times."""

    kind: Kind
    where: str = ""
    times: int = 10**9
    data: bytes = b""


class Server:
    """Serves what is in `files`; `requests` are the paths that were asked for, `posts` bodies."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.closing = threading.Event()
        self.reset(files)
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def reset(self, files: dict[str, bytes]) -> None:
        """Serve other files, as a server does that has just started."""
        self.closing.set()  # whoever still waits on purpose
        self.closing = threading.Event()
        self.files, self.faults = files, list[Fault]()
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.posts: list[Any] = []
        self.post_status = 204
        self.n_bytes = 0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.where in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            path = unquote(self.path).lstrip("/")
            server.requests.append(path)
            fault = server.fault_for(path)
            kind = fault.kind if fault else None
            data = server.files.get(path)
            if fault and kind in ("replace", "endless", "announce"):
                data = fault.data if kind == "replace" else data or b""
            if kind == "drop":
                self.close_connection = True
                return
            if kind == "mute":
                server.closing.wait(20)
                self.close_connection = True
                return
            if kind == "unavailable" or kind == "missing" or data is None:
                self.send_response(503 if kind == "unavailable" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if kind == "flip":
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            self._send(data, kind)

        def _send(self, data: bytes, kind: str | None) -> None:
            asked, start = self.headers.get("Range"), 0
            if asked:
                server.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            body = data[start:]
            if kind == "endless":
                self.end_headers()
                self.close_connection = True
                closing = server.closing
                while not closing.is_set():
                    self._write(bytes(1 << 16))
                return
            length = len(body) if kind != "announce" else 10**9
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if kind in ("cut", "stall"):
                self._write(body[: len(body) // 2])
                if kind == "stall":
                    server.closing.wait(20)
                self.close_connection = True
            elif kind == "drip":
                closing = server.closing
                for at in range(len(body)):
                    self._write(body[at : at + 1])
                    if closing.wait(0.05):
                        break
                self.close_connection = True
            else:
                self._write(body)
                self.close_connection = kind == "announce"

        def _write(self, data: bytes) -> None:
            self.wfile.write(data)
            self.wfile.flush()
            with server.lock:
                server.n_bytes += len(data)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.posts.append(json.loads(body))
            self.send_response(server.post_status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    server = Server(files)
    server.start()
    try:
        yield server
    finally:
        server.close()
