"""A path, or nothing, in place of an object: every public function says what it wants and what it got."""

from __future__ import annotations

import inspect

import pytest

import diffbio_sc as dbio

FUNCTIONS = [
    f"{name}.{each}"
    for name in ("tl", "pp", "pl", "get", "metrics")
    for each in sorted(dir(getattr(dbio, name)))
    if not each.startswith("_") and inspect.isfunction(getattr(getattr(dbio, name), each))
]


def call(name, first):
    module, _, function = name.partition(".")
    function = getattr(getattr(dbio, module), function)
    needed = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    needed = [one for one in needed if one.kind is not one.VAR_KEYWORD]
    others = {one.name: "y" for one in needed[1:]}
    return function(first, **others)


def test_all_functions_are_looked_at():
    assert len(FUNCTIONS) > 60


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_path_in_place_of_an_object(name):
    with pytest.raises((TypeError, ValueError), match=r"found (the path|str)|holds an AnnData: read it") as caught:
        call(name, "mine.h5ad")
    if "ContactCells" not in str(caught.value):
        assert "'mine.h5ad'" in str(caught.value)
    assert "read" in str(caught.value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_in_place_of_an_object(name):
    with pytest.raises(TypeError, match="must be .*found NoneType|must map .*found NoneType"):
        call(name, None)
