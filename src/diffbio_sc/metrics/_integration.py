from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata import read_labels
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._checks import found_object
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

# LISI looks at 90 neighbors, the cell itself among them: three times the perplexity of 30 of its paper.
_LISI_NEIGHBORS = 90
_RESOLUTIONS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)


def integration(
    data: AnnData | MuData,
    *,
    use_rep: str | Sequence[str],
    label_key: str,
    batch_key: str | None = None,
    min_cells: int = 10,
    n_neighbors: int = 15,
    resolutions: Sequence[float] = _RESOLUTIONS,
    n_folds: int = 5,
    rng: int | np.random.Generator = 0,
) -> pd.Series | pd.DataFrame:
    """Score an embedding: are the cell types kept apart, and are the batches mixed?

    Clusters are those of Leiden on the ``n_neighbors`` graph of :func:`scanpy.pp.neighbors`, at the resolution that
    agrees best with the labels :cite:p:`Luecken2022`. The batch scores are those of ``scib-metrics``.

    Parameters
    ----------
    data
        Holds the embedding in ``.obsm`` and the labels in ``.obs``.
    use_rep
        Key of ``data.obsm``, or several to compare.
    label_key
        Column of ``data.obs`` with the cell types. Cells without a label count in no score of labels.
    batch_key
        Column of ``data.obs`` with the batches; without it the two batch scores are left out.
    min_cells
        Types of fewer cells are left out of the scores of labels, except ``silhouette_batch``.
    n_neighbors
        Neighbors of the clustering graph and of the classifier.
    resolutions
        Resolutions of Leiden to choose from.
    n_folds
        Folds of the cross-validation of the classifier, stratified by label.
    rng
        Seed of the graph, the clustering and the folds.

    Returns
    -------
    Series for one ``use_rep``, table with a row for each of several. Higher is better, the best is 1, except
    ``resolution``:

    ``nmi``, ``ari``
        Normalised mutual information and adjusted Rand index of clusters and labels, at the resolution of the best NMI.
    ``resolution``
        That resolution.
    ``silhouette_label``
        Mean silhouette width of the labels, from -1..1 to 0..1.
    ``knn_accuracy``, ``knn_balanced_accuracy``
        Share of cells whose label the nearest neighbors tell, over all cells and as the mean over types.
    ``ilisi``
        Effective number of batches among the nearest 90 cells, median over all cells, 0 (one) to 1 (all)
        :cite:p:`Korsunsky2019`.
    ``silhouette_batch``
        1 minus the absolute silhouette width of the batches within a type, mean over types; NaN with a warning if no
        type has cells of two batches.

    Raises
    ------
    ImportError
        Without the extra: ``pip install "diffbio-sc[integration]"``.
    KeyError
        If a key is missing.
    ValueError
        If the embedding is not a finite table, there is one label or one batch only, a batch is missing, or there are
        fewer cells of a type than folds.

    Notes
    -----
    Silhouettes and neighbors are exact: time grows with the square of the cells, memory does not. Score a sample of
    more than about 50,000 cells.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> mdata = dbio.datasets.simulate_multiomics()
    >>> dbio.tl.multiomics_vae(mdata, max_epochs=0)
    >>> scores = dbio.metrics.integration(mdata, use_rep="X_multiomics_vae", label_key="cell_type")
    """
    check_options(
        integration, locals(), min_cells="[2, inf)", n_neighbors="[1, inf)", resolutions="(0, inf)", n_folds="[2, inf)"
    )
    min_cells, n_neighbors, n_folds = int(min_cells), int(n_neighbors), int(n_folds)
    keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    name = _kind(data)
    if n_folds > min_cells:
        raise ValueError(
            f"n_folds must be from 2 to min_cells, so that each type is in each fold; found n_folds={n_folds}, "
            f"min_cells={min_cells}."
        )
    embeddings = {key: _read_embedding(data, key, name) for key in keys}
    codes, names = read_labels(data.obs, label_key, name=f"{name}.obs")
    # Text, not codes: ties among the nearest neighbors go to the first label in order.
    labels = np.append(np.array(names, dtype=str), "")[codes]
    kept = _frequent(codes, names, min_cells, key=label_key)
    if not 1 <= n_neighbors < kept.sum() * (n_folds - 1) // n_folds:
        raise ValueError(
            f"n_neighbors must be at least 1 and fewer than the cells of {n_folds - 1} of {n_folds} folds, found "
            f"{n_neighbors} with {int(kept.sum())} cells in types of at least {min_cells}."
        )
    batches = None if batch_key is None else _read_batches(data, batch_key, name)
    _require("igraph")
    if batches is not None:
        _require("scib_metrics")

    seed = int(rng.integers(2**31 - 1)) if isinstance(rng, np.random.Generator) else int(rng)
    rows = {}
    for key, embedding in embeddings.items():
        row = _clustering(embedding[kept], labels[kept], n_neighbors, resolutions, seed)
        row |= _labels_kept(embedding[kept], labels[kept], n_neighbors, n_folds, seed)
        if batches is not None:
            row |= _mixing(embedding, codes, batches)
        rows[key] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.loc[use_rep] if isinstance(use_rep, str) else table


def _clustering(
    embedding: np.ndarray, labels: np.ndarray, n_neighbors: int, resolutions: Sequence[float], seed: int
) -> dict[str, float]:
    import scanpy as sc
    from anndata import AnnData
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    cells = AnnData(embedding)
    sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
    best = {"nmi": -1.0, "ari": -1.0, "resolution": float("nan")}
    for resolution in resolutions:
        sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        clusters = cells.obs["leiden"].to_numpy()
        nmi = float(normalized_mutual_info_score(labels, clusters))
        if nmi > best["nmi"]:
            ari = float(adjusted_rand_score(labels, clusters))
            best = {"nmi": nmi, "ari": ari, "resolution": float(resolution)}
    return best


def _labels_kept(
    embedding: np.ndarray, labels: np.ndarray, n_neighbors: int, n_folds: int, seed: int
) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, silhouette_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    told = cross_val_predict(KNeighborsClassifier(n_neighbors), embedding, labels, cv=folds)
    return {
        "silhouette_label": (float(silhouette_score(embedding, labels)) + 1) / 2,
        "knn_accuracy": float(accuracy_score(labels, told)),
        "knn_balanced_accuracy": float(balanced_accuracy_score(labels, told)),
    }


def _mixing(embedding: np.ndarray, codes: np.ndarray, batches: np.ndarray) -> dict[str, float]:
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(_LISI_NEIGHBORS, len(embedding))).fit(embedding)
    distances, indices = nearest.kneighbors(embedding)
    neighbors = NeighborsResults(indices=indices, distances=distances.astype(np.float32))
    labelled = codes >= 0
    types, inside = codes[labelled], batches[labelled]
    counts = np.zeros((codes.max() + 1, batches.max() + 1))
    np.add.at(counts, (types, inside), 1)
    shared = (counts > 0).sum(1)
    if ((shared > 1) & (shared < counts.sum(1))).any():
        width = float(scib_metrics.silhouette_batch(embedding[labelled], types, inside))
    else:
        warnings.warn(
            "silhouette_batch is NaN: no label has cells of two batches, so batch and label cannot be told apart.",
            stacklevel=3,
        )
        width = float("nan")
    return {"ilisi": float(scib_metrics.ilisi_knn(neighbors, batches)), "silhouette_batch": width}


def _kind(data: AnnData | MuData) -> str:
    from anndata import AnnData
    from mudata import MuData

    if not isinstance(data, AnnData | MuData):
        raise TypeError(f"data must be an AnnData or a MuData, {found_object(data)}.")
    return "adata" if isinstance(data, AnnData) else "mdata"


def _read_embedding(data: AnnData | MuData, key: str, name: str) -> np.ndarray:
    if key not in data.obsm:
        raise KeyError(f"{name}.obsm has no {key!r}; keys: {list(data.obsm.keys())}.")
    stored = in_memory(data.obsm[key])
    values = np.asarray(stored.toarray() if sp.issparse(stored) else stored, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            f"{name}.obsm[{key!r}] must have cells in rows and dimensions in columns, found {values.shape}."
        )
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{name}.obsm[{key!r}] must be finite, found {int(bad.sum())} bad rows, first: "
            f"{list(data.obs_names[bad][:5])}. Leave out the cells that have no embedding."
        )
    return values


def _read_batches(data: AnnData | MuData, key: str, name: str) -> np.ndarray:
    codes, names = read_labels(data.obs, key, name=f"{name}.obs")
    missing = codes < 0
    if missing.any():
        raise ValueError(
            f"{name}.obs[{key!r}] must have a batch for each cell, found {int(missing.sum())} missing, first: "
            f"{list(data.obs_names[missing][:5])}."
        )
    if len(names) < 2:
        raise ValueError(f"{name}.obs[{key!r}] must have two batches or more, found {names} only; leave out batch_key.")
    return codes


def _frequent(codes: np.ndarray, names: list[str], min_cells: int, *, key: str) -> np.ndarray:
    """Cells of the types that have ``min_cells`` cells or more; two such types are needed."""
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    if (counts >= min_cells).sum() < 2:
        largest = [f"{names[k]} ({counts[k]})" for k in np.argsort(-counts, kind="stable")[:5]]
        raise ValueError(
            f"label_key={key!r} must have at least two labels of at least min_cells={min_cells} cells each; found: "
            f"{largest}."
        )
    return (codes >= 0) & np.append(counts >= min_cells, False)[codes]


def _require(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'metrics.integration needs {module}: pip install "diffbio-sc[integration]" (found: {error}).'
        ) from error
