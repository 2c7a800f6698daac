"""Barcodes that are asked for against those that a sample has, and the groups that they stand for."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from diffbio_sc._checks import name_heads
from diffbio_sc.genome.intervals import Intervals

EXPECTED_SHARE = 0.5
"""Share of the barcodes asked for below which a warning says how many were found: some cells of a data set may lie in
other files, but names that are written in two ways match by chance only."""

_ADVICE = "Compare suffixes such as '-1' and prefixes of samples."


def report_barcodes(
    asked: Sequence[str], found: Collection[str], name: str, there: Sequence[str], *, stacklevel: int = 3
) -> None:
    """Raise ValueError if none of the barcodes asked for was found, warn if few were.

    Parameters
    ----------
    asked, found
        Barcodes asked for, and those of them that were found.
    name
        What messages call the sample.
    there
        Some barcodes of the sample, as examples.
    stacklevel
        Frame that a warning points to, as :func:`warnings.warn` counts.
    """
    examples = f" It has {name_heads(there)}." if len(there) else ""
    if not found:
        raise ValueError(
            f"{name} has none of the {len(asked)} barcodes asked for: {name_heads(asked)}.{examples} {_ADVICE}"
        )
    if len(found) < EXPECTED_SHARE * len(asked):
        missing = [barcode for barcode in asked if barcode not in found]
        warnings.warn(
            f"{name} has {len(found)} of the {len(asked)} barcodes asked for; missing are {name_heads(missing)}."
            f"{examples} {_ADVICE}",
            UserWarning,
            stacklevel=stacklevel,
        )


def group_codes(intervals: Intervals, labels: Mapping[str, str] | None) -> tuple[np.ndarray, list[str]]:
    """Group of each of the barcodes of a sample (-1: none) and the names of the groups.

    Parameters
    ----------
    intervals
        Fragments or reads with barcodes.
    labels
        Label of each barcode, which names its group; by default each barcode is a group of its own.

    Raises
    ------
    ValueError
        If there are no barcodes.
    """
    if intervals.barcodes is None or "cell_code" not in intervals.columns:
        raise ValueError(
            f"{intervals.name} has no barcodes to group by; read a fragment file with barcodes, or a BAM file with "
            "dbio.io.read_bam(..., barcode_tag='CB')."
        )
    if labels is None:
        return np.arange(len(intervals.barcodes), dtype=np.int32), intervals.barcodes
    names = list(dict.fromkeys(labels.values()))
    lookup = {name: code for code, name in enumerate(names)}
    codes = np.array([lookup[labels[barcode]] if barcode in labels else -1 for barcode in intervals.barcodes], np.int32)
    return codes, names


def found_barcodes(intervals: Intervals, labels: Mapping[str, str]) -> set[str]:
    """Barcodes with a label that the sample has."""
    return {barcode for barcode in intervals.barcodes or () if barcode in labels}
