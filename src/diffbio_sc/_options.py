"""Options of public functions, checked against what their signatures state."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import os
import re
import typing
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from diffbio_sc._checks import check_key, found_object, is_path, name_heads
from diffbio_sc._random import as_generator

_PLAIN = (str, bytes, bool, np.bool_, type(None), os.PathLike)
_LISTS = ("Sequence", "Iterable", "Collection", "list")
_SEQUENCES = {"AnnData": "a list of AnnData objects", "DataFrame": "a list of tables", "PathLike": "a list of paths"}
_ARTICLES = {"ndarray": "an array", "DataFrame": "a table", "Series": "a Series", "MuData": "a MuData"}


class OptionsOnly:
    """Stands in for the data of a call of which only the options are to be checked."""


class OptionsChecked(Exception):
    """The options of a call without data are good."""


def check_call(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise as a public function would if some options are wrong, without any data.

    Parameters
    ----------
    function
        A public function that checks its options with :func:`check_options`.
    options
        Arguments by name; stand-ins are taken for others that have to be given.

    Raises
    ------
    TypeError, ValueError
        As :func:`check_options`.
    """
    parameters = inspect.signature(function).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    try:
        function(**{**dict.fromkeys(needed, OptionsOnly()), **options})
    except OptionsChecked:
        return


def check_options(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    empty: Collection[str] = (),
    replaced: Collection[str] = (),
    **limits: str,
) -> None:
    """Raise, before any work, if an argument is none that the signature of a function allows.

    A public function calls it in its first lines: ``check_options(loops, locals(), fdr="(0, 1]")``. Annotations say
    which types, names and choices are allowed, so that what is documented and what is checked are one. Of objects, such
    as a table, it is checked that no number, text or truth value stands in their place. The object that comes first is
    for the function to check, which can say more of it; where it is none, nothing is said of the others here.

    Parameters
    ----------
    function
        The public function.
    given
        Its arguments by name, with other variables or without.
    empty
        Arguments whose list of names may be empty.
    replaced
        Arguments that name what a result under the same name would replace, such as a layer that is read.
    limits
        Numbers that are allowed, by name, as an interval: ``"[0, inf)"`` for at least 0 and finite. Default: any
        finite number. Of a list, each of its numbers is meant.

    Raises
    ------
    TypeError
        If an argument that is to be a text, a list or an object is something else.
    ValueError
        If a truth value, number or choice is none of those allowed, a key cannot be stored or is that of something
        else, or a copy is asked for of an object that lies in a file.
    """
    allowed = _allowed(function)
    unknown = [name for name in (*limits, *empty, *replaced) if name not in allowed]
    if unknown:
        raise AssertionError(f"{function.__name__} has no arguments {unknown}.")
    argument = next(iter(allowed), "")
    if argument and allowed[argument].is_object:
        if not allowed[argument].may_be(given[argument]):
            return
        allowed = {name: one for name, one in allowed.items() if name != argument}
    for name, one in allowed.items():
        one.check(name, given[name], limits.get(name), name in empty)
    for name in replaced:
        several = allowed[name].names and not isinstance(given[name], str)
        if given["key_added"] in (given[name] if several else [given[name]]):
            raise ValueError(
                f"key_added must be another name than that of {name}, which the result would replace, found "
                f"{given['key_added']!r}."
            )
    if given.get("key_added") is not None:
        _check_free(given["key_added"], argument, given[argument])
    if isinstance(given[argument], OptionsOnly):
        raise OptionsChecked
    if "copy" in given and getattr(given[argument], "isbacked", False) is True:  # results will be written to it
        remedy = f"call {argument}.to_memory() first"
        if not hasattr(given[argument], "to_memory"):
            remedy = f"{argument} is backed, read the file without backed="
        if given["copy"]:
            raise ValueError(f"copy=True needs an object in memory: {remedy}.")
        if given[argument].is_view:
            raise ValueError(f"{argument} is a view of an object in a file, which cannot hold results: {remedy}.")


def _check_free(key: str, argument: str, stored: Any) -> None:
    """Raise ValueError if results under a name would replace what someone else keeps under it in ``.uns``."""
    uns = getattr(stored, "uns", {})
    if not isinstance(uns, Mapping) or key not in uns:
        return
    record = uns[key]
    version = record.get("version") if isinstance(record, Mapping) else None
    ours = isinstance(version, Mapping) and "diffbio_sc" in version
    if not ours and not hasattr(record, "columns"):
        raise ValueError(
            f"key_added={key!r} would replace {argument}.uns[{key!r}], which is no result of diffbio_sc: take another "
            "name, or delete it first."
        )


def check_interval(name: str, value: Any, interval: str, *, whole: bool = False, also: Collection[str] = ()) -> None:
    """Raise ValueError, naming the argument, unless a value is a number within an interval such as ``"(0, 1]"``.

    Parameters
    ----------
    name
        Name of the argument.
    value
        What was given.
    interval
        Numbers allowed; a round bracket leaves the end out, so that ``"[0, inf)"`` asks for finite ones. A unit may
        follow, ``"(0, inf) base pairs"``. Whole numbers may be floats, such as 2e6.
    whole
        Whether only whole numbers are allowed.
    also
        What else is allowed, for the message.
    """
    if not _is_number(value) or not _within(value, interval) or (whole and value != math.floor(value)):
        raise ValueError(f"{name} must be {_joined([_number(interval, whole), *also])}, found {value!r}.")


@dataclasses.dataclass
class _Allowed:
    """What an annotation allows."""

    flag: bool = False
    whole: bool = False
    number: bool = False
    text: bool = False
    path: bool = False
    none: bool = False
    names: bool = False
    numbers: str = ""  # of a list: "int" or "float"
    mapping: bool = False
    sequence: str = ""  # of objects: in words
    pair: str = ""  # of a tuple of two: "int" or "float"
    anything: bool = False
    choices: tuple[Any, ...] = ()
    objects: tuple[str, ...] = ()

    def check(self, name: str, value: Any, interval: str | None, may_be_empty: bool) -> None:
        """Raise if ``value`` is not allowed."""
        if name == "rng":
            as_generator(value)
        elif name == "key_added" and not (value is None and self.none):
            check_key(value)
        elif self.anything or (value is None and self.none) or self._is_simple(value):
            return
        elif _is_number(value):
            if not (self.whole or self.number):
                self._refuse(name, value, interval)
            also = self._phrases(name, interval)[1:]
            check_interval(name, value, interval or "(-inf, inf)", whole=not self.number, also=also)
        elif isinstance(value, _PLAIN):
            self._refuse(name, value, interval)
        else:
            self._check_object(name, value, interval, may_be_empty)

    @property
    def is_object(self) -> bool:
        """Whether an object is meant, such as an AnnData or a mapping."""
        return bool(self.objects or self.mapping or self.sequence) and not (self.whole or self.number)

    def may_be(self, value: Any) -> bool:
        """Whether a value may be the object that is meant: is not something plain in its place."""
        return self._is_simple(value) or not (isinstance(value, _PLAIN) or _is_number(value))

    def _is_simple(self, value: Any) -> bool:
        if isinstance(value, bool | np.bool_):
            return self.flag
        if isinstance(value, os.PathLike):
            return self.path
        # One name alone stands for a list of one.
        return isinstance(value, str) and (self.text or self.path or self.names or value in self.choices)

    def _check_object(self, name: str, value: Any, interval: str | None, may_be_empty: bool) -> None:
        if isinstance(value, Mapping):
            if not (self.mapping or self.objects):
                self._refuse(name, value, interval)
        elif self.numbers and _is_list(value):
            for each in value:
                whole = self.numbers == "int"
                check_interval(f"each of {name}", each, interval or "(-inf, inf)", whole=whole)
            if not len(value) and not may_be_empty:
                raise ValueError(f"{name} is empty: give at least one number{_or_leave_out(self.none)}.")
        elif self.objects and (not self.names or hasattr(value, "shape")):
            return
        elif (self.sequence or self.pair) and np.iterable(value):
            if not may_be_empty and hasattr(value, "__len__") and not len(value):
                raise ValueError(f"{name} is empty: give at least one{_or_leave_out(self.none)}.")
        elif self.names and _is_list(value):
            _check_names(name, value, may_be_empty, self.none)
        else:
            self._refuse(name, value, interval)

    def _refuse(self, name: str, value: Any, interval: str | None) -> typing.NoReturn:
        phrases = self._phrases(name, interval)
        found = f"found {value!r}"
        if self.objects and (value is None or is_path(value)):
            found = found_object(value)
        elif len(found) > 66 or hasattr(value, "shape"):
            found = f"found an object of type {type(value).__name__}"
        message = f"{name} must be {_joined(phrases)}, {found}."
        if isinstance(value, str) and self.choices:
            close = get_close_matches(value, [str(choice) for choice in self.choices], n=1)
            message += f" Did you mean {close[0]!r}?" if close else ""
        plain = self.flag or self.whole or self.number or self.numbers or self.pair or self.choices
        raise (ValueError if plain else TypeError)(message)

    def _phrases(self, name: str, interval: str | None) -> list[str]:
        """What is allowed, in words; a number stands first."""
        limits = interval or "(-inf, inf)"
        phrases = [_number(limits, not self.number)] if self.number or self.whole else []
        phrases += ["True", "False"] if self.flag else []
        phrases += [repr(choice) for choice in self.choices]
        if self.path:
            phrases.append(f"the path of a {'folder' if name == 'folder' else 'file'}")
        elif self.text:
            phrases.append("a text")
        phrases += ["a list of names"] if self.names else []
        phrases += [f"a list of {_number(limits, self.numbers == 'int', several=True)}"] if self.numbers else []
        phrases += ["a mapping"] if self.mapping else []
        phrases += [f"two {'whole ' if self.pair == 'int' else ''}numbers"] if self.pair else []
        phrases += self.objects
        phrases += [self.sequence] if self.sequence else []
        return phrases + (["None"] if self.none else [])


def _is_list(value: Any) -> bool:
    """Whether a value holds others in a row, and still does when they have been looked at once."""
    return np.iterable(value) and iter(value) is not value and len(getattr(value, "shape", (0,))) == 1


def _check_names(name: str, value: Any, may_be_empty: bool, none: bool) -> None:
    names = list(value)
    wrong = next((each for each in names if isinstance(each, bool) or not isinstance(each, str | int | np.integer)), "")
    if wrong != "":
        raise TypeError(f"{name} must be a list of names, found {wrong!r} among them.")
    if not names and not may_be_empty:
        raise ValueError(f"{name} is empty: give at least one name{_or_leave_out(none)}.")
    if len(set(names)) < len(names):
        seen: set[Any] = set()
        twice = list(dict.fromkeys(each for each in names if each in seen or seen.add(each)))  # type: ignore[func-returns-value]
        raise ValueError(f"{name} must be unique, found {len(twice)} duplicated: {name_heads(twice)}. Name each once.")


def _or_leave_out(none: bool) -> str:
    return ", or leave it out" if none else ""


def _joined(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + f" or {phrases[-1]}"


def _is_number(value: Any) -> bool:
    """Whether a value is a real number, one of numpy or an array of no axes among them."""
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, int | float | np.integer | np.floating):
        return True
    dtype = getattr(value, "dtype", None)
    return getattr(dtype, "kind", "") in ("i", "u", "f") and value.shape == ()


class _Interval(NamedTuple):
    low: float
    high: float
    with_low: bool
    with_high: bool
    unit: str


@cache
def _ends(interval: str) -> _Interval:
    found = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])(?: (.+))?", interval)
    assert found is not None, interval
    return _Interval(float(found[2]), float(found[3]), found[1] == "[", found[4] == "]", found[5] or "")


def _within(value: Any, interval: str) -> bool:
    low, high, with_low, with_high, _ = _ends(interval)
    return bool((value >= low if with_low else value > low) and (value <= high if with_high else value < high))


def _number(interval: str, whole: bool, *, several: bool = False) -> str:
    """Say in words which numbers are allowed."""
    low, high, with_low, with_high, unit = _ends(interval)
    noun = f"{'' if several else 'a '}{'whole ' if whole else ''}number{'s' if several else ''}"
    noun += f" of {unit}" if unit else ""
    if math.isinf(low) and math.isinf(high):
        return noun
    least = f"of at least {low:g}" if with_low else f"above {low:g}"
    if math.isinf(high):
        return f"{noun} {least}"
    if with_low and with_high:
        return f"{noun} from {low:g} to {high:g}"
    return f"{noun} {least} and {'at most' if with_high else 'below'} {high:g}"


@cache
def _allowed(function: Callable[..., Any]) -> dict[str, _Allowed]:
    """What each argument of a function may be, by its annotation."""
    signature = inspect.signature(function)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    scope = inspect.unwrap(function).__globals__
    allowed = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind not in variable:
            one = allowed[name] = _Allowed()
            annotation = parameter.annotation
            _add(one, ast.parse(annotation, mode="eval").body if isinstance(annotation, str) else annotation, scope)
    return allowed


def _add(one: _Allowed, annotation: Any, scope: Mapping[str, Any]) -> None:
    """Add what an annotation allows: of code (text of a signature), or of the objects that it names."""
    if isinstance(annotation, ast.BinOp):
        _add(one, annotation.left, scope)
        _add(one, annotation.right, scope)
        return
    if isinstance(annotation, ast.Constant):
        annotation = annotation.value
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value).split(".")[-1]
        entry = annotation.slice
        if name == "Literal":
            one.choices += ast.literal_eval(entry if isinstance(entry, ast.Tuple) else ast.Tuple([entry], ast.Load()))
        else:
            _add_generic(one, name, ast.unparse(entry).strip("()"))
        return
    if isinstance(annotation, ast.Name) and not isinstance(scope.get(annotation.id), type):
        annotation = scope.get(annotation.id, annotation.id)  # another name of a type, or one that only checkers load
        if isinstance(annotation, str) and " " in annotation:
            _add(one, ast.parse(annotation, mode="eval").body, scope)
            return
    if isinstance(annotation, ast.AST):
        annotation = ast.unparse(annotation)
    origin, entries = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        one.choices += entries
    elif origin is not None and (origin is typing.Union or origin.__name__ == "UnionType"):
        for entry in entries:
            _add(one, entry, scope)
    elif origin is not None:
        _add_generic(one, origin.__name__, ", ".join(getattr(entry, "__name__", str(entry)) for entry in entries))
    else:
        _add_plain(one, annotation)


def _add_generic(one: _Allowed, name: str, entry: str) -> None:
    if name in _LISTS and entry == "str":
        one.names = True
    elif name in _LISTS and entry in ("int", "float"):
        one.numbers = entry
    elif name in ("Mapping", "dict"):
        one.mapping = True
    elif name == "PathLike":
        one.path = True
    elif name == "tuple" and entry in ("int, int", "float, float"):
        one.pair = entry.split(",")[0]
    elif name in _LISTS:
        one.sequence = _SEQUENCES.get(entry.split(".")[-1], "a list")
    else:
        one.objects += (f"a {name}",)


def _add_plain(one: _Allowed, annotation: Any) -> None:
    name = "None" if annotation in (None, type(None)) else getattr(annotation, "__name__", str(annotation))
    name = name.split(".")[-1]
    field = {"bool": "flag", "int": "whole", "float": "number", "str": "text", "None": "none"}.get(name)
    field = {"Any": "anything", "object": "anything", "PathLike": "path"}.get(name, field)
    if field is not None:
        setattr(one, field, True)
    elif name == "Mapping":
        one.mapping = True
    else:
        one.objects += (_ARTICLES.get(name, f"{'an' if name[0] in 'AEIO' else 'a'} {name}"),)
