"""Signing keys and certificates of other updaters: PEM files, as their own tools write them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeshrink.errors import ConfigError, ToolchainError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

PASSPHRASE_VARIABLE: Final = "EDGESHRINK_PACK_PASSPHRASE"
PACK_EXTRA: Final = "python -m pip install 'edgeshrink[pack]'"
MAX_PEM_BYTES: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A private key that has been read."""

    path: Path
    private: PrivateKeyTypes
    passphrase: str | None


def read_key(path: Path, passphrase: str | None = None) -> SigningKey:
    """Read a private key (PEM); its passphrase comes from the environment where none is given.

    Raises:
        ConfigError: no such file, no PEM key, or the passphrase does not fit.
        ToolchainError: the extra `[pack]` is missing.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as err:
        raise ToolchainError("cryptography", "is not installed", PACK_EXTRA) from err
    passphrase = passphrase or os.environ.get(PASSPHRASE_VARIABLE)
    data = read_pem(path)
    try:
        private = load_pem_private_key(data, passphrase.encode() if passphrase else None)
    except TypeError as err:  # a passphrase too many, or one too few
        if passphrase is None:
            fix = f"give its passphrase in {PASSPHRASE_VARIABLE}"
            raise ConfigError(str(path), "is encrypted", fix) from err
        private = load_pem_private_key(data, None)
        passphrase = None
    except (ValueError, UnsupportedAlgorithm) as err:
        what = "can't be read: it is no PEM private key, or the passphrase is another"
        raise ConfigError(str(path), what, "make one with openssl genpkey") from err
    return SigningKey(path=path, private=private, passphrase=passphrase)


def read_pem(path: Path) -> bytes:
    """Return a PEM file's content; ConfigError if it is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as err:
        raise ConfigError(str(path), f"can't be read ({err.strerror})", "check the path") from err
    if len(data) > MAX_PEM_BYTES or b"-----BEGIN " not in data:
        raise ConfigError(str(path), "is not a PEM file", "convert it with openssl")
    return data
