"""What the agent costs a device: packages, memory, time; none of it depends on PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.fleet_server import ROLES, TARGET, artifact_files, new_repository, serving

REPO = Path(__file__).parents[2]
MAX_INSTALLED_BYTES = 190_000_000
MAX_RESIDENT_BYTES = 80_000_000
MAX_SECONDS = 1.5

# Runs the command, then says on the last line of stderr what that took.
MEASURED = """
import json, re, sys, time
from edgeshrink.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
status = open("/proc/self/status").read()
print(json.dumps({
    "code": code, "modules": sorted(sys.modules), "seconds": time.process_time(),
    "bytes": 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]),
}), file=sys.stderr)
"""


def needed(extra: str) -> dict[str, metadata.Distribution]:
    """Return every distribution that `edgeshrink[extra]` brings to this machine, but itself."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    left = [*project["dependencies"], *project["optional-dependencies"][extra]]
    found: dict[str, metadata.Distribution] = {}
    while left:
        requirement = Requirement(left.pop())
        is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if is_needed and requirement.name not in found:
            found[requirement.name] = metadata.distribution(requirement.name)
            left += found[requirement.name].requires or []
    return found


@pytest.mark.slow
def test_what_a_device_installs_is_small_and_holds_no_torch():
    found = needed("device")
    assert {"tuf", "ai-edge-litert", "numpy", "cryptography", "click"} <= found.keys()
    assert not {name for name in found if "torch" in name or "tensorflow" in name}
    own = sum(p.stat().st_size for p in (REPO / "edgeshrink").rglob("*") if p.is_file())
    others = sum(
        path.stat().st_size
        for distribution in found.values()
        for path in (Path(str(distribution.locate_file(f))) for f in distribution.files or ())
        if path.is_file()
    )
    print(own + others, sorted(found))
    assert 50_000_000 < own + others < MAX_INSTALLED_BYTES


def measured(*arguments: str) -> dict:
    process = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, timeout=60
    )
    found = json.loads(process.stderr.splitlines()[-1])
    assert found["code"] in (0, None), process.stderr
    return found


@pytest.mark.slow
def test_a_run_without_news_takes_little_and_an_update_loads_no_torch(tmp_path):
    repository = new_repository()
    repository.offer(repository.release(artifact_files(1)))
    repository.publish(*ROLES, days=36_500)
    (tmp_path / "root.json").write_bytes(repository.first_root)
    with serving(repository.files) as server:
        command = [
            "agent", "--once", "--repo", server.url, "--root", str(tmp_path / "root.json"),
            "--state", str(tmp_path / "state"), "--target", TARGET,
        ]  # fmt: skip
        update, idle = measured(*command), measured(*command)
    for found in (update, idle):
        tops = {name.partition(".")[0] for name in found["modules"]}
        assert not tops & {"torch", "torchao", "executorch", "scipy", "ai_edge_litert", "requests"}
    assert not {name.partition(".")[0] for name in idle["modules"]} & {"numpy", "rich"}
    assert idle["bytes"] < MAX_RESIDENT_BYTES
    assert idle["seconds"] < MAX_SECONDS
    assert (tmp_path / "state/models/keywords/current/model.tflite").exists()
