"""Energy is power times time; the supply matters; a battery lasts as long as its charge."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import replace

import pytest

from edgeshrink.costs.energy import (
    Battery,
    Duty,
    average_power,
    battery_life,
    energy_figures,
    inference_energy,
    parse_battery,
    parse_period,
    power_use,
)
from edgeshrink.errors import ConfigError
from edgeshrink.profile import Figure
from edgeshrink.target import Power, Supply, list_targets, load_target

L4R5 = load_target("nucleo-l4r5zi")
LATENCY = Figure(value=100.0, unit="ms", how="modelled", low=90.0, high=120.0, validated=True)
LINEAR = Supply(
    name="2V", voltage_v=2.0, min_v=1.8, max_v=3.6, regulator="ldo", basis="inference",
    active_mw=40.0, sleep_uw=10.0, sleep_state="Stop",
)  # fmt: skip


def fed_by(*supplies: Supply, cores: int = 1):
    cpu = replace(L4R5.cpu, n_cores=cores)
    return replace(L4R5, cpu=cpu, power=Power(supplies=supplies), sources={"power": "datasheet: x"})


def energy(target, duty=Duty(), latency=LATENCY, **more):  # noqa: B008
    return inference_energy(latency, power_use(target, duty, **more))


# ---- energy of an inference


def test_energy_is_power_times_latency():
    found = energy(fed_by(LINEAR))
    assert found.value == pytest.approx(40.0 * 100.0)  # mW x ms = uJ
    assert (found.unit, found.how) == ("uJ", "modelled")


def test_the_band_of_energy_is_wider_than_that_of_latency_and_of_power_alone():
    found, use = energy(fed_by(LINEAR)), power_use(fed_by(LINEAR), Duty())
    assert use.active.low_mw < 40.0 < use.active.high_mw
    assert found.high / found.value > max(120 / 100, use.active.high_mw / 40.0)
    assert found.low / found.value < min(90 / 100, use.active.low_mw / 40.0)


def test_energy_is_validated_only_where_both_power_and_latency_are():
    guessed = replace(LATENCY, validated=False)
    datasheet = replace(LINEAR, basis="datasheet")
    assert energy(fed_by(LINEAR)).validated
    assert not energy(fed_by(LINEAR), latency=guessed).validated
    assert not energy(fed_by(datasheet)).validated


def test_a_linear_regulator_draws_the_same_current_at_any_voltage():
    at_3v = energy(fed_by(LINEAR), Duty(battery=Battery(capacity_mah=1, voltage_v=3.0)))
    assert at_3v.value == pytest.approx(4000.0 * 3.0 / 2.0)


def test_a_switching_regulator_draws_the_same_power_at_any_voltage():
    switching = replace(LINEAR, regulator="smps")
    at_3v = energy(fed_by(switching), Duty(battery=Battery(capacity_mah=1, voltage_v=3.0)))
    assert at_3v.value == pytest.approx(4000.0)


def test_a_battery_of_another_voltage_feeds_through_a_lossy_converter():
    plain = energy(fed_by(LINEAR))
    boosted = energy(fed_by(LINEAR), Duty(battery=Battery(capacity_mah=1, voltage_v=9.0)))
    assert plain.value / 0.95 < boosted.value < plain.value / 0.8
    assert boosted.high / boosted.low > plain.high / plain.low


def test_the_supply_of_the_board_changes_its_energy_as_published():
    found = {s: energy(L4R5, Duty(supply=s)).value for s in ("1.8V", "3V", "3V-smps")}
    assert 1.6 < found["3V"] / found["1.8V"] < 1.8
    assert found["3V-smps"] < found["1.8V"]


def test_a_battery_takes_the_supply_of_the_nearest_voltage():
    use = power_use(L4R5, Duty(battery=Battery(capacity_mah=220, voltage_v=3.0)))
    assert (use.supply.name, use.voltage_v) == ("3V", 3.0)


def test_a_board_draws_more_with_more_cores_at_work():
    board = replace(LINEAR, regulator="board", basis="stress", idle_mw=10.0, peak_mw=50.0)
    draws = [power_use(fed_by(board, cores=4), Duty(), threads=n).active for n in (1, 2, 4)]
    assert [d.value_mw for d in draws] == pytest.approx([17.5, 25.0, 40.0])
    assert all(10.0 < d.low_mw < d.value_mw < d.high_mw for d in draws)


@pytest.mark.parametrize("target", [t for t in list_targets() if t.power.supplies],
                         ids=lambda t: t.name)  # fmt: skip
def test_every_shipped_supply_gives_an_energy_with_a_band_and_its_source(target):
    for supply in target.power.supplies:
        found = energy(target, Duty(supply=supply.name))
        assert 0 < found.low < found.value < found.high
        assert any(mark in found.note for mark in ("sourced:", "recalled:", "datasheet:"))


# ---- duty cycles


def test_average_power_is_that_of_both_states_by_their_time():
    duty = Duty(period_ms=1000.0)
    average = average_power(LATENCY, power_use(fed_by(LINEAR), duty), 1000.0)
    assert average.value == pytest.approx(40_000 * 0.1 + 10 * 0.9)
    assert average.unit == "uW"
    assert 10 < average.low < average.value < average.high <= 1.2 * 40_000


def test_a_battery_lasts_its_energy_over_the_average_power():
    battery = Battery(capacity_mah=220, voltage_v=3.0)
    average = Figure(value=4009.0, unit="uW", how="modelled", low=3000.0, high=5000.0)
    life = battery_life(battery, average)
    assert life.value == pytest.approx(220 * 3.0 * 1000 / 4009.0)
    assert (life.low, life.high) == pytest.approx((132.0, 220.0))


def test_a_board_that_can_not_sleep_idles_between_inferences():
    board = replace(LINEAR, sleep_uw=None, idle_mw=5.0)
    use = power_use(fed_by(board), Duty())
    assert use.resting.value_mw == 5.0
    assert "idle" in use.resting_state


def test_without_a_power_between_inferences_there_is_no_average_and_a_note_says_so():
    duty = Duty(period_ms=1000.0, battery=Battery(capacity_mah=220, voltage_v=3.0))
    silent = replace(LINEAR, sleep_uw=None)
    found, notes = energy_figures({"latency_ms": LATENCY}, fed_by(silent), duty)
    assert found.keys() == {"energy_uj"}
    assert "between two inferences" in notes[0]


def test_a_target_without_power_says_so_only_where_it_is_asked():
    assert energy_figures({"latency_ms": LATENCY}, fed_by(), Duty()) == ({}, ())
    found, notes = energy_figures({"latency_ms": LATENCY}, fed_by(), Duty(period_ms=1000.0))
    assert found == {}
    assert L4R5.name in notes[0]


def test_an_inference_must_fit_its_period():
    with pytest.raises(ConfigError, match="one inference takes 100 ms; give a longer period"):
        energy_figures({"latency_ms": LATENCY}, fed_by(LINEAR), Duty(period_ms=99.0))


def test_a_supply_that_there_is_not_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean '3V-smps'"):
        power_use(L4R5, Duty(supply="3V-smsp"))


# ---- what people write


@pytest.mark.parametrize(
    ("text", "mah", "volts"),
    [("220mAh,3V", 220, 3), ("2Ah, 3.7V", 2000, 3.7), ("1.5V,1e3mAh", 1000, 1.5)],
)
def test_a_battery_is_read_as_its_label_has_it(text, mah, volts):
    found = parse_battery(text)
    assert (found.capacity_mah, found.voltage_v) == pytest.approx((mah, volts))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no capacity and no voltage"),
        ("220", "no capacity and no voltage"),
        ("220mAh", "without a voltage"),
        ("3V", "without a capacity"),
        ("3V,3V", "voltage twice"),
        ("mAh,3V", "no capacity"),
        ("0mAh,3V", "above 0"),
        ("-1mAh,3V", "above 0"),
        ("infmAh,3V", "above 0"),
        ("nanmAh,3V", "no capacity"),
        ("220mAh,3V,1Ah", "capacity twice"),
        ("220Wh,3V", "no capacity"),
    ],
)
def test_a_malformed_battery_says_what_is_wrong_and_how_to_write_it(text, said):
    with pytest.raises(ConfigError, match="220mAh,3V") as caught:
        parse_battery(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "ms"), [("1s", 1e3), ("250 ms", 250), ("10min", 6e5), ("1h", 3.6e6), ("1d", 8.64e7)]
)
def test_a_period_has_units_up_to_days(text, ms):
    assert parse_period(text) == ms


@pytest.mark.parametrize("text", ["", "1", "s", "-1s", "1 week", "0s", "nans"])
def test_a_malformed_period_says_how_to_write_it(text):
    with pytest.raises(ConfigError, match="--every"):
        parse_period(text)


# ---- published energies


@pytest.fixture(scope="module")
def published(shared_dir):
    """(board, supply voltage, mW) of every MLPerf Tiny row with an energy."""
    with (shared_dir / "anchors" / "mlperf_tiny.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["energy_uj"]]
    return [
        (
            row["profile"],
            row["supply"].replace(" ", "").replace(".0V", "V"),
            float(row["energy_uj"]),
            float(row["latency_ms"]),
        )
        for row in rows
    ]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("profile", "supply", "target", "name"),
    [("nucleo-l4r5zi", "1.8V", "nucleo-l4r5zi", "1.8V"),
     ("nucleo-l4r5zi", "3V", "nucleo-l4r5zi", "3V"),
     ("nucleo-l4r5zi", "3VSMPS", "nucleo-l4r5zi", "3V-smps"),
     ("nucleo-h7a3zi-q", "3VSMPS", "nucleo-h7a3zi", "3V-smps")],
)  # fmt: skip
def test_the_band_holds_nine_in_ten_published_energies(published, profile, supply, target, name):
    rows = [(uj, ms) for board, volts, uj, ms in published if (board, volts) == (profile, supply)]
    device = load_target(target)
    assert len(rows) >= 3
    inside = 0
    for uj, ms in rows:
        exact = Figure(value=ms, unit="ms", how="measured", low=ms, high=ms)
        found = energy(device, Duty(supply=name), latency=exact)
        inside += found.low <= uj <= found.high
    assert inside >= math.floor(0.9 * len(rows))
    draws = [uj / ms for uj, ms in rows]
    supply_facts = next(s for s in device.power.supplies if s.name == name)
    assert supply_facts.active_mw == pytest.approx(statistics.median(draws), rel=0.01)
