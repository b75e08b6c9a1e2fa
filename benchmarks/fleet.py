"""A thousand devices follow a staged rollout over a bad network.

    python benchmarks/fleet.py ARTIFACT

ARTIFACT is what `edgeshrink build` wrote for a device that runs an agent. Its model is published in
several versions (weights moved by single steps), by the publisher that people use, in days that are
simulated; nginx serves the repository on the loopback; a pool of workers runs the agent over one
state folder for each device, on a simulated clock. Downloads are dropped, cut, changed and answered
with 503; a mirror is two days behind; agents are killed; clocks are wrong. One release fails on
some devices, one everywhere. Writes `fleet.md` beside this file, and ends with 1 if any device is
not where it must be.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import io
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np

from edgeshrink import __version__
from edgeshrink.artifact import GOLDEN, MANIFEST, MODEL_FILES, FileEntry, file_entry
from edgeshrink.errors import ToolchainError
from edgeshrink.fleet import installing, keys, publishing, repository, rollouts, signers
from edgeshrink.fleet.agent import AgentConfig, run_once
from edgeshrink.fleet.contents import Contents, read_contents
from edgeshrink.fleet.device import find_runtimes
from edgeshrink.fleet.fetching import Patience
from edgeshrink.fleet.installing import HealthCheck
from edgeshrink.fleet.reports import collect
from edgeshrink.fleet.selftest import SelfTest, SelfTestError, read_golden, self_test
from edgeshrink.fleet.settings import Settings

START: Final = datetime(2026, 6, 1, tzinfo=UTC)
DAYS: Final = 11
LOOKS: Final = 4  # a day
NAME: Final = "sensor"
PASSPHRASES: Final = {name: f"{name} and a long phrase" for name in ("alice", "bob", "carol")}

# Of all devices: which mirrors they ask, in this order.
MIRRORS: Final = {
    ("flaky",): 0.60, ("hostile", "flaky"): 0.15, ("stale", "flaky"): 0.10,
    ("flaky", "stale"): 0.10, ("hostile",): 0.05,
}  # fmt: skip
FLAKY: Final = {"503": 2, "444": 2}  # percent of requests; 444 closes the connection
HOSTILE: Final = {"cut": 0.10, "flip": 0.10}  # of connections
KILLED: Final = 0.03  # of runs, within so many seconds of their start:
KILL_WITHIN_S: Final = 0.12
LOST_REPORTS: Final = 0.10
WRONG_CLOCKS: Final = {"1970": 0.03, "a year ahead": 0.02, "a day off": 0.03}  # of runs
ALLERGIC: Final = 0.30  # of devices: the health command fails with 1.2.0
REAL_SELF_TEST: Final = 20  # every n-th device runs the interpreter in a process of its own

# What it costs to serve: US dollars, as the makers' pages said in 2026.
R2_PER_MILLION_READS: Final = 0.36  # developers.cloudflare.com/r2/pricing; bytes are free there
CDN_PER_10_000: Final = 0.0075  # cloud.google.com/cdn/pricing
CDN_PER_GIB: Final = 0.08  # the dearest tier of North America


# ------------------------------------------------------------------------------ the servers


@dataclass(frozen=True, kw_only=True)
class Ports:
    flaky: int
    clean: int
    stale: int


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def nginx(work: Path, published: Path, stale: Path) -> Iterator[tuple[Ports, subprocess.Popen]]:
    """Serve the repository three times: flaky, clean (behind the hostile proxies) and stale."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise ToolchainError("nginx", "is not installed", "sudo apt-get install nginx-light")
    ports = Ports(**dict(zip(("flaky", "clean", "stale"), free_ports(3), strict=True)))
    luck = " ".join(f"{share}% {code};" for code, share in FLAKY.items())
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    temp = "\n".join(
        f"{kind}_temp_path {work}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (work / "nginx.conf").write_text(f"""
{user} worker_processes 1; daemon off; pid {work}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  {temp}
  log_format wire '$server_port $status $bytes_sent $request_length $uri';
  access_log {work}/access.log wire buffer=64k flush=1s;
  split_clients "$request_id" $luck {{ {luck} * ""; }}
  server {{ listen 127.0.0.1:{ports.flaky}; root {published};
    if ($luck = 503) {{ return 503; }} if ($luck = 444) {{ return 444; }} }}
  server {{ listen 127.0.0.1:{ports.clean}; root {published}; }}
  server {{ listen 127.0.0.1:{ports.stale}; root {stale}; }}
}}
""")
    command = [program, "-e", str(work / "error.log"), "-c", str(work / "nginx.conf")]
    process = subprocess.Popen(command)
    try:
        for _ in range(100):
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", ports.clean))):
                break
            time.sleep(0.05)
        else:
            raise ToolchainError("nginx", "does not start", (work / "error.log").read_text()[-300:])
        yield ports, process
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Return what a process and its children have used so far."""
    total = 0.0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (str(pid), *children):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class HostileProxy:
    """Passes connections on to a server, and damages some of what comes back."""

    def __init__(self, port: int, seed: int) -> None:
        self.upstream, self.random = port, random.Random(seed)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        draw, at = self.random.random(), int(10 ** self.random.uniform(1, 5))
        kind = "cut" if draw < HOSTILE["cut"] else "flip" if draw < sum(HOSTILE.values()) else ""
        with (
            suppress(OSError),
            client,
            closing(socket.create_connection(("127.0.0.1", self.upstream))) as server,
        ):
            back = threading.Thread(target=self._back, args=(server, client, kind, at), daemon=True)
            back.start()
            while data := client.recv(65_536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
            back.join(5)

    def _back(self, server: socket.socket, client: socket.socket, kind: str, at: int) -> None:
        passed = 0
        with suppress(OSError):
            while data := server.recv(65_536):
                if passed <= at < passed + len(data):
                    here = at - passed
                    if kind == "cut":
                        client.sendall(data[:here])
                        break
                    if kind == "flip":
                        data = data[:here] + bytes([data[here] ^ 4]) + data[here + 1 :]
                client.sendall(data)
                passed += len(data)
            client.shutdown(socket.SHUT_RDWR)


# ------------------------------------------------------------------------------ the devices


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one device for one look."""

    number: int
    time: datetime  # by its own clock
    mirrors: tuple[str, ...]
    is_allergic: bool
    kill_after_s: float | None
    loses_report: bool


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came of one look."""

    was_killed: bool = False
    outcomes: tuple[tuple[str, str, str], ...] = ()  # outcome, release, error
    n_requests: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    error: str = ""


def load(model: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def golden_difference(folder: Path, signed: FileEntry) -> float:
    """Run the golden vectors of a release in LiteRT, in this process; return the difference."""
    arrays = read_golden(folder / GOLDEN, signed)
    interpreter = load((folder / MODEL_FILES["tflite"]).read_bytes())
    specs = json.loads((folder / MANIFEST).read_bytes())
    worst = 0.0
    n_samples = len(next(iter(arrays.values())))
    for sample in range(n_samples):
        for detail, spec in zip(interpreter.get_input_details(), specs["inputs"], strict=True):
            value = arrays[f"input/{spec['name']}"][sample : sample + 1]
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
        for detail, spec in zip(interpreter.get_output_details(), specs["outputs"], strict=True):
            got = interpreter.get_tensor(detail["index"]).astype(np.float64)
            want = arrays[f"output/{spec['name']}"][sample : sample + 1].astype(np.float64)
            worst = max(worst, float(np.abs(got - want).max()))
    return worst


def self_test_here(
    folder: Path, *, runtime: str, golden: FileEntry, max_lsb: float, **_: Any
) -> SelfTest:
    """The agent's self-test without a process of its own: a worker here tests thousands."""
    worst = golden_difference(folder, golden)
    if worst > max_lsb:
        raise SelfTestError(f"self-test in {runtime}", f"is {worst:g} off", "")
    return SelfTest(runtime=runtime, samples=1, values=1, largest=worst, limit=max_lsb)


_WORKER: dict[str, Any] = {}


def start_worker(work: Path, ports: Ports, target: str, seed: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    proxy = HostileProxy(ports.clean, seed + os.getpid())
    here = {"flaky": ports.flaky, "stale": ports.stale, "hostile": proxy.port}
    load_once = find_runtimes()
    installing_module: Any = installing
    _WORKER.update(work=work, ports=here, target=target, self_test=self_test)
    _WORKER["module"], _WORKER["runtimes"] = installing_module, load_once


def look(plan: Plan) -> Seen:
    """Let the agent of one device run once, or be killed."""
    if plan.kill_after_s is None:
        return run_agent(plan)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            run_agent(plan)
        os._exit(0)
    time.sleep(plan.kill_after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    check_whole(_WORKER["work"] / "devices" / f"{plan.number:04d}")
    return Seen(was_killed=os.WIFSIGNALED(status))


def run_agent(plan: Plan) -> Seen:
    state = _WORKER["work"] / "devices" / f"{plan.number:04d}"
    is_real = plan.number % REAL_SELF_TEST == 0
    _WORKER["module"].self_test = _WORKER["self_test"] if is_real else self_test_here
    sick = "case $EDGESHRINK_RELEASE in 1.2.0*) exit 1;; esac" if plan.is_allergic else "exit 0"
    config = AgentConfig(
        mirrors=tuple(f"http://127.0.0.1:{_WORKER['ports'][name]}" for name in plan.mirrors),
        root=_WORKER["work"] / "fleet" / "root.json",
        state=state,
        device_id=f"device-{plan.number:04d}",
        target=_WORKER["target"],
        health=HealthCheck(command=("/bin/sh", "-c", sick), timeout_s=20),
        patience=Patience(connect_s=5, head_s=10, gap_s=10),
    )
    run = run_once(config, system_time=lambda: plan.time)
    if not plan.loses_report:
        with suppress(OSError):
            report = _WORKER["work"] / "reports" / f"{plan.number:04d}.json"
            report.write_bytes((state / "status.json").read_bytes())
    status = run.status
    return Seen(
        outcomes=tuple((e.outcome, e.release, e.error) for e in status.events),
        n_requests=status.n_requests,
        n_bytes=status.n_bytes,
        seconds=status.seconds,
        error="" if run.error is None else type(run.error).__name__,
    )


def check_whole(state: Path) -> None:
    """Fail unless what is current is a whole slot, whatever happened."""
    link = state / "models" / NAME / "current"
    if not link.is_symlink():
        return
    facts = json.loads((link / ".release.json").read_bytes())
    for name, entry in facts["files"].items():
        digest = hashlib.sha256((link / name).read_bytes()).hexdigest()
        if digest != entry["sha256"]:
            raise AssertionError(f"{state}: {name} is not what was signed")


# ---------------------------------------------------------------------------- the publisher


def nudged(data: bytes, seed: int) -> bytes:
    """Return the model with a third of its int8 weights one step up or down, as by training."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    generator = np.random.default_rng(seed)
    for tensor in model.subgraphs[0].tensors:
        content = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.INT8 or content is None or len(content) < 64:
            continue
        weights = np.asarray(content).view(np.int8).astype(np.int16)
        weights += generator.choice([-1, 0, 0, 0, 0, 1], weights.size).astype(np.int16)
        moved = np.clip(weights, -127, 127).astype(np.int8)
        model.buffers[tensor.buffer].data = moved.view(np.uint8)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class Publisher:
    """Does what a person with a fleet does, on given days."""

    def __init__(self, work: Path, base: Contents) -> None:
        self.folder, self.base, self.work = work / "fleet", base, work
        self.story: list[str] = []
        settings = Settings(name="bench")
        repository.create_fleet(
            self.folder, settings, passphrases=PASSPHRASES, threshold=2, now=START
        )
        self.unlock = partial(
            keys.unlock, folder=self.folder / "keys", ask=lambda name: PASSPHRASES[name]
        )

    def tell(self, now: datetime, what: str) -> None:
        line = f"day {(now - START).days}, {now:%H:%M}: {what}"
        print(line, flush=True)
        self.story.append(line)

    def ship(self, version: str, share: float, now: datetime, *, spoiled: bool = False) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            seed = int(version.replace(".", ""))
            path.write_bytes(nudged(self.base.files[MODEL_FILES["tflite"]], seed))
            contents = read_contents(path, target=self.base.artifact.target, name=NAME)
        if spoiled:
            contents = with_wrong_golden(contents)
        order = publishing.Order(channel="stable", share=share, version=version)
        done = publishing.ship(contents, self.folder, order, self.unlock, now=now)
        deltas = ", ".join(
            f"{d.n_bytes:,} from {d.base.version}" for d in done.deltas if d.is_published
        )
        what = f"ship {NAME}@{version} to {100 * share:g} %: {done.n_bytes:,} bytes"
        self.tell(now, f"{what}; deltas {deltas}" if deltas else what)

    def ship_again(self, version: str, now: datetime) -> None:
        order = publishing.Order(channel="stable", share=1.0)
        done = publishing.ship_again(f"{NAME}@{version}", self.folder, order, self.unlock, now=now)
        self.tell(now, f"ship {NAME}@{version} again, as counter {done.release.counter}, to 100 %")

    def offer(self, version: str, share: float, now: datetime) -> None:
        wanted = rollouts.Wanted(action="offer", share=share)
        rollouts.change_rollout(self.folder, f"{NAME}@{version}", wanted, now=now)
        self.tell(now, f"offer {NAME}@{version} to {100 * share:g} %")

    def withdraw(self, version: str, now: datetime) -> None:
        wanted = rollouts.Wanted(action="withdraw")
        rollouts.change_rollout(self.folder, f"{NAME}@{version}", wanted, now=now)
        self.tell(now, f"withdraw {NAME}@{version}")

    def new_timestamp_key(self, now: datetime) -> None:
        signers.rotate_online(self.folder, "timestamp", self.unlock, now=now)
        self.tell(now, "replace the timestamp's key")

    def collect(self, now: datetime) -> None:
        if any((self.work / "reports").iterdir()):
            for halted in collect(self.work / "reports", self.folder, now).halted:
                self.tell(now, f"halted by reports: {halted.label}: {halted.reason}")

    def act(self, day: int, nth: int, now: datetime) -> None:
        """Do what is due before a look."""
        if nth == 0:
            repository.refresh(self.folder, now=now)
        match (day, nth):
            case (0, 0):
                self.ship("1.0.0", 1.0, now)
            case (1, 0):
                self.ship("1.1.0", 0.05, now)
            case (2, 0):
                self.offer("1.1.0", 0.5, now)
            case (3, 0):
                self.offer("1.1.0", 1.0, now)
            case (4, 0):
                self.ship("1.2.0", 0.1, now)
            case (5, 0):
                self.withdraw("1.2.0", now)
                self.ship_again("1.1.0", now)
            case (5, 2):
                self.new_timestamp_key(now)
            case (6, 0):
                self.ship("1.3.0", 0.1, now, spoiled=True)
            case (7, 0):
                self.withdraw("1.3.0", now)
                self.ship("1.4.0", 0.1, now)
            case (7, 2):
                self.offer("1.4.0", 0.5, now)
            case (8, 0):
                self.offer("1.4.0", 1.0, now)


def with_wrong_golden(contents: Contents) -> Contents:
    """Return a release that went wrong in the making: each sample has the outputs of the next."""
    with np.load(io.BytesIO(contents.files[GOLDEN])) as file:
        arrays = {k: np.roll(v, k.startswith("output/"), axis=0) for k, v in file.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    golden = content.getvalue()
    files = dict(contents.files) | {GOLDEN: golden}
    manifest = json.loads(files[MANIFEST])
    entry = file_entry(golden)
    manifest["files"][GOLDEN] = {"sha256": entry.sha256, "bytes": entry.n_bytes}
    files[MANIFEST] = json.dumps(manifest).encode()
    told = {**contents.artifact.files, GOLDEN: entry}
    return replace(contents, files=files, artifact=replace(contents.artifact, files=told))


# --------------------------------------------------------------------------- the simulation


def plans(options: argparse.Namespace, day: int, nth: int, draw: random.Random) -> list[Plan]:
    now = START + timedelta(days=day, hours=24 / LOOKS * nth, minutes=5)
    made = []
    for number in range(options.devices):
        own = random.Random(f"{options.seed} {number}")
        mirrors = own.choices([*MIRRORS], [*MIRRORS.values()])[0]
        shift, right = timedelta(), 1 - sum(WRONG_CLOCKS.values())
        kind = draw.choices(["", *WRONG_CLOCKS], [right, *WRONG_CLOCKS.values()])[0]
        if kind == "1970":
            shift = datetime(1970, 1, 1, tzinfo=UTC) - now
        elif kind == "a year ahead":
            shift = timedelta(days=365)
        elif kind == "a day off":
            shift = timedelta(days=draw.choice([-1, 1]))
        made.append(
            Plan(
                number=number,
                time=now + shift + timedelta(minutes=draw.uniform(0, 60)),
                mirrors=mirrors,
                is_allergic=own.random() < ALLERGIC,
                kill_after_s=draw.uniform(0, KILL_WITHIN_S) if draw.random() < KILLED else None,
                loses_report=draw.random() < LOST_REPORTS,
            )
        )
    draw.shuffle(made)
    return made


def keep_copy(published: Path, folder: Path) -> None:
    shutil.copytree(published, folder)


def point(link: Path, folder: Path) -> None:
    aside = link.with_name("aside")
    aside.symlink_to(folder, target_is_directory=True)
    aside.replace(link)


def versions(work: Path, devices: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(devices):
        link = work / "devices" / f"{number:04d}" / "models" / NAME / "current"
        facts = json.loads((link / ".release.json").read_bytes()) if link.exists() else {}
        found[f"{facts['version']}+{facts['counter']}" if facts else "none"] += 1
    return found


def judge(work: Path, devices: int, fleet: Path) -> dict[str, list[int]]:
    """Return the devices that are not where they must be, by what is wrong."""
    opened = repository.open_repository(fleet)
    signed = {one.sha256: one.release for one in rollouts.list_published(opened)}
    counters = {(one.sha256, one.release.counter) for one in rollouts.list_published(opened)}
    offers = [o for rollout in rollouts.read_channels(opened).values() for o in rollout.offers]
    withdrawn = {offer.path for offer in offers if offer.state == "withdrawn"}
    wrong: dict[str, list[int]] = {"unsigned": [], "withdrawn": [], "bricked": [], "not newest": []}
    newest = max(one.counter for one in signed.values())
    for number in range(devices):
        link = work / "devices" / f"{number:04d}" / "models" / NAME / "current"
        try:
            facts = json.loads((link / ".release.json").read_bytes())
            release = signed.get(facts["archive"])
            if release is None or (facts["archive"], facts["counter"]) not in counters:
                wrong["unsigned"].append(number)
                continue
            for name, entry in release.files.items():
                if file_entry((link / name).read_bytes()) != entry:
                    wrong["unsigned"].append(number)
                    break
            path = f"releases/{release.target}/{NAME}-{facts['version']}+{facts['counter']}.tar.xz"
            if path in withdrawn:
                wrong["withdrawn"].append(number)
            if facts["counter"] != newest:
                wrong["not newest"].append(number)
            if golden_difference(link, release.files[GOLDEN]) > release.max_lsb:
                wrong["bricked"].append(number)
        except (OSError, ValueError, KeyError):
            wrong["bricked"].append(number)
    return wrong


KINDS: Final = ("timestamp", "next root", "other metadata", "rollout", "delta", "archive")


def wire(log: Path) -> dict[str, tuple[int, int]]:
    """Return requests and bytes (both ways, heads included) by kind, from nginx's log."""
    found = {kind: [0, 0] for kind in (*KINDS, "503 and dropped")}
    for line in log.read_text().splitlines():
        _, status, sent, received, uri = line.split(" ", 4)
        name = uri.rpartition("/")[2]
        if status in ("503", "444"):
            kind = "503 and dropped"
        elif name == "timestamp.json":
            kind = "timestamp"
        elif name.endswith(".root.json"):
            kind = "next root"
        elif uri.startswith("/metadata/"):
            kind = "other metadata"
        elif uri.startswith("/targets/rollout/"):
            kind = "rollout"
        else:
            kind = "delta" if name.endswith(".delta") else "archive"
        found[kind][0] += 1
        found[kind][1] += int(sent) + int(received)
    return {kind: (count, n_bytes) for kind, (count, n_bytes) in found.items()}


def simulate(options: argparse.Namespace, work: Path) -> tuple[str, bool]:
    base = read_contents(options.artifact)
    publisher = Publisher(work, base)
    published, stale = publisher.folder / "repository", work / "stale"
    for folder in ("devices", "reports", "copies"):
        (work / folder).mkdir()
    keep_copy(published, work / "copies" / "-2")
    point(stale, work / "copies" / "-2")
    draw = random.Random(options.seed)
    rows, errors, outcomes = [], Counter(), Counter()
    started, n_runs, n_killed, idle = time.monotonic(), 0, 0, [0, 0, 0.0]
    with nginx(work, published, stale) as (ports, server):
        context = (work, ports, base.artifact.target, options.seed)
        pool = ProcessPoolExecutor(options.workers, initializer=start_worker, initargs=context)
        with pool:
            for day in range(DAYS):
                if day >= 2:
                    point(stale, work / "copies" / str(day - 2))
                today: Counter[str] = Counter()
                for nth in range(LOOKS):
                    now = START + timedelta(days=day, hours=24 / LOOKS * nth)
                    publisher.collect(now)
                    publisher.act(day, nth, now)
                    for seen in pool.map(look, plans(options, day, nth, draw), chunksize=8):
                        n_runs += 1
                        n_killed += seen.was_killed
                        today["requests"] += seen.n_requests
                        today["bytes"] += seen.n_bytes
                        today["killed"] += seen.was_killed
                        today["failed"] += bool(seen.error)
                        errors[seen.error] += bool(seen.error)
                        outcomes.update(outcome for outcome, _, _ in seen.outcomes)
                        for outcome, _, _ in seen.outcomes:
                            today[outcome] += outcome in ("updated", "rolled-back")
                        if not seen.outcomes and not seen.error and not seen.was_killed:
                            idle[0] += 1
                            idle[1] += seen.n_requests
                            idle[2] += seen.seconds
                keep_copy(published, work / "copies" / str(day))
                rows.append((day, today, versions(work, options.devices)))
                print(day, dict(today), dict(rows[-1][2]), flush=True)
        time.sleep(1.2)  # nginx writes its log every second
        used = cpu_seconds(server.pid)
    wrong, wired = judge(work, options.devices, publisher.folder), wire(work / "access.log")
    page = describe(
        options, publisher, rows, errors, outcomes, wrong, wired,
        n_runs=n_runs, n_killed=n_killed, idle=idle, used=used, seconds=time.monotonic() - started,
    )  # fmt: skip
    return page, any(wrong.values())


# --------------------------------------------------------------------------------- the page


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def describe(
    options: argparse.Namespace,
    publisher: Publisher,
    rows: list[tuple[int, Counter[str], Counter[str]]],
    errors: Mapping[str, int],
    outcomes: Mapping[str, int],
    wrong: Mapping[str, list[int]],
    wired: Mapping[str, tuple[int, int]],
    *,
    n_runs: int,
    n_killed: int,
    idle: list[float],
    used: float,
    seconds: float,
) -> str:
    devices = options.devices
    per = devices * DAYS
    days = table(
        ("day", "updated", "rolled back", "runs with an error", "killed", "requests per device",
         "bytes per device", "versions at its end"),
        [
            (day, today["updated"], today["rolled-back"], today["failed"], today["killed"],
             f"{today['requests'] / devices:.1f}", f"{today['bytes'] / devices:,.0f}",
             ", ".join(f"{v}: {n}" for v, n in sorted(running.items())))
            for day, today, running in rows
        ],
    )  # fmt: skip
    n_requests = sum(count for count, _ in wired.values())
    n_bytes = sum(size for _, size in wired.values())
    traffic = table(
        ("", "requests per device and day", "bytes per device and day", "bytes each"),
        [
            (kind, f"{count / per:.2f}", f"{size / per:,.0f}", f"{size / max(count, 1):,.0f}")
            for kind, (count, size) in wired.items()
        ]
        + [("all", f"{n_requests / per:.2f}", f"{n_bytes / per:,.0f}", "")],
    )
    look_bytes = sum(wired[k][1] / max(wired[k][0], 1) for k in ("timestamp", "next root"))
    other = [k for k in KINDS if k not in ("timestamp", "next root")]
    # What is not looking is following: so much for each update that a device made here.
    n_updates = max(outcomes.get("updated", 0), 1)
    update_requests = sum(wired[k][0] for k in other) / n_updates
    update_bytes = sum(wired[k][1] for k in other) / n_updates
    costs = []
    for label, a_day in (("15 minutes", 96), ("hour", 24), ("day", 1)):
        requests = 1e6 * 30 * (2 * a_day + update_requests / 7)
        size = 1e6 * 30 * (look_bytes * a_day + update_bytes / 7)
        costs.append((
            label, f"{requests / 30 / 86_400:,.0f}", f"{8 * size / 30 / 86_400 / 1e6:,.1f}",
            f"{requests / 1e6:,.0f}", f"{size / 1e9:,.0f}",
            f"{requests / 1e6 * R2_PER_MILLION_READS:,.0f}",
            f"{requests / 1e4 * CDN_PER_10_000 + size / 2**30 * CDN_PER_GIB:,.0f}",
        ))  # fmt: skip
    million = table(
        ("a look every", "requests/s", "Mbit/s", "million requests a month", "GB a month",
         "R2, $ a month", "Cloud CDN, $ a month"),
        costs,
    )  # fmt: skip
    verdicts = table(
        ("at the end", "devices"),
        [
            ("run a version that was signed, byte for byte", devices - len(wrong["unsigned"]) -
             len(wrong["bricked"])),
            ("run the newest release that is offered to them", devices - len(wrong["not newest"])),
            ("run a withdrawn release", len(wrong["withdrawn"])),
            ("do not run, or give other outputs than were signed", len(wrong["bricked"])),
        ],
    )  # fmt: skip
    refused = table(
        ("error", "runs"), sorted(((n, c) for n, c in errors.items() if c), key=lambda e: -e[1])
    )
    story = "\n".join(f"- {line}" for line in publisher.story)
    share = f"{100 * n_killed / n_runs:.1f} %"
    asked = "; ".join(f"{100 * s:g} % ask {' then '.join(m)}" for m, s in MIRRORS.items())
    clocks = ", ".join(f"{100 * s:g} % of runs {k}" for k, s in WRONG_CLOCKS.items())
    idle_ms = 1000 * idle[2] / max(idle[0], 1)
    core_us, per_core_s = 1e6 * used / max(n_requests, 1), n_requests / max(used, 1e-9)
    return f"""# A fleet of {devices:,} devices, simulated

Written by `python benchmarks/fleet.py {options.artifact.name} --devices {devices}`; do not edit.
edgeshrink {__version__}, nginx, Python {platform.python_version()}, {platform.machine()} with
{os.cpu_count()} cores; {n_runs:,} runs of the agent in {seconds:,.0f} s, in {options.workers}
worker processes.

Real: publisher, signatures, nginx, HTTP over the loopback, the agent, its state folders and what it
writes, SIGKILL, health commands, LiteRT in each self-test (in a process of its own on every
{REAL_SELF_TEST}th device, in the worker elsewhere). Simulated: clocks (each device looks {LOOKS}
times a day, for {DAYS} days), and that devices are many. Not covered: TLS, radio links, flash that
fails.

{verdicts}

## Faults

- Mirrors: {asked}.
- flaky: {FLAKY["503"]} % of requests get a 503, {FLAKY["444"]} % no answer. hostile:
  {100 * HOSTILE["cut"]:g} % of connections are cut, {100 * HOSTILE["flip"]:g} % have a bit changed.
  stale: the repository as it was two days before; in the first two days there is no release in it.
- {n_killed:,} runs ({share}) ended by SIGKILL, up to {1000 * KILL_WITHIN_S:g} ms after their start.
- Clocks: {clocks}. {100 * LOST_REPORTS:g} % of reports are lost.
- {100 * ALLERGIC:g} % of devices are not well with 1.2.0, and their health command says so. In
  1.3.0 the golden outputs are of other inputs.

How the other runs ended without news, or before it:

{refused}

## What was published

{story}

## What devices did

{days}

Requests and bytes as the agents count them: bodies, without the runs that were killed.

## What it costs

From nginx's log, request and answer with their heads, {LOOKS} looks a day:

{traffic}

A look without news is 2 requests and {look_bytes:,.0f} bytes, and takes the agent {idle_ms:.0f} ms
here. nginx used {core_us:.0f} µs of a core per request: {per_core_s:,.0f} a second on a core (no
TLS).

A million devices, one update of this size a week ({update_requests:.1f} requests,
{update_bytes:,.0f} bytes, faults included):

{million}

Modelled from the figures above; without TLS handshakes (a few kB for each look). Prices: R2
${R2_PER_MILLION_READS} for a million reads, bytes free; Google Cloud CDN ${CDN_PER_10_000} for
10,000 requests and ${CDN_PER_GIB} for a GiB, its dearest tier in North America.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keep everything in this new folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    if options.work is not None:
        options.work.mkdir(parents=True)
        page, is_wrong = simulate(options, options.work.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="fleet-") as work:
            page, is_wrong = simulate(options, Path(work))
    options.out.write_text(page)
    print(page)
    sys.exit(is_wrong)


if __name__ == "__main__":
    main()
