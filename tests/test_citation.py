from __future__ import annotations

import inspect
import re

import pytest

import diffbio_sc as dbio


def test_sources_of_functions_are_named_once():
    text = dbio.citation(dbio.tl.call_peaks, dbio.tl.call_peaks)
    keys = re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE)
    assert keys == ["diffbio_sc", "Zhang2008", "Hocking2015"]
    assert "Model-based" in text
    assert dbio.citation().count("@") == 1
    assert dbio.__version__ in dbio.citation()


@pytest.mark.parametrize("package", ["tl", "pp", "pl", "get", "io", "datasets", "metrics"])
def test_every_citation_has_an_entry(package):
    module = getattr(dbio, package)
    for name in module.__all__:
        cited = re.findall(r":cite:\w+:`([^`]+)`", inspect.getdoc(getattr(module, name)) or "")
        expected = len({key.strip() for keys in cited for key in keys.split(",")})
        assert dbio.citation(getattr(module, name)).count("\n@") == expected, name


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="citation takes functions"):
        dbio.citation("deconvolve")
