"""Firmware images signed for MCUboot, by its own imgtool.

An image is the application's binary behind a header, with a protected security counter and a
signature behind it. Verifying it on the device is the bootloader's business.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeshrink.errors import ConfigError, EdgeshrinkError, ToolchainError
from edgeshrink.fleet.packages.keys import PACK_EXTRA, SigningKey

if TYPE_CHECKING:
    from imgtool.keys.general import KeyClass

MAX_IMAGE_BYTES: Final = 64 << 20
ALIGNMENTS: Final = (1, 2, 4, 8, 16, 32)
_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:[-+].*)?")
_ELF: Final = b"\x7fELF"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where MCUboot keeps an image.

    Raises:
        ConfigError: a size or an alignment makes no sense.
    """

    header_bytes: int = 0x200  # in front of the vector table, which must be aligned to its size
    slot_bytes: int = 0x60000
    align: int = 8  # of flash writes

    def __post_init__(self) -> None:
        if not 32 <= self.header_bytes <= 1 << 20:
            what = f"is {self.header_bytes}; MCUboot's header has 32 bytes"
            raise ConfigError("--header-size", what, "0x200 fits most Cortex-M vector tables")
        if self.slot_bytes <= self.header_bytes:
            what = f"is {self.slot_bytes}, which leaves no room behind the header"
            raise ConfigError("--slot-size", what, "give the slot's size in bytes, as 384KiB")
        if self.align not in ALIGNMENTS:
            raise ConfigError("--align", f"is {self.align}", f"choose from {ALIGNMENTS}")


@dataclass(frozen=True, kw_only=True)
class SignedImage:
    """An image as MCUboot takes it."""

    data: bytes
    digest: str  # SHA-256 (or what goes with the key) of header, payload and protected TLVs, hex
    settings: tuple[str, ...]  # of MCUboot's configuration, that this image needs


def sign_image(
    binary: bytes, key: SigningKey, *, version: str, security_counter: int, slot: Slot, name: str
) -> SignedImage:
    """Return a firmware's binary as an image that MCUboot accepts.

    Args:
        binary: The application as linked for the slot's address plus the header, not padded.
        key: ECDSA P-256, P-384, Ed25519 or RSA 2048/3072.
        version: Semantic version; what is behind the patch number does not enter the header.
        security_counter: At least what the devices hold; MCUboot refuses a lower one.
        slot: Where it goes.
        name: What to call the binary in errors.

    Raises:
        ConfigError: not a binary, too large for the slot, or a key that MCUboot does not know.
        ToolchainError: imgtool is missing.
    """
    numbers = _VERSION.fullmatch(version)
    if numbers is None:
        raise ConfigError("--version", f"{version!r} is not a semantic version", "as in 1.3.0")
    if not 0 <= security_counter < 1 << 32:
        raise ConfigError("--counter", f"is {security_counter}", "it has 32 bits")
    _check_binary(binary, name)
    try:
        from imgtool.image import Image, VerifyResult
        from imgtool.version import decode_version
    except ImportError as err:
        raise ToolchainError("imgtool", "is not installed", PACK_EXTRA) from err
    signer, setting = _imgtool_key(key)
    image = Image(
        version=decode_version(".".join(numbers.groups())),
        header_size=slot.header_bytes,
        pad_header=True,
        slot_size=slot.slot_bytes,
        align=slot.align,
        max_align=max(8, slot.align),
        security_counter=security_counter,
    )
    with tempfile.TemporaryDirectory(prefix="edgeshrink-image-") as folder:
        source, signed = Path(folder) / "app.bin", Path(folder) / "signed.bin"
        source.write_bytes(binary)
        try:
            image.load(str(source))
            image.create(signer, "hash", None)
            image.save(str(signed))
        except Exception as err:  # of imgtool: click.s and plain ones
            raise ConfigError(name, f"can't be signed: {err}", "look at --slot-size") from err
        result, _, digest, _ = Image.verify(str(signed), signer)
        if result != VerifyResult.OK:
            raise EdgeshrinkError(name, f"imgtool does not accept its own image ({result})", "")
        data = signed.read_bytes()
    if len(data) > slot.slot_bytes:
        what = f"is {len(data):,} B with header and signature, the slot has {slot.slot_bytes:,} B"
        raise ConfigError(name, what, "give the slot's true size with --slot-size")
    return SignedImage(data=data, digest=digest.hex(), settings=_settings(setting, slot))


def _check_binary(binary: bytes, name: str) -> None:
    fix = "objcopy -O binary app.elf app.bin, linked for the slot's address plus the header"
    if not binary:
        raise ConfigError(name, "is empty", fix)
    if len(binary) > MAX_IMAGE_BYTES:
        raise ConfigError(name, f"has {len(binary):,} B; no microcontroller has that", fix)
    if binary[:4] == _ELF:
        raise ConfigError(name, "is an ELF; MCUboot takes a plain binary", fix)
    if binary[:1] == b":" and binary[1:9].isalnum():
        raise ConfigError(name, "is an Intel HEX file; MCUboot takes a plain binary", fix)


def _imgtool_key(key: SigningKey) -> tuple[KeyClass, str]:
    """Return the key as imgtool has it, and MCUboot's setting that goes with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from imgtool import keys

    try:
        loaded = keys.load(str(key.path), key.passphrase.encode() if key.passphrase else None)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise _unknown_key(key, str(err)) from err
    if loaded is None:
        raise _unknown_key(key, "its passphrase is missing")
    settings = {
        "ECDSA256P1": "MCUBOOT_SIGN_EC256",
        "ECDSA384P1": "MCUBOOT_SIGN_EC384",
        "Ed25519": "MCUBOOT_SIGN_ED25519",
        "RSA": f"MCUBOOT_SIGN_RSA, MCUBOOT_SIGN_RSA_LEN {getattr(key.private, 'key_size', '')}",
    }
    kind = type(loaded).__name__
    if kind not in settings:
        raise _unknown_key(key, f"imgtool reads it as {kind}")
    return loaded, settings[kind]


def _unknown_key(key: SigningKey, what: str) -> ConfigError:
    fix = "use ECDSA P-256 (openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256)"
    return ConfigError(str(key.path), f"is no key for MCUboot ({what})", fix)


def _settings(signature: str, slot: Slot) -> tuple[str, ...]:
    return (
        signature,
        "MCUBOOT_VALIDATE_PRIMARY_SLOT",
        "MCUBOOT_HW_ROLLBACK_PROT (boot_nv_security_counter_* of the platform keeps the counter)",
        f"MCUBOOT_BOOT_MAX_ALIGN {max(8, slot.align)}, flash_area_align() {slot.align}",
        f"slots of {slot.slot_bytes:#x} bytes; the application is linked for the primary slot's "
        f"address plus {slot.header_bytes:#x}",
    )
