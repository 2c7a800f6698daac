"""Options of a wrong type or value: every public function says which, what it found and what it takes, before any work.

The cases come from the signatures, so that a new function or option is held to them without being named here.
"""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import re
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio

FACES = ("tl", "pp", "pl", "get", "io", "metrics", "datasets")
FUNCTIONS = {
    f"{name}.{each}": getattr(getattr(dbio, name), each)
    for name in FACES
    for each in sorted(dir(getattr(dbio, name)))
    if not each.startswith("_") and inspect.isfunction(getattr(getattr(dbio, name), each))
}
VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)

# What annotations name that only type checkers load: classes. The name of an alias would hide what is allowed.
CLASSES = {
    "AnnData", "MuData", "pd", "os", "Axes", "Intervals", "ChromatinStateModel", "DifferentiablePeakCaller",
    "PeakCallerConfig",
}  # fmt: skip

# Numbers that may be negative, or infinite: the annotation does not say so.
SIGNED = {"n_jobs", "threshold", "vmin", "vmax", "scale"}
UNBOUNDED = {"tl.balance:mad_max"}
# Lists whose emptiness says something: no tracks, no marks, no columns.
MAY_BE_EMPTY = {"pl.contacts:tracks", "pl.contacts:marks", "io.write_cool:columns", "pl.logo:highlight"}


@cache
def parts_of(name, option):
    """Types that an option's annotation names, each as text, aliases written out."""
    function = inspect.unwrap(FUNCTIONS[name])
    return tuple(_parts(inspect.signature(function).parameters[option].annotation, function.__globals__))


def _parts(annotation, scope):
    if not isinstance(annotation, str):
        annotation = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
    tree = ast.parse(annotation.replace("typing.", "").replace("collections.abc.", ""), mode="eval").body
    queue = [tree]
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.BinOp):
            queue += [node.left, node.right]
        elif isinstance(node, ast.Name) and not isinstance(scope.get(node.id, int), type):
            yield from _parts(scope[node.id], scope)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Optional", "Union"):
            queue += node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if ast.unparse(node.value) == "Optional":
                yield "None"
        else:
            yield ast.unparse(node)


def wrong_values(name, option):
    """Values that an option cannot take, by its annotation."""
    parts = set(parts_of(name, option))
    if option == "rng":
        yield from ("yes", 1.5, True, -1, [1])
        return
    if option == "key_added":
        yield from (3, "", " ", "a/b", "..", ["a"])
        return
    if parts & {"Any", "object"}:
        return
    numbers = parts & {"int", "float"}
    lists = {part for part in parts if re.match(r"(Sequence|Iterable)\[", part)}
    texts = {"str", "os.PathLike[str]"} | {part for part in lists if part.endswith("[str]")}
    simple = {"int", "float", "bool", "str", "None"} | {part for part in parts if part.startswith("Literal")} | lists
    if not parts & texts:
        yield from ("yes it is", "")
    if "bool" not in parts:
        yield from (True, np.True_)
    if not numbers:
        yield from (1, 0, np.int64(1), 1.5)
    if numbers == {"int"}:
        yield from (1.5, np.float32(1.5))
    yield np.nan
    if f"{name}:{option}" not in UNBOUNDED:
        yield np.inf
    if numbers and option not in SIGNED:
        yield -1
    if not parts & {"None"}:
        yield None
    if parts <= simple:
        yield {"a": 1}
        yield object()
        if not lists:
            yield ["a", "b"]
    for part in lists:
        if f"{name}:{option}" not in MAY_BE_EMPTY and parts <= simple:
            yield []
        if part.endswith("[str]"):
            yield from (["a", "b", "a"], [None], [1.5])
        elif part.endswith(("[int]", "[float]")):
            yield from (["a"], [np.nan], [True], [-1])
    for part in parts:
        if part.startswith("Literal"):
            first = ast.literal_eval(ast.parse(part, mode="eval").body.slice)
            first = first[0] if isinstance(first, tuple) else first
            if not parts & texts:
                yield from (first[:-1], first.upper() + " ", 0)


def cases():
    for name, function in FUNCTIONS.items():
        for place, (option, parameter) in enumerate(inspect.signature(function).parameters.items()):
            if parameter.kind in VARIABLE or place == 0 and name.split(".")[0] != "datasets":
                continue
            yield name, option


CASES = list(cases())


def small_object():
    adata = ad.AnnData(
        np.ones((4, 3), np.float32),
        obs=pd.DataFrame({"group": list("aabb")}, index=list("wxyz")),
        var=pd.DataFrame(index=["g1", "g2", "g3"]),
    )
    adata.obsm["spatial"] = np.zeros((4, 2))
    return adata


@cache
def cells():
    return dbio.io.ContactCells({"a": dbio.datasets.simulate_contacts(40, contacts_per_bin=5)})


def stand_in(parameter, name, option):
    """A value of a right type for an argument that has to be given."""
    parts = parts_of(name, option)
    for part, value in (
        ("AnnData", small_object()),
        ("str", "a"),
        ("os.PathLike[str]", "a"),
        ("ContactCells", cells()),
    ):
        if part in parts:
            return value
    if any(part.startswith("Mapping") for part in parts):
        return {"a": ["x"], "b": ["y"]}
    if any(part.startswith("Sequence[str]") for part in parts):
        return ["a"]
    if any(part.startswith("Sequence") for part in parts):
        return [small_object()]
    return pd.DataFrame({"chrom": ["a"]})


def contents(adata):
    return {field: set(getattr(adata, field).keys()) for field in ("obs", "var", "obsm", "varm", "layers", "uns")}


def call(name, option, value):
    function = FUNCTIONS[name]
    given = {}
    for each, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and parameter.kind not in VARIABLE and each != option:
            given[each] = stand_in(parameter, name, each)
    return function(**given, **{option: value})


def test_functions_and_options_are_found():
    assert len(FUNCTIONS) > 100
    assert len(CASES) > 600


def test_annotations_name_what_can_be_looked_up():
    hidden = set()
    for function in FUNCTIONS.values():
        scope = inspect.unwrap(function).__globals__
        for parameter in inspect.signature(function).parameters.values():
            tree = ast.parse(parameter.annotation)
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            hidden |= {name for name in names if name not in scope and not hasattr(builtins, name)}
    assert hidden <= CLASSES


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_options_are_named(name):
    faults = {}
    for each, option in CASES:
        if each != name:
            continue
        for value in wrong_values(name, option):
            try:
                call(name, option, copy.copy(value))
            except (TypeError, ValueError) as error:
                text = str(error)
                if not (re.search(rf"\b{option}\b", text) and re.search("found|empty", text)):
                    faults[f"{option}={value!r}"] = f"{type(error).__name__}: {text[:150]}"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                faults[f"{option}={value!r}"] = f"{type(error).__name__}: {str(error)[:150]}"
            else:
                faults[f"{option}={value!r}"] = "accepted"
    assert faults == {}
