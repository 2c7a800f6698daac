"""Cell types of spatial spots: spots of known composition, beside uniform proportions, least squares and peers."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc.benchmarks.records import MetricDef
from diffbio_sc.benchmarks.suite import Case, Suite, SuiteReport, data_folder, lacking_data, lacking_package, run_suite

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from diffbio_sc.sources import SeqFISHSource

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
ARTIFACT_ID = "diffbio.spatial_deconvolution.proportions"
_AXES = ["dataset", "task", "variant"]
_TASK = "cell_type_proportions"
_Z90 = 1.645


def suite(source: SeqFISHSource | None = None, *, seeds: tuple[int, ...] = (0, 1, 2)) -> Suite:
    """Benchmark of deconvolution, in the form of all suites.

    Parameters
    ----------
    source
        Cells with places, of which each seed draws a reference, and spots of the others. By default blood cells mixed
        into a tissue (quick), and real spots of known composition (full).
    seeds
        Seeds of the draws from ``source``.
    """
    if source is None:
        return Suite(name="deconvolution", metrics=METRICS, cases=_cases, describe=partial(_describe, None))
    load = lru_cache(maxsize=4)(partial(_drawn, source))
    return Suite(
        name="deconvolution",
        metrics=METRICS,
        cases=lambda quick: _methods(source.provenance.dataset_name, load, seeds),
        describe=partial(_describe, source),
    )


def run_deconvolution_suite(
    source: SeqFISHSource | None = None,
    *,
    quick: bool = True,
    seeds: tuple[int, ...] | None = None,
    strict: bool = True,
) -> SuiteReport:
    """Run the benchmark of deconvolution.

    Parameters
    ----------
    source
        Source of cells with places, such as :class:`diffbio_sc.sources.SeqFISHSource`; default as in :func:`suite`.
    quick
        Whether to run the bundled cells, or real spots (``DIFFBIO_SC_DATA``); a source is run in either case.
    seeds
        Seeds in place of those of the cases.
    strict
        Whether an error of a case is raised, or kept in ``failures``.

    Returns
    -------
    Report; its ``metadata`` holds ``modality_contract``, ``artifact_metadata`` and ``comparison``.

    Raises
    ------
    ValueError
        If the source lacks cell types or places.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import run_deconvolution_suite
    >>> report = run_deconvolution_suite(seeds=(0,))
    >>> points = {point.tags["variant"]: point.metrics["rmse"].value for point in report.points}
    >>> points["diffbio_sc"] < points["uniform"]
    True
    """
    return run_suite(suite(source), quick=quick, seeds=seeds, strict=strict)


def _describe(source: SeqFISHSource | None, quick: bool) -> dict[str, Any]:
    """What the benchmark says of its modalities, of its output, and of what it is compared with."""
    from diffbio_sc.sources.provenance import Provenance, artifact_metadata

    if source is not None:
        contract, artifact = source.modality_contract, source.artifact_metadata(ARTIFACT_ID)
    else:
        modalities = ("rna", "spatial")
        contract = {
            "modalities": list(modalities),
            "primary_modality": "rna",
            "spatial_key": "spatial",
            "label_key": "cell_type",
            "count_key": "X",
        }
        made = Provenance(
            dataset_name="pbmc_tissue" if quick else "spots_of_known_composition",
            source_type="synthetic" if quick else "file",
            modalities=modalities,
        )
        artifact = artifact_metadata(
            ARTIFACT_ID, artifact_type="operator_output", modalities=modalities, provenance=made
        )
    return {
        "modality_contract": dict(contract),
        "artifact_metadata": artifact,
        "comparison": {
            "axes": _AXES,
            "baselines": ["uniform", "nnls"],
            "peers": {"flashdeconv": lacking_package("flashdeconv") is None},
            "primary_metric": "rmse",
        },
    }


def _drawn(source: SeqFISHSource, seed: int) -> tuple[AnnData, AnnData]:
    """Spots and reference of a seed, with the keys of the other sets."""
    drawn = type(source)(source.cells, dataclasses.replace(source.config, layer=None, rng=seed))
    spots, reference = drawn.spots(), drawn.reference()
    spots.obsm["spatial"] = spots.obsm[source.config.spatial_key]
    reference.obs["cell_type"] = reference.obs[source.config.label_key]
    return spots, reference


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
