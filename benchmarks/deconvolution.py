"""Accuracy, speed, calibration and memory of ``dbio.tl.deconvolve``.

python benchmarks/deconvolution.py [truth] [panels] [exact] [calibration] [missing] [scale] [wide]
    [distractor] [constants] [left_out] [odds] [converged]
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import diffbio_sc as dbio

CASES = (
    "merfish_poa",
    "starmap_cortex",
    "pbmc_pseudospots",
    "cellmix_celseq2",
    "osmfish_ssctx",
    "starmap_mpfc",
)


def load(case: str):
    folder = Path(os.environ["DIFFBIO_SC_DATA"]) / "deconvolution" / case
    spots, reference = ad.read_h5ad(folder / "spots.h5ad"), ad.read_h5ad(folder / "ref.h5ad")
    spots.obs_names_make_unique()
    spots.obsm["truth"] = spots.obsm["truth"].set_axis(spots.obs_names)
    return spots, reference


def simulate(seed, *, spots, genes, types, cells, platform, present=4, scattered=False):
    """Negative binomial spots of a few types each, and reference cells; the truth is the share of RNA."""
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.3, 1.0, (types, genes)) * rng.lognormal(0, 1, genes)
    profiles /= profiles.sum(1, keepdims=True)
    factor = rng.lognormal(0, platform, genes)
    side = int(np.ceil(np.sqrt(spots)))
    place = np.stack([np.arange(spots) % side, np.arange(spots) // side], 1).astype(float)
    centres = rng.uniform(0, side, (types, 2))
    truth, blocks = np.zeros((spots, types)), []
    for start in range(0, spots, 2000):
        here = place[start : start + 2000]
        distance = ((here[:, None] - centres[None]) ** 2).sum(-1) / (side / 4) ** 2
        order = (0.0 if scattered else -distance) + rng.gumbel(size=distance.shape)
        top = np.argsort(-order, axis=1)[:, :present]
        np.put_along_axis(truth[start : start + 2000], top, rng.dirichlet(np.ones(present), len(here)), 1)
        mean = truth[start : start + 2000] @ (profiles * factor)
        mean *= (rng.lognormal(np.log(3000), 0.4, len(here)) / mean.sum(1))[:, None]
        blocks.append(sp.csr_matrix(rng.poisson(mean * rng.gamma(20.0, 1 / 20, mean.shape)).astype(np.float32)))
    names = [f"type{k:02d}" for k in range(types)]
    labels = np.repeat(names, cells)
    reference = []
    for profile in profiles:
        mean = profile * rng.lognormal(np.log(4000), 0.3, cells)[:, None]
        reference.append(sp.csr_matrix(rng.poisson(mean * rng.gamma(2.0, 0.5, mean.shape)).astype(np.float32)))
    var = pd.DataFrame(index=[f"gene{g}" for g in range(genes)])
    adata = ad.AnnData(
        sp.vstack(blocks).tocsr(), obs=pd.DataFrame(index=[f"spot{i}" for i in range(spots)]), var=var.copy()
    )
    adata.obsm["spatial"] = place
    adata.obsm["truth"] = pd.DataFrame(truth, index=adata.obs_names, columns=names)
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=[f"cell{i}" for i in range(len(labels))])
    return adata, ad.AnnData(sp.vstack(reference).tocsr(), obs=obs, var=var)


def profiles_of(reference, *, scaled: bool) -> np.ndarray:
    counts = sp.csr_matrix(reference.X).astype(float)
    if scaled:
        counts = sp.diags(1 / np.maximum(np.asarray(counts.sum(1)).ravel(), 1)) @ counts
    labels = reference.obs["cell_type"].astype(str).to_numpy()
    return np.stack([np.asarray(counts[labels == name].mean(0)).ravel() for name in types_of(reference)])


def types_of(reference) -> list[str]:
    return sorted(reference.obs["cell_type"].astype(str).unique())


def ours(spots, reference, **options) -> pd.DataFrame:
    dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type", **options)
    return spots.obsm["deconvolution"].set_axis(spots.uns["deconvolution"]["cell_types"], axis=1)


def plain(spots, reference) -> pd.DataFrame:
    return ours(spots, reference, refine=False)


def nnls(spots, reference) -> pd.DataFrame:
    from scipy.optimize import nnls as solve

    counts = spots.X.toarray().astype(float)
    counts /= np.maximum(counts.sum(1, keepdims=True), 1)
    matrix = profiles_of(reference, scaled=True).T
    return pd.DataFrame([solve(matrix, row)[0] for row in counts], index=spots.obs_names, columns=types_of(reference))


def flashdeconv(spots, reference) -> pd.DataFrame:
    from flashdeconv import FlashDeconv

    known = "spatial" in spots.obsm
    place = np.asarray(spots.obsm["spatial"]) if known else np.c_[np.arange(spots.n_obs) * 1.0, np.zeros(spots.n_obs)]
    model = FlashDeconv() if known else FlashDeconv(lambda_spatial=0.0)
    table = model.fit_transform(sp.csr_matrix(spots.X).astype(float), profiles_of(reference, scaled=False), place)
    return pd.DataFrame(table, index=spots.obs_names, columns=types_of(reference))


def rctd(spots, reference) -> pd.DataFrame:
    import rctd as package
    import torch

    torch.manual_seed(0)
    spots = spots.copy()
    if "spatial" not in spots.obsm:
        spots.obsm["spatial"] = np.c_[np.arange(spots.n_obs) * 1.0, np.zeros(spots.n_obs)]
    cells = package.Reference(reference.copy(), cell_type_col="cell_type", cell_min=2, min_UMI=1)
    settings = package.RCTDConfig(UMI_min=1, counts_MIN=0, device="cpu", compile=False)
    result = package.run_rctd(spots, cells, mode="full", config=settings)
    weights = np.asarray(result.weights)
    table = np.full((spots.n_obs, weights.shape[1]), np.nan)
    kept = getattr(result, "pixel_mask", None)
    table[slice(None) if kept is None or len(weights) == spots.n_obs else np.asarray(kept)] = weights
    names = [str(name) for name in (getattr(result, "cell_type_names", None) or cells.cell_type_names)]
    return pd.DataFrame(table, index=spots.obs_names, columns=names)


TACCO_RUN = """
import sys, time, anndata as ad, numpy as np, pandas as pd, scipy.sparse as sp, tacco
spots, cells = (ad.read_h5ad(f"{sys.argv[1]}/{name}.h5ad") for name in ("spots", "cells"))
for adata in (spots, cells):
    adata.X = sp.csr_matrix(adata.X).astype(np.float32)
cells.obs["cell_type"] = pd.Categorical(cells.obs["cell_type"].astype(str))
for call in range(2):
    started = time.process_time()
    table = tacco.tl.annotate(spots, cells, annotation_key="cell_type", verbose=0)
    spent = time.process_time() - started
table.reindex(spots.obs_names).assign(_cpu=spent).to_csv(f"{sys.argv[1]}/table.csv")
"""


def tacco(spots, reference) -> pd.DataFrame:
    """TACCO at its defaults, in the environment whose Python is named by ``TACCO``; CPU seconds are its own."""
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        for name, adata, obs in (("spots", spots, []), ("cells", reference, ["cell_type"])):
            bare = ad.AnnData(sp.csr_matrix(adata.X), obs=adata.obs[obs], var=adata.var[[]])
            bare.write_h5ad(Path(folder) / f"{name}.h5ad")
        subprocess.run([os.environ["TACCO"], "-c", TACCO_RUN, folder], check=True, capture_output=True)
        table = pd.read_csv(Path(folder) / "table.csv", index_col=0).set_axis(spots.obs_names)
    table.attrs["cpu"] = float(table.pop("_cpu").iloc[0])
    return table


METHODS = {
    "diffbio_sc": ours,
    "diffbio_sc, refine=False": plain,
    "NNLS": nnls,
    "flashdeconv": flashdeconv,
    "RCTD": rctd,
    "TACCO": tacco,
}


def available(name: str) -> str | None:
    """Why a method cannot run here, or None."""
    module = {"flashdeconv": "flashdeconv", "RCTD": "rctd"}.get(name)
    if module and importlib.util.find_spec(module) is None:
        return "not installed"
    if name == "RCTD" and "RCTD_Q_MATRICES" not in os.environ:
        return "RCTD_Q_MATRICES not set"
    if name == "TACCO" and "TACCO" not in os.environ:
        return "TACCO not set"
    return None


def score(table: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    return dbio.metrics.composition(
        table.rename(columns=lambda name: name.replace("/", "|")).reindex(columns=truth.columns).fillna(0.0), truth
    )


def quiet(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*arguments)


def truth() -> None:
    print("\n## truth: real spots of known composition, one set of defaults\n")
    print("| set | method | RMSE | JSD | AUPR | absent mass | CPU s, warm | CPU over ours | wall s, first call |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        spots, reference = load(case)
        base = None
        for name, method in METHODS.items():
            reason = available(name)
            if reason:
                print(f"| {case} | {name} | {reason} |")
                continue
            wall = time.perf_counter()
            quiet(method, spots, reference)
            wall = time.perf_counter() - wall
            cpu = time.process_time()
            table = quiet(method, spots, reference)
            cpu = table.attrs.get("cpu", time.process_time() - cpu)
            base = base or cpu
            s = score(table, spots.obsm["truth"])
            print(
                f"| {case} | {name} | {s['rmse']:.4f} | {s['jsd']:.4f} | {s['aupr']:.3f} | {s['absent_mass']:.3f} "
                f"| {cpu:.2f} | {cpu / base:.1f} | {wall:.1f} |",
                flush=True,
            )


def panels() -> None:
    print("\n## panels: random subsets of the genes, five each; mean (standard error) over subsets\n")
    print("| set | genes | RMSE | RMSE, refine=False | RMSE ratio | JSD | JSD, refine=False |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        spots, reference = load(case)
        shared = spots.var_names.intersection(reference.var_names)
        expressed = np.asarray(spots[:, shared].X.sum(0)).ravel() >= 5
        for genes in (50, 200):
            if genes > expressed.sum():
                continue
            rows = []
            for seed in range(5):
                chosen = np.sort(np.random.default_rng(seed).choice(np.flatnonzero(expressed), genes, replace=False))
                small = spots[:, shared[chosen]].copy()
                row = []
                for method in (ours, plain):
                    with estimates_alone():
                        s = score(method(small, reference), spots.obsm["truth"])
                    row += [s["rmse"], s["jsd"]]
                rows.append(row)
            mean, error = np.mean(rows, 0), np.std(rows, 0, ddof=1) / np.sqrt(len(rows))
            print(
                f"| {case} | {genes} | {mean[0]:.4f} ({error[0]:.4f}) | {mean[2]:.4f} ({error[2]:.4f}) "
                f"| {mean[0] / mean[2]:.3f} | {mean[1]:.4f} | {mean[3]:.4f} |",
                flush=True,
            )


def exact() -> None:
    print("\n## exact: simulated spots whose reference is exact, or differs by a platform factor; five seeds\n")
    print("| reference | RMSE | RMSE, refine=False | ratio |")
    print("|---|---|---|---|")
    for label, cells, platform in (
        ("exact, 60 cells a type", 60, 0.0),
        ("exact, 400 cells a type", 400, 0.0),
        ("platform factor, sd 0.5", 60, 0.5),
    ):
        rows = []
        for seed in range(5):
            spots, reference = simulate(seed, spots=600, genes=800, types=15, cells=cells, platform=platform)
            truth = spots.obsm["truth"]
            rows.append(
                [score(ours(spots, reference, fraction_of="rna", refine=on), truth)["rmse"] for on in (True, False)]
            )
        mean = np.mean(rows, 0)
        print(f"| {label} | {mean[0]:.4f} | {mean[1]:.4f} | {mean[0] / mean[1]:.3f} |", flush=True)


def covered(spots) -> tuple[float, float]:
    true = spots.obsm["truth"].to_numpy()
    inside = np.abs(spots.obsm["deconvolution"].to_numpy() - true) <= 1.645 * spots.obsm["deconvolution_std"].to_numpy()
    return inside.mean(), inside[true > 0.02].mean()


def calibration() -> None:
    print("\n## calibration: share of the truth inside the 90 % interval; real sets: mean of three rng\n")
    print("| spots | all entries | types present (above 2 %) | of the three |")
    print("|---|---|---|---|")
    for label, options in (
        ("simulated, 15 types, platform sd 0.5", {"types": 15, "genes": 800, "cells": 60, "platform": 0.5}),
        ("simulated, 8 types, exact reference", {"types": 8, "genes": 500, "cells": 60, "platform": 0.0}),
        ("simulated, 30 types, platform sd 0.5", {"types": 30, "genes": 1500, "cells": 60, "platform": 0.5}),
    ):
        rows = []
        for seed in range(5):
            spots, reference = simulate(seed, spots=400, **options)
            ours(spots, reference, fraction_of="rna")
            rows.append(covered(spots))
        print(f"| {label}, five seeds | {np.mean(rows, 0)[0]:.3f} | {np.mean(rows, 0)[1]:.3f} | |", flush=True)
    if "DIFFBIO_SC_DATA" in os.environ:
        for case in CASES:
            spots, reference = load(case)
            rows = []
            for seed in range(3):
                ours(spots, reference, rng=seed)
                rows.append(covered(spots))
            (every, present), ends = np.mean(rows, 0), np.array(rows)[:, 1]
            print(f"| {case} | {every:.3f} | {present:.3f} | {ends.min():.3f} to {ends.max():.3f} |", flush=True)


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    from scipy.stats import mannwhitneyu

    return mannwhitneyu(values[positive], values[~positive]).statistic / (positive.sum() * (~positive).sum())


def rmse_of_others(spots, column: str) -> float:
    """Error of the proportions of the types that the reference has, against the truth scaled to them."""
    found = spots.obsm["deconvolution"]
    names = {name.replace("/", "|"): name for name in spots.obsm["truth"].columns}
    others = [name for name in found.columns if name in names]
    true = spots.obsm["truth"][[names[name] for name in others]].to_numpy()
    total = true.sum(1)
    kept = total > 0.05
    error = found[others].to_numpy()[kept] - true[kept] / total[kept, None]
    return np.sqrt((error**2).mean(1)).mean()


def removals(spots, reference, most: int):
    """The most abundant types, and which cells of the reference are not of each; two types at least remain."""
    labels = reference.obs["cell_type"].astype(str).to_numpy()
    for column in list(spots.obsm["truth"].mean().sort_values(ascending=False).index)[:most]:
        kept = np.array([name.replace("/", "|") != column.replace("/", "|") for name in labels])
        if len(set(labels[kept])) > 1 and not kept.all():
            yield column, kept


def odds() -> None:
    """How far proportions move to the answer beside an unknown signature; chosen on the other sets."""
    from diffbio_sc.engines import deconvolution as engine

    values, default = (0.25, 0.5, 1.0), engine._BELIEVED
    ratios = {}
    with estimates_alone():
        for case in CASES:
            spots, reference = load(case)
            rows = []
            for column, kept in (*(removals(spots, reference, 4) if case in CASES[:4] else ()), (None, None)):
                cells = reference if column is None else reference[kept].copy()
                row = []
                for value in (0.0, *values):
                    engine._BELIEVED = value
                    table = ours(spots, cells, unexplained=value > 0)
                    error = (
                        score(table, spots.obsm["truth"])["rmse"] if column is None else rmse_of_others(spots, column)
                    )
                    row.append(error)
                rows.append(np.log(np.array(row[1:]) / row[0]))
            ratios[case] = np.array(rows)
    engine._BELIEVED = default
    print("\n## odds: RMSE with `unexplained=True` over that without, types removed and none (last)\n")
    print(
        "| set | " + " | ".join(f"{value:g}" for value in values) + " | chosen by the others |\n|---|---|---|---|---|"
    )
    for case, rows in ratios.items():
        others = np.mean([ratios[other].mean(0) for other in ratios if other != case], axis=0)
        cells = " | ".join(" ".join(f"{ratio:.3f}" for ratio in np.exp(column)) for column in rows.T)
        print(f"| {case} | {cells} | {values[int(np.argmin(others))]:g} |", flush=True)


def missing() -> None:
    print("\n## missing: a type is taken out of the reference; AUROC of the unexplained share where it is above 30 %;")
    print("mean share and mean truth; error of the other types without and with `unexplained=True`\n")
    print("| spots | missing type | spots with it | AUROC | share | true | RMSE | RMSE, unexplained |")
    print("|---|---|---|---|---|---|---|---|")
    cases = {}
    for seed in range(3):
        cases[f"simulated, seed {seed}"] = simulate(
            seed, spots=600, genes=800, types=12, cells=60, platform=0.5, present=3, scattered=True
        )
    if "DIFFBIO_SC_DATA" in os.environ:
        cases |= {case: load(case) for case in CASES[:4]}
    better, real = 0, 0
    for case, (spots, reference) in cases.items():
        for column, kept in removals(spots, reference, 2 if case.startswith("sim") else 4):
            errors = []
            with estimates_alone():
                for unexplained in (False, True):
                    ours(spots, reference[kept].copy(), unexplained=unexplained)
                    errors.append(rmse_of_others(spots, column))
            true = spots.obsm["truth"][column].to_numpy()
            used = (true > 0.3) | (true == 0)
            share = spots.obs["deconvolution_unexplained"].to_numpy()
            areas = f"{auroc(share[used], true[used] > 0.3):.3f} | {share.mean():.2f} | {true.mean():.2f}"
            if not case.startswith("sim"):
                better, real = better + (errors[1] < errors[0]), real + 1
            print(
                f"| {case} | {column} | {(true > 0.3).sum()} | {areas} | {errors[0]:.4f} | {errors[1]:.4f} |",
                flush=True,
            )
    print(f"\nLower error with `unexplained=True` in {better} of {real} removals of real sets. None missing:\n")
    print("| set | RMSE | RMSE, unexplained | JSD | JSD, unexplained |\n|---|---|---|---|---|")
    for case in CASES if "DIFFBIO_SC_DATA" in os.environ else ():
        spots, reference = load(case)
        with estimates_alone():
            both = [score(ours(spots, reference, unexplained=on), spots.obsm["truth"]) for on in (False, True)]
        print(
            f"| {case} | " + " | ".join(f"{one[name]:.4f}" for name in ("rmse", "jsd") for one in both) + " |",
            flush=True,
        )


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _scale(spots: int, genes: int, types: int, method: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        command = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import deconvolution as d; "
            f"s, r = d.simulate(0, spots={spots}, genes={genes}, types={types}, cells=60, platform=0.5); "
            f"s.write_h5ad({str(made / 's.h5ad')!r}); r.write_h5ad({str(made / 'r.h5ad')!r})"
        )
        # In a process of its own, so that the memory it takes is not counted.
        import subprocess

        subprocess.run([sys.executable, "-c", command], check=True)
        measure = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import deconvolution as d; "
            f"d.measure({str(made)!r}, {method!r})"
        )
        subprocess.run([sys.executable, "-c", measure], check=True)


def measure(folder: str, method: str) -> None:
    import scanpy  # noqa: F401  counted before, as any notebook has it

    spots, reference = ad.read_h5ad(Path(folder) / "s.h5ad"), ad.read_h5ad(Path(folder) / "r.h5ad")
    before, wall, cpu = peak_gib(), time.perf_counter(), time.process_time()
    options = {"fraction_of": "rna"} if method == "diffbio_sc" else {}
    table = quiet(lambda: METHODS[method](spots, reference, **options))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    s = score(table, spots.obsm["truth"])
    print(
        f"| {spots.n_obs} x {spots.n_vars} x {len(types_of(reference))} | {method} | {wall:.0f} | {cpu:.0f} "
        f"| {before:.2f} | {peak_gib():.2f} | {s['rmse']:.4f} | {s['jsd']:.4f} | {s['aupr']:.3f} |",
        flush=True,
    )


def distractor() -> None:
    print(
        "\n## distractor: mass on a type that no spot holds and that is like one that they hold, as genes are added\n"
    )
    print("| genes given | chosen | mass on the distractor | RMSE |\n|---|---|---|---|")
    for genes in (500, 5000, 20_000):
        for chosen in dict.fromkeys((2000, genes)):
            if chosen > genes:
                continue
            rows = []
            for seed in range(3):
                rng = np.random.default_rng([600, seed])
                profiles = rng.gamma(0.3, 1.0, (8, genes)) * rng.lognormal(0, 1, genes)
                profiles /= profiles.sum(1, keepdims=True)
                profiles[7] = 0.7 * profiles[0] + 0.3 * profiles[7]
                truth = rng.dirichlet(np.full(7, 0.5), 300)
                mean = truth @ (profiles[:7] * rng.lognormal(0, 0.5, genes))
                mean *= 3000 / mean.sum(1, keepdims=True)
                spots = ad.AnnData(sp.csr_matrix(rng.poisson(mean * rng.gamma(20.0, 1 / 20, mean.shape)), dtype="f4"))
                labels = np.repeat(np.arange(8), 25)
                cells = (
                    profiles[labels] * rng.lognormal(np.log(2000), 0.3, (200, 1)) * rng.gamma(1.0, 1.0, (200, genes))
                )
                reference = ad.AnnData(sp.csr_matrix(rng.poisson(cells), dtype="f4"))
                reference.obs["cell_type"] = pd.Categorical([f"type{label}" for label in labels])
                with estimates_alone():
                    table = ours(spots, reference, fraction_of="rna", n_top_genes=chosen).to_numpy()
                error = np.sqrt(((table[:, :7] - truth) ** 2).mean(1)).mean()
                rows.append((table[:, 7].mean(), error, len(spots.uns["deconvolution"]["genes"])))
            mass, error, used = np.mean(rows, 0)
            print(f"| {genes} | {used:.0f} | {mass:.4f} | {error:.4f} |", flush=True)


SCALE_HEAD = (
    "| spots x genes x types | method | wall s | CPU s | GiB before | GiB peak | RMSE | JSD | AUPR |\n"
    + "|---" * 9
    + "|"
)


def scale() -> None:
    print("\n## scale: simulated sparse spots, first call (compilation included)\n\n" + SCALE_HEAD)
    for spots in (12_500, 50_000):
        for method in ("diffbio_sc", "flashdeconv"):
            if available(method) is None:
                _scale(spots, 2000, 50, method)


def wide() -> None:
    print("\n## wide: 15,000 genes given, informative ones chosen\n\n" + SCALE_HEAD)
    _scale(50_000, 15_000, 50, "diffbio_sc")


def constants() -> None:
    """Change in mean error over the sets when a constant is halved or doubled; and in the worst set."""
    import importlib

    import jax

    print(
        "\n## constants: RMSE with a constant halved and doubled over RMSE as it stands, mean (largest) of the sets\n"
    )
    print("| constant | value | halved | doubled |\n|---|---|---|---|")
    data = {case: load(case) for case in CASES}

    def errors() -> np.ndarray:
        with estimates_alone():
            return np.array([score(quiet(ours, *pair), pair[0].obsm["truth"])["rmse"] for pair in data.values()])

    base = errors()
    for where, name in (
        ("numerics.counts.refinement", "_CLIPPED_RESIDUAL"),
        ("numerics.counts.refinement", "_RESIDUAL_NOISE"),
        ("numerics.counts.refinement", "_UNEXPLAINED_ONLY"),
        ("operators.multiomics.spatial_deconvolution", "_SPOT_VARIANCE"),
        ("numerics.counts.presence", "PSEUDO_SPOTS"),
        ("numerics.counts.signatures", "_PSEUDO_COUNTS"),
        ("numerics.counts.signatures", "_HUBER_WIDTH"),
        ("numerics.counts.cell_variation", "_PSEUDO_COUNTS"),
    ):
        module = importlib.import_module(f"diffbio_sc.{where}")
        value = getattr(module, name)
        cells = []
        for factor in (0.5, 2.0):
            setattr(module, name, value * factor)
            if where == "numerics.counts.refinement":
                jax.clear_caches()  # constants are compiled in
            ratio = errors() / base
            cells.append(f"{ratio.mean():.3f} ({ratio.max():.3f})")
        setattr(module, name, value)
        if where == "numerics.counts.refinement":
            jax.clear_caches()
        print(f"| {where}.{name} | {value:.4g} | " + " | ".join(cells) + " |", flush=True)


CANDIDATES = (
    ("operators.multiomics.spatial_deconvolution", "_KEPT_POWER", (0.5, 1.0, 4.0)),
    ("operators.multiomics.spatial_deconvolution", "_STANDARD_ERRORS", (0.0, 2.0)),
    ("numerics.counts.cell_variation", "SHAPE_POWER", (0.0, 1.0)),
    ("numerics.counts.refinement", "_UNEXPLAINED_ONLY", (0.03, 0.3, 0.5)),
)
COMPILED_IN = ("_UNEXPLAINED_ONLY",)


@contextlib.contextmanager
def estimates_alone():
    """Leave out the mixtures of held-out cells, which only standard deviations need."""
    from diffbio_sc.engines import held_out_mixtures

    calibrate = held_out_mixtures.calibrate

    def none(spots, sample, fit, weights, *_, **__):
        return held_out_mixtures.Calibration(1.0, np.zeros(weights.shape[1]), (2.0, 2.0))

    held_out_mixtures.calibrate = none
    try:
        yield
    finally:
        held_out_mixtures.calibrate = calibrate


def left_out() -> None:
    """Each set under the constants that the other sets would choose: the defaults, or one of them changed."""
    import importlib

    import jax

    data = {case: load(case) for case in CASES}
    measures = ("rmse", "jsd", "aupr")

    def scores() -> np.ndarray:
        with estimates_alone():
            found = [score(quiet(ours, *pair), pair[0].obsm["truth"]) for pair in data.values()]
        return np.array([[s[name] for name in measures] for s in found])

    table = {"as they stand": scores()}
    for where, name, values in CANDIDATES:
        module = importlib.import_module(f"diffbio_sc.{where}")
        default = getattr(module, name)
        for value in values:
            setattr(module, name, value)
            if name in COMPILED_IN:
                jax.clear_caches()
            table[f"{name} = {value:g} (not {default:g})"] = scores()
        setattr(module, name, default)
        if name in COMPILED_IN:
            jax.clear_caches()
    names, results = list(table), np.stack(list(table.values()))
    loss = np.log(results[..., :2] / results[0, :, :2]).mean(-1)  # of RMSE and JSD, relative to the defaults

    print("\n## left_out: constants chosen on all sets but one (mean log RMSE and JSD), judged on that one\n")
    print("| set | chosen by the others | RMSE | JSD | AUPR | RMSE, refine=False |\n|---|---|---|---|---|---|")
    for index, (case, pair) in enumerate(data.items()):
        others = np.delete(loss, index, axis=1).mean(1)
        best = int(np.argmin(others))
        rmse, jsd, aupr = results[best, index]
        with estimates_alone():
            without = score(quiet(plain, *pair), pair[0].obsm["truth"])["rmse"]
        print(f"| {case} | {names[best]} | {rmse:.4f} | {jsd:.4f} | {aupr:.3f} | {without:.4f} |", flush=True)
    print("\nRMSE of each set under each candidate:\n")
    print("| constants | " + " | ".join(data) + " |\n|---" + "|---" * len(data) + "|")
    for name, rows in table.items():
        print(f"| {name} | " + " | ".join(f"{r:.4f} / {j:.4f}" for r, j, _ in rows) + " |")


def converged() -> None:
    """Proportions after the steps of the regression that are taken, and after five times as many."""
    from diffbio_sc.engines import deconvolution as engine

    print("\n## converged: what the regression's last steps would change; largest difference of a spot's proportions\n")
    print("| set | RMSE | RMSE, five times the steps | median of spots | 95 % | largest |\n|---|---|---|---|---|---|")
    steps = engine._SOLVER_STEPS
    for case in CASES:
        spots, reference = load(case)
        found = []
        with estimates_alone():
            for factor in (1, 5):
                engine._SOLVER_STEPS = factor * steps
                found.append(quiet(ours, spots, reference))
        engine._SOLVER_STEPS = steps
        errors = [score(table, spots.obsm["truth"])["rmse"] for table in found]
        change = np.abs(found[1] - found[0]).to_numpy().max(1)
        quantiles = np.quantile(change, [0.5, 0.95, 1.0])
        print(f"| {case} | {errors[0]:.4f} | {errors[1]:.4f} | " + " | ".join(f"{q:.4f}" for q in quantiles) + " |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parts = {
        f.__name__: f
        for f in (
            truth,
            panels,
            exact,
            calibration,
            missing,
            scale,
            wide,
            distractor,
            constants,
            left_out,
            odds,
            converged,
        )
    }
    for part in sys.argv[1:] or parts:
        parts[part]()
