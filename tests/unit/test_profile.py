"""Figures say how they were got; limits are held against their upper ends."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgeshrink.budget import Budget
from edgeshrink.profile import Figure, OpCost, Overrun, Profile, exact, overruns

LATENCY = Figure(value=41.0, unit="ms", how="modelled", low=37.0, high=46.0, validated=True)


def profile(**changes: object) -> Profile:
    filled = Profile(
        target="rpi4",
        engine="tflite",
        model_path="model é.tflite",
        model_sha256="ab" * 32,
        figures={"latency_ms": LATENCY, "flash_bytes": exact(1000, "B", note="the file")},
        ops=(OpCost(index=0, kind="CONV_2D", name="conv", macs=7, latency_ms=0.5),),
    )
    return dataclasses.replace(filled, **changes)


def test_an_exact_figure_has_no_band():
    figure = exact(1000, "B")
    assert (figure.low, figure.value, figure.high, figure.how) == (1000, 1000, 1000, "measured")
    assert "validated" not in figure.to_json()
    assert exact(5, "instructions", how="emulated").how == "emulated"


def test_a_modelled_figure_says_its_band_and_whether_it_was_validated():
    assert LATENCY.to_json() == {
        "value": 41.0, "unit": "ms", "how": "modelled", "low": 37.0, "high": 46.0,
        "validated": True,
    }  # fmt: skip
    doubtful = dataclasses.replace(LATENCY, validated=False).to_json()
    assert doubtful["validated"] is False


def test_the_json_of_a_profile_has_the_layout_of_the_design():
    found = json.loads(json.dumps(profile().to_json(), allow_nan=False))
    assert found["target"] == "rpi4"
    assert found["engine"] == "tflite"
    assert found["model"] == {"path": "model é.tflite", "sha256": "ab" * 32}
    assert found["figures"]["flash_bytes"]["note"] == "the file"
    assert found["budget"] == {"met": True, "overruns": []}
    assert "ram_bytes" not in found["figures"]  # a figure that does not apply is absent
    assert found["ops"] == [
        {"index": 0, "kind": "CONV_2D", "name": "conv", "macs": 7, "latency_ms": 0.5}
    ]  # what was not determined is absent


def test_the_json_of_a_profile_names_every_overrun():
    over = Overrun(what="ram", need=2048, limit=1024, unit="B")
    found = json.loads(json.dumps(profile(overruns=(over,)).to_json()))
    assert found["budget"] == {
        "met": False,
        "overruns": [{"what": "ram", "need": 2048, "limit": 1024, "unit": "B"}],
    }


@pytest.mark.parametrize(
    ("limit", "met"), [(46.0, True), (45.9, False), (41.0, False), (36.0, False), (None, True)]
)
def test_a_modelled_figure_meets_its_limit_with_the_upper_end(limit, met):
    found = overruns({"latency_ms": LATENCY}, Budget(latency_ms=limit))
    assert found == (() if met else (Overrun(what="latency", need=46.0, limit=limit, unit="ms"),))


@pytest.mark.parametrize(("what", "limit"), [("flash", "flash_bytes"), ("ram", "ram_bytes")])
def test_an_exact_figure_may_equal_its_limit_and_not_one_byte_more(what, limit):
    figures = {limit: exact(1024, "B")}
    assert overruns(figures, Budget(**{limit: 1024})) == ()
    assert overruns(figures, Budget(**{limit: 1023})) == (
        Overrun(what=what, need=1024, limit=1023, unit="B"),
    )


def test_a_limit_without_a_figure_is_no_overrun():
    assert overruns({}, Budget(ram_bytes=1, latency_ms=1.0, flash_bytes=1)) == ()


def test_all_overruns_are_found():
    figures = {"latency_ms": LATENCY, "ram_bytes": exact(2, "B"), "flash_bytes": exact(2, "B")}
    found = overruns(figures, Budget(ram_bytes=1, latency_ms=1.0, flash_bytes=1))
    assert {over.what for over in found} == {"ram", "latency", "flash"}
