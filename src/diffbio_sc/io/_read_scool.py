from __future__ import annotations

import os
from pathlib import Path

from diffbio_sc._options import check_options
from diffbio_sc.io._contact_cells import ContactCells
from diffbio_sc.io._cooler_files import cell_names, import_cooler


def read_scool(path: str | os.PathLike[str]) -> ContactCells:
    """Open a .scool file, contact maps of single cells; each is read when it is asked for.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    The cells, a mapping from name to AnnData.

    Raises
    ------
    ImportError
        If cooler is not installed (extra ``hic``).
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no .scool file.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> cells = dbio.io.read_scool("cells.scool")
    >>> maps = dbio.pp.pseudobulk(cells, groupby={"cell_0": "early", "cell_1": "early", "cell_2": "late"})
    >>> sorted(maps)
    ['early', 'late']
    """
    check_options(read_scool, locals())
    cooler = import_cooler()
    file = os.fspath(path)
    if not Path(file).exists():
        raise FileNotFoundError(f"no such file: {file}.")
    try:
        single_cells = cooler.fileops.is_scool_file(file)
    except OSError as error:
        raise ValueError(f"{file} is no .scool file: it is not HDF5 ({error}).") from error
    if not single_cells:
        raise ValueError(f"{file} is no .scool file; .cool and .mcool files are read by dbio.io.read_cool.")
    return ContactCells._of_file({name: f"{file}::{group}" for name, group in cell_names(cooler, file).items()})
