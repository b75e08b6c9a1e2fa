"""An artifact as other updaters take it: what `edgeshrink pack` writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeshrink.artifact import GOLDEN, Artifact, FileEntry, file_entry
from edgeshrink.errors import ConfigError, EdgeshrinkError
from edgeshrink.fleet import archive
from edgeshrink.fleet.packages.cose import sign_manifest
from edgeshrink.fleet.packages.keys import SigningKey
from edgeshrink.fleet.packages.mcuboot import Slot, sign_image
from edgeshrink.fleet.packages.rauc import raucb
from edgeshrink.fleet.packages.swupdate import Bundle, swu

FACTS_FORMAT: Final = 1
PROFILE: Final = "profile.json"
FIGURES: Final = ("flash_bytes", "ram_bytes", "stack_bytes", "latency_ms", "energy_uj")
# Semantic Versioning 2.0.0, sections 2, 9 and 10
SEMANTIC: Final = re.compile(
    r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Files that were written, and what the receiving side must be set to."""

    files: tuple[Path, ...]
    settings: tuple[str, ...] = ()


def facts(
    artifact: Artifact, *, version: str, counter: int, image: FileEntry, image_digest: str
) -> dict[str, Any]:
    """Return what a microcontroller's manifest says: plain values, digests as bytes.

    Args:
        artifact: What was built.
        version: Of the release.
        counter: Security counter: a device takes none below its own.
        image: The signed image as it is downloaded.
        image_digest: The one that the bootloader checks, hex.
    """
    golden = artifact.files.get(GOLDEN)
    return {
        "format": FACTS_FORMAT,
        "name": artifact.name,
        "version": version,
        "target": artifact.target,
        "engine": artifact.engine,
        "counter": counter,
        "image": {
            "sha256": bytes.fromhex(image.sha256),
            "bytes": image.n_bytes,
            "mcuboot_digest": bytes.fromhex(image_digest),
        },
        "inputs": [_io(spec.to_json()) for spec in artifact.inputs],
        "outputs": [_io(spec.to_json()) for spec in artifact.outputs],
        "metric": dict(artifact.metric),
        "scores": dict(artifact.scores),
        "figures": _figures(artifact),
        **({"golden_sha256": bytes.fromhex(golden.sha256)} if golden else {}),
    }


def pack_mcuboot(
    artifact: Artifact,
    image: Path,
    key: SigningKey,
    *,
    version: str,
    counter: int,
    slot: Slot,
    out: Path,
) -> Packed:
    """Write a signed image and its signed manifest into the folder `out`.

    Args:
        artifact: What was built for a microcontroller; `image` holds its generated C.
        image: The application's plain binary.
        key: Signs both.
        version: Semantic version of the release.
        counter: Security counter.
        slot: Where MCUboot keeps the image.
        out: A folder, made if it is missing.

    Raises:
        ConfigError: not a microcontroller's artifact, or see `sign_image`, `sign_manifest`.
        EdgeshrinkError: the files can't be written.
    """
    _check_version(version)
    if artifact.engine != "c":
        what = f"is for {artifact.target}, engine {artifact.engine}: MCUboot starts firmware"
        raise ConfigError(str(artifact.folder), what, "use --format swupdate or rauc")
    try:
        binary = image.read_bytes()
    except OSError as err:
        raise ConfigError(str(image), f"can't be read ({err.strerror})", "check the path") from err
    signed = sign_image(
        binary, key, version=version, security_counter=counter, slot=slot, name=str(image)
    )
    manifest = facts(
        artifact,
        version=version,
        counter=counter,
        image=file_entry(signed.data),
        image_digest=signed.digest,
    )
    stem = f"{artifact.name}-{version}-{artifact.target}"
    written = _write(out, ((f"{stem}.signed.bin", signed.data),
                           (f"{stem}.cose", sign_manifest(manifest, key))))  # fmt: skip
    return Packed(files=written, settings=signed.settings)


def pack_bundle(
    artifact: Artifact,
    kind: str,
    key: SigningKey,
    certificate: Path,
    *,
    version: str,
    compatible: str | None,
    place: str | None,
    out: Path,
) -> Packed:
    """Write an artifact's files as a signed bundle into the folder `out`.

    Args:
        artifact: What was built.
        kind: `swupdate` or `rauc`.
        key: The certificate's.
        certificate: X.509 (PEM).
        version: Semantic version of the release.
        compatible: What hardware may take it; the target's name where left out.
        place: SWUpdate: the folder on the device; RAUC: the slot class.
        out: A folder, made if it is missing.

    Raises:
        ConfigError, ToolchainError: see `swu` and `raucb`.
        EdgeshrinkError: the file can't be written.
    """
    _check_version(version)
    names = [*artifact.files, "artifact.json"]
    content = {name: artifact.path(name).read_bytes() for name in names}
    bundle = Bundle(
        name=artifact.name,
        version=version,
        compatible=compatible or artifact.target,
        archive_name="artifact.tar.xz",
        archive=archive.pack(content),
        folder=place or f"/var/lib/edgeshrink/{artifact.name}",
    )
    stem = f"{artifact.name}-{version}-{artifact.target}"
    if kind == "swupdate":
        written = _write(out, ((f"{stem}.swu", swu(bundle, key, certificate)),))
        settings = (
            "swupdate with CONFIG_SIGNED_IMAGES, CONFIG_SIGALG_CMS and CONFIG_ARCHIVE; "
            f"started with -k {certificate.name}",
            f"hardware revision {bundle.compatible} in /etc/hwrevision",
        )
        return Packed(files=written, settings=settings)
    slot = place or "models"
    written = _write(out, ((f"{stem}.raucb", raucb(bundle, key, certificate, slot=slot)),))
    settings = (
        f"system.conf: [system] compatible={bundle.compatible}, [keyring] path={certificate.name}",
        f"system.conf: [slot.{slot}.0] with type=ext4 (RAUC unpacks the archive there); "
        "kernel with dm-verity",
    )
    return Packed(files=written, settings=settings)


def _check_version(version: str) -> None:
    if not SEMANTIC.fullmatch(version):
        raise ConfigError("--version", f"{version!r} is not a semantic version", "as in 1.3.0")


def _io(spec: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "shape", "dtype", "scale", "zero_point")
    return {key: spec[key] for key in kept if spec[key] is not None}


def _figures(artifact: Artifact) -> dict[str, Any]:
    """Return the profile's main figures: how each was got, and its band."""
    if PROFILE not in artifact.files:
        return {}
    try:
        figures = json.loads(artifact.path(PROFILE).read_text())["figures"]
        return {
            name: {part: figures[name][part] for part in ("value", "unit", "how", "low", "high")}
            for name in FIGURES
            if name in figures
        }
    except (OSError, ValueError, KeyError, TypeError) as err:
        what = f"can't be read ({type(err).__name__}: {err})"
        raise ConfigError(str(artifact.path(PROFILE)), what, "build the artifact again") from err


def _write(out: Path, files: Sequence[tuple[str, bytes]]) -> tuple[Path, ...]:
    """Write files into a folder, each in one step."""
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files:
            aside = out / f".{name}.{os.getpid()}.partial"
            try:
                aside.write_bytes(data)
                written.append(aside.rename(out / name))
            finally:
                aside.unlink(missing_ok=True)
    except OSError as err:
        what = f"can't be written ({err.strerror or err})"
        raise EdgeshrinkError(str(err.filename or out), what, "choose another --out") from err
    return tuple(written)
