"""Limits from the command line, from a file, from the target."""

from __future__ import annotations

import pytest

from edgeshrink.budget import Budget, parse_budget, read_budget
from edgeshrink.errors import BudgetError, ConfigError
from edgeshrink.strict_toml import Table


def test_every_limit_can_be_given_on_the_command_line():
    assert parse_budget("ram=64KiB,latency=20ms,flash=1MiB,drop=0.01") == Budget(
        ram_bytes=65_536, latency_ms=20.0, flash_bytes=1_048_576, accuracy_drop=0.01
    )


def test_blanks_and_empty_parts_are_no_matter():
    assert parse_budget(" ram = 64 KiB , ,drop = 1,") == Budget(ram_bytes=65_536, accuracy_drop=1)
    assert parse_budget("") == Budget()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rma=64KiB", "unknown key 'rma'; did you mean 'ram'"),
        ("accuracy_drop=1", "unknown key 'accuracy_drop'"),
        ("ram", "'ram' has no value; write it like ram=64KiB"),
        ("ram=", "'ram' has no value; write it like ram=64KiB"),
        ("ram=64", "ram: is '64'; '64' is not a size"),
        ("ram=20ms", "ram: is '20ms'; '20ms' is not a size"),
        ("ram=0B", "ram: is '0B'; it must lie between 1 B"),
        ("ram=1KiB,ram=2KiB", "gives 'ram' twice"),
        ("latency=0ms", "latency: is '0ms'; it must lie between 1 us"),
        ("latency=20", "latency: is '20'; '20' is not a duration"),
        ("drop=little", "'drop' is 'little'; write a number"),
        ("drop=-0.1", r"drop: is -0.1; it must be a number in \[0,"),
        ("drop=nan", "drop: is nan; it must be a number"),
        ("drop=inf", "drop: is inf; it must be a number"),
    ],
)
def test_a_bad_limit_names_the_option_and_the_fix(text, said):
    with pytest.raises(ConfigError, match=f"^--budget: .*{said}"):
        parse_budget(text)


def test_a_budget_table_is_read():
    values = {"flash": "1 MiB", "ram": "64 KiB", "latency": "20 ms", "accuracy_drop": 0.5}
    assert read_budget(Table(values, "t.toml", "budget")) == Budget(
        ram_bytes=65_536, latency_ms=20.0, flash_bytes=1_048_576, accuracy_drop=0.5
    )


def test_a_bad_budget_table_names_file_and_key():
    with pytest.raises(ConfigError, match=r"t\.toml: budget\.drop: is not a known key; did you"):
        read_budget(Table({"drop": 0.5}, "t.toml", "budget"))
    with pytest.raises(ConfigError, match=r"t\.toml: budget\.ram: is 64; it must be a string"):
        read_budget(Table({"ram": 64}, "t.toml", "budget"))


def test_the_nearer_budget_wins_and_the_farther_fills_up():
    near, far = Budget(ram_bytes=1, accuracy_drop=0.0), Budget(ram_bytes=2, latency_ms=3.0)
    assert near.over(far) == Budget(ram_bytes=1, latency_ms=3.0, accuracy_drop=0.0)


def test_a_budget_error_carries_its_numbers_and_writes_them_out():
    error = BudgetError("flash", need=3_284_480, limit=1_048_576, unit="B", closest="build/x")
    assert (error.need, error.limit, error.unit) == (3_284_480, 1_048_576, "B")
    assert str(error) == (
        "flash needs 3,284,480 B, the budget allows 1,048,576 B (+2,235,904 B); "
        "closest candidate: edgeshrink report build/x"
    )
    small = BudgetError("ram", need=311.5, limit=192, unit="KiB")
    assert str(small) == "ram needs 311.5 KiB, the budget allows 192 KiB (+119.5 KiB)"
