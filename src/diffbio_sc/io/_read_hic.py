from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.contacts_object import bins_table, contacts_object, counts_or_values
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def read_hic(
    path: str | os.PathLike[str],
    *,
    resolution: int | None = None,
    chroms: Sequence[str] | str | None = None,
    trans: bool = True,
    weights: str | None = None,
    storage: Literal["auto", "symmetric", "upper"] = "auto",
) -> AnnData:
    """Read a contact map from a .hic file of Juicer, through hictkpy.

    Parameters
    ----------
    path
        File.
    resolution
        Which resolution, in base pairs.
    chroms
        Read these chromosomes only, in this order; default all but Juicer's ``All``.
    trans
        Whether to read contacts between chromosomes.
    weights
        Normalisation of the file (``"KR"``, ``"SCALE"``, ``"VC"``, ``"VC_SQRT"``, ...) to take as balancing weights.
        The file's vectors are divided by; they are turned here into weights that counts are multiplied with.
    storage
        ``"symmetric"`` stores both triangles, ``"upper"`` one, ``"auto"`` both up to 50 million pixels.

    Returns
    -------
    An AnnData whose observations are the bins; see :func:`read_cool`.

    Raises
    ------
    ImportError
        If hictkpy is not installed (extra ``hic``).
    FileNotFoundError
        If there is no such file.
    KeyError
        If it has no such chromosome, resolution or normalisation.
    ValueError
        If it is no .hic file, or has several resolutions and none is chosen.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.io.read_hic("inter_30.hic", resolution=10_000, chroms=["chr1"])
    >>> adata.obsp["contacts"].shape
    (100, 100)
    """
    check_options(read_hic, locals(), resolution="[1, inf) base pairs")
    resolution = None if resolution is None else int(resolution)
    try:
        import hictkpy
    except ImportError as error:
        raise ImportError("hictkpy reads .hic files; install it: pip install 'diffbio-sc[hic]'.") from error
    text = os.fspath(path)
    if not Path(text).exists():
        raise FileNotFoundError(f"no such file: {text}.")
    if not hictkpy.is_hic(text):
        raise ValueError(f"{text} is no .hic file; .cool and .mcool files are read by dbio.io.read_cool.")
    source = _open(hictkpy, text, resolution)
    lengths = {name: int(size) for name, size in source.chromosomes().items() if name.lower() != "all"}
    wanted = list(lengths) if chroms is None else [chroms] if isinstance(chroms, str) else list(chroms)
    unknown = [name for name in wanted if name not in lengths]
    if unknown or not wanted:
        raise KeyError(f"{text} has no chromosomes {unknown}; it has {list(lengths)[:30]} (with or without 'chr'?).")
    width = int(source.resolution())
    sizes = np.array([-(-lengths[name] // width) for name in wanted])
    offset = np.concatenate([[0], np.cumsum(sizes)])
    start = np.concatenate([np.arange(size) * width for size in sizes])
    end = np.minimum(start + width, np.repeat([lengths[name] for name in wanted], sizes))
    bins = bins_table(pd.Categorical.from_codes(np.repeat(np.arange(len(wanted)), sizes), wanted), start, end)
    if weights is not None:
        bins["contact_weight"] = _weights(source, weights, wanted, text)
        bins["contact_bad_bin"] = ~np.isfinite(bins["contact_weight"].to_numpy())
    order = {name: number for number, name in enumerate(lengths)}
    rows, columns, values = [], [], []
    for first in range(len(wanted)):
        for second in range(first, len(wanted) if trans else first + 1):
            # The file holds each pair of chromosomes once, in its own order.
            one, two = sorted((first, second), key=lambda number: order[wanted[number]])
            block = source.fetch(wanted[one], wanted[two]).to_coo()
            row, column = block.row + offset[one], block.col + offset[two]
            rows.append(np.minimum(row, column))
            columns.append(np.maximum(row, column))
            values.append(block.data)
    value = counts_or_values(np.concatenate(values), text)
    kept = value != 0
    pair = (np.concatenate(rows)[kept].astype(np.int64), np.concatenate(columns)[kept].astype(np.int64))
    shape = (int(offset[-1]), int(offset[-1]))
    upper = sp.csr_array(sp.coo_array((value[kept], pair), shape=shape))
    result = contacts_object(bins, upper, storage=storage)
    assembly = source.attributes().get("assembly")
    if assembly not in (None, "unknown"):
        result.uns["genome_assembly"] = str(assembly)
    return result


def _open(hictkpy: Any, text: str, resolution: int | None) -> Any:
    found = sorted(int(width) for width in hictkpy.MultiResFile(text).resolutions())
    if resolution is None:
        if len(found) > 1:
            raise ValueError(f"{text} holds several resolutions: pass resolution=, one of {found}.")
        resolution = found[0]
    if resolution not in found:
        raise KeyError(f"{text} has no resolution {resolution}; it has {found}.")
    return hictkpy.File(text, resolution)


def _weights(source: Any, name: str, wanted: list[str], text: str) -> np.ndarray:
    if name not in source.avail_normalizations():
        raise KeyError(f"{text} has no normalisation {name!r}; it has {list(source.avail_normalizations())}.")
    table = source.bins().to_df()
    vector = np.asarray(source.weights(name, divisive=False), np.float64)
    chrom = table["chrom"].astype(str).to_numpy()
    joined = np.concatenate([vector[chrom == each] for each in wanted])
    return np.where(np.isfinite(joined) & (joined > 0), joined, np.nan)
