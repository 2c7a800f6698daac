"""Joint embeddings: cells whose types no modality alone tells apart, beside the linear start and plain components."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc.benchmarks.records import MetricDef
from diffbio_sc.benchmarks.suite import Case, Suite, data_folder, lacking_data

if TYPE_CHECKING:
    from mudata import MuData

METRICS = (
    MetricDef(
        name="knn_accuracy",
        group="types",
        priority="primary",
        description="Share of cells whose type most of the nearest 15 other cells tell.",
    ),
    MetricDef(name="nmi", group="types", description="Normalised mutual information of k-means clusters and types."),
    MetricDef(
        name="alignment",
        group="alignment",
        priority="primary",
        description="1 minus the share of cells closer than the true match, of embeddings of each modality alone.",
    ),
    MetricDef(
        name="imputation",
        group="imputation",
        description="Correlation over types of imputed and true means of genes, of cells without RNA.",
    ),
)
REAL = {"snare": ("snare_cortex_dev", "ident"), "cite": ("bmmc_cite", "cell_type")}
_NEAREST = 15


def _cases(quick: bool) -> list[Case]:
    if quick:
        return _variants("two_modalities", _simulated, (0, 1, 2))
    return [
        case
        for name, (file, key) in REAL.items()
        for case in _variants(
            name, partial(_real, file, key), (0, 1, 2), lacking_data("multiomics_vae", f"{file}.h5mu")
        )
    ]


def _variants(dataset: str, data, seeds: tuple[int, ...], lacking: str | None = None) -> list[Case]:
    shared: dict[str, Any] = {"dataset": dataset, "seeds": seeds, "lacking": lacking}
    return [
        Case(task="embedding", variant="diffbio_sc", run=partial(_embedding, data, None), **shared),
        Case(task="embedding", variant="linear_start", run=partial(_embedding, data, 0), **shared),
        Case(task="embedding", variant="components", run=partial(_components, data), role="control", **shared),
        Case(task="missing_rna", variant="diffbio_sc", run=partial(_missing, data), **shared),
    ]


def _fit(mdata: MuData, seed: int, max_epochs: int | None) -> None:
    from diffbio_sc import tl

    tl.multiomics_vae(mdata, max_epochs=max_epochs, rng=seed)


def _embedding(data, max_epochs: int | None, seed: int) -> dict[str, float]:
    mdata = data(seed).copy()
    _fit(mdata, seed, max_epochs)
    return types_told(mdata.obsm["X_multiomics_vae"], mdata.obs["cell_type"].astype(str).to_numpy(), seed)


def _components(data, seed: int) -> dict[str, float]:
    """Ten principal components of each modality, log-normalised and scaled, side by side."""
    mdata = data(seed)
    parts = []
    for modality in mdata.mod.values():
        counts = dense(modality.X)
        depth = np.maximum(counts.sum(1, keepdims=True), 1)
        values = np.log1p(counts / depth * np.median(depth))
        values -= values.mean(0)
        left, scale, _ = np.linalg.svd(values, full_matrices=False)
        part = left[:, :10] * scale[:10]
        parts.append(part / np.sqrt((part**2).sum(1).mean()))
    return types_told(np.hstack(parts), mdata.obs["cell_type"].astype(str).to_numpy(), seed)


def dense(matrix) -> np.ndarray:
    """Return a matrix as float64, dense."""
    return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix, float)


def types_told(embedding: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """How well an embedding tells types: by its nearest cells, and by clusters."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=_NEAREST + 1).fit(embedding).kneighbors(return_distance=False)[:, :_NEAREST]
    names, codes = np.unique(labels, return_inverse=True)
    votes = np.stack([(codes[nearest] == k).sum(1) for k in range(len(names))], 1)
    clusters = KMeans(len(names), n_init=5, random_state=seed).fit_predict(embedding)
    return {
        "knn_accuracy": float((votes.argmax(1) == codes).mean()),
        "nmi": float(normalized_mutual_info_score(codes, clusters)),
    }


def _missing(data, seed: int) -> dict[str, float]:
    """A quarter of the cells loses its RNA before the fit; the other modality places and completes them."""
    import mudata

    from diffbio_sc import metrics, tl

    whole = data(seed)
    first, second = list(whole.mod)[:2]
    rng = np.random.default_rng([seed, 2])
    held = np.sort(rng.choice(whole.n_obs, whole.n_obs // 4, replace=False))
    kept = np.setdiff1d(np.arange(whole.n_obs), held)
    names = whole.obs_names
    mdata = mudata.MuData({first: whole[first][names[kept]].copy(), second: whole[second].copy()})
    _fit(mdata, seed, None)
    alone = [mudata.MuData({name: whole[name][names[held]].copy()}) for name in (first, second)]
    for part in alone:
        tl.multiomics_encode(part, mdata)
    places = [part.obsm["X_multiomics_vae"] for part in alone]
    imputed = tl.multiomics_impute(mdata, modality=first)
    labels = whole.obs["cell_type"].astype(str).to_numpy()[held]
    blocks = [dense(whole[first][names[held]].X), dense(imputed[names[held]].X)]
    means = [np.log1p([block[labels == name].mean(0) for name in np.unique(labels)]) for block in blocks]
    centred = [block - block.mean(0) for block in means]
    varying = np.ptp(means[0], axis=0) > 0.3
    r = np.corrcoef(centred[0][:, varying].ravel(), centred[1][:, varying].ravel())[0, 1]
    return {"alignment": 1 - metrics.foscttm(*places), "imputation": float(r)}


@lru_cache(maxsize=8)
def _simulated(seed: int) -> MuData:
    from diffbio_sc import datasets

    return datasets.simulate_multiomics(n_cells=300, n_genes=200, n_peaks=300, rng=seed)


@lru_cache(maxsize=1)
def _real(file: str, key: str, seed: int) -> MuData:
    import mudata

    path = data_folder("multiomics_vae", f"{file}.h5mu")
    assert path is not None  # a case without its data is skipped
    mdata = mudata.read_h5mu(path)
    mdata.obs["cell_type"] = mdata.obs[key].astype(str)
    return mdata


SUITE = Suite(name="multiomics_vae", metrics=METRICS, cases=_cases)
