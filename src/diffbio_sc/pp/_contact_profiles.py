from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contacts import read_contacts
from diffbio_sc._anndata.contacts_object import same_bins
from diffbio_sc._anndata.results import make_record
from diffbio_sc._anndata.tables import numbers_or_nan
from diffbio_sc._options import check_options
from diffbio_sc.io import ContactCells
from diffbio_sc.numerics.genome.contact_cells import cell_profile, distance_edges

if TYPE_CHECKING:
    from anndata import AnnData


def contact_profiles(
    cells: ContactCells,
    *,
    reference: AnnData | None = None,
    compartment_key: str = "compartment",
    compartment_distance: int = 2_000_000,
    key: str = "contacts",
) -> AnnData:
    """Describe the contact map of each cell: decay with distance, contacts between chromosomes, compartments.

    A cell has too few contacts for a compartment track of its own; how strongly its contacts follow that of a
    reference, of all cells pooled or of bulk, can be told. So can its decay, which follows the cell cycle
    :cite:p:`Nagano2017`.

    Parameters
    ----------
    cells
        Cells (:func:`diffbio_sc.io.read_scool`, :class:`diffbio_sc.io.ContactCells`).
    reference
        Object with the same bins and compartments (:func:`diffbio_sc.tl.compartments`), such as all cells pooled.
    compartment_key
        Column of its bins with the compartments, positive for A.
    compartment_distance
        Nearer contacts, in base pairs, are left out for compartment strength.
    key
        Key of the counts of each cell.

    Returns
    -------
    An AnnData of cells by strata of distance, with

    - ``.X``: share of the contacts within chromosomes that lies at each distance, float32; the first stratum is 0
    - ``.var[["start", "end"]]``: distances in base pairs, six strata a decade
    - ``.obs``: ``n_contacts``, ``trans_share`` (of all), ``near_share`` (below 2 Mb) and ``mitotic_share`` (2 to
      12 Mb) of those within chromosomes; with a reference ``compartment_strength``, log2 of the contacts within
      compartments over those between, relative to what the decay of the cell and the coverage of the compartments
      would give, and ``compartment_strength_std``, its standard error of counting
    - ``.uns["contact_profiles"]``: parameters and versions

    Cells without contacts have NaN.

    Raises
    ------
    KeyError
        If the reference has no compartments.
    TypeError
        If ``cells`` are no cells.
    ValueError
        If bins of cells or of the reference differ.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> maps = {f"cell_{k}": dbio.datasets.simulate_contacts(300, contacts_per_bin=20, rng=k) for k in range(3)}
    >>> profiles = dbio.pp.contact_profiles(dbio.io.ContactCells(maps))
    >>> profiles.obs["n_contacts"].shape
    (3,)
    """
    import anndata

    check_options(contact_profiles, locals(), compartment_distance="(0, inf) base pairs")
    compartment_distance = int(compartment_distance)
    if not isinstance(cells, ContactCells):
        raise TypeError(f"cells must be ContactCells (see dbio.io.read_scool), found {type(cells).__name__}.")
    label, reference_map = None, None
    if reference is not None:
        found = read_contacts(reference, key)
        table = getattr(reference, found.axis.axis)
        if compartment_key not in table:
            raise KeyError(
                f"reference.{found.axis.axis} has no column {compartment_key!r}: run dbio.tl.compartments(reference) "
                f"first; columns: {list(map(str, table.columns))}."
            )
        label = np.sign(np.nan_to_num(found.to_map(numbers_or_nan(table, compartment_key)))).astype(np.int64)
        reference_map = found.map
    rows, names = [], []
    edges: np.ndarray | None = None
    resolution = 1
    for name, contact_map in cells.contact_maps(key):
        if edges is None:
            resolution = contact_map.resolution
            edges = distance_edges(int(np.bincount(contact_map.chrom).max()), resolution)
            if reference_map is not None and not same_bins(reference_map, contact_map):
                raise ValueError(
                    f"reference must have the bins of the cells: {reference_map.n_bins} of {reference_map.resolution} "
                    f"bp, the cells have {contact_map.n_bins} of {resolution} bp."
                )
        reach = max(compartment_distance // resolution, 1)
        rows.append(cell_profile(contact_map.counts, contact_map.chrom, edges, resolution, label, reach))
        names.append(name)
    assert edges is not None  # there is at least one cell
    obs = pd.DataFrame(
        {
            "n_contacts": [row.n_contacts for row in rows],
            "trans_share": [row.trans_share for row in rows],
            "near_share": [row.near_share for row in rows],
            "mitotic_share": [row.mitotic_share for row in rows],
        },
        index=pd.Index(names, dtype=object),
    )
    if label is not None:
        obs["compartment_strength"] = [row.strength / np.log(2.0) for row in rows]
        obs["compartment_strength_std"] = [row.strength_error / np.log(2.0) for row in rows]
    bounds = np.stack([edges[:-1], edges[1:]], 1) * resolution
    var = pd.DataFrame(
        {"start": bounds[:, 0], "end": bounds[:, 1]},
        index=pd.Index([f"{low}-{high}" for low, high in bounds], dtype=object),
    )
    result = anndata.AnnData(np.stack([row.share for row in rows]).astype(np.float32), obs=obs, var=var)
    result.uns["contact_profiles"] = make_record(
        {"compartment_key": compartment_key, "compartment_distance": compartment_distance, "key": key}, None
    )
    return result
