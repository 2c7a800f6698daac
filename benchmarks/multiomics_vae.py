"""Accuracy, imputation, cost and memory of ``dbio.tl.multiomics_vae`` beside its peers.

python benchmarks/multiomics_vae.py [joint] [rates] [impute] [batches] [curves] [cost] [epochs] [bound] [memory]
    [scale]
    [--sets snare,cite,mosaic] [--methods "MOFA+;MULTIVI"] [--seeds 3]

MULTIVI runs 50 epochs; MULTIVI_EPOCHS=500 asks for its defaults, about 16 CPU minutes a fit of 4,000 cells.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats

import diffbio_sc as dbio

# File, column of the cell types, what each modality holds.
SETS = {
    "snare": ("snare_cortex_dev", "ident", {"rna": "rna", "atac": "atac"}),
    "cite": ("bmmc_cite", "cell_type", {"rna": "rna", "prot": "protein"}),
    "mosaic": ("pbmc_wnn_mosaic", "celltype", {"rna": "rna", "adt": "protein"}),
}
# Without cell types: the first batch of two 10x experiments, whose proteins are hidden; three modalities of 500 cells.
UNLABELLED = {
    "pbmc": ("pbmc_two_batches", "", {"rna": "rna", "prot": "protein"}),
    "hto": ("cite_hto500", "", {"rna": "rna", "prot": "protein", "hto": "protein"}),
}
SETS_HELP = f"{', '.join(SETS)}; of impute and curves also {', '.join(UNLABELLED)}"
LEIDEN_SEEDS = 5
SCORES = {
    "nmi": "NMI",
    "ari": "ARI",
    "silhouette_label": "silhouette",
    "knn_balanced_accuracy": "balanced kNN",
    "knn_accuracy": "kNN",
    "ilisi": "iLISI",
    "silhouette_batch": "batch silhouette",
    "seconds": "CPU s",
}
MULTIVI_EPOCHS = int(os.environ.get("MULTIVI_EPOCHS", "50"))


class Fit(NamedTuple):
    """An embedding of all cells, or a neighbor graph; epochs and CPU seconds of its training."""

    embedding: np.ndarray | None
    seconds: float
    epochs: int = 0
    graph: tuple[Any, Any] | None = None
    model: Any = None


def load(name: str) -> md.MuData:
    file, _, kinds = {**SETS, **UNLABELLED}[name]
    mdata = md.read_h5mu(Path(os.environ["DIFFBIO_SC_DATA"]) / "multiomics_vae" / f"{file}.h5mu")
    if name == "hto":
        mdata.obs["batch"] = "one"
    for key, modality in mdata.mod.items():
        modality.X = sp.csr_matrix(modality.X, dtype=np.float32)
        modality.uns["kind"] = kinds[key]
        # Peers look for the batch in a modality, ours in the table of the whole.
        modality.obs["batch"] = mdata.obs["batch"].astype(str).loc[modality.obs_names].to_numpy()
    return mdata


def clock() -> float:
    return time.process_time()


# Linear representations, as the field makes them: log-normalised PCA, LSI without its depth component, CLR PCA.


def log_normalised(counts) -> np.ndarray:
    dense = counts.toarray()
    depth = dense.sum(1, keepdims=True)
    return np.log1p(dense / np.maximum(depth, 1) * np.median(depth[depth > 0]))


def term_frequencies(counts) -> sp.csr_matrix:
    """log(1 + 10,000 TF-IDF) of open or closed."""
    seen = sp.csr_matrix(counts, copy=True)
    seen.data[:] = 1
    rows, columns = np.asarray(seen.sum(1)).ravel(), np.asarray(seen.sum(0)).ravel()
    weighted = sp.diags(1 / np.maximum(rows, 1)) @ seen @ sp.diags(seen.shape[0] / np.maximum(columns, 1))
    weighted = sp.csr_matrix(weighted, dtype=np.float32)
    weighted.data = np.log1p(weighted.data * 1e4)
    return weighted


def centred_log_ratio(counts) -> np.ndarray:
    logs = np.log1p(counts.toarray())
    return logs - logs.mean(1, keepdims=True)


def components(values, number: int) -> np.ndarray:
    from sklearn.utils.extmath import randomized_svd

    left, scale, _ = randomized_svd(values, min(number, min(values.shape) - 1), random_state=0)
    return left * scale


def representation(modality: ad.AnnData, number: int = 30) -> np.ndarray:
    if modality.uns["kind"] == "atac":
        embedding = components(term_frequencies(modality.X), number + 1)[:, 1:]
        return embedding / embedding.std(0).mean()
    rna = modality.uns["kind"] == "rna"
    values = log_normalised(modality.X) if rna else centred_log_ratio(modality.X)
    values -= values.mean(0)
    spread = values.std(0)
    values /= np.where(spread > 0, spread, 1) if rna else np.maximum(spread, 1e-6)
    return components(np.clip(values, -10, 10) if rna else values, number)


def of_one(kind: str) -> Callable[[md.MuData, int], Fit]:
    def function(mdata: md.MuData, seed: int) -> Fit:
        started = clock()
        modality = next(value for value in mdata.mod.values() if value.uns["kind"] == kind)
        return Fit(representation(modality), clock() - started)

    return function


def concatenated(mdata: md.MuData, seed: int) -> Fit:
    started = clock()
    blocks = [representation(modality) for modality in mdata.mod.values()]
    return Fit(np.hstack([block / np.sqrt((block**2).sum(1).mean()) for block in blocks]), clock() - started)


def mofa(mdata: md.MuData, seed: int) -> Fit:
    import muon

    views = {}
    for name, modality in mdata.mod.items():
        if modality.n_vars > 5000:
            # As its tutorials do, variable features only; all views are held dense.
            common = np.argsort(-np.asarray((modality.X > 0).sum(0)).ravel())[:5000]
            modality = modality[:, np.sort(common)]
        if modality.uns["kind"] == "atac":
            values = term_frequencies(modality.X).toarray()
        elif modality.uns["kind"] == "rna":
            values = log_normalised(modality.X)
        else:
            values = centred_log_ratio(modality.X)
        views[name] = ad.AnnData(values.astype(np.float32), obs=pd.DataFrame(index=modality.obs_names))
    whole = md.MuData(views)
    with tempfile.TemporaryDirectory() as folder:
        options = {"n_iterations": 100, "convergence_mode": "fast", "scale_views": True, "use_obs": "union"}
        started = clock()
        with contextlib.redirect_stdout(io.StringIO()):
            muon.tl.mofa(whole, n_factors=15, outfile=f"{folder}/mofa.hdf5", seed=seed + 1, quiet=True, **options)
        seconds = clock() - started
    return Fit(whole.obsm["X_mofa"][whole.obs_names.get_indexer(mdata.obs_names)], seconds)


def weighted_neighbors(mdata: md.MuData, seed: int) -> Fit:
    import muon
    import scanpy as sc

    whole = md.MuData({name: ad.AnnData(modality.X, obs=modality.obs[[]]) for name, modality in mdata.mod.items()})
    started = clock()
    for name, modality in mdata.mod.items():
        whole[name].obsm["X_rep"] = representation(modality)
        sc.pp.neighbors(whole[name], n_neighbors=20, use_rep="X_rep")
    muon.pp.neighbors(whole, key_added="wnn", random_state=seed)
    seconds = clock() - started
    return Fit(None, seconds, graph=(whole.obsp["wnn_connectivities"], whole.obsp["wnn_distances"]))


def quiet_scvi(seed: int):
    import scvi
    import torch

    torch.set_num_threads(1)
    scvi.settings.seed = seed
    scvi.settings.verbosity = logging.ERROR
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return scvi


def trained(model, **options) -> Fit:
    started = clock()
    with contextlib.redirect_stdout(io.StringIO()):
        model.train(accelerator="cpu", enable_progress_bar=False, **options)
    seconds = clock() - started
    return Fit(model.get_latent_representation(), seconds, len(model.history["elbo_train"]), model=model)


def multivi(mdata: md.MuData, seed: int, **options) -> Fit:
    scvi = quiet_scvi(seed)
    whole = md.MuData({name: modality.copy() for name, modality in mdata.mod.items()})
    scvi.model.MULTIVI.setup_mudata(whole, modalities={"rna_layer": "rna", "atac_layer": "atac"})
    model = scvi.model.MULTIVI(whole, n_genes=whole["rna"].n_vars, n_regions=whole["atac"].n_vars)
    return trained(model, max_epochs=MULTIVI_EPOCHS, **options)


def multivi_faster(mdata: md.MuData, seed: int) -> Fit:
    return multivi(mdata, seed, lr=1e-3)


def totalvi(mdata: md.MuData, seed: int, batch_key: str | None = None) -> Fit:
    scvi = quiet_scvi(seed)
    whole = md.MuData({name: modality.copy() for name, modality in mdata.mod.items()})
    protein = next(name for name, modality in whole.mod.items() if modality.uns["kind"] == "protein")
    whole[protein].X = whole[protein].X.toarray()
    places = {"rna_layer": "rna", "protein_layer": protein, **({"batch_key": "rna"} if batch_key else {})}
    scvi.model.TOTALVI.setup_mudata(whole, batch_key=batch_key, modalities=places)
    return trained(scvi.model.TOTALVI(whole))


# Ours, in the four calls that the whole benchmark makes.


def ours(mdata: md.MuData, seed: int, *, max_epochs: int | None = None, **options) -> Fit:
    """Trained until the held-out loss is flat, unless ``max_epochs`` says otherwise."""
    started = clock()
    dbio.tl.multiomics_vae(mdata, rng=seed, max_epochs=max_epochs, **options)
    seconds = clock() - started
    history = mdata.uns["multiomics_vae"]["report"]["history"]
    return Fit(mdata.obsm["X_multiomics_vae"], seconds, len(next(iter(history.values()), ())))


def ours_with_batch(mdata: md.MuData, seed: int) -> Fit:
    return ours(mdata, seed, batch_key="batch")


def ours_at_start(mdata: md.MuData, seed: int) -> Fit:
    return ours(mdata, seed, max_epochs=0)


def ours_at_start_with_batch(mdata: md.MuData, seed: int) -> Fit:
    return ours(mdata, seed, batch_key="batch", max_epochs=0)


def ours_imputed(mdata: md.MuData, modality: str) -> ad.AnnData:
    return dbio.tl.multiomics_impute(mdata, modality=modality)


def ours_encoded(fitted: md.MuData, new: md.MuData) -> np.ndarray:
    dbio.tl.multiomics_encode(new, fitted)
    return new.obsm["X_multiomics_vae"]


class Method(NamedTuple):
    function: Callable[[md.MuData, int], Fit]
    sets: tuple[str, ...]
    package: str | None = None
    seeded: bool = True


METHODS = {
    "trained": Method(ours, ("snare", "cite", "mosaic")),
    "trained, batch_key": Method(ours_with_batch, ("cite", "mosaic")),
    "start alone": Method(ours_at_start, ("snare", "cite", "mosaic")),
    "start alone, batch_key": Method(ours_at_start_with_batch, ("cite", "mosaic")),
    "RNA, PCA": Method(of_one("rna"), ("snare", "cite"), seeded=False),
    "ATAC, LSI": Method(of_one("atac"), ("snare",), seeded=False),
    "protein, CLR and PCA": Method(of_one("protein"), ("cite",), seeded=False),
    "both, concatenated": Method(concatenated, ("snare", "cite"), seeded=False),
    "WNN": Method(weighted_neighbors, ("snare", "cite"), "muon"),
    "MOFA+": Method(mofa, ("snare", "cite", "mosaic"), "mofapy2"),
    f"MULTIVI, {MULTIVI_EPOCHS} epochs": Method(multivi, ("snare",), "scvi-tools"),
    "MULTIVI, learning rate 1e-3": Method(multivi_faster, ("snare",), "scvi-tools"),
    "totalVI": Method(totalvi, ("cite",), "scvi-tools"),
}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def chosen(names, methods):
    """Methods asked for; a name stands for all that begin with it."""
    return {key: value for key, value in methods.items() if not names or any(key.startswith(name) for name in names)}


def score(mdata: md.MuData, label_key: str, fit: Fit) -> dict[str, float]:
    if fit.graph is None:
        mdata.obsm["embedding"] = fit.embedding
        # Clusters of one embedding move by .01 (NMI) and .06 (ARI) from seed to seed: the mean over several.
        rows = [
            dbio.metrics.integration(
                mdata, use_rep="embedding", label_key=label_key, batch_key=None if seed else "batch", rng=seed
            )
            for seed in range(LEIDEN_SEEDS)
        ]
        return {**pd.DataFrame(rows).mean().to_dict(), "seconds": fit.seconds}
    return {**graph_scores(mdata.obs[label_key].astype(str).to_numpy(dtype=str), *fit.graph), "seconds": fit.seconds}


def graph_scores(labels: np.ndarray, connectivities, distances) -> dict[str, float]:
    """The same scores of a graph without an embedding: its clusters, and the vote of its nearest neighbors."""
    import scanpy as sc
    from sklearn import metrics

    kept = pd.Series(labels).map(pd.Series(labels).value_counts()).to_numpy() >= 10
    cells = ad.AnnData(np.zeros((len(labels), 1), np.float32))
    best = (-1.0, -1.0)
    for resolution in np.arange(1, 11) / 5:
        sc.tl.leiden(cells, resolution, adjacency=connectivities, flavor="igraph", n_iterations=2, directed=False)
        found = cells.obs["leiden"].to_numpy(dtype=str)[kept]
        nmi = metrics.normalized_mutual_info_score(labels[kept], found)
        best = max(best, (nmi, metrics.adjusted_rand_score(labels[kept], found)), key=lambda pair: pair[0])
    told = []
    for cell, row in enumerate(sp.csr_matrix(distances)):
        nearest = row.indices[np.argsort(row.data)][:15]
        names, votes = np.unique(labels[nearest[nearest != cell]], return_counts=True)
        told.append(names[votes.argmax()] if len(names) else "")
    told = np.array(told)[kept]
    return {
        "nmi": best[0],
        "ari": best[1],
        "knn_balanced_accuracy": metrics.balanced_accuracy_score(labels[kept], told),
        "knn_accuracy": metrics.accuracy_score(labels[kept], told),
    }


def rows_of(label: str, rows: list[dict[str, float]], columns, digits: dict[str, int] | None = None) -> None:
    """A line of a table: means, and standard deviations over seeds."""
    table = pd.DataFrame(rows).reindex(columns=list(columns))
    cells = []
    for column in columns:
        values, places = table[column].to_numpy(), (digits or {}).get(column, 3)
        if np.isnan(values).all():
            cells.append("")
        elif len(values) == 1:
            cells.append(f"{values[0]:.{places}f}")
        else:
            cells.append(f"{values.mean():.{places}f} ({values.std(ddof=1):.{places}f})")
    print(f"| {label} | {len(rows)} | " + " | ".join(cells) + " |", flush=True)


def head(first: list[str]) -> None:
    print("| " + " | ".join(first) + " |\n" + "|---" * len(first) + "|")


def joint(options) -> None:
    print("\n## joint: one embedding of all modalities; mean (standard deviation) over seeds")
    for name in options.sets:
        print(f"\n### {name}\n")
        head(["method", "seeds", *SCORES.values()])
        for label, method in chosen(options.methods, METHODS).items():
            if name not in method.sets:
                continue
            if method.package and not version(method.package):
                print(f"| {label} | | {method.package} is not installed |")
                continue
            title = f"{label} ({method.package} {version(method.package)})" if method.package else label
            rows = []
            for seed in range(options.seeds if method.seeded else 1):
                mdata = load(name)
                rows.append(score(mdata, SETS[name][1], method.function(mdata, seed)))
            rows_of(title, rows, SCORES, {"seconds": 1})


# Constants of the start in closed form: module, name. Each is halved and doubled.
CONSTANTS = (
    ("operators.multiomics.multiomics_vae.start", "_SLOPE_PRIOR"),
    ("operators.multiomics.multiomics_vae.start", "_LINK_PRIOR"),
    ("operators.multiomics.multiomics_vae.start", "_BELIEVED"),
    ("operators.multiomics.multiomics_vae.start", "_NEWTON"),
    ("operators.multiomics.multiomics_vae.start", "_TYPICAL_SHARE"),
    ("operators.multiomics.multiomics_vae.start", "_STRETCH"),
    ("operators.multiomics.multiomics_vae.start", "_RATE_PRIOR"),
    ("numerics.latent.factors", "_LIKELY_NOISE"),
    ("numerics.latent.factors", "_SMALLEST_RESIDUAL"),
    ("numerics.latent.factors", "LARGEST_VALUE"),
)


def constants(options) -> None:
    """Each constant of the start, chosen on all sets but one and judged on that one."""
    import importlib

    print("\n## constants: start alone; balanced kNN accuracy, and nats per cell at the posterior mean\n")
    head(["constant", "value", *(f"{name}, {what}" for name in options.sets for what in ("kNN", "nats"))])
    for module_name, constant in CONSTANTS:
        module = importlib.import_module(f"diffbio_sc.{module_name}")
        kept, table = getattr(module, constant), {}
        for value in (kept / 2, kept, 2 * kept):
            setattr(module, constant, value)
            for name in options.sets:
                mdata = load(name)
                dbio.tl.multiomics_vae(mdata, max_epochs=0)
                fit = Fit(mdata.obsm["X_multiomics_vae"], 0.0)
                accuracy = score(mdata, SETS[name][1], fit)["knn_balanced_accuracy"]
                nats = dbio.tl.multiomics_score(mdata).filter(like="log_likelihood").sum(axis=1).mean()
                table[value, name] = accuracy, float(nats)
            cells = [f"{table[value, name][0]:.3f} | {table[value, name][1]:.1f}" for name in options.sets]
            print(f"| {constant} | {value:g} | {' | '.join(cells)} |", flush=True)
        setattr(module, constant, kept)
        for left_out in options.sets:
            others = [name for name in options.sets if name != left_out]
            best = max({value for value, _ in table}, key=lambda value: sum(table[value, name][0] for name in others))
            found, own = table[best, left_out][0], table[kept, left_out][0]
            print(f"{constant}: without {left_out} {best:g} is chosen; there {found:.3f}, with {kept:g} {own:.3f}")


# Learning rate and averaging: rate of the decoders, decay of the average of the weights.
RATES = ((1e-3, None), (3e-3, None), (3e-3, 0.99), (6e-3, 0.99), (1e-2, 0.99))


def rates(options) -> None:
    """Each learning rate, chosen on all sets but one and judged on that one."""
    import dataclasses

    from diffbio_sc.operators.multiomics.multiomics_vae import fitting

    print("\n## rates: trained until the held-out loss is flat; mean (standard deviation) over seeds\n")
    columns = {
        "loss": "lowest held-out loss",
        "epochs": "epochs",
        "back": "taken back",
        "knn_balanced_accuracy": "balanced kNN",
        "seconds": "CPU s",
    }
    head(["set, learning rate, average", "seeds", *columns.values()])
    kept, table = fitting.learning_rates, {}
    for name in options.sets:
        for rate, average in RATES:

            def changed(networks, matrices, present, _, encoder_rate, rate=rate, average=average):
                adam = kept(networks, matrices, present, rate, encoder_rate)
                return dataclasses.replace(adam, average=average)

            fitting.learning_rates, rows = changed, []
            for seed in range(options.seeds):
                mdata = load(name)
                fit = ours(mdata, seed)
                history = mdata.uns["multiomics_vae"]["report"]["history"]
                row = {"loss": float(np.min(history["validation_loss"])), "back": float(np.sum(history["taken_back"]))}
                row |= {"epochs": fit.epochs, "seconds": fit.seconds}
                if name in SETS:
                    row["knn_balanced_accuracy"] = score(mdata, SETS[name][1], fit)["knn_balanced_accuracy"]
                rows.append(row)
            table[(rate, average), name] = {
                key: np.mean([row[key] for row in rows]) for key in ("loss", "epochs", "back")
            }
            digits = {"loss": 2, "epochs": 0, "back": 1, "seconds": 1}
            rows_of(f"{name}, {rate:g}, {average or 'none'}", rows, columns, digits)
    fitting.learning_rates = kept
    for left_out in options.sets:
        others = [name for name in options.sets if name != left_out]
        # Of those that nowhere end above the loss of the slowest, the one that takes the fewest epochs back (steps too
        # far); of such the quickest.
        fit = [s for s in RATES if all(table[s, name]["loss"] <= table[RATES[0], name]["loss"] for name in others)]

        def cost_of(setting, others=others):
            epochs = [table[setting, name]["epochs"] / table[RATES[0], name]["epochs"] for name in others]
            return sum(table[setting, name]["back"] for name in others), sum(epochs)

        best = min(fit, key=cost_of)
        found, slowest = table[best, left_out], table[RATES[0], left_out]
        print(
            f"without {left_out}, {best} is chosen; there {found['loss']:.2f} nats in {found['epochs']:.0f} epochs, "
            f"{slowest['loss']:.2f} in {slowest['epochs']:.0f} at {RATES[0]}"
        )


# Imputation: the second modality is hidden for 20 % of the cells.


class Imputed(NamedTuple):
    """Prediction for the hidden cells, and their embeddings from each modality alone."""

    values: np.ndarray
    first: np.ndarray | None = None
    second: np.ndarray | None = None


def hide(cells: int, seed: int = 0) -> np.ndarray:
    hidden = np.zeros(cells, bool)
    hidden[np.random.default_rng(seed).choice(cells, int(0.2 * cells), replace=False)] = True
    return hidden


def targets(modality: ad.AnnData) -> tuple[np.ndarray, Callable]:
    """What a regression predicts, and the way back to counts."""
    dense = modality.X.toarray()
    if modality.uns["kind"] == "atac":
        return (dense > 0).astype(np.float32), lambda values: values
    return np.log1p(dense), np.expm1


def impute_mean(mdata, target, hidden, seed) -> Imputed:
    values, back = targets(mdata[target])
    return Imputed(np.repeat(back(values[~hidden].mean(0))[None], hidden.sum(), 0))


def impute_neighbors(number: int):
    def function(mdata, target, hidden, seed) -> Imputed:
        from sklearn.neighbors import NearestNeighbors

        values, back = targets(mdata[target])
        place = representation(mdata["rna"])
        near = NearestNeighbors(n_neighbors=number).fit(place[~hidden]).kneighbors(place[hidden], return_distance=False)
        return Imputed(back(values[~hidden][near].mean(1)))

    return function


def impute_ridge(mdata, target, hidden, seed) -> Imputed:
    from sklearn.linear_model import Ridge

    values, back = targets(mdata[target])
    place = representation(mdata["rna"])
    return Imputed(back(Ridge(100.0).fit(place[~hidden], values[~hidden]).predict(place[hidden])))


def blanked(modality: ad.AnnData, cells: np.ndarray) -> ad.AnnData:
    """Rows of zeros, which scvi-tools reads as a missing modality."""
    result = modality.copy()
    result.X = sp.csr_matrix(sp.diags((~cells).astype(np.float32)) @ modality.X)
    return result


def impute_multivi(mdata, target, hidden, seed) -> Imputed:
    whole = md.MuData({"rna": mdata["rna"], "atac": blanked(mdata["atac"], hidden)})
    model = multivi(whole, seed, lr=1e-3).model
    # The name changed in 1.3; both give probabilities.
    name = "get_normalized_accessibility"
    values = getattr(model, name if hasattr(model, name) else "get_accessibility_estimates")()
    values = values.toarray() if sp.issparse(values) else np.asarray(values)
    first = model.get_latent_representation(modality="expression")
    # Now the other way round, in the object that the model has registered.
    model.adata["rna"].X = sp.csr_matrix(mdata["rna"].shape, dtype=np.float32)
    model.adata["atac"].X = mdata["atac"].X.copy()
    second = model.get_latent_representation(modality="accessibility")
    return Imputed(values[hidden], first[hidden], second[hidden])


def impute_totalvi(mdata, target, hidden, seed) -> Imputed:
    # A batch without any protein is its way to say that they are missing.
    whole = md.MuData({"rna": mdata["rna"].copy(), target: blanked(mdata[target], hidden)})
    for modality in whole.mod.values():
        modality.obs["batch"] = np.where(hidden, "rna_only", "paired")
    fit = totalvi(whole, seed, batch_key="batch")
    options = {"n_samples": 10, "transform_batch": "paired", "include_protein_background": True}
    _, protein = fit.model.get_normalized_expression(return_mean=True, **options)
    return Imputed(np.asarray(protein)[hidden])


def impute_ours_at_start(mdata, target, hidden, seed) -> Imputed:
    return impute_ours(mdata, target, hidden, seed, max_epochs=0)


def impute_neighbors_of_ours(mdata, target, hidden, seed) -> Imputed:
    """15 neighbors in our own embedding by RNA."""
    from sklearn.neighbors import NearestNeighbors

    part = md.MuData({"rna": mdata["rna"].copy(), target: mdata[target][~hidden].copy()})
    ours(part, seed)
    values, back = targets(mdata[target])
    place = part["rna"].obsm["X_multiomics_vae"]
    near = NearestNeighbors(n_neighbors=15).fit(place[~hidden]).kneighbors(place[hidden], return_distance=False)
    return Imputed(back(values[~hidden][near].mean(1)))


def impute_ours(mdata, target, hidden, seed, **options) -> Imputed:
    part = md.MuData({"rna": mdata["rna"].copy(), target: mdata[target][~hidden].copy()})
    ours(part, seed, **options)
    names = mdata.obs_names[hidden]
    values = ours_imputed(part, target)[names].X
    second = ours_encoded(part, md.MuData({target: mdata[target][hidden].copy()}))
    first = part["rna"][names].obsm["X_multiomics_vae"]
    return Imputed(values.toarray() if sp.issparse(values) else np.asarray(values), first, second)


IMPUTERS = {
    "trained": (impute_ours, ("snare", "cite", "hto", "pbmc"), None, True),
    "start alone": (impute_ours_at_start, ("snare", "cite", "hto", "pbmc"), None, True),
    "15 neighbors in our embedding by RNA": (impute_neighbors_of_ours, ("cite", "hto", "pbmc"), None, True),
    "mean of the others": (impute_mean, ("snare", "cite", "hto", "pbmc"), None, False),
    "15 neighbors in RNA": (impute_neighbors(15), ("snare", "cite", "hto", "pbmc"), None, False),
    "50 neighbors in RNA": (impute_neighbors(50), ("snare", "cite", "hto", "pbmc"), None, False),
    "ridge on RNA": (impute_ridge, ("snare", "cite", "hto", "pbmc"), None, False),
    "MULTIVI, learning rate 1e-3": (impute_multivi, ("snare",), "scvi-tools", True),
    "totalVI": (impute_totalvi, ("cite",), "scvi-tools", True),
}


def auroc(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column that has both."""
    here = present.sum(0)
    both = (here > 0) & (here < len(present))
    ranks = np.where(present[:, both], stats.rankdata(values[:, both], axis=0), 0).sum(0)
    here = here[both].astype(float)
    return (ranks - here * (here + 1) / 2) / (here * (len(present) - here))


def imputation_scores(truth: np.ndarray, values: np.ndarray, kind: str) -> dict[str, float]:
    if kind == "atac":
        present = truth > 0
        often = (present.sum(0) >= 10) & (present.sum(0) <= len(present) - 10)
        return {
            "all": float(auroc(values.reshape(-1, 1), present.reshape(-1, 1))[0]),
            "feature": float(auroc(values[:, often], present[:, often]).mean()),
            "cell": float(auroc(values.T, present.T).mean()),
        }
    known, told = np.log1p(truth), np.log1p(np.maximum(values, 0))
    varied = (known.std(0) > 0) & (told.std(0) > 1e-8)
    pairs = zip(known[:, varied].T, told[:, varied].T, strict=True)
    result = {"pearson": float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])) if varied.any() else float("nan")}
    return {**result, "error": float(np.sqrt(((known - told) ** 2).mean()))}


def impute(options) -> None:
    print("\n## impute: the second modality of 20 % of the cells, from RNA; mean (standard deviation) over seeds")
    for name in [*options.sets, *(UNLABELLED if options.sets == list(SETS) else ())]:
        if name == "mosaic":
            continue
        target, kind = list({**SETS, **UNLABELLED}[name][2].items())[1]
        columns = (
            {"all": "AUROC, all", "feature": "AUROC, mean of peaks", "cell": "AUROC, mean of cells"}
            if kind == "atac"
            else {"pearson": "correlation of log1p, mean of proteins", "error": "RMSE of log1p"}
        ) | {"foscttm": "FOSCTTM", "seconds": "CPU s"}
        print(f"\n### {name}: {target}\n")
        head(["method", "seeds", *columns.values()])
        for label, (function, sets, package, seeded) in chosen(options.methods, IMPUTERS).items():
            if name not in sets:
                continue
            if package and not version(package):
                print(f"| {label} | | {package} is not installed |")
                continue
            rows = []
            for seed in range(options.seeds if seeded else 1):
                mdata = load(name)
                if name == "pbmc":
                    mdata = mdata[mdata.obs["batch"] == "10k"].copy()
                if name == "hto":
                    mdata = md.MuData({key: mdata[key] for key in ("rna", target)})
                hidden = hide(mdata.n_obs)
                truth = mdata[target].X[hidden].toarray()
                started = clock()
                result = function(mdata, target, hidden, seed)
                seconds = clock() - started
                row = {**imputation_scores(truth, result.values, kind), "seconds": seconds}
                if result.first is not None:
                    row["foscttm"] = dbio.metrics.foscttm(result.first, result.second)
                rows.append(row)
            rows_of(label, rows, columns, {"seconds": 1})


# Cells that have the proteins: each read is in one of two halves by the toss of a coin.


def measured(options) -> None:
    """From RNA and one half of the reads, the other half of the same cells: a second measurement of each."""
    print("\n## measured: proteins of cells that have them, start alone; correlation and RMSE of log1p counts\n")
    columns = {"pearson": "correlation", "error": "RMSE"}
    head(["set, values", "seeds", *columns.values()])
    for name in [*options.sets, *(UNLABELLED if options.sets == list(SETS) else ())]:
        rows: dict[str, list] = {}
        for seed in range(options.seeds if name != "snare" else 0):
            mdata = load(name)
            target = next(key for key, kind in SETS.get(name, UNLABELLED.get(name))[2].items() if kind == "protein")
            both = mdata["rna"].obs_names[mdata["rna"].obs_names.isin(mdata[target].obs_names)]
            mdata = md.MuData({key: mdata[key][both].copy() for key in ("rna", target)})
            reads = mdata[target].X.toarray().astype(int)
            half = np.random.default_rng(seed).binomial(reads, 0.5)
            mdata[target].X = sp.csr_matrix(half.astype(np.float32))
            ours(mdata, seed, max_epochs=0)
            found = {
                "imputed": ours_imputed(mdata, target).X,
                "the counts themselves": half,
                "imputed from RNA": dbio.tl.multiomics_impute(
                    md.MuData({"rna": mdata["rna"].copy()}), modality=target, fitted=mdata
                ).X,
                "decoder": decoded(mdata, target),
            }
            for label, values in found.items():
                rows.setdefault(label, []).append(imputation_scores(reads - half, np.asarray(values), "protein"))
        for label, scores in rows.items():
            rows_of(f"{name}, {label}", scores, columns)


def decoded(mdata: md.MuData, target: str) -> np.ndarray:
    """What the decoder expects of cells with both modalities."""
    from diffbio_sc._anndata.multiomics_model import read_model_input, read_multiomics_model

    model = read_multiomics_model(mdata, key="multiomics_vae")
    cells = read_model_input(mdata, model, layers=None, batch_key=None, unseen_batch="error")
    matrices, number = cells.modalities.matrices, model.modalities.index(target)
    size = np.log(np.maximum(np.asarray(matrices[number].sum(1)).ravel(), 1.0))
    return model.operator.expected(number, model.operator.encode(matrices).mean, log_size=size)


# Two batches of which the second has RNA alone.


def batches(options) -> None:
    """Are the batches mixed, the types kept, and the proteins of the second told from those of the first?"""
    import scanpy as sc
    from sklearn.cluster import KMeans
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

    mdata = load("pbmc")
    protein = mdata["prot"]
    first = mdata.obs_names.get_indexer(protein.obs_names)
    second = (mdata.obs["batch"] == "5k").to_numpy()
    levels = centred_log_ratio(protein.X)
    types = KMeans(8, n_init=5, random_state=0).fit_predict((levels - levels.mean(0)) / levels.std(0))
    values, column = np.log1p(protein.X.toarray()), list(protein.var_names).index("CD4")
    seen = mdata["rna"][:, "CD4"].X.toarray()[second] > 0

    def told(place):
        near = NearestNeighbors(n_neighbors=15).fit(place[first]).kneighbors(place[second], return_distance=False)
        return values[near, column].mean(1)

    def row(label, place, cd4, seconds):
        mdata.obsm["embedding"], mdata.obs["any"] = np.asarray(place, np.float32), np.where(second, "b", "a")
        mixed = dbio.metrics.integration(
            mdata, use_rep="embedding", label_key="any", batch_key="batch", resolutions=[0.2]
        )["ilisi"]
        found = cross_val_predict(KNeighborsClassifier(15), place[first], types, cv=5)
        levels = np.asarray(cd4).reshape(-1, 1)
        area, random = auroc(levels, seen)[0], np.random.default_rng(0)
        draws = [random.integers(len(seen), size=len(seen)) for _ in range(300)]
        spread = np.std([auroc(levels[drawn], seen[drawn])[0] for drawn in draws], ddof=1)
        told_apart = f"{mixed:.3f} | {(found == types).mean():.3f} | {area:.3f} ({spread:.3f})"
        print(f"| {label} | {told_apart} | {seconds:.0f} |", flush=True)

    print("\n## batches: 3,427 cells with RNA and 14 proteins, 1,997 with RNA alone\n")
    head(
        [
            "method",
            "iLISI",
            "accuracy of the types of the first batch",
            "AUROC of CD4 in the second (bootstrap)",
            "CPU s",
        ]
    )
    started = clock()
    pca = representation(mdata["rna"])
    row("RNA, PCA; neighbors", pca, told(pca), clock() - started)
    row("RNA, PCA; ridge", pca, Ridge(100.0).fit(pca[first], values[:, column]).predict(pca[second]), clock() - started)
    if version("harmonypy"):
        mdata["rna"].obsm["X_pca"] = pca
        sc.external.pp.harmony_integrate(mdata["rna"], "batch")
        mixed = mdata["rna"].obsm["X_pca_harmony"]
        row("RNA, PCA, Harmony; neighbors", mixed, told(mixed), clock() - started)
    for label, settings in (
        ("start alone, without batch_key", {"max_epochs": 0}),
        ("start alone", {"batch_key": "batch", "max_epochs": 0}),
        ("trained", {"batch_key": "batch"}),
    ):
        fit = ours(mdata, 0, **settings)
        row(label, fit.embedding, ours_imputed(mdata, "prot")[second].X[:, column], fit.seconds)


def curves(options) -> None:
    """Held-out losses epoch by epoch: the largest rise, and whether the best epoch is the last allowed."""
    print("\n## curves: held-out loss, nats per cell\n")
    head(["set", "first epoch", "lowest", "last", "largest rise", "epochs", "of at most", "epochs taken back"])

    def row(label, mdata):
        ours(mdata, 0)
        history = mdata.uns["multiomics_vae"]["report"]["history"]
        loss, back = np.asarray(history["validation_loss"]), np.asarray(history["taken_back"])
        rise = np.max(np.diff(loss), initial=0.0)
        numbers = " | ".join(f"{value:.1f}" for value in (loss[0], loss.min(), loss[-1], rise))
        from diffbio_sc.operators.multiomics.multiomics_vae import fitting

        most = fitting.default_epochs(round(0.9 * mdata.n_obs), fitting.default_batch_size(mdata.n_obs))
        print(f"| {label} | {numbers} | {len(loss)} | {most} | {int(back.sum())} |", flush=True)

    for name in [*options.sets, *(["hto"] if options.sets == list(SETS) else ())]:
        row(name, load(name))
    if options.sets == list(SETS):
        whole = load("hto")
        part = np.arange(whole.n_obs) % 3
        row(
            "hto, two of three modalities in each cell",
            md.MuData({key: whole[key][part != number].copy() for number, key in enumerate(whole.mod)}),
        )


def memory(options) -> None:
    print("\n## memory: 2,641 cells x 24,000 normalised values beside 14 proteins, one epoch\n")
    head(["GiB of the values", "GiB before the fit", "GiB peak", "CPU s"])
    row = elsewhere("measure_memory()")
    print(f"| {row['size']:.2f} | {row['before']:.2f} | {row['peak']:.2f} | {row['seconds']:.0f} |", flush=True)


def measure_memory(cells: int = 2641, features: int = 24_000) -> None:
    one_core()
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(cells, 5)).astype(np.float32)
    values = factors @ rng.normal(size=(5, features)).astype(np.float32)
    for start in range(0, cells, 256):
        values[start : start + 256] += rng.normal(size=values[start : start + 256].shape)
    proteins = rng.poisson(np.exp(3 + factors @ rng.normal(size=(5, 14)))).astype(np.float32)
    mdata = md.MuData({"values": ad.AnnData(values), "prot": ad.AnnData(sp.csr_matrix(proteins))})
    before = peak()
    fit = ours(mdata, 0, max_epochs=1)
    sizes = {"size": values.nbytes / 2**30, "before": before / 2**10, "peak": peak() / 2**10}
    print(json.dumps({**sizes, "seconds": fit.seconds}))


def elsewhere(call: str) -> dict[str, float]:
    """Run ``measure_...`` in a process of its own, on one core, and read the line it prints last."""
    here = str(Path(__file__).parent)
    script = f"import sys; sys.path.insert(0, {here!r}); import multiomics_vae as benchmark; benchmark.{call}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure_fit(label: str, name: str) -> None:
    one_core()
    method = METHODS[label]
    if method.package == "scvi-tools":
        quiet_scvi(0)
    mdata = load(name)
    before = peak()
    fit = method.function(mdata, 0)
    result = {"epochs": fit.epochs, "first": fit.seconds, "peak": peak(), "before": before}
    if method.function is ours:
        # Another seed holds out other cells, whose entries may need other room: compiled before it is measured.
        ours(load(name), 1, max_epochs=2)
        again = ours(load(name), 1)
        result |= {"again": again.seconds, "again_epochs": again.epochs}
        # What an epoch adds, without the start in closed form and the embedding of all cells.
        short = ours(load(name), 1, max_epochs=2)
        result["added"] = (again.seconds - short.seconds) / max(again.epochs - short.epochs, 1)
    print(json.dumps(result))


def cost(options) -> None:
    print("\n## cost: CPU seconds of a fit on one core, each in a process of its own\n")
    head(
        [
            "set",
            "method",
            "epochs",
            "CPU s",
            "CPU s, second fit",
            "CPU s an epoch",
            "with the start",
            "peak MiB",
            "of it before the fit",
        ]  # fmt: skip
    )
    labels = {"snare": f"MULTIVI, {MULTIVI_EPOCHS} epochs", "cite": "totalVI"}
    for name, peer in labels.items():
        if name not in options.sets:
            continue
        measured = {}
        for label in chosen(options.methods, {"trained": None, "MOFA+": None, peer: None}):
            method = METHODS[label]
            if method.package and not version(method.package):
                print(f"| {name} | {label} | {method.package} is not installed |")
                continue
            row = measured[label] = elsewhere(f"measure_fit({label!r}, {name!r})")
            again = f"{row['again']:.1f}" if "again" in row else ""
            whole = row.get("again", row["first"]) / max(row.get("again_epochs", row["epochs"]), 1)
            row["rate"] = row.get("added", whole)
            rates = f"{row['rate']:.3f} | {whole:.3f}" if row["epochs"] else " | "
            cells = f"{row['epochs'] or ''} | {row['first']:.1f} | {again} | {rates} | {row['peak']:.0f}"
            print(f"| {name} | {label} | {cells} | {row['before']:.0f} |", flush=True)
        if {"trained", peer} <= measured.keys():
            mine, other = measured["trained"], measured[peer]
            ratios = [other["rate"] / mine["rate"], other["first"] / mine["first"], other["first"] / mine["again"]]
            print(
                f"\n{peer} over diffbio_sc on {name}: an epoch {ratios[0]:.1f}, "
                f"a fit with compilation {ratios[1]:.1f}, a second fit {ratios[2]:.1f}.\n"
            )


def measure_epoch(label: str, name: str) -> None:
    """CPU seconds of an epoch: of ours what twelve more of them add to a second fit, of a peer the mean over a fit."""
    one_core()
    method = METHODS[label]
    if method.function is not ours:
        quiet_scvi(0)
        fit = method.function(load(name), 0)
        print(json.dumps({"rate": fit.seconds / fit.epochs}))
        return
    few, many = 2, 14
    ours(load(name), 1, max_epochs=few)
    seconds = {number: ours(load(name), 1, max_epochs=number).seconds for number in (few, many)}
    print(json.dumps({"rate": (seconds[many] - seconds[few]) / (many - few)}))


def epochs(options) -> None:
    """An epoch of ours and of MULTIVI in turns, so that what else the machine does meets both."""
    print("\n## epochs: SNARE, CPU seconds of an epoch on one core, by turns\n")
    labels = ("trained", f"MULTIVI, {MULTIVI_EPOCHS} epochs")
    head([*labels, "MULTIVI over diffbio_sc"])
    rates = []
    for _ in range(options.seeds):
        rates.append([elsewhere(f"measure_epoch({label!r}, 'snare')")["rate"] for label in labels])
        print(f"| {rates[-1][0]:.3f} | {rates[-1][1]:.3f} | {rates[-1][1] / rates[-1][0]:.1f} |", flush=True)
    least = np.min(rates, axis=0)
    print(f"\nThe least of each: {least[0]:.3f}, {least[1]:.3f}, ratio {least[1] / least[0]:.1f}.")


# A model of both modalities beside one of each.


def held_out_bound(mdata: md.MuData, names: list[str], hidden: np.ndarray, seed: int) -> float:
    """Evidence lower bound of a held-out cell in nats, of a model fitted to the modalities ``names`` of the others."""
    from flax import nnx

    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
    from diffbio_sc.tl._multiomics_vae import automatic_latent

    likelihoods = {"rna": "negative_binomial", "atac": "multinomial", "protein": "protein_mixture"}
    counts = [sp.csr_array(mdata[name].X) for name in names]
    config = MultiOmicsVAEConfig(
        modality_dims=tuple(matrix.shape[1] for matrix in counts),
        latent_dim=automatic_latent(int((~hidden).sum()), sum(mdata[name].n_vars for name in mdata.mod)),
        likelihoods=tuple(likelihoods[mdata[name].uns["kind"]] for name in names),
    )
    operator = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(seed))
    operator.fit_matrices([matrix[~hidden] for matrix in counts], rng=seed)
    data = {key: matrix[hidden].toarray() for key, matrix in zip(operator.required_keys, counts, strict=True)}
    random = np.random.default_rng(0)
    draws = random.normal(size=(10, int(hidden.sum()), config.latent_dim)).astype(np.float32)
    return -float(np.mean([operator.loss({**data, "noise": noise}) for noise in draws]))


def bound(options) -> None:
    print("\n## bound: evidence lower bound of a held-out cell (10 %), nats; mean (standard deviation) over seeds\n")
    columns = {"both": "of both together", "sum": "sum of the two alone", "gain": "gain"}
    head(["set", "seeds", *columns.values()])
    for name in options.sets:
        if name == "mosaic":
            continue
        rows = []
        for seed in range(options.seeds):
            mdata = load(name)
            hidden = np.zeros(mdata.n_obs, bool)
            hidden[np.random.default_rng(seed).permutation(mdata.n_obs)[: mdata.n_obs // 10]] = True
            both = held_out_bound(mdata, list(mdata.mod), hidden, seed)
            alone = sum(held_out_bound(mdata, [modality], hidden, seed) for modality in mdata.mod)
            rows.append({"both": both, "sum": alone, "gain": both - alone})
        rows_of(name, rows, columns, dict.fromkeys(columns, 2))


# 100,000 cells.


def scale(options) -> None:
    print(f"\n## scale: 100,000 cells x (2,000 genes + 100,000 peaks), sparse, simulated; epochs: {options.epochs}\n")
    head(["counts above 0", "GiB of the input", "GiB peak, all", "CPU s", "CPU s an epoch", "NMI of types"])
    with tempfile.TemporaryDirectory() as folder:
        elsewhere(f"make_large({folder!r})")
        row = elsewhere(f"measure_large({folder!r}, {options.epochs})")
    print(
        f"| {row['counts']:.3g} | {row['size']:.2f} | {row['peak'] / 2**10:.2f} | {row['seconds']:.0f} "
        f"| {row['rate']:.0f} | {row['nmi']:.2f} |",
        flush=True,
    )


def make_large(folder: str, cells: int = 100_000) -> None:
    """Ten types; a cell draws its reads from the profile of its type: 600 of RNA, 1,100 of open chromatin."""
    rng = np.random.default_rng(0)
    types = rng.integers(10, size=cells)
    np.save(f"{folder}/types.npy", types)
    for name, features, reads in (("rna", 2000, 600), ("atac", 100_000, 1100)):
        base = rng.gamma(0.5, 1.0, features)
        profiles = base * rng.lognormal(0, 0.8, (10, features))
        edges = np.cumsum(profiles / profiles.sum(1, keepdims=True), 1)
        blocks = []
        for start in range(0, cells, 5000):
            here = types[start : start + 5000]
            depth = rng.poisson(reads * rng.lognormal(0, 0.3, len(here)))
            columns = np.concatenate(
                [np.searchsorted(edges[kind], rng.random(number)) for kind, number in zip(here, depth, strict=True)]
            )
            pointer = np.append(0, np.cumsum(depth))
            columns = np.minimum(columns, features - 1).astype(np.int32)
            block = sp.csr_matrix((np.ones(len(columns), np.float32), columns, pointer), (len(here), features))
            block.sum_duplicates()
            blocks.append(block)
        sp.save_npz(f"{folder}/{name}.npz", sp.vstack(blocks, format="csr"), compressed=False)
    print(json.dumps({}))


def measure_large(folder: str, epochs: int) -> None:
    one_core()
    counts = {name: sp.load_npz(f"{folder}/{name}.npz") for name in ("rna", "atac")}
    mdata = md.MuData({name: ad.AnnData(values) for name, values in counts.items()})
    size = sum(values.data.nbytes + values.indices.nbytes + values.indptr.nbytes for values in counts.values())
    fit = ours(mdata, 0, max_epochs=epochs)
    result = {"peak": peak(), "seconds": fit.seconds, "rate": fit.seconds / max(fit.epochs, 1), "size": size / 2**30}
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    found = KMeans(10, n_init=1, random_state=0).fit_predict(fit.embedding)
    nmi = normalized_mutual_info_score(np.load(f"{folder}/types.npy"), found)
    print(json.dumps({**result, "nmi": nmi, "counts": sum(values.nnz for values in counts.values())}))


def compilation(options) -> None:
    """What XLA compiles for a first fit and embedding, and for further ones of other numbers of cells."""
    print("\n## compilation: SNARE, three epochs, one process\n")
    head(["cells", "programs compiled", "s of compilation", "CPU s"])
    row = elsewhere("measure_compilation((3720, 3800, 3500))")
    for cells, programs, compiled, seconds in row["fits"]:
        print(f"| {cells} | {programs} | {compiled:.1f} | {seconds:.1f} |", flush=True)


def measure_compilation(numbers: tuple[int, ...]) -> None:
    import jax

    one_core()
    compiled: list[float] = []

    def note(name: str, seconds: float, **_) -> None:
        if name.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    mdata, fits = load("snare"), []
    for cells in numbers:
        compiled.clear()
        fit = ours(mdata[:cells].copy(), 0, max_epochs=3)
        fits.append((cells, len(compiled), sum(compiled), fit.seconds))
    print(json.dumps({"fits": fits}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parts = {
        f.__name__: f
        for f in (
            joint,
            constants,
            rates,
            impute,
            measured,
            batches,
            curves,
            cost,
            epochs,
            bound,
            compilation,
            memory,
            scale,
        )
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all without")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS), help=SETS_HELP)
    parser.add_argument("--methods", type=lambda text: text.split(";"), help="beginnings of names, apart by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of scale")
    given = parser.parse_args()
    for part in given.parts or parts:
        parts[part](given)
