"""What a shell can say of a Python signature: types, names and help of options."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter, convert

_SIMPLE: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "None": type(None)}
_ROLE = re.compile(r":(?:py:)?[a-z]+(?::[a-z]+)?:`~?(?:diffbio_sc\.)?([^`<]+?)(?:\s*<[^`]*>)?`")
_CITATION = re.compile(r"\s*:cite:[a-z]+:`[^`]*`")


def shell_options(function: Callable[..., Any], *, without: Sequence[str] = ()) -> list[inspect.Parameter]:
    """Keyword-only parameters of a function that a shell can give, with their help.

    A parameter whose annotation names nothing but Python objects (a table, an operator) is left out, as is ``copy``.
    """
    texts = parameter_texts(function)
    options = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in {"copy", *without}:
            continue
        kind = shell_type(parameter.annotation, vars(sys.modules[function.__module__]))
        if kind is not None:
            options.append(option(parameter.name, kind, parameter.default, texts.get(parameter.name, "")))
    return options


def option(name: str, kind: Any, default: Any, text: str, **details: Any) -> inspect.Parameter:
    """Keyword option of a command; ``details`` are those of :class:`cyclopts.Parameter`."""
    if any(get_origin(member) is list for member in (kind, *get_args(kind))):
        details.setdefault("consume_multiple", True)
    details.setdefault("negative_iterable", ())
    members = {part for member in (kind, *get_args(kind)) for part in (member, *get_args(member))}
    if int in members and float not in members:
        details.setdefault("converter", _whole_numbers)
    annotation = Annotated[kind, Parameter(help=text, **details)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def argument(name: str, text: str, *, many: bool = False) -> inspect.Parameter:
    """Positional path of a command; with ``many``, one or more."""
    kind = inspect.Parameter.VAR_POSITIONAL if many else inspect.Parameter.POSITIONAL_ONLY
    return inspect.Parameter(name, kind, annotation=Annotated[str, Parameter(help=text)])


def shell_type(annotation: Any, namespace: Mapping[str, Any]) -> Any:
    """Type of a shell option for an annotation (text or object), or None if a shell cannot say it."""
    members = _members(annotation, namespace)
    said = [member for member in dict.fromkeys(members) if member is not type(None)]
    if Path in said and str in said:
        said.remove(Path)  # both are text in a shell, and functions take text as a path
    if not said:
        return None
    if type(None) in members:
        said.append(type(None))
    return said[0] if len(said) == 1 else Union[tuple(said)]  # noqa: UP007  # of a list known at run time


def parameter_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Text of each parameter in a numpy docstring, as plain text."""
    from docstring_parser.numpydoc import parse

    texts = {}
    for entry in parse(inspect.getdoc(function) or "").params:
        for name in entry.arg_name.split(","):
            texts[name.strip()] = plain(entry.description or "")
    return texts


def summary(function: Callable[..., Any]) -> str:
    """First paragraph and second paragraph of a docstring, as plain text."""
    from docstring_parser.numpydoc import parse

    document = parse(inspect.getdoc(function) or "")
    parts = [document.short_description, (document.long_description or "").split("\n\n")[0]]
    return "\n\n".join(plain(part) for part in parts if part)


def plain(text: str) -> str:
    """Text without the marks of reStructuredText, on one line."""
    text = _ROLE.sub(r"\1", _CITATION.sub("", text)).replace("``", "")
    return re.sub(r"\s+", " ", text).strip()


def _whole_numbers(kind: Any, tokens: Sequence[Any]) -> Any:
    """Convert what a shell gives for whole numbers; alone, a parser would round 2.5 without a word."""
    for token in tokens:
        whole, point, fraction = token.value.partition(".")
        if point and fraction.strip("0"):
            raise ValueError(f"{token.value} is no whole number.")
    return convert(kind, tokens)


def _members(annotation: Any, namespace: Mapping[str, Any]) -> list[Any]:
    if isinstance(annotation, str):
        return _of_tree(ast.parse(annotation, mode="eval").body, namespace)
    return _of_object(annotation)


def _of_tree(tree: ast.expr, namespace: Mapping[str, Any]) -> list[Any]:
    """Members of a union that a shell can say; names under TYPE_CHECKING are not there and are left out."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        return _of_tree(tree.left, namespace) + _of_tree(tree.right, namespace)
    if isinstance(tree, ast.Constant) and tree.value is None:
        return [type(None)]
    if isinstance(tree, ast.Subscript):
        head = ast.unparse(tree.value).split(".")[-1]
        parts = tree.slice.elts if isinstance(tree.slice, ast.Tuple) else [tree.slice]
        if head == "Literal":
            return [Literal[tuple(ast.literal_eval(part) for part in parts)]]
        if head == "PathLike":
            return [Path]
        return _container(head, [shell_type(ast.unparse(part), namespace) for part in parts])
    name = ast.unparse(tree)
    if name in _SIMPLE:
        return [_SIMPLE[name]]
    return _of_object(namespace[name]) if name in namespace else []


def _of_object(kind: Any) -> list[Any]:
    if kind in _SIMPLE.values():
        return [kind]
    origin = get_origin(kind)
    if origin is Literal:
        return [kind]
    if origin is Union or origin is UnionType:
        return [member for part in get_args(kind) for member in _of_object(part)]
    if origin is not None:
        name = origin.__name__
        return [Path] if name == "PathLike" else _container(name, [shell_type(part, {}) for part in get_args(kind)])
    return []


def _container(head: str, parts: list[Any]) -> list[Any]:
    if any(part is None for part in parts):
        return []
    if head in {"Sequence", "list", "Iterable"}:
        return [list[parts[0]]]  # type: ignore[valid-type]
    if head == "tuple":
        return [tuple[tuple(parts)]]  # type: ignore[misc]
    if head in {"Mapping", "dict"} and parts == [str, str]:
        return [dict[str, str]]
    return []
