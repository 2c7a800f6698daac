"""Balancing of a whole contact map: within chromosomes, between them, or all at once."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.genome.balancing import Balance, balance, usable_bins
from diffbio_sc.numerics.genome.pixels import PixelRows, cis_rows, pixel_rows

Contact = Literal["cis", "trans", "all"]


@dataclasses.dataclass(frozen=True)
class MapBalance:
    """Weights of all bins of a map.

    Attributes
    ----------
    weights
        Multiplicative weights, as of cooler; NaN for bins left out.
    regions
        What was balanced on its own: chromosomes, or one name for all.
    error, products, converged
        Of each region: largest deviation of a row sum from 1, products with the matrix, whether it is small enough.
    dropped
        Bins that passed the filters but no weights could balance.
    """

    weights: np.ndarray
    regions: list[str]
    error: np.ndarray
    products: np.ndarray
    converged: np.ndarray
    dropped: np.ndarray


def balance_map(
    contacts: ContactMap,
    *,
    contact: Contact = "cis",
    ignore_diags: int = 2,
    min_nnz: int = 10,
    min_count: float = 0,
    mad_max: float = 5.0,
    tolerance: float = 1e-6,
) -> MapBalance:
    """Balance a map; the arguments are those of :func:`diffbio_sc.tl.balance`."""
    n = contacts.n_bins
    if contact == "cis":
        spans = [(name, contacts.span(name)) for name in contacts.chromosomes()]
        blocks = [cis_rows(contacts.counts, span.start, span.stop, ignore_diags) for _, span in spans]
        parts = [block.marginals() for block in blocks]
        total, number = (np.concatenate(part) if part else np.zeros(0) for part in zip(*parts, strict=True))
    else:
        spans = [(contact, slice(0, n))]
        blocks = [_wide_rows(contacts, contact, ignore_diags)]
        # As cooler: bins are judged by all of their contacts, even where those within chromosomes are then left out.
        total, number = _wide_rows(contacts, "all", ignore_diags).marginals()
    used = usable_bins(total, number, contacts.chrom, min_nnz, min_count, mad_max)
    weights = np.full(n, np.nan)
    results: list[Balance] = []
    dropped = []
    for (_, span), block in zip(spans, blocks, strict=True):
        result = balance(block.product, used[span], block.diagonal, tolerance)
        weights[span] = result.weights
        dropped.append(result.dropped + span.start)
        results.append(result)
    if contact == "trans":
        # As cooler: a bin of a large chromosome has fewer partners, and its weight says so.
        size = np.bincount(contacts.chrom, minlength=len(contacts.chrom_names))
        weights *= 1.0 - size[contacts.chrom] / n
    return MapBalance(
        weights,
        [name for name, _ in spans],
        np.array([result.error for result in results]),
        np.array([result.products for result in results]),
        np.array([result.converged for result in results]),
        np.concatenate(dropped) if dropped else np.zeros(0, np.int64),
    )


def _wide_rows(contacts: ContactMap, contact: Contact, ignore_diags: int) -> PixelRows:
    """Rows of the whole map, with or without the contacts within chromosomes."""
    n = contacts.n_bins
    if contact == "all":
        return pixel_rows(contacts.counts, 0, n, np.arange(n) + ignore_diags, np.full(n, n))
    last = np.searchsorted(contacts.chrom, contacts.chrom, side="right")
    return pixel_rows(contacts.counts, 0, n, last, np.full(n, n))
