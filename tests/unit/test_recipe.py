"""Recipes on disk."""

from __future__ import annotations

import pytest

from edgeshrink.errors import ConfigError
from edgeshrink.recipe import Quantize, Recipe, read_recipe


def test_a_recipe_survives_the_way_to_disk_and_back(tmp_path):
    recipe = Recipe(steps=(Quantize(dtype="float32", observer="minmax", n_samples=7),))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert read_recipe(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "steps: is empty"),
        ('[[steps]]\nstep = "quantise"\n', "did you mean 'quantize'"),
        ('[[steps]]\nstep = "quantize"\ndtype = "int9"\n', "did you mean 'int8'"),
        ('[[steps]]\nstep = "quantize"\nobservor = "minmax"\n', "did you mean 'observer'"),
        ('[[steps]]\nstep = "quantize"\nn_samples = 0\n', r"must be a whole number in \[1,"),
        ("steps = 3\n", "must be an array of tables"),
        ("[[steps]\n", "is not valid TOML"),
    ],
)
def test_bad_recipe_names_file_key_and_fix(tmp_path, text, said):
    path = tmp_path / "my recipe é.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        read_recipe(path)
    assert "my recipe é.toml" in str(caught.value)
