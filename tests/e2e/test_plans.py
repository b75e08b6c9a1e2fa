"""Plans from end to end: what is printed, what is refused, and builds that follow them."""

from __future__ import annotations

import json
import time

import pytest

from edgeshrink.artifact import read_artifact
from edgeshrink.recipe import Prune, Quantize, read_recipe
from tests.e2e.commands import call

TIGHT = "flash=16KiB,ram=4KiB,drop=0.01"


@pytest.mark.slow
def test_a_plan_names_candidates_and_writes_the_recipe_that_fits(repo, tmp_path, capfd):
    out = tmp_path / "recipe.toml"
    started = time.monotonic()
    done = call(
        capfd, "plan", str(repo / "examples/digits"), "--target", "rp2040", "--budget", TIGHT,
        "--out", str(out), "--json",
    )  # fmt: skip
    assert done.code == 0
    assert time.monotonic() - started < 60
    found = json.loads(done.out)
    by_name = {c["name"]: c for c in found["candidates"]}
    assert [o["what"] for o in by_name["whole"]["overruns"]] == ["flash"]
    chosen = by_name[found["chosen"]]
    assert not chosen["overruns"]
    assert chosen["figures"]["flash_bytes"]["high"] <= 16 * 1024
    assert chosen["figures"]["flash_bytes"]["validated"] is False
    steps = read_recipe(out).steps
    assert isinstance(steps[0], Prune)
    assert isinstance(steps[-1], Quantize)


@pytest.mark.slow
def test_a_plan_that_can_not_be_says_which_bound_and_what_would_do(repo, capfd):
    done = call(
        capfd, "plan", str(repo / "examples/digits"), "--target", "rp2040",
        "--budget", "flash=2KiB",
    )  # fmt: skip
    assert (done.code, done.out) == (4, "")
    assert "lower bound" in done.err
    assert "nearest budget that would do is flash=" in done.err


@pytest.mark.slow
def test_a_build_that_would_not_fit_prunes_until_it_does(repo, tmp_path, capfd):
    out = tmp_path / "digits"
    done = call(
        capfd, "build", str(repo / "examples/digits"), "--target", "rp2040", "--budget", TIGHT,
        "--out", str(out), "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    figures = found["profile"]["figures"]
    assert figures["flash_bytes"]["value"] <= 16 * 1024
    assert figures["ram_bytes"]["value"] <= 4 * 1024
    assert found["drop"] <= 0.01
    steps = [step["step"] for step in read_artifact(out).recipe["steps"]]
    assert steps[0] == "prune"
    assert not out.with_name(out.name + ".checkpoints").exists()
    assert not out.with_name(out.name + ".rejected.best").exists()


@pytest.mark.slow
def test_a_recipe_of_the_users_is_the_only_one_that_is_tried(repo, tmp_path, capfd):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[steps]]\nstep = "quantize"\n')
    out = tmp_path / "digits"
    done = call(
        capfd, "build", str(repo / "examples/digits"), "--target", "rp2040", "--budget", TIGHT,
        "--recipe", str(recipe), "--out", str(out), "--set", "epochs=2",
    )  # fmt: skip
    assert done.code == 4
    assert "flash needs" in done.err
    assert not out.exists()
    assert (tmp_path / "digits.rejected" / "recipe.toml").read_text().count("[[steps]]") == 1
