"""SWUpdate's `.swu`: a cpio archive of a description, its signature, and the files it describes.

Format: SWUpdate documentation, "Update image" and "sw-description". The description comes first,
its detached CMS signature second; the description has the SHA-256 of everything behind them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.fleet.packages.keys import PACK_EXTRA, SigningKey, read_pem

DESCRIPTION: Final = "sw-description"
SIGNATURE: Final = "sw-description.sig"
_MAGIC: Final = b"070702"  # cpio "newc" with a checksum, the only kind that SWUpdate reads
_TRAILER: Final = "TRAILER!!!"
_FILE_MODE: Final = 0o100644
_PLAIN: Final = re.compile(r"[A-Za-z0-9._+ /:,()=-]*")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What goes into a bundle, and where it goes on the device."""

    name: str
    version: str
    compatible: str  # hardware that may take it, "rpi4"
    archive_name: str
    archive: bytes  # a tar, packed or not
    folder: str  # where SWUpdate unpacks it


def swu(bundle: Bundle, key: SigningKey, certificate: Path) -> bytes:
    """Return a signed `.swu` with one archive.

    Args:
        bundle: What goes in.
        key: The certificate's private key, RSA or ECDSA.
        certificate: X.509 (PEM); devices know it, or its issuer.

    Raises:
        ConfigError: key and certificate do not belong together, or can't sign CMS.
        ToolchainError: the extra `[pack]` is missing.
    """
    text = describe(bundle).encode()
    signature = sign_cms(text, key, certificate)
    members = ((DESCRIPTION, text), (SIGNATURE, signature), (bundle.archive_name, bundle.archive))
    return cpio(members)


def describe(bundle: Bundle) -> str:
    """Return the sw-description of a bundle."""
    for what, value in vars(bundle).items():
        if isinstance(value, str) and not _PLAIN.fullmatch(value):
            fix = "letters, digits and . _ + - / : , ( ) = only"
            raise ConfigError(what, f"{value!r} can't stand in a sw-description", fix)
    digest = hashlib.sha256(bundle.archive).hexdigest()
    compressed = {".gz": '\n            compressed = "zlib";'}.get(
        Path(bundle.archive_name).suffix, ""
    )
    return f"""software =
{{
    version = "{bundle.version}";
    description = "{bundle.name}";
    hardware-compatibility: [ "{bundle.compatible}" ];
    images: (
        {{
            filename = "{bundle.archive_name}";
            name = "{bundle.name}";
            version = "{bundle.version}";
            type = "archive";
            path = "{bundle.folder}";
            properties: {{ create-destination = "true"; }};{compressed}
            sha256 = "{digest}";
        }}
    );
}}
"""


def cpio(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a cpio archive, format "newc" with checksums; dates and owners are 0."""
    parts = [_member(name, data, index + 1) for index, (name, data) in enumerate(members)]
    return b"".join([*parts, _member(_TRAILER, b"", 0, mode=0)])


def _member(name: str, data: bytes, inode: int, mode: int = _FILE_MODE) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (major, minor), its own device, name, sum
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), sum(data) & 0xFFFFFFFF)
    head = _MAGIC + b"".join(b"%08X" % value for value in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def sign_cms(data: bytes, key: SigningKey, certificate: Path) -> bytes:
    """Return a detached CMS signature of `data` (RFC 5652), DER."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec, rsa
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
    except ImportError as err:
        raise ToolchainError("cryptography", "is not installed", PACK_EXTRA) from err
    try:
        owner = x509.load_pem_x509_certificate(read_pem(certificate))
    except ValueError as err:
        what = f"is no X.509 certificate ({err})"
        raise ConfigError(str(certificate), what, "make one with openssl req -x509") from err
    if not isinstance(key.private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ConfigError(str(key.path), "is neither RSA nor ECDSA", "CMS here is signed by these")
    if owner.public_key() != key.private.public_key():
        what = f"does not belong to the certificate {certificate}"
        raise ConfigError(str(key.path), what, "give the certificate's own key")
    options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
    builder = pkcs7.PKCS7SignatureBuilder().set_data(data)
    return builder.add_signer(owner, key.private, SHA256()).sign(Encoding.DER, options)
