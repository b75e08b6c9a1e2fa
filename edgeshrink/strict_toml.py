"""TOML read strictly: every key known, of the right type, unit and range, or the error says so."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from edgeshrink.errors import ConfigError
from edgeshrink.units import format_bytes, format_ms, parse_bytes, parse_ms

REQUIRED: Final[Any] = object()
MAX_BYTES: Final = 2**50
MAX_MS: Final = 3.6e6

Kind = Literal["text", "texts", "flag", "number", "integer", "size", "duration"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a table: what may stand there, what it means, which field it fills.

    `low` and `high` bound the value: of a size in bytes, of a duration in milliseconds; of a list
    of strings, `low` is the least number of elements.
    """

    name: str
    kind: Kind
    meaning: str
    default: Any = REQUIRED
    low: float = 0
    high: float = 0
    unit: str = ""  # of a plain number
    choices: Collection[str] = ()
    field: str = ""  # of the dataclass; empty: the key's own name


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a remedy that names the nearest of `known`, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    holding = [name for name in names if word and word in name]
    close = close or (holding if len(holding) == 1 else [])
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


def read_toml(path: Path) -> Table:
    """Read `path` as the top table; ConfigError when it is missing, not UTF-8 or not TOML."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a mark
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(str(path), f"can't be read ({err})", "give a UTF-8 TOML file") from err
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(str(path), f"is not valid TOML ({err})", "correct that line") from err
    except (ValueError, RecursionError) as err:  # thousands of digits, of brackets
        raise ConfigError(str(path), f"can't be read ({err})", "give a smaller file") from err
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

    def _quantity(
        self,
        key: str,
        default: Any,
        parse: Callable[[str], float],
        show: Callable[[float], str],
        low: float,
        high: float,
    ) -> Any:
        example = show(20)
        value = self._take(key, default, (str,), f"a string with a unit, such as {example!r}")
        if value is None or value is default:
            return value
        try:
            quantity = parse(value)
        except ValueError as err:
            raise self.error(key, f"is {value!r}", str(err)) from err
        if not low <= quantity <= high:
            raise self.error(
                key, f"is {value!r}", f"it must lie between {show(low)} and {show(high)}"
            )
        return quantity

    def size(
        self, key: str, default: Any = REQUIRED, *, low: float = 0, high: float = MAX_BYTES
    ) -> Any:
        """Take a size with its unit (`"64 KiB"`), in bytes."""
        return self._quantity(key, default, parse_bytes, format_bytes, low, high)

    def duration_ms(
        self, key: str, default: Any = REQUIRED, *, low: float = 0, high: float = MAX_MS
    ) -> Any:
        """Take a duration with its unit (`"20 ms"`), in milliseconds."""
        return self._quantity(key, default, parse_ms, format_ms, low, high)

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

    def read(
        self,
        keys: Sequence[Key],
        *,
        tables: Collection[str] = (),
        absent: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Take all `keys`; return their values by field.

        Args:
            keys: Everything that may stand here, but for sub-tables.
            tables: Sub-tables, to be taken later.
            absent: Defaults by key that go before the keys' own.
        """
        self._known |= {key.name for key in keys} | set(tables)
        self.refuse_unknown()
        return {
            key.field or key.name: self._read(key, (absent or {}).get(key.name, key.default))
            for key in keys
        }

    def _read(self, key: Key, default: Any) -> Any:
        name, low, high = key.name, key.low, key.high
        match key.kind:
            case "text":
                value = self.text(name, default, key.choices)
                if value == "":
                    raise self.error(name, "is empty", "write a string that says something")
                return value
            case "texts":
                values = self.texts(name, default, key.choices)
                if len(values) < low:
                    choices = f" of {', '.join(key.choices)}" if key.choices else ""
                    raise self.error(name, "is empty", f"write {low:g} or more{choices}")
                return values
            case "flag":
                return self.flag(name, default)
            case "number":
                return self.number(name, low, high, default)
            case "integer":
                return self.integer(name, int(low), int(high), default)
            case "size":
                return self.size(name, default, low=low, high=high or MAX_BYTES)
            case "duration":
                return self.duration_ms(name, default, low=low, high=high or MAX_MS)

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
