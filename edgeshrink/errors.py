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
        left = f"closest candidate: {closest}" if closest else ""
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
