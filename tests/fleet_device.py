"""A device of a test fleet: an agent, its state folder, and what can be seen from outside."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgeshrink.artifact import FileEntry
from edgeshrink.fleet.agent import AgentConfig, Run, run_once
from edgeshrink.fleet.fetching import Patience
from edgeshrink.fleet.installing import HealthCheck
from edgeshrink.fleet.selftest import SelfTest, SelfTestError, read_golden
from tests.fleet_server import NOW, TARGET, Repository
from tests.tiny_models import expected_fully_connected

# For what is slow on purpose; a machine that is busy with other tests may be slower than this.
IMPATIENT = Patience(connect_s=1.0, head_s=0.3, gap_s=0.3, least_bytes_per_s=4096, grace_s=0.3)
NAME = "keywords"


def tree(folder: Path) -> dict[str, bytes | str]:
    """Return files below `folder` by content, links by where they lead, folders as such."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def quick_self_test(
    folder: Path, *, runtime: str, golden: FileEntry, max_lsb: float, **_: Any
) -> SelfTest:
    """Do what the self-test does with plain arithmetic instead of an interpreter's process."""
    arrays = read_golden(folder / "golden.npz", golden)
    got = expected_fully_connected(arrays["input/x"], (folder / "model.tflite").read_bytes())
    largest = float(np.abs(got.astype(int) - arrays["output/y"].astype(int)).max())
    if largest > max_lsb:
        raise SelfTestError("self-test", f"is {largest:g} from the golden one", "")
    return SelfTest(
        runtime=runtime, samples=len(got), values=got.size, largest=largest, limit=max_lsb
    )


class Device:
    """One device; `settings` are those of `AgentConfig`."""

    def __init__(
        self, folder: Path, root: bytes, *mirrors: str, state: Path | None = None, **settings: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "root.json").write_bytes(root)
        self.state = state or folder / "state"
        given = {"device_id": "thermostat-7", "target": TARGET} | settings
        self.config = AgentConfig(
            mirrors=mirrors, root=folder / "root.json", state=self.state, **given
        )

    @property
    def models(self) -> Path:
        return self.state / "models"

    def run(self, *, at: datetime = NOW, step: Callable[[str], None] | None = None) -> Run:
        """Let the agent run once; whatever happens, what is current afterwards is a whole slot."""
        try:
            return run_once(self.config, system_time=lambda: at, step=step or (lambda name: None))
        finally:
            self.check()

    def check(self) -> None:
        """Fail if what is current is not, byte for byte, what was signed of it."""
        for model in self.models.glob("*"):
            link = model / "current"
            if link.is_symlink():
                facts = json.loads((link / ".release.json").read_bytes())
                for name, entry in facts["files"].items():
                    data = (link / name).read_bytes()
                    assert hashlib.sha256(data).hexdigest() == entry["sha256"], name

    def version(self, name: str = NAME) -> str | None:
        """Return the version that an application which reads `current` gets."""
        path = self.models / name / "current" / ".release.json"
        return str(json.loads(path.read_bytes())["version"]) if path.exists() else None

    def content(self, name: str = NAME) -> dict[str, bytes]:
        """Return the files of the current release."""
        folder = self.models / name / "current"
        paths = (p for p in folder.rglob("*") if p.is_file() and p.name != ".release.json")
        return {str(p.relative_to(folder)): p.read_bytes() for p in paths}

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.state / "status.json").read_bytes())
        return content

    def died(self, step: str | int, *, at: datetime = NOW) -> bool:
        """Run in a child that is killed at a step, or at the nth change of the disk.

        Nothing of Python runs after that: no `finally`, no `except`. Returns False if the run
        ended before.
        """
        with warnings.catch_warnings():  # the child has one thread, and needs none of the others
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                if isinstance(step, int):
                    _die_at_change(step)
                run_once(self.config, system_time=lambda: at, step=lambda name: _die(name == step))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        self.check()
        return os.waitstatus_to_exitcode(status) == 137


def _die(is_time: bool) -> None:
    if is_time:
        os._exit(137)


def _die_at_change(number: int) -> None:
    """End this process instead of the nth change of the disk."""
    left = [number]

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def changing(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            _die(left[0] < 0)
            return change(*args, **kwargs)

        return changing

    for name in ("replace", "rename", "symlink", "unlink", "remove", "mkdir", "rmdir", "fsync"):
        setattr(os, name, dying(getattr(os, name)))


def health(command: str, *arguments: str, timeout_s: float = 5.0) -> HealthCheck:
    return HealthCheck(command=(command, *arguments), timeout_s=timeout_s)


def outcomes(run: Run) -> list[str]:
    return [event.outcome for event in run.status.events]


def reason(run: Run) -> str:
    """Return what the only event of a run says."""
    (event,) = run.status.events
    return event.reason


def fetched_releases(requests: list[str]) -> list[str]:
    """Return what was fetched of releases: file names without their digests."""
    names = (r.rpartition("/")[2] for r in requests if r.startswith("targets/releases/"))
    return [name.partition(".")[2] for name in names]


def unexpected(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("must not be called")


def releases_of(repository: Repository) -> Mapping[str, Any]:
    found: Mapping[str, Any] = repository.signed(f"device-{TARGET}").targets
    return found
