"""Bins of an AnnData as peak calling takes them: places, width, and in how many of them one fragment counts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffbio_sc._anndata.genome_axis import GenomeAxis
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc.engines.bin_peaks import Bins
from diffbio_sc.numerics.genome.marks import WIDEST_WINDOW

_TYPICAL_LENGTH = 200  # base pairs of a fragment: a nucleosome and its linkers
_WIDE = 2000  # base pairs of a bin beyond which a narrow peak is a small part of it
_MOST_LOST, _SOME_LOST = 0.5, 0.1  # of the bins


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
        If the caller was made for bins of another width, or most bins stand alone between gaps.
    """
    width = _width(genome)
    if config is not None and abs(config.bin_width - width) > 0.5:
        raise ValueError(f"operator was made for bins of {config.bin_width} bp, those of adata have {width:.0f} bp.")
    _check_gaps(genome)
    if width > _WIDE:
        warnings.warn(
            f"bins of {width:.0f} bp are wider than peaks of narrow marks are: windows of the background are widened "
            "with them, and weak peaks are lost. Count in bins of 500 bp or less, or use dbio.tl.call_peaks.",
            UserWarning,
            stacklevel=3,
        )
    counted = _counted(adata)
    per_bin = 1.0
    length = float(fragment_length or _TYPICAL_LENGTH)
    if config is not None:
        positions = float(config.positions_per_read)
    elif counted == "cut_sites":
        # A fragment of length L has both of its cut sites in one bin of width w with probability 1 - L / w.
        positions, per_bin = 2.0, 2.0 / (2.0 - max(1.0 - length / width, 0.0))
    elif counted == "midpoint" and fragment_length is None:
        positions = 1.0
    else:
        positions = 1.0 + (length - 1) / width
    return Bins(genome, width, positions, per_bin)


def _check_gaps(genome: GenomeAxis) -> None:
    """Refuse bins most of which stand alone between gaps, and warn where many do."""
    codes = genome.code[genome.order]
    gaps = genome.breaks[codes[genome.breaks] == codes[genome.breaks - 1]]
    if not len(gaps):
        return
    span = np.zeros(len(codes))
    position = 0
    for index in genome.sequences:
        span[position : position + len(index)] = genome.end[index[-1]] - genome.start[index[0]]
        position += len(index)
    # Short contigs are what they are; short pieces beside a gap are missing bins.
    beside = np.isin(codes, codes[gaps])
    lost = float(((span < WIDEST_WINDOW) & beside).mean())
    what = (
        f"{lost:.0%} of the bins lie in pieces shorter than {WIDEST_WINDOW} bp with gaps between them ({len(gaps)} "
        "gaps), and no background is taken across a gap"
    )
    advice = "Keep all bins of a chromosome, also those without counts."
    if lost > _MOST_LOST:
        raise ValueError(f"adata has too few neighbouring bins to call peaks of: {what}. {advice}")
    if lost > _SOME_LOST:
        warnings.warn(f"{what}: peaks there are lost. {advice}", UserWarning, stacklevel=4)


def _width(genome: GenomeAxis) -> float:
    """Width of the bins in base pairs; the median, with a warning, where they differ."""
    if genome.width is not None:
        return float(genome.width)
    sizes = genome.end - genome.start
    warnings.warn(
        f"bins are {sizes.min()} to {sizes.max()} base pairs wide; windows of the background take them to have their "
        "median width. Peaks are better called from fragments or from bins of one width.",
        UserWarning,
        stacklevel=4,
    )
    return float(np.median(sizes))


def _counted(adata: Any) -> str | None:
    """What of each fragment was counted, where it is recorded."""
    record = in_memory(adata.uns.get("coverage"))
    params = record.get("params", {}) if isinstance(record, Mapping) else {}
    return params.get("ends") if isinstance(params, Mapping) else None
