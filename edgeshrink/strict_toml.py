"""TOML read strictly: every key known, of the right type, unit and range, or the error says so."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from edgeshrink.errors import ConfigError
from edgeshrink.units import parse_bytes, parse_ms

T = TypeVar("T")
REQUIRED: Final[Any] = object()


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a remedy that names the nearest of `known`, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


def read_toml(path: Path) -> Table:
    """Read `path` as the top table; ConfigError when it is missing, not UTF-8 or not TOML."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(str(path), f"can't be read ({err})", "give a UTF-8 TOML file") from err
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(str(path), f"is not valid TOML ({err})", "correct that line") from err
    return Table(values, str(path))


class Table:
    """One TOML table. Take every key by its type; `finish` refuses what nobody took."""

    def __init__(self, values: dict[str, Any], file: str, name: str = "") -> None:
        self._values, self._file, self._name = values, file, name
        self._known: set[str] = set()
        self._children: list[Table] = []

    def __contains__(self, key: str) -> bool:
        self._known.add(key)
        return key in self._values

    def where(self, key: str) -> str:
        """Return `file: table.key` for messages."""
        return f"{self._file}: {self._name + '.' if self._name else ''}{key}"

    def error(self, key: str, what: str, fix: str) -> ConfigError:
        """Return a ConfigError that points at `key`."""
        return ConfigError(self.where(key), what, fix)

    def _take(self, key: str, default: Any, accept: tuple[type, ...], kind: str) -> Any:
        self._known.add(key)
        if key not in self._values:
            if default is REQUIRED:
                typo = difflib.get_close_matches(key, self._values.keys() - self._known, n=1)
                fix = f"rename {typo[0]!r} to {key!r}" if typo else f"add it: {kind}"
                raise self.error(key, "is missing", fix)
            return default
        value = self._values[key]
        if not isinstance(value, accept) or (isinstance(value, bool) and bool not in accept):
            raise self.error(key, f"is {value!r}", f"it must be {kind}")
        return value

    def _checked(self, key: str, value: Any, low: float, high: float, kind: str) -> Any:
        if value is not None and not low <= value <= high:
            raise self.error(key, f"is {value}", f"it must be {kind} in [{low:g}, {high:g}]")
        return value

    def text(self, key: str, default: Any = REQUIRED, choices: Iterable[str] = ()) -> Any:
        """Take a string, one of `choices` where there are any."""
        value = self._take(key, default, (str,), "a string")
        options = tuple(choices)
        if options and value is not None and value not in options:
            raise self.error(key, f"is {value!r}", nearest(value, options))
        return value

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        """Take a boolean."""
        return self._take(key, default, (bool,), "true or false")

    def number(self, key: str, low: float, high: float, default: Any = REQUIRED) -> Any:
        """Take a number in [low, high]."""
        value = self._take(key, default, (int, float), f"a number in [{low:g}, {high:g}]")
        return self._checked(key, value, low, high, "a number")

    def integer(self, key: str, low: int, high: int, default: Any = REQUIRED) -> Any:
        """Take a whole number in [low, high]."""
        value = self._take(key, default, (int,), f"a whole number in [{low}, {high}]")
        return self._checked(key, value, low, high, "a whole number")

    def _quantity(self, key: str, default: Any, parse: Callable[[str], T], example: str) -> Any:
        kind = f"a string with a unit, such as {example!r}"
        value = self._take(key, default, (str,), kind)
        if value is None or value is default:
            return value
        try:
            return parse(value)
        except ValueError as err:
            raise self.error(key, f"is {value!r}", str(err)) from err

    def size(self, key: str, default: Any = REQUIRED) -> Any:
        """Take a size with its unit (`"64 KiB"`), in bytes."""
        return self._quantity(key, default, parse_bytes, "64 KiB")

    def duration_ms(self, key: str, default: Any = REQUIRED) -> Any:
        """Take a duration with its unit (`"20 ms"`), in milliseconds."""
        return self._quantity(key, default, parse_ms, "20 ms")

    def texts(self, key: str, default: Any = REQUIRED, choices: Iterable[str] = ()) -> Any:
        """Take a list of strings, each one of `choices` where there are any, as a tuple."""
        values = self._take(key, default, (list,), "a list of strings")
        if values is default:
            return values
        options = tuple(choices)
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, f"holds {value!r}", "every element must be a string")
            if options and value not in options:
                raise self.error(key, f"holds {value!r}", nearest(value, options))
        return tuple(values)

    def table(self, key: str, *, required: bool = False) -> Table:
        """Take a sub-table; an absent one reads as empty unless it is required."""
        values = self._take(key, REQUIRED if required else {}, (dict,), f"a table [{key}]")
        child = Table(values, self._file, f"{self._name}.{key}" if self._name else key)
        self._children.append(child)
        return child

    def tables(self, key: str) -> list[Table]:
        """Take an array of tables (`[[key]]`); an absent one is empty."""
        values = self._take(key, [], (list,), f"an array of tables [[{key}]]")
        children = []
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.error(key, f"holds {value!r}", f"write [[{key}]] tables")
            name = f"{self._name + '.' if self._name else ''}{key}[{index}]"
            children.append(Table(value, self._file, name))
        self._children += children
        return children

    def rest(self) -> dict[str, Any]:
        """Take every key, as it stands: for tables whose keys are the user's."""
        self._known |= set(self._values)
        return dict(self._values)

    def refuse_unknown(self) -> None:
        """Raise for a key that nobody took."""
        for key in self._values:
            if key not in self._known:
                raise self.error(key, "is not a known key", nearest(key, self._known))

    def finish(self) -> None:
        """Raise for a key that nobody took, here or in a sub-table."""
        self.refuse_unknown()
        for child in self._children:
            child.finish()
