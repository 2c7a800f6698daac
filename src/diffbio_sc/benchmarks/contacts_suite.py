"""Chromatin contacts: maps whose compartments, boundaries and loops are known, beside analyses without correction."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc.benchmarks.records import MetricDef
from diffbio_sc.benchmarks.suite import Case, Suite

if TYPE_CHECKING:
    from anndata import AnnData

METRICS = (
    MetricDef(
        name="compartment_correlation",
        group="compartments",
        priority="primary",
        description="Correlation with the true compartments, absolute.",
    ),
    MetricDef(
        name="boundary_f1", group="boundaries", priority="primary", description="F1 of boundaries, within 2 bins."
    ),
    MetricDef(name="loop_precision", group="loops", description="Share of loops called that are true, within 2 bins."),
    MetricDef(
        name="loop_average_precision",
        group="loops",
        priority="primary",
        description="Average precision of all local maxima by their score.",
    ),
)
_TOLERANCE = 2


def _cases(quick: bool) -> list[Case]:
    n_bins, seeds = (1000, tuple(range(8))) if quick else (5000, (0, 1, 2))
    data = partial(_data, n_bins)
    return [
        Case(
            dataset="simulated",
            task="compartments",
            variant="diffbio_sc",
            run=partial(_compartments, data),
            seeds=seeds,
        ),
        Case(
            dataset="simulated",
            task="compartments",
            variant="plain_eigenvector",
            role="control",
            run=partial(_plain_eigenvector, data),
            seeds=seeds,
        ),
        Case(dataset="simulated", task="boundaries", variant="diffbio_sc", run=partial(_boundaries, data), seeds=seeds),
        Case(
            dataset="simulated",
            task="boundaries",
            variant="cooltools_score",
            run=partial(_boundaries, data, method="cooltools"),
            seeds=seeds,
        ),
        Case(dataset="simulated", task="loops", variant="diffbio_sc", run=partial(_loops, data), seeds=seeds),
    ]


@lru_cache(maxsize=8)
def _data(n_bins: int, seed: int) -> AnnData:
    from diffbio_sc import datasets, tl

    adata = datasets.simulate_contacts(n_bins, contacts_per_bin=1000.0, rng=seed)
    tl.balance(adata)
    return adata


def _compartments(data, seed: int) -> dict[str, float]:
    from diffbio_sc import tl

    adata = data(seed).copy()
    tl.compartments(adata, phasing_track="gc")
    return {"compartment_correlation": _correlation(adata.obs["true_compartment"], adata.obs["compartment"])}


def _plain_eigenvector(data, seed: int) -> dict[str, float]:
    """Leading eigenvector of the correlation of log observed over expected of raw counts, as first done."""
    adata = data(seed)
    counts = np.asarray(adata.obsp["contacts"].todense(), float)
    size = len(counts)
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    expected = np.bincount(distance.ravel(), counts.ravel()) / np.bincount(distance.ravel())
    with np.errstate(invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(np.log1p(counts) - np.log1p(expected[distance])))
    vector = np.linalg.eigh(correlation)[1][:, -1]
    return {"compartment_correlation": _correlation(adata.obs["true_compartment"], vector)}


def _correlation(truth, found) -> float:
    truth, found = np.asarray(truth, float), np.asarray(found, float)
    good = np.isfinite(truth) & np.isfinite(found)
    return float(abs(np.corrcoef(truth[good], found[good])[0, 1]))


def _boundaries(data, seed: int, **options) -> dict[str, float]:
    from diffbio_sc import tl

    adata = data(seed).copy()
    tl.insulation(adata, **options)
    truth = adata.uns["truth"]["boundaries"]["bin"].to_numpy()
    called = np.flatnonzero(adata.obs["is_boundary"])
    order = np.argsort(-adata.obs["boundary_score"].to_numpy()[called], kind="stable")
    hit = matched(called[order], truth)
    return {"boundary_f1": 2.0 * hit.sum() / max(len(hit) + len(truth), 1)}


def _loops(data, seed: int) -> dict[str, float]:
    from diffbio_sc import tl

    adata = data(seed).copy()
    tl.loops(adata, fdr=1.0)
    table, truth = adata.uns["loops"]["table"], adata.uns["truth"]["loops"]
    resolution = int(adata.obs["end"].iloc[0] - adata.obs["start"].iloc[0])
    hit = matched(
        table[["start1", "start2"]].to_numpy() // resolution, truth[["start1", "start2"]].to_numpy() // resolution
    )
    called = hit[table["qval"].to_numpy() <= 0.05]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    return {
        "loop_precision": float(called.mean()) if len(called) else 0.0,
        "loop_average_precision": float((hit * precision).sum() / max(len(truth), 1)),
    }


def matched(found: np.ndarray, truth: np.ndarray, tolerance: int = _TOLERANCE) -> np.ndarray:
    """Which of the found, best first, lie near a true one that no better one took; in one or two coordinates."""
    found, truth = (np.asarray(part).reshape(len(part), -1) for part in (found, truth))
    free, hit = np.ones(len(truth), bool), np.zeros(len(found), bool)
    for k, place in enumerate(found):
        if not free.any():
            break
        distance = np.where(free, np.abs(truth - place).max(1), np.iinfo(np.int64).max)
        if distance.min() <= tolerance:
            free[distance.argmin()] = False
            hit[k] = True
    return hit


SUITE = Suite(name="contacts", metrics=METRICS, cases=_cases)
