"""Mutated model files through the whole compiler: C, or an error that names place and remedy."""

from __future__ import annotations

import random

import pytest

from tests.attacks.mutations import compile_bytes, mutated, seeds

SEEDS = seeds()
N_FAST = 8  # mutations of each seed


@pytest.mark.parametrize("name", SEEDS)
def test_the_unchanged_seed_compiles(name):
    assert compile_bytes(SEEDS[name]) == "compiled"


@pytest.mark.parametrize("name", SEEDS)
def test_mutated_files_compile_or_are_refused_with_place_and_remedy(name):
    for number in range(N_FAST):
        compile_bytes(mutated(SEEDS[name], random.Random(f"{name} {number}")))
