"""The axis of an AnnData along which genomic bins or regions lie, whichever of the two it is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.matrix import read_counts
from diffbio_sc._anndata.results import write_results
from diffbio_sc.blocks.matrix import BLOCK_ROWS, CountMatrix, InMemory, as_count_matrix, dense_block

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS = ("chrom", "start", "end")

REGION = re.compile(r"^(?P<chrom>.+?)[:_-](?P<start>[\d,]+)[_-](?P<end>[\d,]+)$")
"""Names such as ``chr1:100-200``, ``chr1-100-200`` and ``chr1_100_200``."""

# What other packages call the three columns.
_OTHER_NAMES = {
    "chrom": ("chr", "chromosome", "seqname", "seqnames", "contig", "Chromosome", "Chr", "#chrom"),
    "start": ("chromstart", "chromStart", "Start", "chr_start", "starts"),
    "end": ("chromend", "chromEnd", "stop", "End", "chr_end", "ends"),
}


@dataclasses.dataclass(frozen=True)
class GenomeAxis:
    """Bins or regions along one axis of an AnnData.

    A gap between bins or a change of chromosome ends a sequence; no statistic runs across it.
    """

    axis: Literal["var", "obs"]
    """Which axis it is."""
    table: pd.DataFrame
    """``chrom`` (categorical, in order of first appearance), ``start`` and ``end`` (int64) of each bin, in the order of
    the axis."""
    order: np.ndarray
    """Positions along the axis in genomic order: chromosomes in order of first appearance, then start."""
    breaks: np.ndarray
    """Where in ``order`` a new sequence begins, the first (0) left out."""
    width: int | None
    """Width of all bins (the last of a chromosome may be shorter); None if they differ."""

    @cached_property
    def sequences(self) -> list[np.ndarray]:
        """Positions along the axis of each sequence of bins without a gap, in genomic order."""
        return np.split(self.order, self.breaks) if len(self.order) else []

    @property
    def chromosomes(self) -> list[str]:
        """Chromosomes in order of first appearance."""
        return list(self.table["chrom"].cat.categories)

    def __len__(self) -> int:
        """Number of bins."""
        return len(self.table)

    def track_names(self, adata: AnnData) -> pd.Index:
        """Names along the other axis: samples, cells or tracks."""
        return adata.obs_names if self.axis == "var" else adata.var_names

    def track_table(self, adata: AnnData) -> pd.DataFrame:
        """Table of the other axis."""
        return adata.obs if self.axis == "var" else adata.var

    def tracks(self, adata: AnnData, layer: str | None = None, **options: Any) -> CountMatrix:
        """Counts as a matrix of (tracks, bins), whichever way the object holds them.

        Its ``blocks`` are blocks of tracks over all bins in the order of the axis. ``options`` go to
        :func:`~diffbio_sc._anndata.read_counts`, which checks the values.
        """
        counts = read_counts(adata, layer=layer, **options)
        return counts if self.axis == "var" else Transposed(counts)

    def signal(self, adata: AnnData, layer: str | None = None) -> CountMatrix:
        """Values of any kind, not checked to be counts, as a matrix of (tracks, bins)."""
        if layer is not None and layer not in adata.layers:
            raise KeyError(f"adata.layers has no {layer!r}; layers: {[str(key) for key in adata.layers.keys()]}.")
        values = as_count_matrix(adata.X if layer is None else adata.layers[layer])
        return values if self.axis == "var" else Transposed(values)

    def write(
        self,
        adata: AnnData,
        *,
        columns: Mapping[str, Any] | None = None,
        matrices: Mapping[str, Any] | None = None,
        track_columns: Mapping[str, Any] | None = None,
        track_matrices: Mapping[str, Any] | None = None,
        layers: Mapping[str, Any] | None = None,
        uns: Mapping[str, Any] | None = None,
    ) -> None:
        """Write results on the side they belong to, all or nothing.

        Parameters
        ----------
        adata
            Object.
        columns, matrices
            Values for each bin: columns of ``.var`` and arrays of ``.varm``, or of ``.obs`` and ``.obsm``.
        track_columns, track_matrices
            The same for each track.
        layers
            Arrays of (tracks, bins), dense or sparse; stored as the object lies.
        uns
            Entries of ``.uns``.
        """
        here, there = ("var", "obs") if self.axis == "var" else ("obs", "var")
        fields = {
            here: columns,
            f"{here}m": matrices,
            there: track_columns,
            f"{there}m": track_matrices,
            "layers": {key: self._as_stored(value) for key, value in (layers or {}).items()},
            "uns": uns,
        }
        write_results(adata, **{key: values for key, values in fields.items() if values})

    def _as_stored(self, layer: Any) -> Any:
        if self.axis == "var" or layer is None:
            return layer
        return sp.csr_array(layer.T) if sp.issparse(layer) else np.ascontiguousarray(layer.T)


class Transposed(CountMatrix):
    """Counts of (bins, tracks) as (tracks, bins)."""

    def __init__(self, parent: CountMatrix):
        if isinstance(parent, InMemory) and sp.issparse(parent.matrix):
            # Tracks of a CSR matrix of bins are all over it: it is turned once.
            parent = InMemory(sp.csc_array(parent.matrix))
        self.parent = parent
        self.shape = (parent.shape[1], parent.shape[0])

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, Any]]:
        """Yield (first track, block)."""
        for start in range(0, self.shape[0], size):
            indices = np.arange(start, min(start + size, self.shape[0]))
            if isinstance(self.parent, InMemory) and not sp.issparse(self.parent.matrix):
                yield start, np.ascontiguousarray(self.parent.matrix[:, indices].T)
            else:
                yield start, sp.csr_array(self.parent.columns(indices).T)

    def rows(self, indices: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 tracks at ``indices``."""
        return dense_block(self.parent.columns(np.asarray(indices)).T.tocsr(), columns)

    def column_sums(self) -> np.ndarray:
        """Sum of each bin over the tracks, in float64."""
        return self.parent.row_sums()

    def row_sums(self) -> np.ndarray:
        """Sum of each track, in float64."""
        return self.parent.column_sums()


def read_genome_axis(adata: AnnData, *, axis: Literal["var", "obs"] | None = None, name: str = "adata") -> GenomeAxis:
    """Find the axis whose table has columns ``chrom``, ``start`` and ``end``, and check them.

    Parameters
    ----------
    adata
        Object.
    axis
        Which axis, if both tables have the columns.
    name
        What messages call the object.

    Raises
    ------
    KeyError
        If no axis, or not the one asked for, has the three columns.
    ValueError
        If both have them, or values are missing, are no whole numbers, end before they start, overlap or occur twice.
    """
    if axis not in (None, "var", "obs"):
        raise ValueError(f"axis must be 'var', 'obs' or None, found {axis!r}.")
    found = [side for side in ("var", "obs") if set(COLUMNS) <= set(getattr(adata, side).columns)]
    if axis is None and len(found) == 2:
        raise ValueError(
            f"both {name}.var and {name}.obs have the columns {list(COLUMNS)}; pass axis='var' or axis='obs'."
        )
    if (axis or (found[0] if found else None)) not in found:
        raise KeyError(_missing(adata, [axis] if axis else ["var", "obs"], name))
    side: Any = axis or found[0]
    return make_genome_axis(getattr(adata, side), axis=side, name=f"{name}.{side}")


def make_genome_axis(table: pd.DataFrame, *, axis: Literal["var", "obs"], name: str) -> GenomeAxis:
    """Check a table with columns chrom, start and end, and order it."""
    if not len(table):
        raise ValueError(f"{name} has no bins: it is empty.")
    chrom = table["chrom"]
    if chrom.isna().any():
        bad = table.index[chrom.isna()]
        raise ValueError(f"{name}['chrom'] must name a chromosome for each bin, missing for {_some(bad)}.")
    if isinstance(chrom.dtype, pd.CategoricalDtype):  # millions of bins: names are turned to text once each
        codes, used = pd.factorize(np.asarray(chrom.cat.codes.array))
        names = pd.Index([str(name) for name in chrom.cat.categories[used]], dtype=object)
    else:
        codes, names = pd.factorize(chrom.astype(str).to_numpy(dtype=object))
    start, end = (_whole(table, key, name) for key in ("start", "end"))
    for bad, problem in (
        (start < 0, "negative starts"),
        (end <= start, "ends that are not after the start (positions are 0-based, half-open)"),
    ):
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{name} has {problem}: {_some(table.index[bad])}; the first is "
                f"{names[codes[first]]}:{start[first]}-{end[first]}."
            )
    order = np.lexsort((end, start, codes))
    same = codes[order][1:] == codes[order][:-1]
    gap = start[order][1:] - end[order][:-1]
    overlap = np.flatnonzero(same & (gap < 0))
    if len(overlap):
        left, right = order[overlap[0]], order[overlap[0] + 1]
        twice = start[left] == start[right] and end[left] == end[right]
        raise ValueError(
            f"{name} has {'duplicated' if twice else 'overlapping'} bins ({len(overlap)} such neighbours): "
            f"{str(table.index[left])!r} ({names[codes[left]]}:{start[left]}-{end[left]}) and "
            f"{str(table.index[right])!r} ({names[codes[right]]}:{start[right]}-{end[right]}). "
            f"{'Remove one of each pair.' if twice else 'Merge them, or keep one of each pair.'}"
        )
    breaks = np.flatnonzero(~same | (gap > 0)) + 1
    frame = pd.DataFrame(
        {"chrom": pd.Categorical.from_codes(codes, names), "start": start, "end": end}, index=table.index
    )
    return GenomeAxis(axis, frame, order, breaks, _common_width((end - start)[order], ~same))


def _common_width(widths: np.ndarray, ends_chromosome: np.ndarray) -> int | None:
    """Width of all bins, of which the last of a chromosome may be shorter."""
    last = np.append(ends_chromosome, True)
    inner = widths[~last] if not last.all() else widths
    width = int(inner[0])
    return width if (inner == width).all() and (widths[last] <= width).all() else None


def _whole(table: pd.DataFrame, key: str, name: str) -> np.ndarray:
    if isinstance(table[key].dtype, np.dtype) and table[key].dtype.kind in "iu":
        return np.asarray(table[key].array, dtype=np.int64)
    values = pd.to_numeric(table[key], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isfinite(values) | (values != np.floor(values))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{name}[{key!r}] must hold whole numbers, found {table[key].iloc[first]!r} at "
            f"{str(table.index[first])!r} ({int(bad.sum())} such values)."
        )
    return values.astype(np.int64)


def _some(names: pd.Index) -> str:
    return str([str(name) for name in names[:5]]) + (f" ... ({len(names)})" if len(names) > 5 else "")


def _missing(adata: AnnData, sides: list[str], name: str) -> str:
    """What is there in place of the three columns, and how to make them."""
    have = "; ".join(f"{name}.{side}: {list(map(str, getattr(adata, side).columns))}" for side in sides)
    message = f"expected columns {list(COLUMNS)} in {' or '.join(f'{name}.{side}' for side in sides)}, found {have}."
    for side in sides:
        columns = list(getattr(adata, side).columns)
        rename = {
            other: key
            for key, others in _OTHER_NAMES.items()
            if key not in columns
            for other in [next((other for other in others if other in columns), None)]
            if other is not None
        }
        if rename and set(rename.values()) | set(columns) >= set(COLUMNS):
            message += f" Rename them: {name}.{side} = {name}.{side}.rename(columns={rename})."
        names = getattr(adata, f"{side}_names")
        if len(names) and REGION.match(str(names[0])):
            message += (
                f" The names look like regions ({str(names[0])!r}): dbio.pp.parse_regions({name}) writes the columns."
            )
    return message
