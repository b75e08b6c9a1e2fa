"""TOML read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeshrink.errors import ConfigError
from edgeshrink.strict_toml import Key, Table, nearest, read_toml


def table(**values: object) -> Table:
    return Table(dict(values), "my.toml")


def read(tmp_path, text: str | bytes) -> Table:
    path = tmp_path / "größe 1.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_toml(path)


@pytest.mark.parametrize(
    ("take", "value", "expected"),
    [
        (Table.text, "a", "a"),
        (Table.flag, False, False),
        (Table.size, "64 KiB", 65536),
        (Table.size, "1.5 kB", 1500),
        (Table.duration_ms, "20 us", 0.02),
        (Table.texts, ["a", "b"], ("a", "b")),
        (Table.texts, [], ()),
    ],
)
def test_a_value_of_the_right_kind_is_taken(take, value, expected):
    assert take(table(key=value), "key") == expected


@pytest.mark.parametrize(
    ("take", "value", "remedy"),
    [
        (Table.text, 3, "it must be a string"),
        (Table.text, ["a"], "it must be a string"),
        (Table.flag, 1, "it must be true or false"),
        (Table.flag, "true", "it must be true or false"),
        (Table.size, 64, "a string with a unit, such as '20 B'"),
        (Table.size, "64", "write a number and one of B, kB"),
        (Table.size, "64 ms", "write a number and one of B, kB"),
        (Table.size, "-1 B", "write a number and one of B, kB"),
        (Table.size, "9" * 400 + " B", "too large"),
        (Table.size, "2048 TiB", "must lie between 0 B and 1024.0 TiB"),
        (Table.duration_ms, 20, "a string with a unit, such as '20 ms'"),
        (Table.duration_ms, "20 KiB", "write a number and one of us, ms, s"),
        (Table.duration_ms, "2 h", "write a number and one of us, ms, s"),
        (Table.texts, "neon", "it must be a list of strings"),
        (Table.texts, ["a", 3], "every element must be a string"),
    ],
)
def test_a_value_of_the_wrong_kind_names_file_key_and_remedy(take, value, remedy):
    with pytest.raises(ConfigError) as caught:
        take(table(key=value), "key")
    message = str(caught.value)
    assert message.startswith("my.toml: key: is ") or message.startswith("my.toml: key: holds ")
    assert remedy in message


@pytest.mark.parametrize("value", [0, 11, -1, float("nan"), float("inf"), True, "5"])
def test_a_number_out_of_its_range_is_refused(value):
    for take in (Table.number, Table.integer):
        with pytest.raises(ConfigError, match=r"my.toml: key: is .* number in \[1, 10\]"):
            take(table(key=value), "key", 1, 10)


@given(st.floats(1, 10) | st.integers(1, 10))
def test_a_number_in_its_range_is_taken(value):
    assert table(key=value).number("key", 1, 10) == value


def test_a_fraction_is_no_whole_number():
    with pytest.raises(ConfigError, match="must be a whole number"):
        table(key=2.0).integer("key", 1, 10)


def test_a_missing_key_says_what_to_add():
    with pytest.raises(ConfigError, match=r"my.toml: ram: is missing; add it: a string with a"):
        table().size("ram")


def test_a_missing_key_points_at_its_misspelling():
    with pytest.raises(ConfigError, match="ram: is missing; rename 'rams' to 'ram'"):
        table(rams="64 KiB").size("ram")


def test_a_missing_key_takes_its_default():
    assert table().size("ram", None) is None
    assert table().texts("isa", ()) == ()


@pytest.mark.parametrize("take", [Table.text, Table.texts])
def test_a_word_that_is_no_choice_gets_the_nearest_choice(take):
    value = "neom" if take is Table.text else ["neom"]
    with pytest.raises(ConfigError, match=r"'neom'; did you mean 'neon'\?"):
        take(table(key=value), "key", choices=("neon", "dotprod"))


def test_a_part_of_one_choice_points_at_it():
    assert nearest("drop", ["accuracy_drop", "ram"]) == "did you mean 'accuracy_drop'?"


def test_nothing_near_lists_all_choices():
    assert nearest("xyz", ["b", "a"]) == "known: a, b"
    assert nearest("xyz", []) == "known: none"


def test_an_unknown_key_gets_the_nearest_right_key_in_whatever_table_it_stands():
    top = table(a={"b": {"widht": 3}})
    inner = top.table("a").table("b")
    inner.number("width", 0, 9, None)
    said = "my.toml: a.b.widht: is not a known key; did you mean 'width'"
    with pytest.raises(ConfigError, match=said):
        top.finish()


def test_an_unknown_key_in_an_array_of_tables_names_the_element():
    top = table(step=[{"kind": "a"}, {"kind": "b", "kin": 1}])
    for entry in top.tables("step"):
        entry.text("kind")
    with pytest.raises(ConfigError, match=r"my.toml: step\[1\].kin: is not a known key"):
        top.finish()


def test_a_table_that_was_read_whole_has_no_unknown_keys():
    top = table(own={"any": 1})
    assert top.table("own").rest() == {"any": 1}
    top.finish()


@pytest.mark.parametrize(
    ("values", "take", "remedy"),
    [
        ({"cpu": 3}, lambda t: t.table("cpu"), "a table [cpu]"),
        ({}, lambda t: t.table("cpu", required=True), "add it: a table [cpu]"),
        ({"cpu": {}}, lambda t: t.tables("cpu"), "an array of tables [[cpu]]"),
        ({"cpu": [3]}, lambda t: t.tables("cpu"), "write [[cpu]] tables"),
    ],
)
def test_something_else_in_place_of_a_table_is_refused(values, take, remedy):
    with pytest.raises(ConfigError) as caught:
        take(table(**values))
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[a\n", "is not valid TOML .*line 1"),
        ("a = 1\na = 2\n", "is not valid TOML"),
        (b"a = '\xff'\n", "can't be read .*; give a UTF-8 TOML file"),
        ("a = " + "9" * 5000, "can't be read .*digits.*; give a smaller file"),
        ("a = " + "[" * 100_000, "can't be read .*; give a smaller file"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path, content, said):
    with pytest.raises(ConfigError, match=rf"größe 1\.toml: {said}"):
        read(tmp_path, content)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file; check the path"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="can't be read"):
        read_toml(tmp_path)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfa = 'b'\n").text("a") == "b"


KEYS = (
    Key(name="core", kind="text", meaning=""),
    Key(name="cores", kind="integer", low=1, high=4, default=1, field="n_cores", meaning=""),
    Key(name="ram", kind="size", low=1, default=None, field="ram_bytes", meaning=""),
    Key(name="wait", kind="duration", low=1, high=9, default=None, meaning=""),
    Key(name="clock", kind="number", low=1, high=9, default=None, meaning=""),
    Key(name="fast", kind="flag", default=False, meaning=""),
    Key(
        name="types", kind="texts", low=1, choices=("int8", "int16"), default=("int8",), meaning=""
    ),
)


def test_a_table_of_keys_is_read_by_field():
    values = table(core="m4", ram="1 KiB", wait="2 ms", fast=True, types=["int16"]).read(KEYS)
    assert values == {
        "core": "m4", "n_cores": 1, "ram_bytes": 1024, "wait": 2.0, "clock": None, "fast": True,
        "types": ("int16",),
    }  # fmt: skip


def test_defaults_of_the_caller_go_before_those_of_the_keys():
    assert table().read(KEYS, absent={"core": "any", "cores": 3})["n_cores"] == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cores": 2}, "core: is missing; add it"),  # not: rename 'cores'
        ({"cora": "m4", "cores": 2}, "cora: is not a known key; did you mean 'core'"),
        ({"core": ""}, "core: is empty"),
        ({"core": "m4", "ram": "0 B"}, "ram: is '0 B'; it must lie between 1 B and"),
        ({"core": "m4", "wait": "10 ms"}, "wait: is '10 ms'; it must lie between 1 ms and 9 ms"),
        ({"core": "m4", "cores": 5}, "cores: is 5; it must be a whole number in"),
        ({"core": "m4", "clock": 0.5}, "clock: is 0.5; it must be a number in"),
        ({"core": "m4", "types": []}, "types: is empty; write 1 or more of int8, int16"),
    ],
)
def test_a_table_of_keys_refuses_what_does_not_fit(values, said):
    with pytest.raises(ConfigError, match=f"my.toml: {said}"):
        table(**values).read(KEYS)


def test_sub_tables_are_no_unknown_keys():
    top = table(core="m4", caches=[])
    assert top.read(KEYS, tables=("caches",))["core"] == "m4"
    with pytest.raises(ConfigError, match="caches: is not a known key"):
        table(core="m4", caches=[]).read(KEYS)
