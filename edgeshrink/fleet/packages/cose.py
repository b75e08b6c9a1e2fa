"""A release's facts as CBOR, signed as COSE_Sign1 (RFC 9052), for devices that read no JSON.

The payload is a map with text keys; digests are byte strings. The protected header has the
algorithm and the content type `application/cbor`, the unprotected one the key's identifier: the
first 8 bytes of the SHA-256 of its public half (DER).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from edgeshrink.errors import ConfigError, ToolchainError
from edgeshrink.fleet.packages.keys import PACK_EXTRA, SigningKey

ALG: Final = 1  # RFC 9052, section 3.1
CONTENT_TYPE: Final = 3
KEY_ID: Final = 4
CBOR: Final = "application/cbor"
KEY_ID_BYTES: Final = 8


def sign_manifest(facts: Mapping[str, Any], key: SigningKey) -> bytes:
    """Return `facts` as a signed manifest, CBOR tag 18.

    Args:
        facts: Plain values: numbers, text, bytes, lists, maps with text keys.
        key: ECDSA P-256 or P-384, or Ed25519.

    Raises:
        ConfigError: a key of another kind.
        ToolchainError: the extra `[pack]` is missing.
    """
    try:
        import cbor2
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            PublicFormat,
        )
        from cwt import COSE, COSEKey
    except ImportError as err:
        raise ToolchainError("cwt", "is not installed", PACK_EXTRA) from err
    algorithm = None
    if isinstance(key.private, ec.EllipticCurvePrivateKey):
        algorithm = {"secp256r1": "ES256", "secp384r1": "ES384"}.get(key.private.curve.name)
    elif isinstance(key.private, ed25519.Ed25519PrivateKey):
        algorithm = "EdDSA"
    if algorithm is None:
        what = "can't sign a COSE manifest here: neither ECDSA P-256, P-384 nor Ed25519"
        raise ConfigError(str(key.path), what, "use such a key")
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key_id = hashlib.sha256(public).digest()[:KEY_ID_BYTES]
    signer = COSE.new()
    payload = cbor2.dumps(dict(facts), canonical=True)
    signed = signer.encode_and_sign(
        payload,
        COSEKey.from_pem(pem, alg=algorithm, kid=key_id),
        protected={"alg": algorithm, "content type": CBOR},
        unprotected={"kid": key_id},
    )
    return signed if isinstance(signed, bytes) else bytes(cbor2.dumps(signed))
