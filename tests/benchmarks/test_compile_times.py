"""The table of what first calls cost is one of every function that works on data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import diffbio_sc as dbio

PATH = Path(__file__).parents[2] / "benchmarks" / "compile_times.py"


def test_every_public_function_of_tl_and_pp_is_measured():
    if not PATH.exists():
        pytest.skip("needs benchmarks/ of the repository")
    # Read, not run: the module sets how many threads its process uses.
    found = [
        node.value
        for node in ast.parse(PATH.read_text()).body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == "CASES"
    ]
    measured = {key.value.split()[0] for key in found[0].keys}
    public = {f"{name}.{function}" for name in ("tl", "pp") for function in getattr(dbio, name).__all__}
    assert measured == public
