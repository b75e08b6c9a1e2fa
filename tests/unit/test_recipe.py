"""Recipes on disk."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeshrink.errors import ConfigError
from edgeshrink.recipe import (
    QUANTIZING,
    STEPS,
    Prune,
    Quantize,
    Recipe,
    ScaleTemperature,
    name_of,
    read_recipe,
    repr_toml,
)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("observer", ["histogram", "minmax"])
@pytest.mark.parametrize("n_samples", [1, 7, 1_000_000])
def test_a_recipe_survives_the_way_to_disk_and_back(tmp_path, dtype, observer, n_samples):
    recipe = Recipe(steps=(Quantize(dtype=dtype, observer=observer, n_samples=n_samples),))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert read_recipe(tmp_path / "recipe.toml") == recipe


def test_a_step_alone_takes_all_defaults(tmp_path):
    (tmp_path / "recipe.toml").write_text('[[steps]]\nstep = "quantize"\n')
    assert read_recipe(tmp_path / "recipe.toml") == Recipe()


def test_json_and_toml_of_a_recipe_say_the_same():
    recipe = Recipe(steps=(Quantize(observer="minmax"),))
    assert tomllib.loads(recipe.to_toml()) == json.loads(json.dumps(recipe.to_json()))


@pytest.mark.parametrize(("word", "kind"), STEPS.items())
def test_every_step_has_its_word_and_its_defaults_read_back(tmp_path, word, kind):
    step = kind(ratio=0.25) if kind is Prune else kind()
    assert name_of(step) == word
    steps = (Quantize(), step) if kind is ScaleTemperature else (step, Quantize())
    recipe = Recipe(steps=(step,) if isinstance(step, QUANTIZING) else steps)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert read_recipe(tmp_path / "recipe.toml") == recipe


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.booleans() | st.integers(-9, 9))
@example('"\\\n\t\x00\x7f\x85é🙂')
def test_any_value_is_written_as_toml_that_reads_back(value):
    read = tomllib.loads(f"key = {repr_toml(value)}")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "steps: is empty"),
        ("steps = []\n", "steps: is empty"),
        ("[[steps]]\n", r"steps\[0\].step: is missing"),
        ('[[steps]]\nstep = "quantise"\n', "did you mean 'quantize'"),
        ('[[steps]]\nstep = "quantize"\ndtype = "int9"\n', "did you mean 'int8'"),
        ('[[steps]]\nstep = "quantize"\nobserver = "histogramm"\n', "did you mean 'histogram'"),
        ('[[steps]]\nstep = "quantize"\nobservor = "minmax"\n', "did you mean 'observer'"),
        ('[[steps]]\nstep = "quantize"\nn_samples = 0\n', r"must be a whole number in \[1,"),
        ('[[steps]]\nstep = "quantize"\nn_samples = 1.5\n', "must be a whole number"),
        ('[[steps]]\nstep = "quantize"\nn_samples = true\n', "must be a whole number"),
        ('[[steps]]\nstep = "quantize"\n' * 2, r"steps\[1\].step: .* quantize once"),
        ('[[steps]]\nstep = "prune"\nratio = 0.5\n', "never quantizes"),
        (
            '[[steps]]\nstep = "prune"\n',
            "is not given, .*; give exactly one of ratio, macs and keep",
        ),
        (
            '[[steps]]\nstep = "prune"\nratio = 0.5\nmacs = 0.5\n',
            r"steps\[0\].ratio: is given, and macs too; give exactly one of ratio, macs and keep",
        ),
        (
            '[[steps]]\nstep = "prune"\nmacs = 0.5\nkeep = ["a=1"]\n',
            r"steps\[0\].macs: is given, and keep too; give exactly one",
        ),
        ('[[steps]]\nstep = "prune"\nratio = 1.5\n', r"in \[0, 0.99\]"),
        ('[[steps]]\nstep = "sparsify"\nn = 4\nm = 2\n', "keep fewer than m"),
        ('[[steps]]\nstep = "qat"\nepochs = 0\n', 'use step = "quantize"'),
        ('[[steps]]\nstep = "finetune"\nfeatures = ["a"]\n', "layer of the student"),
        ('[[steps]]\nstep = "qat"\n[[steps]]\nstep = "prune"\nratio = 0.5\n', "before 'qat'"),
        ('[[steps]]\nstep = "sparsify"\n[[steps]]\nstep = "prune"\nratio = 0.5\n', "shapes first"),
        ('[[steps]]\nstep = "temperature"\n', "make it the last"),
        ('seed = 1\n[[steps]]\nstep = "quantize"\n', "seed: is not a known key"),
        ("steps = 3\n", "must be an array of tables"),
        ("steps = [3]\n", r"write \[\[steps\]\] tables"),
        ("[[steps]\n", "is not valid TOML"),
    ],
)
def test_bad_recipe_names_file_key_and_fix(tmp_path, text, said):
    path = tmp_path / "my recipe é.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        read_recipe(path)
    assert "my recipe é.toml" in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        read_recipe(tmp_path / "none.toml")
