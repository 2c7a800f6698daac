"""The seqFISH data of Lohoff et al. as a source: an RNA reference and a spatial modality, with provenance of both."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.results import storable_names
from diffbio_sc._anndata.tables import read_coordinates, read_labels
from diffbio_sc._checks import name_heads, whole_number
from diffbio_sc._warnings import unheard
from diffbio_sc.numerics.counts.log_values import counts_of_log_values
from diffbio_sc.sources.download import download, file_sha256
from diffbio_sc.sources.provenance import Provenance, artifact_metadata

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

URL = "https://exampledata.scverse.org/squidpy/seqfish.h5ad"
SHA256 = "7e544c0ede7538067537da69c52748ad01522ef7fc8691e077fd73c9434019f7"
CITATION = "Lohoff et al. 2022, Nature Biotechnology 40:74, doi:10.1038/s41587-021-01006-2"
MODALITIES = ("rna", "spatial")
_FEWEST_CELLS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqFISHConfig:
    """What :class:`SeqFISHSource` reads, and how it makes spots of cells.

    Parameters
    ----------
    label_key
        Column of ``.obs`` with the cell types.
    spatial_key
        Matrix of ``.obsm`` with the coordinates.
    layer
        Layer with the counts; default ``X``. Log-normalised values are turned back into counts where that is exact.
    cells_per_spot
        Mean number of cells in a spot: spots are squares of a grid of this mean filling.
    reference_share
        Share of the cells of each type that make the RNA reference; the others lie in the spots.
    exclude_types
        Labels that are no cell types.
    rng
        Seed of the draw of reference cells.

    Examples
    --------
    >>> from diffbio_sc.sources import SeqFISHConfig
    >>> SeqFISHConfig(cells_per_spot=5).label_key
    'celltype_mapped_refined'
    """

    label_key: str = "celltype_mapped_refined"
    spatial_key: str = "spatial"
    layer: str | None = None
    cells_per_spot: int = 8
    reference_share: float = 0.5
    exclude_types: tuple[str, ...] = ("Low quality",)
    rng: int = 0

    def __post_init__(self) -> None:
        whole_number(self.cells_per_spot, "SeqFISHConfig.cells_per_spot", unit=" cells")
        whole_number(self.rng, "SeqFISHConfig.rng", minimum=0)
        if not 0 < self.reference_share < 1:
            raise ValueError(f"SeqFISHConfig.reference_share must lie between 0 and 1, found {self.reference_share!r}.")
        object.__setattr__(self, "exclude_types", tuple(self.exclude_types))


class SeqFISHSource:
    """An RNA reference and a spatial modality from cells of one seqFISH experiment, with known composition.

    Cells of a mouse embryo during organogenesis (19,416 cells, 351 genes, 22 types) in the layout of squidpy's
    ``seqfish`` file. A part of the cells of each type, drawn at random, is the reference (modality ``rna``). The others
    are summed in the squares of a grid, which are the spots (modality ``spatial``); the share of each type among a
    spot's cells is the truth. No cell is on both sides.

    Parameters
    ----------
    data
        Path of an h5ad file, or an AnnData. :meth:`download` fetches the published file.
    config
        Settings.

    Attributes
    ----------
    cells
        The checked cells, raw counts in ``.X``.
    provenance
        Of both modalities.
    modality_contract
        Which keys hold what: ``modalities``, ``primary_modality``, ``spatial_key``, ``label_key``, ``count_key`` and
        ``counts`` (``"as stored"`` or how they were taken back from logs).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If labels, coordinates or the layer are missing.
    ValueError
        If the file is damaged, values are neither counts nor logs of counts, coordinates are not finite, names occur
        twice, or fewer than two types have cells on both sides.

    Examples
    --------
    >>> from diffbio_sc.sources import SeqFISHSource
    >>> source = SeqFISHSource.download()  # doctest: +SKIP
    >>> mdata = source.load()  # doctest: +SKIP
    """

    def __init__(self, data: str | os.PathLike[str] | AnnData, config: SeqFISHConfig | None = None):
        config = SeqFISHConfig() if config is None else config
        if not isinstance(config, SeqFISHConfig):
            raise TypeError(f"config must be a SeqFISHConfig, found {type(config).__name__}.")
        path = data if isinstance(data, str | os.PathLike) else None
        cells = _read(path) if path is not None else data
        require_anndata(cells, "data")
        self.config = config
        self.cells, how = _check_cells(cells, config)
        published = path is not None and (digest := file_sha256(path)) == SHA256
        self.provenance = Provenance(
            dataset_name="lohoff_2022_mouse_organogenesis_seqfish" if published else "seqfish_layout",
            source_type="memory" if path is None else "file",
            modalities=MODALITIES,
            biological_validation="published cell types of single cells" if published else "none",
            # Cells of the published file are real and their number in a spot is known; of other files nothing is.
            promotion_eligible=published,
            source_path="" if path is None else os.fspath(path),
            sha256="" if path is None else digest,
            citation=CITATION if published else "",
        )
        self.modality_contract: dict[str, Any] = {
            "modalities": list(MODALITIES),
            "primary_modality": "rna",
            "spatial_key": config.spatial_key,
            "label_key": config.label_key,
            "count_key": "X" if config.layer is None else config.layer,
            "counts": how,
        }
        self._split()

    @classmethod
    def download(
        cls,
        config: SeqFISHConfig | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        url: str = URL,
        sha256: str = SHA256,
        downloader: Callable[..., Any] | None = None,
    ) -> SeqFISHSource:
        """Read the published file, which is downloaded once and checked by its hash.

        Parameters
        ----------
        config
            Settings.
        folder
            Where the file is kept; default in ``dbio.settings.cache_dir``.
        url, sha256, downloader
            As in :func:`~diffbio_sc.sources.download.download`.

        Returns
        -------
        The source.
        """
        path = download(url, sha256, file_name="seqfish.h5ad", folder=folder, downloader=downloader)
        return cls(path, config)

    def __len__(self) -> int:
        """Number of cells."""
        return self.cells.n_obs

    @property
    def cell_types(self) -> list[str]:
        """Names of the types, in the order of profiles and truth."""
        return list(self._types)

    def reference(self) -> AnnData:
        """Return the RNA modality: reference cells with raw counts in ``.X`` and types in ``.obs[label_key]``."""
        cells = self.cells[self._reference_rows].copy()
        cells.obsm = None
        cells.uns = {"source": self._record("rna")}
        return cells

    def spots(self) -> AnnData:
        """Return the spatial modality.

        Returns
        -------
        Spots by genes, raw counts in ``.X``, centres of the squares in ``.obsm[spatial_key]``, cell numbers in
        ``.obs["n_cells"]``, shares of the types among the cells in ``.obsm["truth"]``.
        """
        import anndata

        rows, spot = self._spot_rows, self._spot_of_cell
        number = int(spot.max()) + 1
        membership = sp.csr_matrix((np.ones(len(rows), np.float32), (spot, np.arange(len(rows)))), (number, len(rows)))
        counts = sp.csr_matrix(membership @ self.cells.X[rows])
        shares = np.zeros((number, len(self._types)))
        np.add.at(shares, (spot, self._codes[rows]), 1.0)
        sizes = shares.sum(1)
        names = pd.Index([f"spot_{index}" for index in range(number)])
        adata = anndata.AnnData(
            counts, obs=pd.DataFrame({"n_cells": sizes.astype(np.int64)}, index=names), var=self.cells.var.copy()
        )
        adata.obsm[self.config.spatial_key] = self._centres
        adata.obsm["truth"] = pd.DataFrame(shares / sizes[:, None], index=names, columns=self._columns)
        adata.uns["source"] = self._record("spatial")
        return adata

    def load(self) -> MuData:
        """Return both modalities, ``rna`` and ``spatial``, in a MuData, with provenance in ``.uns["source"]``."""
        import mudata

        modalities = {"rna": self.reference(), "spatial": self.spots()}
        # They share genes, not cells; their names are told apart by the modality.
        with unheard():
            mdata = mudata.MuData(modalities)
        mdata.uns["source"] = self._record("rna", "spatial")
        return mdata

    def operator_inputs(self) -> dict[str, np.ndarray]:
        """Return dense arrays for :class:`~diffbio_sc.operators.multiomics.SpatialDeconvolution` and the gene detector.

        Returns
        -------
        ``spatial_expression`` (spots, genes), ``reference_profiles`` (types, genes), mean counts of a cell,
        ``spatial_coords`` (spots, 2), ``total_counts`` (spots,) and ``truth`` (spots, types), all float32.
        """
        spots = self.spots()
        rows = self._reference_rows
        codes = self._codes[rows]
        number = np.bincount(codes, minlength=len(self._types))
        mean = sp.csr_matrix((1.0 / number[codes], (codes, np.arange(len(rows)))), (len(number), len(rows)))
        counts = spots.X.toarray()
        return {
            "spatial_expression": counts,
            "reference_profiles": (mean @ self.cells.X[rows]).toarray().astype(np.float32),
            "spatial_coords": self._centres.astype(np.float32),
            "total_counts": counts.sum(1),
            "truth": spots.obsm["truth"].to_numpy(np.float32),
        }

    def artifact_metadata(self, artifact_id: str = "diffbio.spatial_deconvolution.proportions") -> dict[str, Any]:
        """Return the metadata of what an operator makes of this source, see :func:`.provenance.artifact_metadata`."""
        return artifact_metadata(
            artifact_id,
            artifact_type="operator_output",
            modalities=MODALITIES,
            promotion_eligible=self.provenance.promotion_eligible,
            provenance=self.provenance,
        )

    def _record(self, *modalities: str) -> dict[str, Any]:
        provenance = dataclasses.replace(self.provenance, modalities=modalities)
        return {"provenance": provenance.to_dict(), "modality_contract": dict(self.modality_contract)}

    def _split(self) -> None:
        """Draw the reference cells, and find the square of each other cell."""
        config = self.config
        codes, types = read_labels(self.cells.obs, config.label_key, name="data.obs")
        generator = np.random.default_rng(config.rng)
        reference: list[np.ndarray] = []
        for code in range(len(types)):
            members = generator.permutation(np.flatnonzero(codes == code))
            number = min(max(round(config.reference_share * len(members)), 1), len(members) - 1)
            reference.append(members[:number])
        self._codes, self._types, self._columns = codes, types, storable_names(types)
        self._reference_rows = np.sort(np.concatenate(reference))
        rows = np.setdiff1d(np.arange(len(codes)), self._reference_rows)
        places = np.asarray(self.cells.obsm[config.spatial_key], np.float64)[rows, :2]
        low, extent = places.min(0), np.maximum(np.ptp(places, axis=0), 1e-12)
        width = _square_width(places, low, extent, config.cells_per_spot)
        square = np.floor((places - low) / width).astype(np.int64)
        squares, spot = np.unique(square, axis=0, return_inverse=True)
        self._spot_rows, self._spot_of_cell = rows, spot.ravel()
        self._centres = low + (squares + 0.5) * width


def _square_width(places: np.ndarray, low: np.ndarray, extent: np.ndarray, wanted: int) -> float:
    """Width of squares of which the occupied ones hold so many cells on average, by bisection.

    Tissue does not fill its bounding box: a width from the area alone would give squares that are too full.
    """
    narrow, wide = 0.0, float(extent.max()) * 2.0
    for _ in range(40):
        width = 0.5 * (narrow + wide)
        occupied = len(np.unique(np.floor((places - low) / width).astype(np.int64), axis=0))
        narrow, wide = (width, wide) if len(places) < wanted * occupied else (narrow, width)
    return wide


def _read(path: str | os.PathLike[str]) -> AnnData:
    import anndata

    where = repr(os.fspath(path))
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no file {where}: pass the path of squidpy's seqfish.h5ad, or SeqFISHSource.download()."
        )
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        end = "ends early" if "truncated" in str(error) else "is damaged, or no h5ad file"
        raise ValueError(f"{where} {end}: {error}. Copy it again.") from error


def _check_cells(cells: AnnData, config: SeqFISHConfig) -> tuple[AnnData, str]:
    """Cells of known type with raw counts, and how the counts were found."""
    codes, types = read_labels(cells.obs, config.label_key, name="data.obs")
    places = read_coordinates(cells, config.spatial_key)
    require_unique(cells.obs_names, "data.obs_names", "Call data.obs_names_make_unique() first.")
    require_unique(cells.var_names, "data.var_names", "Call data.var_names_make_unique() first.")
    if config.layer is not None and config.layer not in cells.layers:
        raise KeyError(f"data.layers has no {config.layer!r}; layers: {list(cells.layers)}.")
    where = "data.X" if config.layer is None else f"data.layers[{config.layer!r}]"
    kept = np.isin(codes, _usable_types(codes, types, config.exclude_types))
    matrix = cells.X if config.layer is None else cells.layers[config.layer]
    if matrix is None:
        raise ValueError(f"{where} is None; pass SeqFISHConfig(layer=...); layers: {list(cells.layers)}.")
    counts, how = _counts_of(sp.csr_matrix(matrix[np.flatnonzero(kept)]), where)
    import anndata

    obs = pd.DataFrame(
        {config.label_key: pd.Categorical.from_codes(codes[kept], types).remove_unused_categories()},
        index=cells.obs_names[kept].astype(str),
    )
    checked = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=cells.var_names.astype(str)))
    checked.obsm[config.spatial_key] = places[kept]
    return checked, how


def _usable_types(codes: np.ndarray, types: Sequence[str], excluded: Sequence[str]) -> np.ndarray:
    number = np.bincount(codes[codes >= 0], minlength=len(types))
    wanted = [code for code, name in enumerate(types) if name not in excluded]
    usable = np.array([code for code in wanted if number[code] >= _FEWEST_CELLS])
    if len(usable) < 2:
        raise ValueError(
            f"at least two cell types with {_FEWEST_CELLS} cells are needed, found "
            f"{dict(zip(types, number.tolist(), strict=True))}."
        )
    rare = [types[code] for code in wanted if number[code] < _FEWEST_CELLS]
    if rare:
        warnings.warn(
            f"cell types with fewer than {_FEWEST_CELLS} cells are left out: {name_heads(rare)}.",
            UserWarning,
            stacklevel=5,
        )
    return usable


def _counts_of(matrix: sp.csr_matrix, where: str) -> tuple[sp.csr_matrix, str]:
    values = matrix.data
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{where} must hold counts, found values of dtype {values.dtype}.")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"{where} must hold counts or logs of counts, found missing, infinite or negative values.")
    if not values.any():
        raise ValueError(f"{where} holds no counts: all values are 0.")
    if (values == np.floor(values)).all():
        return matrix.astype(np.float32), "as stored"
    found = counts_of_log_values(matrix)
    if found is None:
        raise ValueError(
            f"{where} must hold raw counts, or logs of counts over a size factor of each cell; found other fractional "
            "values. Pass SeqFISHConfig(layer=...) with the layer that holds counts."
        )
    return found[0], f"taken back by {found[1]}, over a factor of each cell"
