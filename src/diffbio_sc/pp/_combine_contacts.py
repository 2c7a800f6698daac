from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.contacts import Contacts, read_contacts
from diffbio_sc._anndata.contacts_object import bins_table, contacts_object, symmetric
from diffbio_sc._checks import found_object
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def combine_contacts(maps: Mapping[str, AnnData], *, key: str = "contacts", pooled: bool = True) -> AnnData:
    """Put contact maps of the same resolution together, on the bins that any of them has.

    Parameters
    ----------
    maps
        Objects with a contact map each, by the name that each gets.
    key
        Key of the counts in ``.obsp`` or ``.varp`` of each.
    pooled
        Whether to add the sum of all maps, as ``.obsp["contacts"]``: loops, boundaries and compartments are called on
        it before replicates are compared.

    Returns
    -------
    An AnnData of bins, in genomic order, with

    - ``.obs[["chrom", "start", "end"]]``
    - ``.obsp[f"contacts_{name}"]``: CSR, int32, symmetric counts of each map
    - ``.obsp["contacts"]``: their sum

    Raises
    ------
    ValueError
        If there is no map, bins differ in width, or maps share no chromosome.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> maps = {name: dbio.datasets.simulate_contacts(100, contacts_per_bin=50, rng=k) for k, name in enumerate("ab")}
    >>> dbio.pp.combine_contacts(maps)
    AnnData object with n_obs × n_vars = 100 × 0
        obs: 'chrom', 'start', 'end'
        uns: 'contacts_storage'
        obsp: 'contacts', 'contacts_a', 'contacts_b'
    """
    check_options(combine_contacts, locals())
    if not isinstance(maps, Mapping):
        raise TypeError(f"maps must map names to AnnData objects, {found_object(maps)}.")
    if not maps:
        raise ValueError("maps must hold at least one contact map, found none.")
    found = {str(name): read_contacts(each, key) for name, each in maps.items()}
    widths = {name: each.map.resolution for name, each in found.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"maps must have bins of one width, found {widths}.")
    frame, places = _common_bins(found)
    size = len(frame)
    counts = {}
    for name, place in places.items():
        upper = found[name].map.counts.tocoo()
        one, two = place[upper.row], place[upper.col]
        # Chromosomes may come in another order in this map: pairs between them then change sides.
        pair = (np.minimum(one, two), np.maximum(one, two))
        counts[name] = sp.csr_array(sp.coo_array((upper.data, pair), shape=(size, size)))
    total = sp.csr_array(sum(counts.values()))
    result = contacts_object(frame, total, storage="symmetric")
    if not pooled:
        del result.obsp["contacts"]
    for name, each in counts.items():
        result.obsp[f"contacts_{name}"] = symmetric(each)
    return result


def _common_bins(found: Mapping[str, Contacts]) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Bins of all maps, and where each map's bins are among them."""
    chromosomes: dict[str, int] = {}
    for each in found.values():
        for name in each.map.chromosomes():
            chromosomes.setdefault(name, len(chromosomes))
    shared = set.intersection(*(set(each.map.chromosomes()) for each in found.values()))
    if not shared:
        listed = {name: each.map.chromosomes()[:3] for name, each in found.items()}
        raise ValueError(f"maps share no chromosome: {listed}. Are they named alike ('chr1', '1')?")
    tables = []
    for each in found.values():
        codes = np.array([chromosomes.get(name, -1) for name in each.map.chrom_names])[each.map.chrom]
        tables.append(pd.DataFrame({"code": codes, "start": each.map.start, "end": each.map.end}))
    bins = pd.concat(tables).groupby(["code", "start"], as_index=False)["end"].max()
    index = pd.MultiIndex.from_frame(bins[["code", "start"]])
    places = {
        name: index.get_indexer(pd.MultiIndex.from_frame(table[["code", "start"]]))
        for name, table in zip(found, tables, strict=True)
    }
    chrom = pd.Categorical.from_codes(bins["code"].to_numpy(), list(chromosomes))
    start, end = bins["start"].to_numpy(), bins["end"].to_numpy()
    return bins_table(chrom, start, end), places
