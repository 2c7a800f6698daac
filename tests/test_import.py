"""What an import loads, and that the lower floor stands without the upper one."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import diffbio_sc

HEAVY = ["jax", "flax", "anndata", "mudata", "scanpy", "squidpy", "muon", "matplotlib", "pandas"]
UPPER_FLOOR = ["anndata", "mudata", "scanpy", "squidpy", "muon", "pandas", "matplotlib"]


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=900).stdout


def test_import_loads_no_heavy_package():
    loaded = _run(f"import sys, diffbio_sc; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "misspelt", "meant"),
    [
        ("diffbio_sc", "opertors", "operators"),
        ("diffbio_sc.tl", "spatial_gene", "spatial_genes"),
        ("diffbio_sc.pl", "deconvolve", "deconvolution"),
        ("diffbio_sc.operators.multiomics", "SpatialDeconvolver", "SpatialDeconvolution"),
    ],
)
def test_a_misspelt_public_name_gets_a_suggestion(module, misspelt, meant):
    package = importlib.import_module(module)
    with pytest.raises(AttributeError, match=f"no '{misspelt}'; did you mean .*'{meant}'"):
        getattr(package, misspelt)
    assert not hasattr(package, "__wrapped__")
    with pytest.raises(AttributeError, match="public names: "):
        _ = package.zzz


def test_settings_load_no_heavy_package():
    loaded = _run(
        "import sys, diffbio_sc as dbio; dbio.settings.verbosity = 2;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_modules_do_not_load_the_distributions_of_scipy():
    """They take a third of a CPU second, which is left to the functions that need them."""
    modules = [
        "diffbio_sc.engines.spatial_genes",
        "diffbio_sc.engines.contacts_compartments",
        "diffbio_sc.pp._binarize",
    ]
    assert _run(f"import sys, {', '.join(modules)}; print('scipy.stats' in sys.modules)").split() == ["False"]


def test_lower_floor_imports_with_upper_floor_blocked():
    code = f"""
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {UPPER_FLOOR}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
count = 0
for floor in ("engines", "operators", "training", "blocks", "genome", "numerics"):
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


def _imports(path):
    """Modules of this package that a file imports, with the names taken from each."""
    import ast

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("diffbio_sc"):
            for alias in node.names:
                yield node.module, alias.name


def test_no_package_uses_private_names_of_another():
    from pathlib import Path

    import diffbio_sc

    root = Path(diffbio_sc.__file__).parent
    shared = {
        "_anndata",
        "_settings",
        "_logging",
        "_progress",
        "_random",
        "_lazy",
        "_checks",
        "_options",
        "_files",
        "_compiled",
        "_warnings",
    }  # floors of their own, private to the package as a whole
    found = []
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root).parts[0]
        for module, name in _imports(path):
            steps = [*module.split(".")[1:], name]
            if not steps or steps[0] == own:
                continue
            private = [step for step in steps[(1 if steps[0] in shared else 0) :] if step.startswith("_")]
            if private and private != ["__version__"] and steps[0] not in ("_demo", "_cli"):
                found.append(f"{path.relative_to(root)}: from {module} import {name}")
    assert not found, "\n".join(found)


def _too_early(body, loaded=frozenset()):
    """Imports of submodules of JAX and flax by statements that run before the package itself is imported."""
    loaded = set(loaded)
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names if getattr(node, "level", 0) == 0 else []:
                package, _, below = name.partition(".")
                if package in ("jax", "flax"):
                    if below and package not in loaded:
                        yield ast.unparse(node)
                    loaded.add(package)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.With | ast.Try):
            yield from _too_early(node.body, loaded)


def test_jax_is_imported_before_its_submodules():
    """``import jax.numpy`` holds the lock of the submodule while it loads the package: two threads at once fail."""
    package = Path(diffbio_sc.__file__).parent
    found = {
        f"{path.relative_to(package)}: {one}"
        for path in package.rglob("*.py")
        for one in _too_early(ast.parse(path.read_text()).body)
    }
    assert found == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules",
    [
        ("engines.spatial_genes", "operators.multiomics.spatial_deconvolution"),
        ("operators.multiomics.spatial_genes", "engines.spatial_patterns"),
    ],
)
def test_two_threads_may_make_the_first_call(modules):
    """Each loads libraries; half of the attempts failed, with a partially initialized module of JAX."""
    _run(
        f"""
import importlib, sys, threading
sys.setswitchinterval(1e-6)
failed, both = [], threading.Barrier(2)
def load(name):
    both.wait()
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=load, args=("diffbio_sc." + name,)) for name in {modules!r}]
for thread in threads: thread.start()
for thread in threads: thread.join()
if failed:
    raise failed[0]
"""
    )
