"""Spatially variable genes: planted patterns, and none at all, beside Moran's I."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc.benchmarks.records import MetricDef
from diffbio_sc.benchmarks.suite import AVERAGE_PRECISION, Case, Suite, data_folder, lacking_data
from diffbio_sc.numerics.spatial.profiles import PATTERNS, spatial_profile

if TYPE_CHECKING:
    from anndata import AnnData

METRICS = (
    AVERAGE_PRECISION,
    MetricDef(name="power", group="test", description="Share of spatial genes found at a false discovery rate of 5 %."),
    MetricDef(
        name="false_discoveries",
        direction="lower",
        group="test",
        description="Share of genes found that have no pattern.",
    ),
    MetricDef(
        name="level_excess",
        direction="lower",
        group="test",
        priority="primary",
        description="Share of p-values below 0.05 beyond 0.05, places permuted.",
    ),
)
REAL = {
    "bulb": ("mob_rep11", 0.1),
    "breast": ("breast_cancer_layers12", 0.1),
    "beads": ("slideseq_cerebellum_left", 0.0),
}
_FOLD = 3.0
_GENES = 800
_LEVEL = 0.05


def _cases(quick: bool) -> list[Case]:
    if quick:
        return _variants("simulated", _simulated, (0, 1, 2, 3))
    cases = []
    for name, (file, share) in REAL.items():
        lacking = lacking_data("spatial_genes", f"{file}.h5ad")
        cases += _variants(name, partial(_planted_in_real, file, share), (0, 1, 2), lacking)
    return cases


@lru_cache(maxsize=4)
def _simulated(seed: int) -> AnnData:
    from diffbio_sc import datasets

    return datasets.simulate_spatial_genes(n_spots=300, n_genes=200, rng=seed)


def _variants(dataset: str, data, seeds: tuple[int, ...], lacking: str | None = None) -> list[Case]:
    shared: dict[str, Any] = {"dataset": dataset, "seeds": seeds, "lacking": lacking}
    return [
        Case(task="patterns", variant="diffbio_sc", run=partial(_patterns, data), **shared),
        Case(task="patterns", variant="moran", run=partial(_moran, data), role="control", **shared),
        Case(task="no_pattern", variant="diffbio_sc", run=partial(_level, data), **shared),
    ]


def _test(adata: AnnData):
    from diffbio_sc import tl

    tl.spatial_genes(adata, variance=False)
    return adata.var


def _patterns(data, seed: int) -> dict[str, float]:
    var = _test(data(seed).copy())
    truth, found = var["truth"].to_numpy(bool), var["is_spatial"].to_numpy(bool)
    return {
        "average_precision": average_precision(var["spatial_score"].to_numpy(), truth),
        "power": float(found[truth].mean()),
        "false_discoveries": float((found & ~truth).sum() / max(found.sum(), 1)),
    }


def _level(data, seed: int) -> dict[str, float]:
    """P-values where places are permuted: none is spatial."""
    adata = data(seed).copy()
    rng = np.random.default_rng([seed, 1])
    adata.obsm["spatial"] = adata.obsm["spatial"][rng.permutation(adata.n_obs)]
    p = _test(adata)["spatial_pvalue"].dropna().to_numpy()
    return {"level_excess": max(float((p < _LEVEL).mean()) - _LEVEL, 0.0)}


def _moran(data, seed: int) -> dict[str, float]:
    """Moran's I of log-normalised counts over the six nearest spots."""
    from scipy.spatial import cKDTree

    adata = data(seed)
    counts = np.asarray(adata.X.todense() if hasattr(adata.X, "todense") else adata.X, float)
    depth = counts.sum(1, keepdims=True)
    values = np.log1p(counts / np.maximum(depth, 1) * np.median(depth))
    values -= values.mean(0)
    nearest = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=7)[1][:, 1:]
    index = (values * values[nearest].mean(1)).sum(0) / np.maximum((values**2).sum(0), 1e-12)
    return {"average_precision": average_precision(index, adata.var["truth"].to_numpy(bool))}


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    """Average precision of a ranking; missing scores come last."""
    hits = truth[np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def _planted_in_real(file: str, share: float, seed: int) -> AnnData:
    """Real counts of random genes on permuted places, a fifth of them thinned by patterns and the others evenly."""
    import anndata
    import scipy.sparse as sp

    path = data_folder("spatial_genes", f"{file}.h5ad")
    assert path is not None  # a case without its data is skipped
    rng = np.random.default_rng(seed)
    adata = anndata.read_h5ad(path)
    if "slide" in adata.obs:
        adata = adata[adata.obs["slide"] == adata.obs["slide"].iloc[0]]
    counts = sp.csc_matrix(adata.X)
    seen = np.diff(counts.indptr)
    good = np.flatnonzero(seen >= max(share * adata.n_obs, 15))
    chosen = np.sort(rng.choice(good, min(_GENES, len(good)), replace=False))
    kept = np.flatnonzero(np.asarray(counts.sum(1)).ravel() > 0)
    dense = counts[:, chosen][kept].toarray().astype(int)
    places = np.asarray(adata.obsm["spatial"], float)[kept, :2][rng.permutation(len(kept))]
    truth = np.arange(len(chosen)) % 5 == 0
    rates = []
    for index, gene in enumerate(np.flatnonzero(truth)):
        kind = PATTERNS[index % len(PATTERNS)]
        keep = (1 + (_FOLD - 1) * spatial_profile(places, kind, rng)) / _FOLD
        rates.append(keep.mean())
        dense[:, gene] = rng.binomial(dense[:, gene], keep)
    for gene in np.flatnonzero(~truth):
        dense[:, gene] = rng.binomial(dense[:, gene], rng.choice(rates))
    result = anndata.AnnData(sp.csr_matrix(dense, dtype=np.float32), var=adata.var[[]].iloc[chosen].copy())
    result.var["truth"] = truth
    result.obsm["spatial"] = places
    return result


SUITE = Suite(name="spatial_genes", metrics=METRICS, cases=_cases)
