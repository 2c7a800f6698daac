"""Aligning the names of two objects."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from diffbio_sc._checks import name_heads
from diffbio_sc._logging import logger

_VERSION = re.compile(r"\.\d+$")


def require_unique(names: Sequence[str] | pd.Index, what: str, remedy: str) -> None:
    """Raise ValueError, with the first few of them, if names occur twice."""
    index = pd.Index(names)
    if not index.is_unique:
        twice = list(dict.fromkeys(map(str, index[index.duplicated()])))
        raise ValueError(f"{what} must be unique, found {len(twice)} duplicated: {name_heads(twice)}. {remedy}")


def align_names(
    left: pd.Index, right: pd.Index, *, left_name: str, right_name: str, minimum: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the shared names in both, in alphabetical order of the names.

    Alphabetical, so that a result does not depend on the order of either side, not even by rounding.

    Raises
    ------
    ValueError
        If names occur twice on a side or fewer than ``minimum`` are shared.
    """
    remedy = "Make them unique first, for example with .var_names_make_unique(), or sum the duplicates."
    require_unique(left, left_name, remedy)
    require_unique(right, right_name, remedy)
    shared = left.intersection(right).sort_values()
    if len(shared) < minimum:
        raise ValueError(
            f"{left_name} and {right_name} share {len(shared)} names, at least {minimum} are needed. "
            f"{left_name}: {name_heads(left)}; {right_name}: {name_heads(right)}.{_hint(left, right, len(shared))}"
        )
    logger.info(f"{len(shared)} names shared of {len(left)} ({left_name}) and {len(right)} ({right_name}).")
    return left.get_indexer(shared), right.get_indexer(shared)


def _hint(left: pd.Index, right: pd.Index, shared: int) -> str:
    for hint, change in (
        ("in another case: compare .var_names.str.upper()", str.upper),
        ("without Ensembl version suffix (.1): strip it on both sides", lambda name: _VERSION.sub("", name)),
    ):
        if len(set(map(change, map(str, left))) & set(map(change, map(str, right)))) > shared:
            return f" More would match {hint}."
    return ""
