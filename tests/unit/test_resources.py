"""Data files are found in a wheel as in a checkout."""

from __future__ import annotations

import pytest

import edgeshrink.resources as resources
from edgeshrink.errors import EdgeshrinkError


def test_checkout_folders_are_found(repo):
    assert resources.resource_dir("targets") == repo / "targets"


def test_installed_data_goes_before_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site" / "edgeshrink"
    (package / "_data" / "targets").mkdir(parents=True)
    (tmp_path / "site" / "targets").mkdir()
    monkeypatch.setattr(resources, "__file__", str(package / "resources.py"))
    assert resources.resource_dir("targets") == package / "_data" / "targets"


def test_missing_data_names_place_and_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "__file__", str(tmp_path / "edgeshrink" / "resources.py"))
    with pytest.raises(EdgeshrinkError, match=r"targets: is missing .* reinstall edgeshrink"):
        resources.resource_dir("targets")
