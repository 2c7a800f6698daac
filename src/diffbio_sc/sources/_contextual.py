"""Operator-ready arrays of the contextual sequence model, from arrays or from an AnnData of regions by cell types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from diffbio_sc._checks import counted, is_path, name_heads, whole_number
from diffbio_sc.operators.epigenomics.contextual_contract import (
    REQUIRED_KEYS,
    ContextualDataset,
    validate_contextual_epigenomics_dataset,
)

if TYPE_CHECKING:
    import os

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from diffbio_sc._anndata.genome_axis import GenomeAxis

__all__ = ["ContextualEpigenomicsSource"]

_MILLION = 1e6


class ContextualEpigenomicsSource:
    """Examples of the contextual sequence model, checked against its contract.

    Parameters
    ----------
    data
        Arrays by name, as :func:`~diffbio_sc.operators.epigenomics.validate_contextual_epigenomics_dataset` has them.
        Without ``chromatin_contacts`` the source serves models that take none.
    target_semantics
        What targets mean: ``"binary_peak_mask"`` or ``"chromatin_state_id"``.
    num_output_classes
        Number of classes, 1 for a mask.
    token_width
        Bases of a position.
    batch_size
        Examples that are handed out together.

    Attributes
    ----------
    contract
        Sizes of the data set, and the numbers of unknown and masked bases.
    report
        What was read and what was left out; empty for arrays.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the arrays break the contract.

    Notes
    -----
    Iterating gives batches in order, the last one shorter; ``source[rows]`` gives chosen examples.

    Examples
    --------
    >>> from diffbio_sc.sources import ContextualEpigenomicsSource, build_synthetic_contextual_epigenomics_dataset
    >>> source = ContextualEpigenomicsSource(build_synthetic_contextual_epigenomics_dataset(n_examples=5), batch_size=2)
    >>> [len(batch["sequence"]) for batch in source]
    [2, 2, 1]
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        *,
        target_semantics: str = "binary_peak_mask",
        num_output_classes: int = 1,
        token_width: int = 1,
        batch_size: int = 64,
    ):
        required = tuple(key for key in REQUIRED_KEYS if key != "chromatin_contacts")
        self.batch_size = whole_number(batch_size, "batch_size")
        self.contract: ContextualDataset = validate_contextual_epigenomics_dataset(
            data,
            target_semantics=target_semantics,
            num_output_classes=num_output_classes,
            token_width=whole_number(token_width, "token_width"),
            required_keys=required,
        )
        known = (*REQUIRED_KEYS, "sequence_mask")
        self._data = {key: np.asarray(value) for key, value in data.items() if key in known}
        self.target_semantics, self.num_output_classes = target_semantics, num_output_classes
        self.token_width = token_width
        self.report: dict[str, Any] = {}

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.contract.examples

    def __getitem__(self, rows: Any) -> dict[str, np.ndarray]:
        """Return chosen examples: a number, a slice, or an array of numbers or booleans."""
        return {key: value[rows] for key, value in self._data.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Go through the examples in batches."""
        for first in range(0, len(self), self.batch_size):
            yield self[first : first + self.batch_size]

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        *,
        sequences: str = "dna",
        fasta: Any = None,
        layer: str | None = None,
        tf_context: str = "tf_context",
        expression: pd.DataFrame | AnnData | MuData | None = None,
        groupby: str | None = None,
        tfs: Sequence[str] | None = None,
        contacts: str | os.PathLike[str] | None = None,
        positions: int = 1,
        axis: Literal["var", "obs"] | None = None,
        batch_size: int = 64,
    ) -> Self:
        """Take examples out of an object of regions by cell types, either way round.

        Parameters
        ----------
        adata
            Object; regions have ``chrom``, ``start`` and ``end``, values are 1 for an open region and 0 for others.
        sequences
            Key of tokens that :func:`diffbio_sc.pp.sequences` wrote.
        fasta
            Genome to read sequences from instead: a FASTA file (through pyfaidx, extra ``sequence``) or a mapping from
            chromosome to sequence.
        layer
            Layer of the labels; default ``X``.
        tf_context
            Key of contexts that :func:`diffbio_sc.pp.tf_context` wrote.
        expression, groupby, tfs
            Expression to take contexts from instead: a table or AnnData of cell types, or with ``groupby``, the column
            with the cell type, counts of cells, which are added up; ``tfs`` are the factors to take. Counts become
            log2(CPM + 1).
        contacts
            Contacts of pairs of regions: a key of ``.varp`` (or ``.obsp``), or a file of cooler whose bins are the
            regions. Values above 1 are taken for counts and become count / (count + expected count at that distance),
            one half for a contact as its distance explains.
        positions
            Regions in a row that make one example, each a position of it; they must be of one width and adjoin. Regions
            that fill no example are left out. Contacts need more than one.
        axis
            Axis of the regions, if both tables have the columns.
        batch_size
            Examples that are handed out together.

        Returns
        -------
        The source. Its report has ``examples``, ``regions_left_out``, ``cell_types`` and ``cell_types_left_out``, those
        without expression.

        Raises
        ------
        KeyError, TypeError, ValueError
            If something is missing or does not fit.
        """
        from diffbio_sc._anndata.contextual_data import read_binary_labels, read_context, read_region_tokens
        from diffbio_sc._anndata.region_axis import read_region_axis
        from diffbio_sc.genome.sequences import one_hot

        positions = whole_number(positions, "positions")
        regions = read_region_axis(adata, axis=axis)
        tokens = read_region_tokens(adata, regions, sequences, fasta)
        labels = read_binary_labels(adata, regions, layer)
        if expression is not None:
            context = _context_of(expression, groupby, tfs, regions.track_names(adata))
        else:
            stored = read_context(adata, regions, tf_context, required=True)
            assert stored is not None
            context = stored.values
        known = ~np.isnan(context).any(1)
        cells = np.array([str(name) for name in regions.track_names(adata)])
        if not known.any():
            raise ValueError(f"no cell type has expression: {name_heads(list(cells))}.")
        examples = _examples(regions, positions, tokens.shape[1])
        number, width = len(examples), tokens.shape[1]
        data = {
            "sequence": one_hot(tokens[examples].reshape(number, positions * width)),
            "tf_context": np.broadcast_to(
                context[known].astype(np.float32), (number, int(known.sum()), context.shape[1])
            ),
            "targets": np.ascontiguousarray(labels[examples][:, :, known].transpose(0, 2, 1)),
        }
        if contacts is not None:
            data["chromatin_contacts"] = _contact_maps(adata, regions, contacts, examples)
        source = cls(data, token_width=width, batch_size=batch_size)
        source.report = {
            "examples": number,
            "regions_left_out": len(regions) - examples.size,
            "cell_types": cells[known].tolist(),
            "cell_types_left_out": cells[~known].tolist(),
        }
        return source


def _examples(regions: GenomeAxis, positions: int, width: int) -> np.ndarray:
    """Regions of each example (examples, positions), along the genome."""
    if positions == 1:
        return np.arange(len(regions))[:, None]
    table = regions.table
    start, end, code = table["start"].to_numpy(), table["end"].to_numpy(), regions.code
    order = np.lexsort((start, code))
    if (end - start != width).any():
        raise ValueError(f"positions={positions} needs regions of one width, that of their sequences ({width} bases).")
    adjoins = (code[order][1:] == code[order][:-1]) & (start[order][1:] == end[order][:-1])
    runs = np.split(order, np.flatnonzero(~adjoins) + 1)
    found = [run[: len(run) // positions * positions].reshape(-1, positions) for run in runs]
    examples = np.concatenate(found)
    if not len(examples):
        longest = max(len(run) for run in runs)
        raise ValueError(
            f"positions={positions} needs as many regions that adjoin; at most {counted(longest, 'region')} do."
        )
    return examples


def _context_of(expression: Any, groupby: str | None, tfs: Sequence[str] | None, cells: Any) -> np.ndarray:
    import pandas as pd

    from diffbio_sc._anndata.tf_context import align_cell_types, read_expression

    read = read_expression(expression, groupby=groupby, layer=None, modality="rna", tfs=tfs)
    values = read.table.to_numpy(np.float64)
    if read.counts:
        total = np.asarray(read.total, np.float64)[:, None]
        values = np.log2(values / np.where(total > 0, total, np.nan) * _MILLION + 1)
    table = pd.DataFrame(values, index=read.table.index, columns=read.table.columns)
    return align_cell_types(table, cells, owner="the cell types of adata")[0].to_numpy(np.float64)


def _contact_maps(adata: AnnData, regions: GenomeAxis, contacts: Any, examples: np.ndarray) -> np.ndarray:
    import scipy.sparse as sp

    field = f"{regions.axis}p"
    pairs = getattr(adata, field)
    if isinstance(contacts, str) and contacts in pairs:
        matrix, where = pairs[contacts], f"adata.{field}[{contacts!r}]"
        at = np.arange(len(regions))
    elif is_path(contacts) and (not isinstance(contacts, str) or "." in contacts or "/" in contacts):
        matrix, at = _read_cooler(contacts, regions)
        where = str(contacts)
    else:
        raise KeyError(f"adata.{field} has no {contacts!r}; keys: {[str(key) for key in pairs]}.")
    if examples.shape[1] == 1:
        raise ValueError("contacts are of pairs of regions: pass positions=, how many regions in a row an example has.")
    matrix = sp.csr_array(matrix) if sp.issparse(matrix) else np.asarray(matrix)
    maps = np.empty((len(examples), examples.shape[1], examples.shape[1]), np.float64)
    for number, rows in enumerate(at[examples]):
        block = matrix[rows][:, rows]
        maps[number] = block.toarray() if sp.issparse(block) else block
    if np.isnan(maps).any() or maps.min() < 0:
        raise ValueError(f"{where} must hold contacts, not negative or NaN, found {np.nanmin(maps):.6g} or NaN.")
    upper = np.triu(np.ones(maps.shape[1:], bool), 1)
    if not maps[:, upper.T].any():  # one triangle is stored
        maps = maps + np.triu(maps, 1).transpose(0, 2, 1)
    return (_against_distance(maps) if maps.max() > 1 else maps).astype(np.float32)


def _against_distance(counts: np.ndarray) -> np.ndarray:
    """Counts over their sum with the mean count at their distance; 0 where nothing is ever seen."""
    size = counts.shape[1]
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    expected = np.array([counts[:, apart == distance].mean() for distance in range(size)])[apart]
    return np.divide(counts, counts + expected, out=np.zeros_like(counts), where=expected > 0)


def _read_cooler(path: Any, regions: GenomeAxis) -> tuple[Any, np.ndarray]:
    """Contacts of the file, and the bin of each region."""
    import pandas as pd

    from diffbio_sc.io import read_cool

    table = regions.table
    width = int(table["end"].iloc[0] - table["start"].iloc[0])
    read = read_cool(path) if "::" in str(path) or str(path).endswith(".cool") else read_cool(path, resolution=width)
    columns = ["chrom", "start", "end"]
    bins = pd.MultiIndex.from_frame(read.obs[columns].astype({"chrom": str}))
    at = bins.get_indexer(pd.MultiIndex.from_frame(table[columns].astype({"chrom": str})))
    if (at < 0).any():
        first = table.iloc[int(np.flatnonzero(at < 0)[0])]
        raise ValueError(
            f"{path} has no bin {first['chrom']}:{first['start']}-{first['end']}: its bins must be the regions "
            f"({counted(int((at < 0).sum()), 'region')} of {len(at):,} have none)."
        )
    return read.obsp["contacts"], at
