"""Keys of a fleet: Ed25519, as PEM files that any tool can read.

Offline keys belong to people: encrypted private keys (`NAME.pem`, PKCS #8) with the public one
beside (`NAME.pub`). Online keys belong to the machine that publishes, and have no passphrase.
The metadata say which public key is whose, by a field that clients ignore.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Key

from edgeshrink.errors import ConfigError, EdgeshrinkError, ThresholdError

NAME_FIELD: Final = "x-edgeshrink-name"  # of a key in TUF metadata
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VARIABLE: Final = "EDGESHRINK_PASSPHRASE"
# The PEM form derives its key by 2,048 rounds of PBKDF2, which alone makes no short word safe.
MIN_PASSPHRASE: Final = 12
MAX_PEM_BYTES: Final = 1 << 16

Ask = Callable[[str], str | None]  # name of a key -> its passphrase; None: leave this key out


@dataclass(frozen=True, kw_only=True)
class Need:
    """So many of these people must sign."""

    names: frozenset[str]
    threshold: int


def check_key_name(name: str, where: str) -> None:
    """Raise ConfigError unless `name` can name a key."""
    if not NAME.fullmatch(name):
        fix = "use up to 64 lower-case letters, digits, '_' and '-'"
        raise ConfigError(where, f"is {name!r:.80}", fix)


def check_signers(n_keys: int, threshold: int) -> None:
    """Raise ConfigError unless `threshold` of `n_keys` people can sign."""
    if not 1 <= threshold <= n_keys:
        what = f"is {threshold}, of {n_keys} keys"
        raise ConfigError("--threshold", what, f"choose between 1 and {n_keys}, or add keys")
    if n_keys > 64:
        raise ConfigError("--keys", f"are {n_keys}", "64 are enough for anybody's metadata")


def key_name(key: Key) -> str:
    """Return whose key it is, or the beginning of its id where nobody has said so."""
    name = key.unrecognized_fields.get(NAME_FIELD)
    return name if isinstance(name, str) and NAME.fullmatch(name) else key.keyid[:8]


def named(key: Key, name: str) -> SSlibKey:
    """Return the public key with the name of whom it belongs to."""
    return SSlibKey(key.keyid, key.keytype, key.scheme, key.keyval, {NAME_FIELD: name})


def passphrase_variable(name: str) -> str:
    """Return the environment variable for the passphrase of one key."""
    return f"{VARIABLE}_{name.upper().replace('-', '_')}"


def passphrase_from_environment(name: str) -> str | None:
    """Return the passphrase of a key that the environment holds, the key's own before all's."""
    return os.environ.get(passphrase_variable(name)) or os.environ.get(VARIABLE) or None


def check_passphrase(name: str, passphrase: str) -> None:
    """Raise ConfigError for a passphrase that guessing would find."""
    if len(passphrase) < MIN_PASSPHRASE:
        what = f"passphrase has {len(passphrase)} characters, at least {MIN_PASSPHRASE} are needed"
        raise ConfigError(f"key {name}", what, "take several words")


def generate(name: str) -> CryptoSigner:
    """Make a new key pair."""
    private = Ed25519PrivateKey.generate()
    return CryptoSigner(private, named(SSlibKey.from_crypto(private.public_key()), name))


def private_pem(signer: CryptoSigner, passphrase: str | None) -> bytes:
    """Return the private key as a PEM file, encrypted where there is a passphrase."""
    private = load_pem_private_key(signer.private_bytes, None)
    secret = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)


def public_pem(signer: CryptoSigner) -> bytes:
    """Return the public key as a PEM file."""
    private = load_pem_private_key(signer.private_bytes, None)
    form = PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(Encoding.PEM, form)


def write_pair(folder: Path, signer: CryptoSigner, passphrase: str) -> Path:
    """Write NAME.pem and NAME.pub of a new key; replaces neither. Returns the private one's path.

    Raises:
        ConfigError: one of them is there already.
        EdgeshrinkError: they can't be written.
    """
    name = key_name(signer.public_key)
    check_passphrase(name, passphrase)
    check_absent(folder, name)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(private, private_pem(signer, passphrase))
        public.write_bytes(public_pem(signer))
    except OSError as err:
        private.unlink(missing_ok=True)
        public.unlink(missing_ok=True)
        what = f"can't be written ({err.strerror or err})"
        raise EdgeshrinkError(str(folder), what, "choose another folder with --keys-dir") from err
    return private


def check_absent(folder: Path, name: str) -> None:
    """Raise ConfigError where a key of this name is there already."""
    for path in (folder / f"{name}.pem", folder / f"{name}.pub"):
        if path.exists():
            fix = "take another name, or use that key with --public"
            raise ConfigError(str(path), "is there already", fix)


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read, and bring it onto the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_private(path: Path, passphrase: str | None) -> CryptoSigner:
    """Read a private Ed25519 key.

    Raises:
        ConfigError: no such file, no such key, or the passphrase is another.
    """
    data = _read_pem(path)
    try:
        private = load_pem_private_key(data, passphrase.encode() if passphrase else None)
    except TypeError as err:
        if passphrase:
            private = load_pem_private_key(data, None)
        else:
            fix = f"give its passphrase, or set {VARIABLE}"
            raise ConfigError(str(path), "is encrypted", fix) from err
    except (ValueError, UnsupportedAlgorithm) as err:
        if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data and b"-----END" in data and passphrase:
            what, fix = "is not opened by this passphrase", "check it; a copy may be damaged too"
        else:
            what, fix = "is no private key (PEM, PKCS #8)", "restore it from your copy"
        raise ConfigError(str(path), what, fix) from err
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(str(path), "is no Ed25519 key", "edgeshrink fleet signers create NAME")
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


def read_public(path: Path, name: str) -> SSlibKey:
    """Read a public Ed25519 key that belongs to `name`; ConfigError if it is none."""
    data = _read_pem(path)
    fix = "give the NAME.pub that `edgeshrink fleet signers create` wrote"
    try:
        public = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise ConfigError(str(path), "is no public key (PEM)", fix) from err
    if not isinstance(public, Ed25519PublicKey):
        raise ConfigError(str(path), "is no Ed25519 key", fix)
    return named(SSlibKey.from_crypto(public), name)


def _read_pem(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as err:
        raise ConfigError(str(path), f"can't be read ({err.strerror})", "check the path") from err
    if not data.strip() or len(data) > MAX_PEM_BYTES:
        what = "is empty" if not data.strip() else f"has more than {MAX_PEM_BYTES:,} bytes"
        raise ConfigError(str(path), f"{what}, so it is no key", "restore it from your copy")
    return data


def unlock(
    needs: Sequence[Need], keys: Mapping[str, Key], folder: Path, ask: Ask
) -> tuple[CryptoSigner, ...]:
    """Open as many private keys as all `needs` together take, and no more.

    Args:
        needs: Who must sign.
        keys: Public keys by the names of whom they belong to.
        folder: Where NAME.pem are.
        ask: Called once for each key that is opened.

    Raises:
        ConfigError: a key can't be opened, or is another than the fleet knows.
        ThresholdError: there are fewer private keys here than must sign.
    """
    signers: dict[str, CryptoSigner] = {}

    def is_met(need: Need) -> bool:
        return len(need.names & signers.keys()) >= need.threshold

    names = {name for need in needs for name in need.names}
    # who counts for more of the needs first: nobody types a passphrase in vain
    for name in sorted(names, key=lambda n: (-sum(n in need.names for need in needs), n)):
        path = folder / f"{name}.pem"
        open_needs = [need for need in needs if name in need.names and not is_met(need)]
        if not open_needs or not path.exists():
            continue
        passphrase = ask(name)
        if passphrase is None:
            continue
        signer = read_private(path, passphrase)
        if signer.public_key.keyid != keys[name].keyid:
            what = f"is another key than the one that the fleet knows as {name}"
            raise ConfigError(str(path), what, "give the right folder with --keys-dir")
        signers[name] = signer
    for need in needs:
        if not is_met(need):
            have = sorted(need.names & signers.keys())
            what = (
                f"{need.threshold} of {', '.join(sorted(need.names))} must sign, and keys of "
                f"{', '.join(have) or 'nobody'} were opened in {folder}"
            )
            fix = "give the folder with --keys-dir, or collect signatures with --request FILE"
            raise ThresholdError("signatures", what, fix)
    return tuple(signers.values())
