"""Cell types of spatial spots: spots of known composition, beside uniform proportions, least squares and peers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc.benchmarks.records import MetricDef
from diffbio_sc.benchmarks.suite import Case, Suite, SuiteReport, data_folder, lacking_data, lacking_package, run_suite

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

METRICS = (
    MetricDef(
        name="rmse", direction="lower", group="accuracy", priority="primary", description="Root mean square error."
    ),
    MetricDef(
        name="jsd", direction="lower", group="accuracy", description="Jensen-Shannon divergence, mean over spots."
    ),
    MetricDef(name="aupr", group="accuracy", description="Average precision of the presence of types."),
    MetricDef(name="pearson", group="accuracy", description="Correlation over spots, mean over types."),
    MetricDef(
        name="coverage", direction="info", group="calibration", description="Share of truth in the 90 % interval."
    ),
)
REAL = ("merfish_poa", "starmap_cortex", "pbmc_pseudospots", "cellmix_celseq2")
MODALITY_CONTRACT = {
    "modalities": ["rna", "spatial"],
    "primary_modality": "rna",
    "spatial_key": "spatial",
    "label_key": "cell_type",
    "count_key": "X",
}
ARTIFACT = {
    "artifact_id": "diffbio_sc.spatial_deconvolution.proportions",
    "artifact_type": "operator_output",
    "modalities": ["rna", "spatial"],
    "embedding_source": "in_process_operator",
    "foundation_source_name": None,
    "promotion_eligible": False,
}
_AXES = ["dataset", "task", "variant"]
_TASK = "cell_type_proportions"
_CELLS_PER_SPOT = 6
_Z90 = 1.645


def suite(
    adata: AnnData | None = None, *, label_key: str = "cell_type", spatial_key: str = "spatial", dataset: str = "cells"
) -> Suite:
    """Benchmark of deconvolution, in the form of all suites.

    Parameters
    ----------
    adata
        Cells with places, such as seqFISH: raw counts, types in ``.obs[label_key]``, places in
        ``.obsm[spatial_key]``. Spots are then sums of neighbouring cells, from one half of the tissue in stripes; cells
        of the other half are the reference. By default blood cells (quick), and real spots of known composition (full).
    label_key, spatial_key
        Where types and places are.
    dataset
        Name of these cells in the results.
    """
    if adata is None:
        return Suite(name="deconvolution", metrics=METRICS, cases=_cases, describe=partial(describe, MODALITY_CONTRACT))
    _check(adata, label_key, spatial_key)
    contract = {**MODALITY_CONTRACT, "spatial_key": spatial_key, "label_key": label_key}
    load = lru_cache(maxsize=4)(partial(spots_of_cells, adata, label_key=label_key, spatial_key=spatial_key))
    return Suite(
        name="deconvolution",
        metrics=METRICS,
        cases=lambda quick: _methods(dataset, load, (0, 1, 2)),
        describe=partial(describe, contract),
    )


def run_deconvolution_suite(adata: AnnData | None = None, *, quick: bool = True, **options: Any) -> SuiteReport:
    """Run :func:`suite`; ``seeds=`` and ``strict=`` as for ``run_suite``, the others as there."""
    shared = {name: options.pop(name) for name in ("seeds", "strict") if name in options}
    return run_suite(suite(adata, **options), quick=quick, **shared)


def describe(contract: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """What the benchmark says of its modalities, of its output, and of what it is compared with."""
    return {
        "modality_contract": dict(contract),
        "artifact_metadata": dict(ARTIFACT),
        "comparison": {
            "axes": _AXES,
            "baselines": ["uniform", "nnls"],
            "peers": {"flashdeconv": lacking_package("flashdeconv") is None},
            "primary_metric": "rmse",
        },
        "stable_scope": "operator output; imported foundation models are outside",
    }


def spots_of_cells(
    adata: AnnData, seed: int, *, label_key: str, spatial_key: str, cells_per_spot: int = _CELLS_PER_SPOT
) -> tuple[AnnData, AnnData]:
    """Spots that sum neighbouring cells of one half of a tissue, with their composition; the other half as reference.

    Halves alternate in stripes along a random direction, so that both hold all regions.
    """
    import anndata
    import pandas as pd
    import scipy.sparse as sp
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    places = np.asarray(adata.obsm[spatial_key], float)[:, :2]
    labels = adata.obs[label_key].astype(str).to_numpy()
    counts = sp.csr_matrix(adata.X)
    angle = rng.uniform(0, np.pi)
    along = places @ [np.cos(angle), np.sin(angle)]
    rank = np.argsort(np.argsort(along)) * 20 // len(along)
    first = rank % 2 == 0
    inside = np.flatnonzero(first)
    n_spots = max(len(inside) // cells_per_spot, 2)
    centres = rng.choice(inside, n_spots, replace=False)
    _, nearest = cKDTree(places[inside]).query(places[centres], k=min(cells_per_spot, len(inside)))
    cells = inside[nearest]
    mixing = sp.csr_matrix(
        (np.ones(cells.size, np.float32), (np.repeat(np.arange(n_spots), cells.shape[1]), cells.ravel())),
        shape=(n_spots, adata.n_obs),
    )
    kept, sizes = np.unique(labels[~first], return_counts=True)
    types = [name for name, size in zip(kept, sizes, strict=True) if size >= 2]
    used = ~first & np.isin(labels, types)
    truth = np.array([[(labels[row] == name).mean() for name in types] for row in cells])
    names = pd.Index([f"spot_{i}" for i in range(n_spots)])
    good = truth.sum(1) > 0
    spots = anndata.AnnData(sp.csr_matrix(mixing @ counts), obs=pd.DataFrame(index=names), var=adata.var[[]].copy())
    spots.obsm["spatial"] = places[centres]
    spots.obsm["truth"] = pd.DataFrame(truth / np.maximum(truth.sum(1, keepdims=True), 1e-12), names, columns=types)
    reference = anndata.AnnData(
        counts[used],
        obs=pd.DataFrame({"cell_type": pd.Categorical(labels[used], categories=types)}, index=adata.obs_names[used]),
        var=adata.var[[]].copy(),
    )
    return spots[good].copy(), reference


def _check(adata: AnnData, label_key: str, spatial_key: str) -> None:
    for key, where, name in ((label_key, adata.obs, "obs"), (spatial_key, adata.obsm, "obsm")):
        if key not in where:
            raise KeyError(f"adata.{name} has no {key!r}; keys: {list(where.keys())}.")


def _cases(quick: bool) -> list[Case]:
    if quick:
        return _methods("pbmc_tissue", _pbmc, tuple(range(8)))
    return [
        case
        for name in REAL
        for case in _methods(name, partial(_real, name), (0,), lacking_data("deconvolution", name))
    ]


def _methods(dataset: str, load, seeds: tuple[int, ...], lacking: str | None = None) -> list[Case]:
    def case(variant: str, method, role="subject", without=None) -> Case:
        run = partial(_score, load, method)
        return Case(
            dataset=dataset, task=_TASK, variant=variant, run=run, seeds=seeds, role=role, lacking=lacking or without
        )

    return [
        case("diffbio_sc", _ours),
        case("signatures_as_given", partial(_ours, refine=False)),
        case("uniform", _uniform, "control"),
        case("nnls", _nnls, "control"),
        case("flashdeconv", _flashdeconv, "peer", lacking_package("flashdeconv")),
    ]


@lru_cache(maxsize=8)
def _pbmc(seed: int) -> tuple[AnnData, AnnData]:
    from diffbio_sc import datasets

    return datasets.pbmc_tissue(n_spots=200, rng=seed)


@lru_cache(maxsize=1)
def _real(name: str, seed: int) -> tuple[AnnData, AnnData]:
    import anndata

    folder = data_folder("deconvolution", name)
    assert folder is not None  # a case without its data is skipped
    spots, reference = anndata.read_h5ad(folder / "spots.h5ad"), anndata.read_h5ad(folder / "ref.h5ad")
    spots.obs_names_make_unique()
    spots.obsm["truth"] = spots.obsm["truth"].set_axis(spots.obs_names)
    return spots, reference


def _score(load, method, seed: int) -> dict[str, float]:
    from diffbio_sc import metrics

    spots, reference = load(seed)
    truth = spots.obsm["truth"]
    estimate, deviation = method(spots.copy(), reference)
    named = estimate.rename(columns=lambda name: name.replace("/", "|"))
    wanted = truth.rename(columns=lambda name: name.replace("/", "|"))
    found = metrics.composition(named.reindex(columns=wanted.columns).fillna(0.0), wanted)
    scores = {name: found[name] for name in ("rmse", "jsd", "aupr", "pearson")}
    if deviation is not None:
        inside = np.abs(estimate.to_numpy() - truth.reindex(columns=estimate.columns).to_numpy())
        scores["coverage"] = float(np.nanmean(inside <= _Z90 * deviation.to_numpy()))
    return scores


def _ours(spots, reference, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    from diffbio_sc import tl

    tl.deconvolve(spots, reference, cell_type_key="cell_type", **options)
    names = spots.uns["deconvolution"]["cell_types"]
    return tuple(spots.obsm[key].set_axis(names, axis=1) for key in ("deconvolution", "deconvolution_std"))


def _types(reference) -> list[str]:
    return sorted(reference.obs["cell_type"].astype(str).unique())


def _uniform(spots, reference):
    import pandas as pd

    types = _types(reference)
    return pd.DataFrame(np.full((spots.n_obs, len(types)), 1 / len(types)), spots.obs_names, types), None


def _nnls(spots, reference):
    """Non-negative least squares of spots on mean profiles, both scaled to sum 1."""
    import pandas as pd
    from scipy.optimize import nnls

    matrix = _profiles(reference, scaled=True).T
    counts = np.asarray(spots.X.todense() if hasattr(spots.X, "todense") else spots.X, float)
    counts /= np.maximum(counts.sum(1, keepdims=True), 1)
    weights = [nnls(matrix, row)[0] for row in counts]
    return pd.DataFrame(weights, spots.obs_names, _types(reference)), None


def _flashdeconv(spots, reference):
    import pandas as pd
    import scipy.sparse as sp
    from flashdeconv import FlashDeconv

    counts = sp.csr_matrix(spots.X).astype(float)
    table = FlashDeconv().fit_transform(counts, _profiles(reference, scaled=False), np.asarray(spots.obsm["spatial"]))
    return pd.DataFrame(table, spots.obs_names, _types(reference)), None


def _profiles(reference, *, scaled: bool) -> np.ndarray:
    import scipy.sparse as sp

    counts = sp.csr_matrix(reference.X).astype(float)
    if scaled:
        counts = sp.csr_matrix(sp.diags(1 / np.maximum(np.asarray(counts.sum(1)).ravel(), 1)) @ counts)
    labels = reference.obs["cell_type"].astype(str).to_numpy()
    return np.stack([np.asarray(counts[labels == name].mean(0)).ravel() for name in _types(reference)])
