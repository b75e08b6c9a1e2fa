"""RAUC bundles, made by RAUC itself (`rauc bundle`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.fleet.packages.keys import SigningKey, read_pem
from edgeshrink.fleet.packages.swupdate import Bundle

INSTALL: Final = "apt-get install rauc squashfs-tools"
TIMEOUT_S: Final = 600.0
_SLOT: Final = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._+ -]*")


def raucb(bundle: Bundle, key: SigningKey, certificate: Path, *, slot: str) -> bytes:
    """Return a signed bundle of format `verity` with one archive.

    Args:
        bundle: What goes in; `folder` is not used, the slot says where it goes.
        key: The certificate's private key, without passphrase.
        certificate: X.509 (PEM).
        slot: The slot class of the device's system.conf whose file system the archive fills.

    Raises:
        ConfigError: a name that can't stand in a manifest, or a certificate that RAUC refuses.
        ToolchainError: rauc or mksquashfs is missing, or fails.
    """
    for tool in ("rauc", "mksquashfs"):
        if shutil.which(tool) is None:
            raise ToolchainError(tool, "is not on PATH", INSTALL)
    if not _SLOT.fullmatch(slot):
        raise ConfigError("--slot", f"{slot!r} is no slot class", "as in [slot.models.0]")
    read_pem(certificate)
    with tempfile.TemporaryDirectory(prefix="edgeshrink-rauc-") as name:
        folder = Path(name)
        content, out, plain_key = folder / "content", folder / "bundle.raucb", folder / "key.pem"
        content.mkdir()
        (content / bundle.archive_name).write_bytes(bundle.archive)
        (content / "manifest.raucm").write_text(manifest(bundle, slot))
        _write_private(plain_key, key)
        command = ["rauc", "bundle", f"--cert={certificate}", f"--key={plain_key}",
                   str(content), str(out)]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False,
                timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as err:
            raise ToolchainError("rauc", f"took over {TIMEOUT_S:g} s", "") from err
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            what = f"made no bundle: {' | '.join(lines[-2:])[:400]}"
            raise ToolchainError("rauc", what, "look at key and certificate")
        return out.read_bytes()


def manifest(bundle: Bundle, slot: str) -> str:
    """Return the manifest of a bundle; RAUC adds digest and size of the archive."""
    for what in ("name", "version", "compatible"):
        value = getattr(bundle, what)
        if not value or not _PLAIN.fullmatch(value):
            fix = "letters, digits and . _ + - only"
            raise ConfigError(what, f"{value!r} can't stand in a RAUC manifest", fix)
    return f"""[update]
compatible={bundle.compatible}
version={bundle.version}
description={bundle.name}

[bundle]
format=verity

[image.{slot}]
filename={bundle.archive_name}
"""


def _write_private(path: Path, key: SigningKey) -> None:
    """Write a key for rauc, which asks for no passphrase; readable by its owner alone."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    data = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
