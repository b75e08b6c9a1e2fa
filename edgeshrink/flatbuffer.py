"""Read a flatbuffer nobody vouches for: every offset is checked before it is followed.

The layout of a format (`Schema`) is data, written in a compact notation (see `parse_schema`); the
wire format is the one of https://flatbuffers.dev/internals. Nothing is copied but small scalars
and strings: vectors of scalars are views on the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

SCALARS: Final = {
    "bool": "?", "i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I",
    "i64": "q", "u64": "Q", "f32": "f", "f64": "d",
}  # fmt: skip
SHARING_LIMIT: Final = 8  # how often tables and bytes may be referred to, on average
SHARED_TABLES: Final = 1 << 10  # tables that may be, over and above that
SHARED_BYTES: Final = 1 << 16  # bytes, likewise

_SOFFSET = struct.Struct("<i").unpack_from
_UOFFSET = struct.Struct("<I").unpack_from
_VTABLE_HEAD = struct.Struct("<HH").unpack_from


class FlatbufferError(Exception):
    """A fault in the bytes: `path` says in which field, `fault` what is wrong with it."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault
        self.steps: list[str] = []  # from the innermost field outwards

    @property
    def path(self) -> str:
        """The field concerned, such as `subgraphs[0].tensors[3].name`."""
        return ".".join(reversed(self.steps)) or "the header"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a table; its type is a scalar, `str`, or an enum, table or union by name."""

    name: str
    slot: int
    type_name: str
    is_vector: bool = False
    default: float | bool | None = None


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The layout of a format."""

    tables: Mapping[str, tuple[Field, ...]]
    enums: Mapping[str, tuple[str, ...]]  # value -> name
    enum_types: Mapping[str, str]  # the scalar that stores the enum
    unions: Mapping[str, tuple[str, ...]]  # number -> table; number 0 is "NONE"


def parse_schema(text: str) -> Schema:
    """Return the schema that `text` writes down; a malformed one is a ValueError.

    One definition a line, an indented line continues the one before::

        table Name  field:type  field:[type]  field:type=default  -
        enum Name:u8  FIRST SECOND THIRD
        union Name  FirstTable SecondTable

    Fields stand in the order of their slots; `-` is a slot no longer in use, a union takes two.
    Enum values count from 0, union members from 1.
    """
    tables: dict[str, tuple[Field, ...]] = {}
    enums: dict[str, tuple[str, ...]] = {}
    enum_types: dict[str, str] = {}
    unions: dict[str, tuple[str, ...]] = {}
    lines = [line.split() for line in text.replace("\n ", " ").splitlines() if line.strip()]
    for kind, name, *members in lines:
        if kind == "enum":
            name, _, stored_as = name.partition(":")
            enums[name], enum_types[name] = tuple(members), stored_as
        elif kind == "union":
            unions[name] = ("NONE", *members)
        elif kind != "table":
            raise ValueError(f"{kind} {name}: a definition is a table, an enum or a union")
    for kind, name, *members in lines:
        if kind == "table":
            tables[name] = _parse_fields(members, enum_types, unions)
    return Schema(tables=tables, enums=enums, enum_types=enum_types, unions=unions)


def _parse_fields(
    members: list[str], enum_types: Mapping[str, str], unions: Mapping[str, tuple[str, ...]]
) -> tuple[Field, ...]:
    fields, slot = [], 0
    for member in members:
        if member == "-":
            slot += 1
            continue
        name, _, rest = member.partition(":")
        type_name, _, default_text = rest.partition("=")
        is_vector = type_name.startswith("[")
        type_name = type_name.strip("[]")
        default: float | bool | None = None
        if not is_vector and (type_name in SCALARS or type_name in enum_types):
            default = {"true": True, "false": False}.get(default_text)
            if default is None:
                default = False if type_name == "bool" else int(default_text or "0")
        if type_name in unions:
            slot += 1  # the first of its two slots holds the member's number
        fields.append(
            Field(name=name, slot=slot, type_name=type_name, is_vector=is_vector, default=default)
        )
        slot += 1
    return tuple(fields)


def read_flatbuffer(data: bytes, schema: Schema, root: str, identifier: bytes) -> dict[str, Any]:
    """Return the root table of `data` as a dict, everything it refers to included.

    Scalars that are absent have their default, everything else that is absent is None. Enums are
    names, vectors of scalars read-only arrays that view `data`, unions pairs (table's name, dict).

    Args:
        data: The file. Bytes behind the flatbuffer do no harm.
        schema: Its layout.
        root: Name of the root table.
        identifier: The four bytes at position 4.

    Raises:
        FlatbufferError: An offset, length, number or string is impossible. Time and memory are
            bounded by the size of `data`, whatever it says.
    """
    if len(data) < 8:
        raise FlatbufferError(f"holds {len(data)} bytes, not even a header")
    if data[4:8] != identifier:
        raise FlatbufferError(
            f"has the identifier {data[4:8]!r}, a file of this kind has {identifier!r}"
        )
    reader = _Reader(data, schema)
    return reader.table(reader.follow(0), root)


class _Reader:
    def __init__(self, data: bytes, schema: Schema) -> None:
        self.data, self.size, self.schema = data, len(data), schema
        # Tables and vectors may be shared, which lets a small file describe a huge tree.
        self.seen: set[int] = set()  # where the tables are
        self.n_repeats = 0
        self.bytes_left = SHARING_LIMIT * self.size + SHARED_BYTES

    def follow(self, position: int) -> int:
        """Return where the offset stored at `position` (which is in range) leads."""
        offset: int = _UOFFSET(self.data, position)[0]
        if not 4 <= offset <= self.size - 4 - position:
            raise FlatbufferError(f"leads {offset} bytes on from byte {position} of {self.size}")
        return position + offset

    def table(self, position: int, name: str) -> dict[str, Any]:
        if position in self.seen:
            self.n_repeats += 1
            if self.n_repeats > SHARING_LIMIT * len(self.seen) + SHARED_TABLES:
                raise FlatbufferError("refers to the same tables over and over")
        self.seen.add(position)
        vtable = position - _SOFFSET(self.data, position)[0]
        if not 0 <= vtable <= self.size - 4:
            raise FlatbufferError(f"has its field list at byte {vtable} of {self.size}")
        list_bytes, table_bytes = _VTABLE_HEAD(self.data, vtable)
        if list_bytes < 4 or list_bytes % 2 or vtable + list_bytes > self.size:
            raise FlatbufferError(f"has a field list of {list_bytes} bytes at byte {vtable}")
        if table_bytes < 4 or position + table_bytes > self.size:
            raise FlatbufferError(f"is a table of {table_bytes} bytes at byte {position}")
        fields = self.schema.tables[name]
        n_slots = min((list_bytes - 4) // 2, fields[-1].slot + 1 if fields else 0)
        slots = struct.unpack_from(f"<{n_slots}H", self.data, vtable + 4)
        values: dict[str, Any] = {}
        for field in fields:
            offset = slots[field.slot] if field.slot < len(slots) else 0
            try:
                if field.type_name in self.schema.unions:
                    number_at = slots[field.slot - 1] if field.slot <= len(slots) else 0
                    values[field.name] = self.union(field, position, table_bytes, number_at, offset)
                elif offset == 0:
                    values[field.name] = self.absent(field)
                else:
                    values[field.name] = self.field(field, position, table_bytes, offset)
            except FlatbufferError as err:
                err.steps.append(field.name)
                raise
        return values

    def absent(self, field: Field) -> Any:
        enum = self.schema.enums.get(field.type_name)
        return field.default if enum is None or field.is_vector else enum[int(field.default or 0)]

    def field(self, field: Field, position: int, table_bytes: int, offset: int) -> Any:
        stored_as = self.schema.enum_types.get(field.type_name, field.type_name)
        width = 4 if field.is_vector else struct.calcsize(SCALARS.get(stored_as, "I"))
        if offset < 4 or offset + width > table_bytes:
            raise FlatbufferError(f"lies at byte {offset} of a table of {table_bytes} bytes")
        at = position + offset
        if field.is_vector:
            return self.vector(self.follow(at), field.type_name, stored_as)
        if stored_as in SCALARS:
            value = struct.unpack_from("<" + SCALARS[stored_as], self.data, at)[0]
            return value if stored_as == field.type_name else self.enum(field.type_name, value)
        if stored_as == "str":
            return self.string(self.follow(at))
        return self.table(self.follow(at), field.type_name)

    def union(
        self, field: Field, position: int, table_bytes: int, number_at: int, offset: int
    ) -> tuple[str, dict[str, Any]] | None:
        members = self.schema.unions[field.type_name]
        if max(number_at, offset + 3) >= table_bytes:
            raise FlatbufferError(f"lies outside of its table of {table_bytes} bytes")
        number = self.data[position + number_at] if number_at else 0
        if number >= len(members):
            raise FlatbufferError(f"is of kind {number}, {len(members) - 1} is the highest known")
        if number == 0 or offset == 0:
            return None
        return members[number], self.table(self.follow(position + offset), members[number])

    def span(self, position: int, width: int) -> tuple[int, int]:
        """Return first byte and length of the vector at `position`, of `width`-byte elements."""
        count: int = _UOFFSET(self.data, position)[0]
        if count * width > self.size - 4 - position:
            raise FlatbufferError(
                f"claims {count} values at byte {position}, the file ends at byte {self.size}"
            )
        self.bytes_left -= count * width
        if self.bytes_left < 0:
            raise FlatbufferError("refers to the same bytes over and over")
        return position + 4, count

    def vector(self, position: int, type_name: str, stored_as: str) -> Any:
        if stored_as in SCALARS:
            dtype = np.dtype("<" + SCALARS[stored_as])
            first, count = self.span(position, dtype.itemsize)
            array = np.frombuffer(self.data, dtype, count, first)
            if stored_as == type_name:
                return array
            return tuple(self.enum(type_name, value) for value in array.tolist())
        first, count = self.span(position, 4)
        items = []
        for index in range(count):
            try:
                at = self.follow(first + 4 * index)
                is_string = type_name == "str"
                items.append(self.string(at) if is_string else self.table(at, type_name))
            except FlatbufferError as err:
                err.steps.append(f"[{index}]")
                raise
        return items

    def string(self, position: int) -> str:
        first, count = self.span(position, 1)
        return self.data[first : first + count].decode("utf-8", errors="replace")

    def enum(self, name: str, value: int) -> str:
        names = self.schema.enums[name]
        if not 0 <= value < len(names):
            raise FlatbufferError(f"is {value}, the highest {name} known is {len(names) - 1}")
        return names[value]
