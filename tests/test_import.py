"""What an import loads, and that the lower floor stands without the upper one."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

HEAVY = ["jax", "flax", "anndata", "mudata", "scanpy", "squidpy", "muon", "matplotlib", "pandas"]
UPPER_FLOOR = ["anndata", "mudata", "scanpy", "squidpy", "muon", "pandas", "matplotlib"]


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_loads_no_heavy_package():
    loaded = _run(f"import sys, diffbio_sc; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_settings_load_no_heavy_package():
    loaded = _run(
        "import sys, diffbio_sc as dbio; dbio.settings.verbosity = 2;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_lower_floor_imports_with_upper_floor_blocked():
    code = f"""
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {UPPER_FLOOR}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
count = 0
for floor in ("operators", "numerics", "training"):
    package = importlib.import_module("diffbio_sc." + floor)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        count += 1
print(count)
"""
    assert int(_run(code)) >= 10


@pytest.mark.parametrize(
    "module",
    [
        "tl",
        "pp",
        "pl",
        "get",
        "io",
        "metrics",
        "datasets",
        "training",
        "operators",
        "operators.multiomics",
        "operators.epigenomics",
    ],
)
def test_public_names_are_documented(module):
    package = importlib.import_module(f"diffbio_sc.{module}")
    assert package.__all__
    for name in package.__all__:
        thing = getattr(package, name)
        document = inspect.getdoc(thing)
        assert document, name
        if inspect.isfunction(thing):
            assert "Parameters\n---" in document, name
            assert "Returns\n---" in document, name
            for parameter in inspect.signature(thing).parameters:
                assert parameter in document, f"{name} does not document {parameter}"


def test_examples_of_docstrings_run():
    import doctest

    failed, tried = 0, 0
    for name in (
        "tl._deconvolve",
        "tl._spatial_genes",
        "tl._spatial_patterns",
        "pl._spatial_genes",
        "get._spatial_genes",
        "get._proportions",
        "metrics._composition",
        "datasets._pbmc_tissue",
        "pl._deconvolution",
        "operators.multiomics.spatial_deconvolution",
        "_settings",
    ):
        result = doctest.testmod(importlib.import_module(f"diffbio_sc.{name}"))
        failed, tried = failed + result.failed, tried + result.attempted
    assert tried >= 15
    assert failed == 0
