"""Every error edgeshrink raises on purpose: where it is, what is wrong, how to fix it."""

from __future__ import annotations


class EdgeshrinkError(Exception):
    """An error that names its place, its fault and its remedy.

    Args:
        where: The file, option, layer or tool concerned.
        what: What is there, and what must be.
        fix: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, where: str, what: str, fix: str = "") -> None:
        super().__init__(where, what, fix)
        self.where, self.what, self.fix = where, what, fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}; {self.fix}" if self.fix else head


class ConfigError(EdgeshrinkError):
    """A target, task, recipe or option is malformed."""

    exit_code = 2


class ModelError(EdgeshrinkError):
    """The model can't be traced, read or run, or holds an operator that is not supported."""

    exit_code = 3


class BudgetError(EdgeshrinkError):
    """The model does not fit the device.

    Args:
        what: The budget key: `flash`, `ram`, `latency` or `drop`.
        need: What the model needs, in `unit`.
        limit: What is allowed, in `unit`.
        unit: Unit of both numbers.
        closest: Where the closest candidate was left, if there is one.
        remedy: What would help, if that is known.
    """

    exit_code = 4

    def __init__(
        self,
        what: str,
        *,
        need: float,
        limit: float,
        unit: str,
        closest: str = "",
        remedy: str = "",
    ) -> None:
        self.need, self.limit, self.unit, self.closest = need, limit, unit, closest
        over = f"{what} needs {_number(need)} {unit}, the budget allows {_number(limit)} {unit}"
        over += f" (+{_number(need - limit)} {unit})"
        left = f"closest candidate: edgeshrink report {closest}" if closest else ""
        super().__init__(what, over, "; ".join(filter(None, (remedy, left))))

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}" if self.fix else self.what


def _number(value: float) -> str:
    """Return a number for people: whole from 1,000 on, four significant figures below."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class ToolchainError(EdgeshrinkError):
    """An external tool or an extra is missing, or failed."""

    exit_code = 5


class TrustError(EdgeshrinkError):
    """A signature, digest, version, expiry or target does not match."""

    exit_code = 6


class ArbitraryInstallationError(TrustError):
    """Metadata is signed by no key that the role has, or a file is offered that nobody signed."""


class ThresholdError(TrustError):
    """Metadata has good signatures, but fewer of them than its role demands."""


class RevokedKeyError(TrustError):
    """Metadata is signed by a key that a newer root no longer lists."""


class RollbackError(TrustError):
    """Metadata or a release is older than what this device has already accepted."""


class FastForwardError(TrustError):
    """A version number leaps so far ahead that no honest successor could follow it."""


class FreezeError(TrustError):
    """Metadata has expired: somebody may be withholding what is newer."""


class MixAndMatchError(TrustError):
    """Metadata files that were never published together are served together."""


class MirrorError(TrustError):
    """A mirror serves a file that differs from its signed digest, or misses what was signed."""


class EndlessDataError(TrustError):
    """More bytes arrive than the signed length allows."""


class OversizedMetadataError(TrustError):
    """A metadata file is larger than any honest one."""


class MalformedMetadataError(TrustError):
    """Metadata, or a signed document, is not what its format demands."""


class SlowRetrievalError(TrustError):
    """Bytes arrive so slowly that the update would never end."""


class WrongTargetError(TrustError):
    """A release made for another device, or of another name, is offered as this one's."""


class DeltaError(TrustError):
    """A delta is malformed or does not lead to the file that was signed."""


class DeltaBaseError(DeltaError):
    """A delta is made for another base than the one installed here."""


class UnsafeArchiveError(TrustError):
    """An archive holds a path that leads out of its folder, a link, a device, or a stranger."""


class DecompressionBombError(TrustError):
    """Compressed data unpacks to more than was signed."""


class GoldenVectorsError(TrustError):
    """The self-test's vectors are not those that were signed."""


class LyingManifestError(TrustError):
    """A release's own `artifact.json` contradicts what was signed, or the files beside it."""
