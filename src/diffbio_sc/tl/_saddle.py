from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._options import check_options
from diffbio_sc.numerics.genome.contact_averages import (
    class_sums,
    quantile_classes,
    saddle_strength,
    trans_class_sums,
)
from diffbio_sc.tl._contacts_input import Axis, Breaks, in_bins, read_balanced

if TYPE_CHECKING:
    from anndata import AnnData


def saddle(
    adata: AnnData,
    *,
    key: str = "contacts",
    axis: Axis = None,
    contact: Literal["cis", "trans"] = "cis",
    weight_key: str = "contact_weight",
    divisive: bool = False,
    compartment_key: str = "compartment",
    n_classes: int = 50,
    tails: float = 0.025,
    min_distance: int = 0,
    max_distance: int | None = None,
    ignore_diags: int = 2,
    breaks: Breaks = None,
    key_added: str = "saddle",
    copy: bool = False,
) -> AnnData | None:
    """Average observed over expected contacts by the compartment values of both bins.

    Bins are sorted by their compartment value into classes of like size. The mean of observed over expected for each
    pair of classes makes the saddle: B with B in one corner, A with A in the other :cite:p:`Open2C2024`.

    Parameters
    ----------
    adata
        Object with a balanced contact map (:func:`diffbio_sc.tl.balance`) and compartments
        (:func:`diffbio_sc.tl.compartments`).
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    contact
        Contacts within chromosomes, or between them; the latter need weights of ``balance(contact="trans")`` or
        ``"all"``, and distances have no part in them. Their expectation is the mean of each pair of chromosomes.
    weight_key, divisive
        Column with the balancing weights, and whether counts are divided by them.
    compartment_key
        Column with the values that bins are sorted by.
    n_classes
        Number of classes.
    tails
        Share of the bins left out at each end.
    min_distance, max_distance
        Distances of pairs of bins in base pairs.
    ignore_diags
        Number of diagonals left out.
    breaks
        Positions in base pairs, by chromosome, at which it is cut.
    key_added
        Key of the result in ``.uns``.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with this field:

    `.uns["saddle"]` : dict
        ``mean`` (classes, classes), mean of observed over expected, low values (B) first; ``pairs``, the n_classes of
        pairs of bins of each, both orders counted; ``edges``, the values between classes; ``strength``, contacts within
        over between the k outermost classes of both ends for k = 1, 2, ...; ``params``, ``version``, ``report`` with
        ``strength`` at a fifth of the classes.

    Raises
    ------
    KeyError
        If there are no such map, weights or values.
    ValueError
        If fewer bins have values than there are classes. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.contacts(adata, phasing_track="gc")
    >>> dbio.tl.saddle(adata)
    >>> adata.uns["saddle"]["report"]["strength"] > 1
    True
    """
    check_options(
        saddle,
        locals(),
        n_classes="[2, inf)",
        tails="[0, 0.5)",
        min_distance="[0, inf) base pairs",
        max_distance="(0, inf) base pairs",
        ignore_diags="[0, inf)",
    )
    n_classes, ignore_diags = int(n_classes), int(ignore_diags)
    started = time.perf_counter()
    balanced = read_balanced(
        adata, key=key, axis=axis, weight_key=weight_key, divisive=divisive, ignore_diags=ignore_diags, breaks=breaks
    )
    contacts = balanced.contacts
    values = read_bin_values(adata, contacts, compartment_key, "dbio.tl.compartments")
    values = np.where(np.isfinite(balanced.weights), values, np.nan)
    known = int(np.isfinite(values).sum())
    if known < n_classes:
        raise ValueError(
            f"{known} bins have a weight and a value in {compartment_key!r}, fewer than {n_classes} classes."
        )
    code, edges = quantile_classes(values, n_classes, tails)
    resolution = balanced.resolution
    first = max(in_bins("min_distance", min_distance, resolution, 0), ignore_diags)
    last = contacts.map.n_bins if max_distance is None else in_bins("max_distance", max_distance, resolution) + 1
    sums, pairs = np.zeros((n_classes, n_classes)), np.zeros((n_classes, n_classes))
    if contact == "trans":
        if len(contacts.map.chromosomes()) < 2:
            raise ValueError("contact='trans' needs at least two chromosomes, found one.")
        sums, pairs = trans_class_sums(contacts.map.counts, contacts.map.chrom, balanced.weights, code, n_classes)
    for decay in balanced.decays if contact == "cis" else []:
        region = slice(decay.first, decay.last)
        part = class_sums(
            contacts.map.counts[region, region],
            balanced.weights[region],
            decay.value,
            code[region],
            n_classes,
            (first, last),
        )
        sums, pairs = sums + part[0], pairs + part[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / pairs
    strength = saddle_strength(sums, pairs)
    params = {
        "key": key,
        "contact": contact,
        "compartment_key": compartment_key,
        "n_classes": n_classes,
        "tails": tails,
        "min_distance": first * resolution,
        "max_distance": max_distance,
    }
    report = {
        "converged": True,
        "seconds": time.perf_counter() - started,
        "strength": float(strength[max(n_classes // 5, 1) - 1]),
    }
    adata = adata.copy() if copy else adata
    record = make_record(params, report, mean=mean, pairs=pairs, edges=edges, strength=strength)
    write_results(adata, uns={key_added: record})
    return adata if copy else None


def read_bin_values(adata: AnnData, contacts, key: str, maker: str) -> np.ndarray:
    """Numbers of a column of the genome axis in the order of the map, NaN where missing."""
    table = getattr(adata, contacts.axis.axis)
    if key not in table:
        raise KeyError(
            f"adata.{contacts.axis.axis} has no column {key!r}: run {maker}(adata) first; columns: "
            f"{list(map(str, table.columns))}."
        )
    return contacts.to_map(pd.to_numeric(table[key], errors="coerce").to_numpy(np.float64, na_value=np.nan))
