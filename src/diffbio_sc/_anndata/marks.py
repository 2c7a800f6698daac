"""Marks of bins in the order of the genome, checked: the input of chromatin states, however the object holds it."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from diffbio_sc._anndata.cell_types import CellTypeBins, read_cell_type_bins
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._logging import logger
from diffbio_sc.blocks.matrix import CountMatrix, InMemory, as_count_matrix
from diffbio_sc.numerics.chains.baum_welch import Observations
from diffbio_sc.numerics.chains.patterns import PatternKeys

if TYPE_CHECKING:
    from anndata import AnnData

_ONE_BY_ONE = 64  # marks up to which a column is read at a time
_MOST_PATTERNS = 65_536
_FEWEST_REPEATS = 4
_DENSE_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class MarkKinds:
    """What the values of all marks are."""

    binary: bool
    """Only 0 and 1."""
    whole: bool
    """Only whole numbers."""
    smallest: float
    """Smallest value."""
    largest: np.ndarray
    """Largest value of each mark; 0 where it is missing everywhere."""
    missing: np.ndarray
    """Bins where each mark is missing."""
    constant: np.ndarray
    """Whether each mark has one value in all bins where it is known."""
    example: tuple[float, int, int] | None
    """A value that is neither 0 nor 1, its bin and mark."""


class MarkRows:
    """Rows of marks in the order of the sequences; a slice gives a dense array (bins, marks), NaN where missing.

    Parameters
    ----------
    values
        Matrix of the object.
    known
        Matrix that is not 0 where a value is known; None: all that are not NaN.
    bins_first
        Whether bins are the rows of the matrix.
    order
        Positions of bins along their axis.
    marks
        Positions of the marks wanted along the other axis.
    """

    def __init__(
        self, values: CountMatrix, known: CountMatrix | None, bins_first: bool, order: np.ndarray, marks: np.ndarray
    ):
        self.values, self.known, self.bins_first = values, known, bins_first
        self.order, self.marks = order, marks
        self.in_order = bool((order == np.arange(len(order))).all())
        self.shape = (len(order), len(marks))
        self._by_column: dict[int, Any] = {}

    def column(self, mark: int) -> np.ndarray:
        """Values (bins,) of one mark, float32."""
        column = self._column(self.values, int(self.marks[mark]))
        if self.known is not None:
            column = np.where(self._column(self.known, int(self.marks[mark])) != 0, column, np.nan)
        return column

    def _column(self, matrix: CountMatrix, mark: int) -> np.ndarray:
        if not self.bins_first:
            column = matrix.take(np.array([mark]))[0]
        elif isinstance(matrix, InMemory) and not sp.issparse(matrix.matrix):
            column = np.asarray(matrix.matrix[:, mark], np.float32)
        else:
            # A mark is all over rows of bins, in a file or sparse: they are turned once.
            if id(matrix) not in self._by_column:
                every = np.arange(matrix.shape[1])
                self._by_column[id(matrix)] = sp.csc_array(matrix.columns(every))
            column = self._by_column[id(matrix)][:, [mark]].toarray().ravel().astype(np.float32)
        return column if self.in_order else column[self.order]

    def __getitem__(self, part: slice) -> np.ndarray:
        """Dense rows of bins, float32."""
        where = self.order[part]
        rows = self._rows(self.values, where)
        if self.known is not None:
            rows = np.where(self._rows(self.known, where) != 0, rows, np.float32(np.nan))
        return rows

    def _rows(self, matrix: CountMatrix, where: np.ndarray) -> np.ndarray:
        all_marks = len(self.marks) == matrix.shape[1 if self.bins_first else 0]
        if self.bins_first:
            if isinstance(matrix, InMemory):
                return matrix.take(where, None if all_marks else self.marks)
            sorting = np.argsort(where, kind="stable")
            rows = np.empty((len(where), len(self.marks)), np.float32)
            rows[sorting] = matrix.take(where[sorting], None if all_marks else self.marks)
            return rows
        if isinstance(matrix, InMemory) and not sp.issparse(matrix.matrix):
            rows = np.asarray(matrix.matrix[:, where], np.float32).T
            return rows if all_marks else rows[:, self.marks]
        return matrix.columns(where).toarray().T.astype(np.float32)[:, self.marks]

    def kinds(self) -> MarkKinds:
        """Look at all values.

        Raises
        ------
        ValueError
            If a value is infinite.
        """
        bins, marks = self.shape
        largest, missing = np.full(marks, -np.inf), np.zeros(marks, np.int64)
        smallest_each = np.full(marks, np.inf)
        binary, whole, example = True, True, None
        for mark, offset, column in self._pieces():
            known = ~np.isnan(column)
            values = column if known.all() else column[known]
            missing[mark] += len(column) - len(values)
            if not len(values):
                continue
            if np.isinf(values).any():
                place = int(np.flatnonzero(np.isinf(column))[0]) + offset
                raise ValueError(f"values must be finite, found {column[place - offset]} in bin {self.order[place]}.")
            highest, lowest = float(values.max()), float(values.min())
            largest[mark] = max(largest[mark], highest)
            smallest_each[mark] = min(smallest_each[mark], lowest)
            other = (values != 0) & (values != 1)
            if other.any():
                binary = False
                whole = whole and bool((values == np.floor(values)).all())
                if example is None:
                    place = int(np.flatnonzero(known & (column != 0) & (column != 1))[0])
                    example = (float(column[place]), int(self.order[place + offset]), int(self.marks[mark]))
        seen = np.isfinite(smallest_each)
        return MarkKinds(
            binary,
            whole,
            float(smallest_each[seen].min()) if seen.any() else 0.0,
            np.where(seen, largest, 0.0),
            missing,
            seen & (smallest_each == largest),
            example,
        )

    def _pieces(self):
        """Yield (mark, first bin, values) over all values."""
        if self.shape[1] <= _ONE_BY_ONE:
            for mark in range(self.shape[1]):
                yield mark, 0, self.column(mark)
            return
        for start in range(0, self.shape[0], 16_384):
            rows = self[start : start + 16_384]
            for mark in range(self.shape[1]):
                yield mark, start, rows[:, mark]


@dataclasses.dataclass(frozen=True)
class MarkData:
    """Marks of an object along its genome."""

    axis: Literal["var", "obs"]
    parts: list[CellTypeBins]
    """Bins of each cell type."""
    marks: list[str]
    """Names of the marks read."""
    rows: MarkRows
    sequences: list[np.ndarray]
    """Positions along the axis of each sequence."""
    names: list[str]
    """Chromosome of each sequence, with the cell type before it where there are several."""
    kinds: MarkKinds

    def observations(self, *, discrete: bool) -> Observations:
        """Sequences as they are fitted; ``discrete``: rows of whole numbers, which may repeat."""
        lengths = [len(sequence) for sequence in self.sequences]
        bins, marks = self.rows.shape
        if discrete and marks <= _ONE_BY_ONE:
            keys = PatternKeys(bins, self.kinds.largest)
            if keys.fits:
                for mark in range(marks):
                    keys.add(self.rows.column(mark))
                found = keys.distinct(max(min(bins // _FEWEST_REPEATS, _MOST_PATTERNS), 64))
                if found is not None:
                    return Observations(found[0], lengths, index=found[1])
        if bins * marks * 4 <= _DENSE_BYTES and marks <= _ONE_BY_ONE:
            return Observations(self.rows[0:bins], lengths)
        return Observations(self.rows, lengths)


def read_marks(
    adata: AnnData,
    *,
    layer: str | None = None,
    mask: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    cell_type_key: str | None = None,
    marks: list[str] | None = None,
    name: str = "adata",
) -> MarkData:
    """Take marks out of an object, along its genome axis.

    Parameters
    ----------
    adata
        Object with bins along one axis and marks along the other.
    layer
        Layer with the values; default ``X``.
    mask
        Layer that is not 0 where a value is known.
    axis
        Which axis holds the bins, if both tables have the columns of bins.
    cell_type_key
        Column of the bins' table with their cell type.
    marks
        Marks to read, in this order; default all.
    name
        What messages call the object.
    """
    require_anndata(adata, name)
    side, parts = read_cell_type_bins(adata, cell_type_key, axis=axis, name=name)
    track_names = adata.var_names if side == "obs" else adata.obs_names
    other = "var" if side == "obs" else "obs"
    require_unique(
        track_names,
        f"marks ({name}.{other}_names)",
        f"Rename them; marks of several cell types lie below each other, with {name}.{side}['cell_type'], not marks "
        "side by side.",
    )
    if not len(track_names):
        raise ValueError(f"{name} has no marks: {name}.{other} is empty.")
    columns = np.arange(len(track_names)) if marks is None else track_names.get_indexer(marks)
    widths = {part.genome.width for part in parts}
    if None in widths or len(widths) > 1:
        warnings.warn(
            f"bins of {name}.{side} are not all of one width; a chain of states takes every step to be as long.",
            UserWarning,
            stacklevel=3,
        )
    sequences = [sequence for part in parts for sequence in part.sequences]
    names = []
    for part in parts:
        chromosome = part.genome.table["chrom"].array
        prefix = "" if part.name is None else f"{part.name} "
        names += [f"{prefix}{chromosome[int(sequence[0])]}" for sequence in part.genome.sequences]
    layers = [str(key) for key in adata.layers.keys() if key is not None]
    matrices = []
    for key in (layer, mask):
        if key is not None and key not in adata.layers:
            raise KeyError(f"{name}.layers has no {key!r}; layers: {layers}.")
        matrices.append(adata.X if key is None else adata.layers[key])
    if matrices[0] is None:
        raise ValueError(f"{name}.X is None; pass the marks with layer=...; layers: {layers}.")
    for matrix in matrices:
        if hasattr(matrix, "dtype") and matrix.dtype.kind not in "biuf":
            raise TypeError(f"{name} must hold real numbers or booleans, found dtype {matrix.dtype}.")
    order = np.concatenate(sequences)
    rows = MarkRows(
        as_count_matrix(matrices[0]),
        None if mask is None else as_count_matrix(matrices[1]),
        side == "obs",
        order,
        columns,
    )
    kinds = rows.kinds()
    labels = [str(track_names[column]) for column in columns]
    if (kinds.missing == len(order)).all():
        raise ValueError(f"{name} has no values: all marks are missing in all bins.")
    empty = [label for label, number in zip(labels, kinds.missing, strict=True) if number == len(order)]
    if empty:
        logger.warning(f"marks {empty} are missing in all bins; they say nothing.")
    return MarkData(side, parts, labels, rows, sequences, names, kinds)


def choose_emission(kinds: MarkKinds, emission: str, adata: AnnData, side: str) -> str:
    """Return the family that the values are fitted with, refusing one that they do not fit.

    Parameters
    ----------
    kinds
        What the values are.
    emission
        The family asked for, or ``"auto"``.
    adata, side
        Object and axis of the bins, for messages.
    """

    def place() -> str:
        assert kinds.example is not None
        value, position, mark = kinds.example
        bins, marks = (adata.obs_names, adata.var_names) if side == "obs" else (adata.var_names, adata.obs_names)
        return f"{value:.6g} at bin {str(bins[position])!r}, mark {str(marks[mark])!r}"

    if emission == "auto":
        chosen = (
            "bernoulli" if kinds.binary else "negative_binomial" if kinds.whole and kinds.smallest >= 0 else "gaussian"
        )
        what = {"bernoulli": "0 and 1", "negative_binomial": "counts", "gaussian": "real numbers"}[chosen]
        logger.info(f"marks hold {what}: emission={chosen!r}.")
        return chosen
    if emission == "bernoulli" and not kinds.binary:
        raise ValueError(
            f"emission='bernoulli' needs values of 0 and 1 (NaN where missing), found {place()}. Make counts "
            "binary with dbio.pp.binarize, or choose another emission; nothing is made binary silently."
        )
    if emission in ("poisson", "negative_binomial", "multinomial"):
        if kinds.smallest < 0:
            raise ValueError(
                f"emission={emission!r} needs counts, found negative values (lowest {kinds.smallest:.6g})."
            )
        if not kinds.whole:
            raise ValueError(f"emission={emission!r} needs counts, found {place()}; 'gaussian' takes real numbers.")
    if emission == "gaussian" and kinds.binary:
        warnings.warn("emission='gaussian' for values of 0 and 1; 'bernoulli' is made for them.", stacklevel=3)
    return emission
