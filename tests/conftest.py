"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real data with known truth; the test skips where it is not given."""
    path = os.environ.get("DIFFBIO_SC_DATA")
    if not path or not Path(path).is_dir():
        pytest.skip("needs real data: set DIFFBIO_SC_DATA to the folder that holds deconvolution/")
    return Path(path)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
