"""Aligning the names of two objects."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from diffbio_sc._anndata.tables import read_column
from diffbio_sc._checks import name_heads
from diffbio_sc._logging import logger

_VERSION = re.compile(r"\.\d+$")
FEW_SHARED = 0.5  # of the shorter list: fewer shared names than this are warned of


def require_unique(names: Sequence[str] | pd.Index, what: str, remedy: str) -> None:
    """Raise ValueError, with the first few of them, if names occur twice."""
    index = pd.Index(names)
    if not index.is_unique:
        twice = list(dict.fromkeys(map(str, index[index.duplicated()])))
        raise ValueError(f"{what} must be unique, found {len(twice)} duplicated: {name_heads(twice)}. {remedy}")


def align_names(
    left: pd.Index,
    right: pd.Index,
    *,
    left_name: str,
    right_name: str,
    minimum: int = 1,
    left_table: pd.DataFrame | None = None,
    right_table: pd.DataFrame | None = None,
    stacklevel: int = 3,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the shared names in both, in alphabetical order of the names.

    Alphabetical, so that a result does not depend on the order of either side, not even by rounding. Names are
    compared as text: the number 12 is the name "12".

    Parameters
    ----------
    left, right
        Names.
    left_name, right_name
        What messages call them.
    minimum
        Fewest shared names that are of use.
    left_table, right_table
        Tables of which the names are the index; messages say if another column of them would match.
    stacklevel
        Frame that a warning points to, as :func:`warnings.warn` counts.

    Raises
    ------
    ValueError
        If names occur twice on a side or fewer than ``minimum`` are shared.

    Warns
    -----
    UserWarning
        If fewer than half of the names of the shorter side are shared.
    """
    left, right = _as_text(left), _as_text(right)
    remedy = "Make them unique first, for example with .var_names_make_unique(), or sum the duplicates."
    require_unique(left, left_name, remedy)
    require_unique(right, right_name, remedy)
    shared = left.intersection(right).sort_values()
    found = f"{left_name} and {right_name} share {len(shared)} names"

    def hints() -> str:
        return (
            f"{left_name}: {name_heads(left)}; {right_name}: {name_heads(right)}.{_hint(left, right, len(shared))}"
            f"{_other_column(left_table, left_name, right, len(shared))}"
            f"{_other_column(right_table, right_name, left, len(shared))}"
        )

    if len(shared) < minimum:
        raise ValueError(f"{found}, at least {minimum} are needed. {hints()}")
    if len(shared) < FEW_SHARED * min(len(left), len(right)):
        warnings.warn(
            f"{found} of {len(left)} and {len(right)}, which is few: what follows rests on these alone. {hints()}",
            UserWarning,
            stacklevel=stacklevel,
        )
    logger.info(f"{len(shared)} names shared of {len(left)} ({left_name}) and {len(right)} ({right_name}).")
    return left.get_indexer(shared), right.get_indexer(shared)


def _as_text(names: pd.Index) -> pd.Index:
    return pd.Index(names).map(str) if len(names) else pd.Index([], dtype=object)


def _hint(left: pd.Index, right: pd.Index, shared: int) -> str:
    changes: list[tuple[str, Callable[[str], str]]] = [
        ("in another case: compare .var_names.str.upper()", str.upper),
        ("without Ensembl version suffix (.1): strip it on both sides", lambda name: _VERSION.sub("", name)),
    ]
    for hint, change in changes:
        number = len(set(map(change, left)) & set(map(change, right)))
        if number > shared:
            return f" {number} would match {hint}."
    return ""


def _other_column(table: pd.DataFrame | None, name: str, others: pd.Index, shared: int) -> str:
    """Say which column of a table matches the other side's names better than its index."""
    if table is None:
        return ""
    wanted, best, number = set(others), None, shared
    for column in table.columns:
        values = read_column(table, column)
        if values.dtype.kind in "fbcM":
            continue
        matched = len(wanted.intersection(map(str, values)))
        if matched > number:
            best, number = column, matched
    if best is None:
        return ""
    return f" Column {str(best)!r} of the table of {name} would match {number}: make it the names."
