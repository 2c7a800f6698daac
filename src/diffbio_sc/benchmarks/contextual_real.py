"""Real regions of blood cells for the contextual suite: activity in 14 cell types, on held-out chromosomes."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from diffbio_sc.benchmarks.suite import Case, data_folder, lacking_data


class Blood(NamedTuple):
    """Names by which the suite knows these data."""

    dataset: str = "heme16"
    task: str = "region_activity"
    primary: str = "auroc_variable"


BLOOD = Blood()
_REGIONS = 16_384
_SPLITS = ("train", "val", "test")


class _Regions(NamedTuple):
    tokens: np.ndarray
    labels: np.ndarray
    chromosome: np.ndarray
    split: np.ndarray
    tf_context: np.ndarray


def blood_cases(seeds: tuple[int, ...]) -> list[Case]:
    """Variants on real regions; no contacts are known of them."""
    lacking = lacking_data("contextual", f"{BLOOD.dataset}.h5ad")
    return [
        Case(
            dataset=BLOOD.dataset,
            task=BLOOD.task,
            variant=variant,
            run=partial(_fitted, variant),
            role="control" if variant in ("random_context", "linear") else "subject",
            seeds=seeds,
            lacking=lacking,
        )
        for variant in ("sequence_only", "tf_context", "random_context", "linear")
    ]


@lru_cache(maxsize=1)
def _regions(seed: int) -> _Regions:
    """A random sample of the training regions, with all those that validate and test; cell types with expression."""
    import anndata

    from diffbio_sc.genome.sequences import encode

    path = data_folder("contextual", f"{BLOOD.dataset}.h5ad")
    assert path is not None  # a case without its data is skipped
    adata = anndata.read_h5ad(path)
    adata = adata[adata.obs["has_rna"].to_numpy(bool)]
    split = adata.var["split"].astype(str).map(_SPLITS.index).to_numpy(int)
    training = np.flatnonzero(split == 0)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(training, min(_REGIONS, len(training)), replace=False)
    rows = np.sort(np.concatenate([chosen, np.flatnonzero(split > 0)]))
    values = adata.X[:, rows]
    labels = np.asarray(values.todense() if hasattr(values, "todense") else values, float).T
    return _Regions(
        encode(adata.var["sequence"].astype(str).to_numpy()[rows]),
        labels,
        adata.var["chr"].astype("category").cat.codes.to_numpy()[rows],
        split[rows],
        np.asarray(adata.obsm["tf_expression"], float),
    )


def _fitted(variant: str, seed: int) -> dict[str, float]:
    from diffbio_sc.engines.contextual import fit_regions

    data = _regions(seed)
    context = variant in ("tf_context", "random_context")
    linear = variant == "linear"
    model = fit_regions(
        data.tokens,
        data.labels,
        chromosome=data.chromosome,
        split=data.split,
        tf_context=data.tf_context if context else None,
        random_context=variant == "random_context",
        refine=not linear,
        average=not linear,
        rng=seed,
        progress=False,
    )
    test = data.split == 2
    return region_scores(model.predict(data.tokens[test]), data.labels[test])


def region_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Areas under the ROC curve, means over cell types: of all regions, and of those that differ between cell types."""
    from sklearn.metrics import roc_auc_score

    variable = np.ptp(labels, axis=1) > 0
    found = {}
    for name, rows in (("auroc", np.ones(len(labels), bool)), ("auroc_variable", variable)):
        areas = [
            roc_auc_score(labels[rows, cell], logits[rows, cell])
            for cell in range(labels.shape[1])
            if np.ptp(labels[rows, cell]) > 0
        ]
        found[name] = float(np.mean(areas))
    return found
