"""Prepare the arm64 root: the only code of this package that fetches, by apt-get and pip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from edgeshrink.errors import ToolchainError
from edgeshrink.runtimes.arm64.root import (
    CPUS,
    MANIFEST,
    N_CPUS,
    PYTHON,
    QEMU,
    QEMU_INSTALL,
    RUNTIMES,
    SETUP,
    Arm64Root,
    cpuinfo,
    find_root,
    root_folder,
)
from edgeshrink.runtimes.arm64.stand_ins import needs, write_stand_ins
from edgeshrink.staging import staging

Progress = Callable[[float, str], None]

# What Python 3.11 of Debian 12 needs to import numpy and the runtimes.
PACKAGES: Final = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1",
    "libstdc++6", "zlib1g", "libbz2-1.0", "liblzma5", "libssl3", "libexpat1", "libffi8", "libuuid1",
    "libatomic1",
)  # fmt: skip
PYTHON_VERSION: Final = "3.11"
SUITE: Final = "bookworm"
PLATFORMS: Final = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17",
                    "manylinux2014")  # fmt: skip
DEFAULT_RUNTIMES: Final = ("litert", "tflite-runtime")
# Parts of wheels that nothing here loads.
LEFT_OUT: Final = ("torch/include/", "torch/test/", "torch/share/", "executorch/include/")
CLIENT_TIMEOUT_S: Final = 1800.0
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


def prepare_root(
    *,
    runtimes: Sequence[str] = DEFAULT_RUNTIMES,
    mirror: str | None = None,
    again: bool = False,
    progress: Progress = lambda share, detail: None,
) -> Arm64Root:
    """Prepare the arm64 root, unless one with these runtimes is there, and return it.

    The folder appears when it is complete. Fetches Debian packages with apt-get, from the sources
    that this host's apt knows or from `mirror`, and wheels with pip.

    Args:
        runtimes: Keys of `RUNTIMES`.
        mirror: Address of a Debian archive that has Debian 12 for arm64.
        again: Prepare it although it is there.
        progress: Called with the share done, in [0, 1], and what is being done.

    Raises:
        ToolchainError: a client is missing or fails; QEMU is missing.
        EdgeshrinkError: the folder can't be written.
    """
    if shutil.which(QEMU) is None:
        raise ToolchainError(QEMU, "is not on PATH", f"{QEMU_INSTALL}, then {SETUP}")
    wanted = set(runtimes)
    if (root_folder() / MANIFEST).is_file() and not again:
        there = find_root()
        if wanted <= set(there.runtimes):
            return there
        wanted |= set(there.runtimes)
    chosen = [name for name in RUNTIMES if name in wanted]
    out = root_folder()
    with staging(out, marker=MANIFEST) as folder:
        progress(0.0, "Debian packages")
        packages = _unpack_debian(folder / "root", mirror)
        for index, name in enumerate(chosen):
            progress(0.2 + 0.6 * index / len(chosen), f"wheels of {name}")
            _unpack_wheels(RUNTIMES[name], folder / "site" / name)
        progress(0.85, "linking")
        if "executorch" in chosen:
            _stand_in(folder)
        _grow_trees(folder, out)
        manifest = {"packages": packages, "runtimes": {name: RUNTIMES[name] for name in chosen}}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    progress(1.0, "done")
    return find_root()


def _unpack_debian(root: Path, mirror: str | None) -> dict[str, str]:
    """Unpack `PACKAGES` for arm64 below `root`, without installing anything on the host."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            what = "is not on PATH: the arm64 C library and Python come from Debian's archive"
            raise ToolchainError(tool, what, "run this on Debian or Ubuntu, or in such a container")
    root.mkdir()
    with tempfile.TemporaryDirectory(prefix="edgeshrink-apt-") as name:
        state = Path(name)
        for part in ("state", "lists/partial", "cache/archives/partial", "packages"):
            (state / part).mkdir(parents=True)
        (state / "status").touch()
        lines = [
            'APT::Architecture "arm64";', 'APT::Architectures { "arm64"; };',
            'APT::Sandbox::User "";',
            f'Dir::State "{state}/state";', f'Dir::State::lists "{state}/lists";',
            f'Dir::State::status "{state}/status";', f'Dir::Cache "{state}/cache";',
        ]  # fmt: skip
        if mirror is not None:
            (state / "sources.list").write_text(
                f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n"
            )
            lines += [f'Dir::Etc::SourceList "{state}/sources.list";',
                      'Dir::Etc::SourceParts "/dev/null";']  # fmt: skip
        (state / "apt.conf").write_text("\n".join(lines) + "\n")
        variables = {"APT_CONFIG": str(state / "apt.conf")}
        remedy = (
            f"this host's apt must know Debian 12 ({SUITE}) with arm64; or name an archive that "
            "does: --mirror ADDRESS"
        )
        _run(["apt-get", "-q", "update"], variables, state, remedy)
        _run(["apt-get", "-q", "download", *PACKAGES], variables, state / "packages", remedy)
        versions = {}
        for package in sorted((state / "packages").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(root)], {}, state, "")
            fields = ["dpkg-deb", "-f", str(package), "Package", "Version"]
            lines = _run(fields, {}, state, "").splitlines()
            entry = dict(line.split(": ", 1) for line in lines)
            versions[entry["Package"]] = entry["Version"]
    if not (root / PYTHON).exists():
        raise ToolchainError("apt-get", f"brought no {PYTHON}", remedy)
    return versions


def _unpack_wheels(requirements: Sequence[str], site: Path) -> None:
    """Unpack wheels for arm64, exactly these and nothing they ask for."""
    site.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="edgeshrink-wheels-") as name:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input",
            "--only-binary=:all:", "--disable-pip-version-check", "--implementation=cp",
            f"--python-version={PYTHON_VERSION}", f"--dest={name}",
            *(f"--platform={platform}_aarch64" for platform in PLATFORMS), *requirements,
        ]  # fmt: skip
        _run(command, {}, Path(name), "look whether pip reaches its index")
        for wheel in sorted(Path(name).glob("*.whl")):
            try:
                with zipfile.ZipFile(wheel) as archive:
                    members = [m for m in archive.infolist() if not m.filename.startswith(LEFT_OUT)]
                    for member in members:
                        path = Path(archive.extract(member, site))
                        if member.external_attr >> 16 & 0o111 and path.is_file():
                            path.chmod(path.stat().st_mode | 0o111)
            except zipfile.BadZipFile as err:
                raise ToolchainError(wheel.name, f"is damaged ({err})", "try again") from err


def _stand_in(folder: Path) -> None:
    """Stand in for the CUDA libraries that PyTorch's wheel links to."""
    site = folder / "site" / "executorch"
    linked = [
        path
        for path in (*site.glob("torch/**/*.so*"), *site.glob("executorch/**/*.so"))
        if not path.is_symlink()
    ]
    present = {path.name for path in (folder / "root").rglob("*.so*")}
    write_stand_ins(needs(linked, present), folder / "stand-ins")


def _grow_trees(folder: Path, final: Path) -> None:
    """Make a tree per core: the root by links, and what Linux says of the processor."""
    for cpu in CPUS:
        tree = folder / "cores" / cpu
        (tree / "proc").mkdir(parents=True)
        (tree / "proc" / "cpuinfo").write_text(cpuinfo(cpu))
        listed = tree / "sys" / "devices" / "system" / "cpu"
        listed.mkdir(parents=True)
        for name in ("possible", "present", "online"):
            (listed / name).write_text(f"0-{N_CPUS - 1}\n")
        for path in (folder / "root").iterdir():
            (tree / path.name).symlink_to(final / "root" / path.name)


def _run(command: Sequence[str], variables: Mapping[str, str], cwd: Path, remedy: str) -> str:
    """Run a client and return what it prints."""
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", cwd=cwd, check=False,
            env={**os.environ, "LC_ALL": "C", **variables}, stdin=subprocess.DEVNULL,
            timeout=CLIENT_TIMEOUT_S,
        )  # fmt: skip
    except OSError as err:
        raise ToolchainError(command[0], f"can't be started ({err.strerror})", remedy) from err
    except subprocess.TimeoutExpired as err:
        raise ToolchainError(command[0], f"took over {CLIENT_TIMEOUT_S:g} s", remedy) from err
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "ERROR"))]
        what = " | ".join(lines[-2:]) or f"failed with exit code {done.returncode}"
        raise ToolchainError(command[0], what[:400], remedy)
    return done.stdout
