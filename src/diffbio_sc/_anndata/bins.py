"""Bins of an AnnData as peak calling takes them: places, width, and in how many of them one fragment counts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffbio_sc._anndata.genome_axis import GenomeAxis
from diffbio_sc.engines.bin_peaks import Bins

_TYPICAL_LENGTH = 200  # base pairs of a fragment


def read_bins(adata: Any, genome: GenomeAxis, *, fragment_length: float | None = None, config: Any = None) -> Bins:
    """Return the bins of a genome axis.

    Parameters
    ----------
    adata
        Object, whose ``.uns["coverage"]`` says how fragments were counted if :func:`diffbio_sc.pp.coverage` made it.
    genome
        Its axis of bins.
    fragment_length
        Length of the fragments in base pairs; default 200.
    config
        Configuration of a trained caller, which then says how fragments were counted.

    Raises
    ------
    ValueError
        If the caller was made for bins of another width.
    """
    width = _width(genome)
    if config is not None:
        if abs(config.bin_width - width) > 0.5:
            raise ValueError(
                f"operator was made for bins of {config.bin_width} bp, those of adata have {width:.0f} bp."
            )
        positions = float(config.positions_per_read)
    elif fragment_length is None and _counted(adata) in ("cut_sites", "midpoint"):
        positions = 1.0
    else:
        positions = 1.0 + ((fragment_length or _TYPICAL_LENGTH) - 1) / width
    return Bins(
        genome.chromosomes,
        genome.table["chrom"].cat.codes.to_numpy(),
        genome.table["start"].to_numpy(),
        genome.table["end"].to_numpy(),
        genome.sequences,
        width,
        positions,
    )


def _width(genome: GenomeAxis) -> float:
    """Width of the bins in base pairs; the median, with a warning, where they differ."""
    if genome.width is not None:
        return float(genome.width)
    sizes = (genome.table["end"] - genome.table["start"]).to_numpy()
    warnings.warn(
        f"bins are {sizes.min()} to {sizes.max()} base pairs wide; windows of the background take them to have their "
        "median width. Peaks are better called from fragments or from bins of one width.",
        UserWarning,
        stacklevel=4,
    )
    return float(np.median(sizes))


def _counted(adata: Any) -> str | None:
    """What of each fragment was counted, where it is recorded."""
    record = adata.uns.get("coverage")
    params = record.get("params", {}) if isinstance(record, Mapping) else {}
    return params.get("ends") if isinstance(params, Mapping) else None
