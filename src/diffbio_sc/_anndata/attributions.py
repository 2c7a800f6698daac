"""Attributions in ``.uns``: which regions and cell types were asked for, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contextual_model import texts
from diffbio_sc._anndata.records import read_record
from diffbio_sc._checks import name_heads

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc._anndata.genome_axis import GenomeAxis

DEFAULT_ATTRIBUTIONS = "attributions"
_MAKER = "dbio.tl.attributions"


class Attributions(NamedTuple):
    """What a model says of chosen regions.

    Attributes
    ----------
    regions, chrom, start
        Names of the regions, their chromosomes, and the first base of their windows.
    cell_types
        Names.
    tokens
        Sequences (regions, width).
    scores
        Hypothetical contributions (regions, cell types, width, 4), or None.
    factors, factor_scores
        Names of factors, and what each adds (regions, cell types, factors), or None.
    params
        How they were made.
    """

    regions: list[str]
    chrom: list[str]
    start: np.ndarray
    cell_types: list[str]
    tokens: np.ndarray
    scores: np.ndarray | None
    factors: list[str]
    factor_scores: np.ndarray | None
    params: Mapping[str, Any]


def read_attributions(adata: AnnData, key: str, entry: str) -> Attributions:
    """Attributions that hold ``entry``, ``"scores"`` or ``"factor_scores"``.

    Raises
    ------
    KeyError
        If there are none.
    """
    record = read_record(adata, key, entry, _MAKER)
    return Attributions(
        texts(record["regions"]),
        texts(record["chrom"]),
        np.atleast_1d(np.asarray(record["start"], np.int64)),
        texts(record["cell_types"]),
        np.asarray(record["tokens"]),
        np.asarray(record["scores"]) if "scores" in record else None,
        texts(record["factors"]) if "factors" in record else [],
        np.asarray(record["factor_scores"]) if "factor_scores" in record else None,
        record.get("params", {}),
    )


def choose_regions(regions: GenomeAxis, chosen: Any, *, most: int) -> np.ndarray:
    """Positions of regions given by name, position or mask; all, of at most ``most``, without.

    Raises
    ------
    KeyError
        If there is no region of a name.
    ValueError
        If none or too many are chosen, or a position or mask does not fit.
    """
    number = len(regions.code)
    if chosen is None:
        if number > most:
            raise ValueError(
                f"adata has {number:,} regions: pass regions=..., names, positions or a mask (at most {most:,} are "
                "taken unasked)."
            )
        return np.arange(number)
    if isinstance(chosen, str):
        chosen = [chosen]
    values = np.asarray(chosen)
    if not values.size:
        raise ValueError("regions is empty: name at least one.")
    if values.ndim != 1:
        raise ValueError(f"regions must be a list, found shape {values.shape}.")
    if values.dtype == bool:
        if len(values) != number or not values.any():
            raise ValueError(f"a mask of regions must have {number} values, some of them true, found {len(values)}.")
        return np.flatnonzero(values)
    if values.dtype.kind in "iu":
        bad = values[(values < 0) | (values >= number)]
        if len(bad):
            raise ValueError(f"positions of regions must be from 0 to {number - 1}, found {int(bad[0])}.")
        return values.astype(np.int64)
    names = pd.Index(regions.names).astype(str)
    wanted = [str(value) for value in values]
    if not names.is_unique and names[names.duplicated()].isin(wanted).any():
        raise ValueError("regions of the same name occur more than once: pass positions instead of names.")
    place = pd.Series(np.arange(number), index=names)
    missing = [name for name in wanted if name not in place.index]
    if missing:
        raise KeyError(f"adata has no region {name_heads(missing)}; regions: {name_heads(list(names[:5]))}.")
    return place.loc[wanted].to_numpy()


def choose_cell_types(chosen: str | Sequence[str] | None, names: list[str]) -> list[str]:
    """Cell types by name; all without.

    Raises
    ------
    KeyError
        If there is none of that name.
    ValueError
        If none is chosen.
    """
    if chosen is None:
        return names
    wanted = [chosen] if isinstance(chosen, str) else [str(name) for name in chosen]
    if not wanted:
        raise ValueError("cell_types is empty: name at least one.")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise KeyError(f"there are no cell types {name_heads(missing)}; cell types: {name_heads(names, 20)}.")
    return wanted
