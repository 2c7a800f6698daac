"""Chromatin states: chains of known states, beside the true model and clusters that know no chain."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffbio_sc.benchmarks.records import MetricDef
from diffbio_sc.benchmarks.suite import ACCURACY, Case, Role, Suite

if TYPE_CHECKING:
    from anndata import AnnData

METRICS = (
    ACCURACY,
    MetricDef(
        name="likelihood_gap",
        unit="nat",
        direction="lower",
        group="fit",
        description="Log-likelihood of a bin under the true model, less that under the fitted one.",
    ),
    MetricDef(name="emission_error", direction="lower", group="fit", description="Mean absolute error of emissions."),
)
Family = Literal["bernoulli", "negative_binomial", "gaussian"]
_STATES = 6


def _cases(quick: bool) -> list[Case]:
    n_bins = 10_000 if quick else 100_000
    families: tuple[Family, ...] = ("bernoulli",) if quick else ("bernoulli", "negative_binomial", "gaussian")
    return [
        Case(
            dataset=f"simulated_{family}",
            task="states",
            variant=variant,
            run=partial(run, family, n_bins),
            role=role,
            seeds=tuple(range(8)) if quick else (0, 1, 2),
        )
        for family in families
        for variant, run, role in _VARIANTS
    ]


@lru_cache(maxsize=8)
def _data(family: Family, n_bins: int, seed: int) -> AnnData:
    from diffbio_sc import datasets

    return datasets.simulate_chromatin_states(n_bins=n_bins, n_states=_STATES, family=family, rng=seed)


def _fitted(family: Family, n_bins: int, seed: int) -> dict[str, float]:
    from diffbio_sc import get, tl

    adata = _data(family, n_bins, seed).copy()
    tl.chromatin_states(adata, n_states=_STATES, emission=family, rng=seed)
    truth = adata.uns["truth"]
    found = np.asarray(adata.uns["chromatin_states"]["emission"])
    order = _matched(np.asarray(truth["emission"]), found)
    best = adata.copy()
    tl.chromatin_states(best, model=get.chromatin_state_model(best, key="truth"), train=False)
    record, ideal = adata.uns["chromatin_states"], best.uns["chromatin_states"]
    return {
        "accuracy": _accuracy(adata.obs["truth"], adata.obs["chromatin_state"], order),
        "likelihood_gap": float(ideal["log_likelihood_per_bin"]) - float(record["log_likelihood_per_bin"]),
        "emission_error": float(np.abs(found[order] - truth["emission"]).mean()),
    }


def _true_model(family: Family, n_bins: int, seed: int) -> dict[str, float]:
    from diffbio_sc import get, tl

    adata = _data(family, n_bins, seed).copy()
    tl.chromatin_states(adata, model=get.chromatin_state_model(adata, key="truth"), train=False)
    return {"accuracy": float((adata.obs["truth"].astype(str) == adata.obs["chromatin_state"].astype(str)).mean())}


def _clusters(family: Family, n_bins: int, seed: int) -> dict[str, float]:
    """K-means of the marks of each bin alone."""
    from sklearn.cluster import KMeans

    adata = _data(family, n_bins, seed)
    values = np.asarray(adata.X, float)
    fit = KMeans(_STATES, n_init=3, random_state=seed).fit(values)
    truth = adata.obs["truth"].cat.codes.to_numpy()
    means = np.array([values[truth == k].mean(0) for k in range(_STATES)])
    order = _matched(means, fit.cluster_centers_)
    return {"accuracy": float((order[truth] == fit.labels_).mean())}


def _matched(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Found states in the order of the true ones."""
    from scipy.optimize import linear_sum_assignment

    scale = np.maximum(truth.std(0), 1e-12)
    return linear_sum_assignment(np.abs((truth[:, None] - found[None]) / scale).sum(2))[1]


def _accuracy(truth, states, order: np.ndarray) -> float:
    return float((order[truth.cat.codes.to_numpy()] == states.cat.codes.to_numpy()).mean())


_VARIANTS: tuple[tuple[str, Callable[..., dict[str, float]], Role], ...] = (
    ("diffbio_sc", _fitted, "subject"),
    ("true_model", _true_model, "subject"),
    ("clusters", _clusters, "control"),
)
SUITE = Suite(name="chromatin_states", metrics=METRICS, cases=_cases)
