"""Options of a wrong type or value: every public function says which, what it found and what it takes, before any work.

The cases come from the signatures, so that a new function or option is held to them without being named here.
"""

from __future__ import annotations

import ast
import builtins
import copy
import dataclasses
import inspect
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from flax import nnx

import diffbio_sc as dbio
from diffbio_sc._options import check_options

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


class Untouched(ad.AnnData):
    """An object that lets no one look into it: options come first."""

    def __getattribute__(self, name):
        if name in ("X", "obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers", "write", "copy"):
            raise AssertionError(f"adata.{name} was looked at before the options were")
        return super().__getattribute__(name)


@cache
def untouched():
    adata = small_object()
    adata.__class__ = Untouched
    return adata


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
        ("AnnData", untouched()),
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
        return [untouched()]
    return pd.DataFrame({"chrom": ["a"]})


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


CONFIGS = {
    name: kind
    for room in (dbio.operators.epigenomics, dbio.operators.multiomics)
    for name, kind in ((name, getattr(room, name)) for name in sorted(dir(room)) if name.endswith("Config"))
}

# Fields that may be negative, by what they stand for: a threshold of a score, a penalty on the log scale.
SIGNED_FIELDS = {"threshold", "boundary_threshold", "loop_threshold"}


def wrong_fields(field):
    kind = str(field.type)
    yield from ("yes it is", None, object(), {"a": 1}, np.nan)
    if kind != "bool":
        yield from (True, np.inf)
    if kind == "bool":
        yield from (1, 0, 1.5)
    if kind == "int":
        yield from (1.5, "3", [1, 2])
    if kind in ("int", "float") and field.name not in SIGNED_FIELDS:
        yield -1
    if kind == "float":
        yield from ("0.5", [0.5])
    if kind.startswith(("str", "Literal")):
        yield from (field.default[:-1], 3)
    if kind.startswith("tuple[int"):
        yield from ((1.5,), ("a",), (True,), (-1,), 3)
    if kind.startswith("tuple[str"):
        yield from ((3,), ("nosuch",), 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_wrong_fields_of_a_configuration_are_named(name):
    faults = {}
    for field in dataclasses.fields(CONFIGS[name]):
        for value in wrong_fields(field):
            if value is None and "None" in str(field.type):
                continue
            try:
                CONFIGS[name](**{field.name: copy.copy(value)})
            except (TypeError, ValueError) as error:
                if not (re.search(rf"\b{field.name}\b", str(error)) and "found" in str(error)):
                    faults[f"{field.name}={value!r}"] = f"{type(error).__name__}: {str(error)[:150]}"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                faults[f"{field.name}={value!r}"] = f"{type(error).__name__}: {str(error)[:150]}"
            else:
                faults[f"{field.name}={value!r}"] = "accepted"
    assert faults == {}


@pytest.mark.parametrize("name", sorted(name for name in vars(type(dbio.settings)) if not name.startswith("_")))
def test_wrong_settings_are_named(name):
    if not isinstance(getattr(type(dbio.settings), name), property):
        return
    before = repr(dbio.settings)
    wrong = {
        "verbosity": (5, "loud"),
        "block_bytes": ("256 apples", 10, -1),
        "figure_dpi": (0, "3"),
        "cache_dir": ("",),
    }
    wrong |= {"color_map": ("nosuch",), "palette": ("nosuch",), "progress_bar": (1, 0, "yes")}
    for value in (
        *wrong[name],
        None,
        1.5,
        np.nan,
        [],
        {"a": 1},
        object(),
        *(() if name == "progress_bar" else (True,)),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"settings\.{name} must be .*found"):
            setattr(dbio.settings, name, value)
        with (
            pytest.raises((TypeError, ValueError), match=rf"settings\.{name} must be .*found"),
            dbio.settings.override(**{name: value}),
        ):
            pass
    assert repr(dbio.settings) == before


@pytest.mark.parametrize("name", [name.removesuffix("Config") for name in CONFIGS])
def test_operators_take_their_configuration_and_generators(name):
    operators = [
        getattr(room, each)
        for room in (dbio.operators.epigenomics, dbio.operators.multiomics)
        for each in dir(room)
        if getattr(getattr(room, each), "config_class", None) is CONFIGS[f"{name}Config"]
    ]
    assert operators
    for operator in operators:
        for config in (None, {}, "yes", 3):
            with pytest.raises(TypeError, match=f"takes a {name}Config, found"):
                operator(config, rngs=nnx.Rngs(0))
        for rngs in (None, 0, "yes"):
            with pytest.raises(TypeError, match="rngs must be flax.nnx.Rngs.*found"):
                operator(CONFIGS[f"{name}Config"](), rngs=rngs)


def toy(
    data: ad.AnnData | pd.DataFrame,
    *,
    flag: bool = True,
    number: int = 3,
    share: float = 0.5,
    width: int | None = None,
    kind: Literal["one", "two"] = "one",
    name: str | None = None,
    names: Sequence[str] | None = None,
    sizes: Sequence[int] = (1, 2),
    path: str | os.PathLike[str] | None = None,
    table: pd.DataFrame | None = None,
    pair: tuple[int, int] | None = None,
    rng: int | np.random.Generator = 0,
    key_added: str = "toy",
    copy: bool = False,
):
    check_options(
        toy,
        locals(),
        empty=("names",),
        number="[1, inf)",
        share="[0, 1)",
        width="(0, inf) base pairs",
        sizes="(0, inf)",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"flag": np.True_},
        *({"number": value} for value in (1, np.int8(3), np.uint64(3), 3.0, np.float32(3), 10**12)),
        *({"share": value} for value in (0, np.int8(0), np.float16(0.5), np.float64(0.999))),
        *({"width": value} for value in (None, 2e6, np.int64(5))),
        {"kind": np.str_("two")},
        *({"names": value} for value in ([], "alone", ("a", "b"), pd.Index(["a"]), np.array(["a", "b"]), [1, 2])),
        *({"sizes": value} for value in ([1], np.array([1, 2]), range(1, 4), pd.Series([3.0]))),
        *({"path": value} for value in ("a", Path("a"))),
        {"table": pd.DataFrame()},
        *({"pair": value} for value in ((4, -5), [4, -5])),
        *({"rng": value} for value in (None, np.int64(3), np.random.default_rng(0), np.random.RandomState(0))),
    ],
)
def test_values_of_a_right_type_are_taken_whatever_holds_them(options):
    toy(small_object(), **options)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"flag": "yes"}, ValueError, "flag must be True or False, found 'yes'."),
        ({"number": 0}, ValueError, "number must be a whole number of at least 1, found 0."),
        ({"number": "3"}, ValueError, "number must be a whole number of at least 1, found '3'."),
        ({"share": 1}, ValueError, "share must be a number of at least 0 and below 1, found 1."),
        ({"width": -5}, ValueError, "width must be a whole number of base pairs above 0 or None, found -5."),
        ({"kind": "onne"}, ValueError, "kind must be 'one' or 'two', found 'onne'. Did you mean 'one'?"),
        ({"name": 3}, TypeError, "name must be a text or None, found 3."),
        ({"names": ["a", "b", "a"]}, ValueError, "names must be unique, found 1 duplicated: ['a']. Name each once."),
        ({"names": iter("ab")}, TypeError, "names must be a list of names or None, found <str_"),
        (
            {"names": np.array([["a"]])},
            TypeError,
            "names must be a list of names or None, found an object of type ndarray.",
        ),
        (
            {"sizes": np.ones((2, 2))},
            ValueError,
            "sizes must be a list of whole numbers above 0, found an object of type",
        ),
        ({"names": [None]}, TypeError, "names must be a list of names, found None among them."),
        ({"sizes": []}, ValueError, "sizes is empty: give at least one number."),
        ({"sizes": [0]}, ValueError, "each of sizes must be a whole number above 0, found 0."),
        ({"sizes": 5}, ValueError, "sizes must be a list of whole numbers above 0, found 5."),
        ({"path": 3}, TypeError, "path must be the path of a file or None, found 3."),
        ({"table": "a.csv"}, TypeError, "table must be a table or None, found str 'a.csv': read the file first."),
        ({"pair": 4}, ValueError, "pair must be two whole numbers or None, found 4."),
        ({"key_added": "a/b"}, ValueError, "key_added must not contain '/', which h5ad and zarr take for a path"),
        ({"copy": 1}, ValueError, "copy must be True or False, found 1."),
    ],
)
def test_sentences(options, kind, text):
    with pytest.raises(kind, match="^" + re.escape(text)):
        toy(small_object(), **options)


def test_the_first_object_is_for_the_function_to_name():
    for first in ("a.h5ad", None, 3):
        toy(first, flag="yes")  # the function says more of it than that its options are wrong


def test_copies_of_objects_in_files_are_refused_before_any_work(tmp_path):
    small_object().write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"copy=True needs an object in memory: call data.to_memory\(\) first"):
        toy(backed, copy=True)
    toy(backed)


def test_results_replace_nothing_of_others():
    adata = small_object()
    adata.uns |= {"theirs": {"params": {}}, "toy": {"params": {}, "version": {"diffbio_sc": "1"}}}
    toy(adata)
    with pytest.raises(ValueError, match=r"key_added='theirs' would replace data.uns\['theirs'\], which is no result"):
        toy(adata, key_added="theirs")
    for function, options in (
        (dbio.tl.deconvolve, {"reference": pd.DataFrame({"a": [1]}), "spatial_key": "a"}),
        (dbio.tl.spatial_patterns, {"spatial_key": "a"}),
        (dbio.pp.binarize, {"layer": "a"}),
        (dbio.tl.combine_features, {"keys": ["b", "a"]}),
    ):
        with pytest.raises(ValueError, match="key_added must be another name than that of .*, found 'a'"):
            function(untouched(), key_added="a", **options)


def test_objects_of_other_kinds_are_named():
    """A table, an array, a MuData or the class itself in place of an AnnData."""
    import mudata

    others = [pd.DataFrame({"a": [1]}), np.ones((2, 2)), mudata.MuData({"rna": small_object()}), ad.AnnData]
    for name, function in FUNCTIONS.items():
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parts_of(name, parameters[0].name) != ("AnnData",):
            continue
        needed = [one for one in parameters[1:] if one.default is one.empty and one.kind not in VARIABLE]
        for other in others:
            with pytest.raises(TypeError, match="adata must be an AnnData.*found (DataFrame|ndarray|a? ?MuData|type)"):
                function(other, **{one.name: stand_in(one, name, one.name) for one in needed})


def test_dictionaries_of_cells_hold_maps():
    with pytest.raises(TypeError, match=r"maps\['a'\] must be an AnnData with contacts, found int"):
        dbio.io.ContactCells({"a": 3})
    with pytest.raises(TypeError, match="client must be a Client of dask.distributed or None, found 'yes'"):
        dbio.scale.warm("yes")


def test_limits_are_of_arguments():
    def one(number: int = 3):
        check_options(one, locals(), nmber="[0, inf)")

    with pytest.raises(AssertionError, match="one has no arguments"):
        one()
