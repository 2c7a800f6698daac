"""What the contextual sequence model takes out of an AnnData: sequences, labels, contexts and held-out chromosomes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._anndata.genome_axis import GenomeAxis
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.sequences import read_genome_sequences, read_tokens
from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._anndata.tf_context import case_hint
from diffbio_sc._checks import counted, name_heads

if TYPE_CHECKING:
    from anndata import AnnData

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}
_HELD_OUT = 0.1  # of the regions, for validation and for test each


class Context(NamedTuple):
    """Expression of factors in cell types.

    Attributes
    ----------
    values
        (cell types, factors) float64; a row of NaN for a cell type without expression.
    factors
        Names.
    """

    values: np.ndarray
    factors: list[str]

    @property
    def known(self) -> np.ndarray:
        """Which cell types have expression."""
        return ~np.isnan(self.values).any(axis=1)


def read_region_tokens(adata: AnnData, regions: GenomeAxis, sequences: str, fasta: Any, width: int | None = None):
    """Tokens of the regions: those stored under ``sequences``, or read from a genome where one is given."""
    if fasta is not None:
        return read_genome_sequences(fasta, regions, width).tokens
    field = f"{regions.axis}m"
    stored = getattr(adata, field)
    if sequences not in stored:
        raise KeyError(
            f"adata.{field} has no {sequences!r}: run dbio.pp.sequences(adata, genome) first, or pass fasta=...; keys: "
            f"{[str(key) for key in stored]}."
        )
    return read_tokens(stored[sequences], f"adata.{field}[{sequences!r}]")


def read_binary_labels(adata: AnnData, regions: GenomeAxis, layer: str | None) -> np.ndarray:
    """Labels (regions, cell types) float32: 0, 1, or NaN where not known.

    Raises
    ------
    ValueError
        If there are other values, or none.
    """
    if layer is None and adata.X is None:
        raise ValueError(f"adata.X is None; pass the labels with layer=...; layers: {list(map(str, adata.layers))}.")
    matrix = regions.signal(adata, layer)
    if 0 in matrix.shape:
        raise ValueError(f"adata is empty: shape {tuple(adata.shape)}.")
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if np.dtype(matrix.dtype).kind not in "biuf":
        raise ValueError(f"{where} must hold 0 and 1, found values of dtype {matrix.dtype}.")
    labels = np.ascontiguousarray(matrix.take(np.arange(matrix.shape[0])).T, dtype=np.float32)
    bad = ~((labels == 0) | (labels == 1) | np.isnan(labels))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{where} must hold 0, 1 or NaN (not known), found {labels[row, column]:.6g} in region "
            f"{str(regions.names[row])!r}, cell type {str(regions.track_names(adata)[column])!r} ({int(bad.sum())} "
            "such values). Make scores or counts binary first, for example the strongest regions of each cell type, "
            "and pass them with layer=..."
        )
    if np.isnan(labels).all():
        raise ValueError(f"{where} has no known label: all {labels.size} values are NaN.")
    return labels


def warn_of_labels(labels: np.ndarray, cell_types: Sequence[str], *, stacklevel: int = 3) -> None:
    """Warn of cell types whose training regions are all closed or all open."""
    lowest, highest = _extremes(labels)
    alike = [name for name, low, high in zip(cell_types, lowest, highest, strict=True) if low == high]
    if alike:
        warnings.warn(
            f"one label in all training regions: {counted(len(alike), 'cell type')}, {name_heads(alike)}. What is "
            "predicted there is constant.",
            UserWarning,
            stacklevel=stacklevel,
        )


def _extremes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest known label of each cell type; NaN where none is known."""
    known = ~np.isnan(labels)
    low = np.where(known, labels, np.inf).min(axis=0)
    high = np.where(known, labels, -np.inf).max(axis=0)
    none = ~known.any(axis=0)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def read_context(
    adata: AnnData, regions: GenomeAxis, key: str | None, *, required: bool = False, name: str = "adata"
) -> Context | None:
    """Expression of factors stored by :func:`diffbio_sc.pp.tf_context`, or as an array beside ``.uns["tf_names"]``.

    Returns None where ``key`` is not there and not ``required``.

    Raises
    ------
    KeyError
        If it is required and missing.
    ValueError
        If names occur twice or are missing, or values are infinite or missing within a cell type.
    """
    field = "obsm" if regions.axis == "var" else "varm"
    stored = getattr(adata, field)
    if key is None or key not in stored:
        if not required:
            return None
        raise KeyError(
            f"{name}.{field} has no {key!r}: run dbio.pp.tf_context(adata, expression) first, or pass tf_context=..., "
            f"one of {[str(other) for other in stored]}."
        )
    table, where = in_memory(stored[key]), f"{name}.{field}[{key!r}]"
    if isinstance(table, pd.DataFrame):
        factors = [str(column) for column in table.columns]
        values = table.to_numpy(np.float64, na_value=np.nan)
    else:
        values = np.asarray(table, np.float64)
        names = in_memory(adata.uns.get("tf_names"))
        if names is None or len(names) != values.shape[1]:
            found = "none" if names is None else f"{len(names)}"
            raise ValueError(
                f"{where} is an array of {values.shape[1]} columns: their names must be in {name}.uns['tf_names'], "
                f"found {found}. A table with named columns needs none."
            )
        factors = [str(value) for value in names]
    require_unique(factors, f"factors of {where}", "Keep one column of each.")
    nan = np.isnan(values)
    cells = [str(cell) for cell in regions.track_names(adata)]
    bad = np.isinf(values) | (nan & ~nan.all(axis=1, keepdims=True))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{where} must be finite, found {values[row, column]} in cell type {cells[row]!r}, factor "
            f"{factors[column]!r} ({int(bad.sum())} such values). A cell type without expression is a row of NaN."
        )
    return Context(values, factors)


def align_factors(context: Context, factors: Sequence[str], fill: np.ndarray, *, stacklevel: int = 3) -> Context:
    """Columns of ``context`` in the order of a model's ``factors``; those that it lacks get the value ``fill``.

    Raises
    ------
    ValueError
        If fewer than half of the factors are there; the message says if case alone is why.
    """
    found, wanted = pd.Index(context.factors), pd.Index(list(factors))
    place = found.get_indexer(wanted)
    lacking = [str(name) for name in wanted[place < 0]]
    if 2 * len(lacking) > len(wanted):
        raise ValueError(
            f"the cell types have {len(wanted) - len(lacking)} of the {len(wanted)} factors that the model was trained "
            f"with, at least half are needed; missing: {name_heads(lacking)}.{case_hint(wanted, found)}"
        )
    if lacking:
        warnings.warn(
            f"{len(lacking)} of {len(wanted)} factors of the model are not in tf_context: {name_heads(lacking)}. They "
            f"are taken as the mean of the cell types that the model was trained with.{case_hint(wanted, found)}",
            UserWarning,
            stacklevel=stacklevel,
        )
    values = np.where(place >= 0, context.values[:, np.maximum(place, 0)], fill)
    values[~context.known] = np.nan
    return Context(values, [str(name) for name in wanted])


def read_split(
    adata: AnnData, regions: GenomeAxis, split: str | Mapping[str, Any] | None, *, stacklevel: int = 3
) -> tuple[np.ndarray, str]:
    """Split of each region (0 train, 1 val, 2 test, -1 left out), and where it comes from.

    Raises
    ------
    KeyError
        If there is no such column or chromosome.
    ValueError
        If a name is no split, or no region is left to train or to validate with.

    Warns
    -----
    UserWarning
        If regions of different splits overlap: their sequences are known before they are tested.
    """
    table, side = getattr(adata, regions.axis), f"adata.{regions.axis}"
    if split is None and "split" in table:
        split = "split"
    if split is None:
        codes, source = hold_out_chromosomes(regions), "chromosomes"
    elif isinstance(split, str):
        if split not in table:
            raise KeyError(f"{side} has no column {split!r}; columns: {list(map(str, table.columns))}.")
        codes, source = _codes_of_column(read_column(table, split), f"{side}[{split!r}]"), split
    elif isinstance(split, Mapping):
        codes, source = _codes_of_chromosomes(split, regions), "mapping"
    else:
        raise TypeError(
            f"split must be a column, a dict such as {{'val': ['chr10'], 'test': ['chr8']}}, or None, found {split!r}."
        )
    for code, name in enumerate(SPLITS[:2]):
        if not (codes == code).any():
            raise ValueError(
                f"no region is left to {('train', 'validate')[code]} with: split {name!r} is empty. Give it "
                "chromosomes of its own."
            )
    _warn_of_leaks(regions, codes, stacklevel + 1)
    return codes, source


def hold_out_chromosomes(regions: GenomeAxis) -> np.ndarray:
    """Split by chromosome: the smallest that have a tenth of the regions for validation, the next for test.

    With two chromosomes the smaller validates; with one its last fifth does, behind a gap of one region in twenty.
    """
    counts = np.bincount(regions.code, minlength=len(regions.chromosomes))
    total = counts.sum()
    present = [int(code) for code in np.argsort(counts, kind="stable") if counts[code]]
    codes = np.zeros(len(regions.code), np.int64)
    if len(present) == 1:
        rank = np.empty(total, np.int64)
        rank[regions.order] = np.arange(total)
        codes[rank >= int(0.75 * total)] = -1
        codes[rank >= int(0.8 * total)] = 1
        return codes
    left = list(present)
    for split in (1, 2):
        taken = 0
        while taken < _HELD_OUT * total and len(left) > 1:
            chosen = left.pop(0)
            codes[regions.code == chosen] = split
            taken += counts[chosen]
    return codes


def _codes_of_column(column: pd.Series, name: str) -> np.ndarray:
    text = column.astype(object).where(column.notna(), None)
    codes = np.array([-1 if value is None else _SPLIT_NAMES.get(str(value).lower(), -2) for value in text], np.int64)
    if (codes == -2).any():
        row = int(np.flatnonzero(codes == -2)[0])
        raise ValueError(
            f"{name} must be 'train', 'val' or 'test' (missing: left out), found {column.iloc[row]!r} at "
            f"{str(column.index[row])!r} ({int((codes == -2).sum())} such values)."
        )
    return codes


def _codes_of_chromosomes(split: Mapping[str, Any], regions: GenomeAxis) -> np.ndarray:
    codes = np.zeros(len(regions.code), np.int64)
    if "train" in split:
        codes[:] = -1
    seen: dict[str, str] = {}
    for key, chromosomes in split.items():
        if str(key).lower() not in _SPLIT_NAMES:
            raise ValueError(f"keys of split must be 'train', 'val' and 'test', found {key!r}.")
        for chromosome in [chromosomes] if isinstance(chromosomes, str) else chromosomes:
            name = str(chromosome)
            if name not in regions.chromosomes:
                raise KeyError(f"split names {name!r}, but the regions lie on {name_heads(regions.chromosomes, 30)}.")
            if name in seen:
                raise ValueError(f"split has {name!r} twice: in {seen[name]!r} and {key!r}.")
            seen[name] = str(key)
            codes[regions.code == regions.chromosomes.index(name)] = _SPLIT_NAMES[str(key).lower()]
    return codes


def _warn_of_leaks(regions: GenomeAxis, codes: np.ndarray, stacklevel: int) -> None:
    """Look for neighbours of different splits that overlap."""
    order = regions.order[codes[regions.order] >= 0]
    if not len(order):
        return
    leaks, example = 0, None
    for one in range(len(SPLITS)):
        for other in range(one + 1, len(SPLITS)):
            rows = order[np.isin(codes[order], (one, other))]
            if not len(rows):
                continue
            code, start, end, split = (values[rows] for values in (regions.code, regions.start, regions.end, codes))
            # Furthest end so far of each split on the chromosome, with the chromosome above it.
            high = code.astype(np.int64) << 40
            for mine, theirs in ((one, other), (other, one)):
                reach = np.maximum.accumulate(np.where(split == theirs, high | end, 0))
                bad = (split == mine) & ((reach >> 40) == code) & ((reach & ((1 << 40) - 1)) > start) & (reach > 0)
                leaks += int(bad.sum())
                if bad.any() and example is None:
                    row = rows[np.flatnonzero(bad)[0]]
                    example = (str(regions.names[row]), SPLITS[mine], SPLITS[theirs])
    if example is not None:
        warnings.warn(
            f"splits overlap, in {counted(leaks, 'region')}; first {example[0]!r} ({example[1]}) with one of "
            f"{example[2]}. Sequences that are tested are known in training, and scores too good: split by chromosome.",
            UserWarning,
            stacklevel=stacklevel,
        )


def settle_mode(
    mode: Literal["auto", "sequence_only", "tf_context", "tf_plus_chromatin"],
    context: Context | None,
    contacts: bool,
    n_cell_types: int,
    *,
    stacklevel: int = 3,
) -> str:
    """The mode that the inputs allow: the one asked for, or the richest; a context that says nothing is left out.

    Raises
    ------
    ValueError
        If the mode asked for needs an input that is not there.
    """
    modes = ("auto", "sequence_only", "tf_context", "tf_plus_chromatin")
    if mode not in modes:
        raise ValueError(f"mode must be one of {list(modes)}, found {mode!r}.")
    if mode in ("tf_context", "tf_plus_chromatin") and context is None:
        raise ValueError(f"mode={mode!r} needs tf_context: run dbio.pp.tf_context(adata, expression) first.")
    if mode == "tf_plus_chromatin" and not contacts:
        raise ValueError("mode='tf_plus_chromatin' needs contacts=... and track=..., windows with a contact map each.")
    if mode == "sequence_only" or context is None:
        return "sequence_only"
    problem = None
    if n_cell_types == 1:
        problem = "there is one cell type"
    elif context.known.sum() < 2:
        problem = f"{int(context.known.sum())} cell types have expression"
    else:
        known = context.values[context.known]
        if (known == known[0]).all():
            problem = "every factor has one value in all cell types"
    if problem is not None:
        warnings.warn(
            f"tf_context tells no cell types apart ({problem}): the model uses sequences alone.",
            UserWarning,
            stacklevel=stacklevel,
        )
        return "sequence_only"
    if mode == "auto":
        return "tf_plus_chromatin" if contacts else "tf_context"
    return mode
