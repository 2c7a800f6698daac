from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffbio_sc._options import check_options
from diffbio_sc.io._cooler_files import Storage, cooler_uri, import_cooler, read_cooler

if TYPE_CHECKING:
    from anndata import AnnData


def read_cool(
    path: str | os.PathLike[str],
    *,
    resolution: int | None = None,
    cell: str | None = None,
    chroms: Sequence[str] | str | None = None,
    trans: bool = True,
    storage: Storage = "auto",
) -> AnnData:
    """Read a contact map from a .cool or .mcool file, or one cell of a .scool file, through cooler.

    The file is read chromosome by chromosome: memory is the result and one block of pixels.

    Parameters
    ----------
    path
        File, or a cooler URI such as ``"maps.mcool::/resolutions/10000"``.
    resolution
        Which resolution of an .mcool file, in base pairs.
    cell
        Which cell of an .scool file; :func:`read_scool` opens all of them.
    chroms
        Read these chromosomes only, in this order.
    trans
        Whether to read contacts between chromosomes.
    storage
        ``"symmetric"`` stores both triangles, which other packages expect of ``.obsp``; ``"upper"`` takes half of the
        memory; ``"auto"`` is symmetric up to 50 million pixels.

    Returns
    -------
    An AnnData whose observations are the bins, with

    - ``.obs[["chrom", "start", "end"]]``; other columns of the file's bins too, cooler's ``weight`` as
      ``contact_weight``, with ``contact_bad_bin`` where it is missing
    - ``.obsp["contacts"]``: CSR counts, int32 (int64 if they do not fit)
    - ``.uns["contacts_storage"]``: which triangles it holds
    - ``.uns["genome_assembly"]``, if the file names one

    Raises
    ------
    ImportError
        If cooler is not installed (extra ``hic``).
    FileNotFoundError
        If there is no such file.
    KeyError
        If it has no such chromosome, resolution or cell.
    ValueError
        If it is no cooler file, has several resolutions or cells and none is chosen, or bins of different widths.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> dbio.io.write_cool(dbio.datasets.simulate_contacts(300), "map.cool")
    >>> adata = dbio.io.read_cool("map.cool", chroms=["chr1"])
    >>> adata.obsp["contacts"].shape
    (300, 300)
    """
    check_options(read_cool, locals(), resolution="[1, inf) base pairs")
    resolution = None if resolution is None else int(resolution)
    cooler = import_cooler()
    return read_cooler(cooler.Cooler(cooler_uri(cooler, path, resolution, cell)), str(path), chroms, trans, storage)
