from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.contacts import read_contacts
from diffbio_sc._anndata.tables import in_memory, numbers_or_nan
from diffbio_sc._files import replacing
from diffbio_sc._options import check_options
from diffbio_sc.io._cooler_files import has_group, import_cooler

if TYPE_CHECKING:
    from anndata import AnnData


def write_cool(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    key: str = "contacts",
    axis: Literal["var", "obs"] | None = None,
    columns: Sequence[str] = ("contact_weight",),
    assembly: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a contact map to a .cool or .mcool file, through cooler.

    Parameters
    ----------
    adata
        Object with a contact map.
    path
        File, or a cooler URI. In an .mcool file the map is put at its resolution; other resolutions stay.
    key, axis
        Key of the counts in ``.obsp`` or ``.varp``; which axis holds the bins, if both could.
    columns
        Numeric columns of the bins to write, where they exist; ``contact_weight`` is named ``weight``, as cooler's.
    assembly
        Name of the genome assembly; default that of ``.uns["genome_assembly"]``.
    overwrite
        Whether to replace a file, or a resolution of an .mcool file, that is there.

    Returns
    -------
    None.

    Raises
    ------
    ImportError
        If cooler is not installed (extra ``hic``).
    FileExistsError
        If the file, or the resolution, is there and ``overwrite`` is False.
    KeyError, ValueError
        If the object has no such map, or it holds no counts.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.io.write_cool(adata, "balanced.cool")
    >>> bool((dbio.io.read_cool("balanced.cool").obsp["contacts"] != adata.obsp["contacts"]).nnz)
    False
    """
    check_options(write_cool, locals(), empty=("columns",))
    cooler = import_cooler()
    contacts = read_contacts(adata, key, axis=axis, allow_fractional=True)
    found = contacts.map
    text = os.fspath(path)
    file, _, group = text.partition("::")
    if file.endswith(".mcool") and not group:
        group = f"/resolutions/{found.resolution}"
    if Path(file).exists() and not overwrite:
        if not group or has_group(cooler, file, group):
            raise FileExistsError(f"{text} is there already; pass overwrite=True to replace it.")
    names = np.array(found.chrom_names, dtype=object)
    bins = pd.DataFrame({"chrom": names[found.chrom], "start": found.start, "end": found.end})
    table = getattr(adata, contacts.axis.axis)
    for column in columns:
        if column in table:
            values = contacts.to_map(numbers_or_nan(table, column))
            bins["weight" if column == "contact_weight" else column] = values
        elif column != "contact_weight":
            raise KeyError(f"adata.{contacts.axis.axis} has no column {column!r}; columns: {list(table.columns)}.")
    counts = found.counts
    row = np.repeat(np.arange(found.n_bins), np.diff(counts.indptr))
    pixels = pd.DataFrame({"bin1_id": row, "bin2_id": counts.indices.astype(np.int64), "count": counts.data})
    with replacing(file) as temporary:
        appended = bool(group) and Path(file).exists()
        if appended and temporary != os.path.realpath(file):
            shutil.copyfile(file, temporary)  # what else the file holds stays
        cooler.create_cooler(
            f"{temporary}::{group}" if group else temporary,
            bins,
            pixels,
            dtypes={"count": counts.data.dtype},
            ordered=True,
            mode="a" if appended else "w",
            assembly=assembly or str(in_memory(adata.uns.get("genome_assembly", "unknown"))),
        )
        if group and file.endswith(".mcool"):
            import h5py

            with h5py.File(temporary, "r+") as handle:
                handle.attrs.update({"format": "HDF5::MCOOL", "format-version": 2})
