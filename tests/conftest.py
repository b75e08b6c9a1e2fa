"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Read when PyTorch is first imported: threads that spin starve whatever else the machine runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell's background jobs ignore Ctrl-C, and so would every process that the tests press it in.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The reference data beside the checkout; tests that need it are skipped without it."""
    folder = REPO.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("needs the reference data in ../shared")
    return folder
