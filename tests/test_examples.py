"""Every public name has an example in its docstring, and every example runs as printed."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio

# Names that hold arrays or constants and are made by other functions.
PLAIN = {"io.IntervalArrays", "io.SignalArrays"}


def modules_with_examples():
    names = []
    for module in pkgutil.walk_packages(dbio.__path__, "diffbio_sc."):
        if module.name.endswith("__main__"):
            continue
        if ">>>" in Path(importlib.util.find_spec(module.name).origin).read_text():
            names.append(module.name)
    return names


@pytest.mark.parametrize("package", ["tl", "pp", "pl", "get", "io", "datasets", "metrics", "training"])
def test_every_public_name_has_an_example(package):
    module = getattr(dbio, package)
    without = [
        name
        for name in module.__all__
        if f"{package}.{name}" not in PLAIN and ">>>" not in (inspect.getdoc(getattr(module, name)) or "")
    ]
    assert without == []


def write_bam():
    pysam = pytest.importorskip("pysam")
    header = {"SQ": [{"SN": "chr1", "LN": 10_000}]}
    with pysam.AlignmentFile("reads.bam", "wb", header=header) as file:
        for index in range(50):
            read = pysam.AlignedSegment(file.header)
            read.query_name, read.query_sequence = f"read{index}", "A" * 50
            read.reference_id, read.reference_start, read.cigar = 0, 100 * index, [(0, 50)]
            file.write(read)


def write_scool():
    cooler = pytest.importorskip("cooler")
    maps = {f"cell_{k}": dbio.datasets.simulate_contacts(50, contacts_per_bin=5, rng=k) for k in range(3)}
    bins = maps["cell_0"].obs[["chrom", "start", "end"]].astype({"chrom": str}).reset_index(drop=True)
    cooler.create_scool("cells.scool", bins, {name: pixels_of(each) for name, each in maps.items()}, ordered=True)


def write_hic():
    hictkpy = pytest.importorskip("hictkpy")
    pixels = pixels_of(dbio.datasets.simulate_contacts(100, contacts_per_bin=50))
    writer = hictkpy.hic.FileWriter("inter_30.hic", {"chr1": 1_000_000}, 10_000)
    writer.add_pixels(pixels)
    writer.finalize()


def pixels_of(adata):
    upper = sp.triu(adata.obsp["contacts"]).tocoo()
    table = pd.DataFrame({"bin1_id": upper.row, "bin2_id": upper.col, "count": upper.data})
    return table.sort_values(["bin1_id", "bin2_id"], ignore_index=True)


# Files that an example reads and the package does not write.
FILES = {"io._read_bam": write_bam, "io._read_scool": write_scool, "io._read_hic": write_hic}


@pytest.fixture
def written(monkeypatch):
    """Fields of AnnData that are written while a test runs: name of the field, key."""
    import diffbio_sc._anndata.modality_results  # noqa: F401  # all that write are loaded, and told of the recorder
    from diffbio_sc._anndata import results

    fields, original = set(), results.write_results

    def recorded(adata, **values):
        original(adata, **values)
        fields.update((field, key) for field in values for key, value in values[field].items() if value is not None)

    for package in ("tl", "pp"):
        for name in getattr(dbio, package).__all__:
            getattr(getattr(dbio, package), name)
    for name, module in list(sys.modules.items()):
        if name.startswith("diffbio_sc.") and vars(module).get("write_results") is original:
            monkeypatch.setattr(module, "write_results", recorded)
    return fields


def told(function):
    """Patterns of the fields that a docstring tells of; obs stands for var too, as bins may lie along either.

    A key that is an argument, ``.uns[key_added]``, is its default or what the example gives.
    """
    docstring = inspect.getdoc(function) or ""
    defaults = {name: value.default for name, value in inspect.signature(function).parameters.items()}
    given = dict(
        re.findall(r"\b(\w+)=\"([^\"]+)\"", "\n".join(re.findall(r"^(?:>>>|\.\.\.) .*", docstring, re.MULTILINE)))
    )
    found = re.findall(r"\.(obs|var|obsm|varm|obsp|varp|layers|uns)\[\"([^\"]+)\"\]", docstring)
    for field, name in re.findall(r"\.(obs|var|obsm|varm|obsp|varp|layers|uns)\[(\w+)\]", docstring):
        found += [(field, key) for key in (defaults.get(name), given.get(name)) if isinstance(key, str)]
    if isinstance(defaults.get("key_added"), str) and "key_added" in given:
        found += [(field, key.replace(defaults["key_added"], given["key_added"])) for field, key in found]
    return {(field.replace("var", "obs"), re.sub("<[^>]*>", ".+", re.escape(key))) for field, key in found}


def functions_told_of(module):
    """The function of a module, those that its docstring names, and those that these name."""
    known = [value for name, value in vars(module).items() if name == module.__name__.rsplit("._")[-1]]
    for _ in range(2):
        text = "\n".join(inspect.getdoc(function) or "" for function in known)
        names = re.findall(r"(?:dbio|diffbio_sc)\.(tl|pp)\.(\w+)", text)
        known += [getattr(getattr(dbio, package), name) for package, name in set(names)]
    return known


def not_told(fields, functions):
    patterns = set().union(*map(told, functions))
    return {
        (field, key)
        for field, key in fields
        if not any(field.replace("var", "obs") == place and re.fullmatch(name, key) for place, name in patterns)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run_as_printed(name, tmp_path, monkeypatch, written):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)  # examples write files
    FILES.get(name.removeprefix("diffbio_sc."), lambda: None)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    plt.close("all")
    assert result.attempted > 0
    assert result.failed == 0
    if name.startswith(("diffbio_sc.tl.", "diffbio_sc.pp.")):
        functions = functions_told_of(importlib.import_module(name))
        assert not_told(written, functions) == set(), "fields that no docstring tells of"


PAGES = Path(__file__).parent.parent / "docs"


def pages_with_examples():
    return [page.stem for page in sorted(PAGES.glob("*.md")) if re.search(r"^>>> ", page.read_text(), re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_examples())
def test_pages_run_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, f"{page}.md", 0)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples)
    assert result.attempted > 0
    assert result.failed == 0
