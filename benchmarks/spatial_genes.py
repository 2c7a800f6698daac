"""Type I error, power, ranking, speed and memory of ``dbio.tl.spatial_genes``.

python benchmarks/spatial_genes.py [null] [depth] [far_spot] [panel] [alternating] [joint] [planted] [fine] ...
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats

import diffbio_sc as dbio
from diffbio_sc.numerics.spatial.depth_pattern import DepthPattern

SETS = {
    "bulb": ("mob_rep11", 0.1, 10),
    "breast": ("breast_cancer_layers12", 0.1, 10),
    "beads": ("slideseq_cerebellum_left", 0.0, 15),
}
MARKERS = ["Doc2g", "Slc17a7", "Reln", "Cdhr1", "Sv2b", "Shisa3", "Plcxd2", "Nmb", "Uchl1", "Rcan2"]


def load(name: str, rng: np.random.Generator, genes: int = 1200, reads: tuple[int, int] | None = None):
    """Counts of genes drawn at random (well-expressed ones, or of ``reads``), coordinates, and depth over all genes."""
    file, fraction, fewest = SETS[name]
    adata = ad.read_h5ad(Path(os.environ["DIFFBIO_SC_DATA"]) / "spatial_genes" / f"{file}.h5ad")
    if name == "breast":
        adata = adata[adata.obs["slide"] == adata.obs["slide"].iloc[0]].copy()
    counts = sp.csc_matrix(adata.X)
    total = np.asarray(counts.sum(1)).ravel()
    kept = total > 0
    counts, places, total = counts[kept], np.asarray(adata.obsm["spatial"], float)[kept, :2], total[kept]
    spots = np.diff(counts.indptr)
    found = np.asarray(counts.sum(0)).ravel()
    if reads is None:
        good = np.flatnonzero((spots >= max(fraction * len(total), fewest)) & (found >= fewest))
    else:
        good = np.flatnonzero((spots >= 3) & (found >= reads[0]) & (found <= reads[1]))
    chosen = np.sort(rng.choice(good, min(genes, len(good)), replace=False))
    return counts[:, chosen].tocsr(), places, total


def run(counts, places, depth=None, **options) -> pd.DataFrame:
    adata = ad.AnnData(sp.csr_matrix(counts, dtype=np.float32))
    adata.obsm["spatial"] = places
    if depth is not None:
        adata.obs["depth"] = depth
        options["total_counts_key"] = "depth"
    dbio.tl.spatial_genes(adata, **{"variance": False, **options})
    return adata.var


def profile(places: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Spatial profile between 0 and 1."""
    place = (places - places.min(0)) / np.ptp(places, 0).max()
    if kind == "hotspot":
        distance = ((place - place[rng.integers(len(place))]) ** 2).sum(1)
        return (distance <= np.sort(distance)[int(max(8, 0.1 * len(place))) - 1]).astype(float)
    if kind == "foci":
        result = np.zeros(len(place))
        for _ in range(6):
            distance = ((place - place[rng.integers(len(place))]) ** 2).sum(1)
            result[distance <= np.sort(distance)[max(3, int(0.02 * len(place))) - 1]] = 1
        return result
    angle = rng.uniform(0, 2 * np.pi if kind == "gradient" else np.pi)
    along = place @ [np.cos(angle), np.sin(angle)]
    if kind == "streak":
        return (abs(along - np.quantile(along, rng.uniform(0.15, 0.85))) < 0.07 * np.ptp(along)).astype(float)
    if kind == "gradient":
        return (along - along.min()) / np.ptp(along)
    waves = rng.uniform(3, 5) / np.ptp(place, 0).max()
    return 0.5 + 0.5 * np.sin(2 * np.pi * along * waves + rng.uniform(0, 6.3))


def plant(counts, profiles: list[np.ndarray], fold: float, rng: np.random.Generator):
    """Thin 20 % of the genes by spatial profiles and the others evenly, all at the same mean rate."""
    dense = counts.toarray().astype(int)
    genes = dense.shape[1]
    truth = np.zeros(genes, bool)
    chosen = rng.choice(genes, genes // 5, replace=False)
    rates = []
    for index, gene in enumerate(chosen):
        keep = (1 + (fold - 1) * profiles[index % len(profiles)](rng)) / fold
        rates.append(keep.mean())
        dense[:, gene] = rng.binomial(dense[:, gene], keep)
        truth[gene] = True
    for gene in np.flatnonzero(~truth):
        dense[:, gene] = rng.binomial(dense[:, gene], rng.choice(rates))
    return dense, truth


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    hits = truth[np.argsort(-np.nan_to_num(score, nan=-1), kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def error(values) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def null() -> None:
    print("\n## null: share of p-values below a level (standard error over arrangements)\n")
    print("| set | arrangements | 0.05 | 0.01 | 0.001 | smallest of tests |\n|---|---|---|---|---|---|")
    levels = (0.05, 0.01, 0.001)
    for name in SETS:
        rows, smallest, tests = [], 1.0, 0
        for seed in range(24):
            rng = np.random.default_rng([100, seed])
            counts, places, _ = load(name, rng)
            p = run(counts, places[rng.permutation(len(places))])["spatial_pvalue"].dropna().to_numpy()
            rows.append([(p < level).mean() for level in levels])
            smallest, tests = min(smallest, p.min()), tests + len(p)
        _print_rates(name + ", coordinates permuted", rows, smallest, tests)
    for name in SETS:
        rows, smallest, tests = [], 1.0, 0
        for seed in range(8):
            rng = np.random.default_rng([200, seed])
            counts, places, total = load(name, rng)
            share = total / total.sum()
            drawn = []
            for reads in np.asarray(counts.sum(0)).ravel():
                weight = share * rng.gamma(5, 1 / 5, len(share))
                drawn.append(rng.multinomial(int(reads), weight / weight.sum()))
            p = run(np.stack(drawn, 1), places)["spatial_pvalue"].dropna().to_numpy()
            rows.append([(p < level).mean() for level in levels])
            smallest, tests = min(smallest, p.min()), tests + len(p)
        _print_rates(name + ", constant proportion on the real depth", rows, smallest, tests)
    rows, smallest, tests = [], 1.0, 0
    for seed in range(20):
        rng = np.random.default_rng([300, seed])
        counts, _, _ = load("beads", rng, genes=500)
        places = rng.uniform(0, np.sqrt(50_000), (50_000, 2))
        p = run(counts[rng.integers(counts.shape[0], size=50_000)], places)["spatial_pvalue"].dropna().to_numpy()
        rows.append([(p < level).mean() for level in levels])
        smallest, tests = min(smallest, p.min()), tests + len(p)
    _print_rates("50,000 resampled beads", rows, smallest, tests)


def depth() -> None:
    print("\n## depth: a log-normal factor on the depth of spots; share of p-values below a level (standard error)\n")
    print("| set | variation of depth | arrangements | 0.05 | 0.01 | 0.001 | smallest of tests |\n" + "|---" * 7 + "|")
    for name in SETS:
        for thinned in (False, True):
            rows, smallest, tests, variation = [], 1.0, 0, []
            for seed in range(18 if thinned else 6):
                rng = np.random.default_rng([600, seed])
                counts, places, total = load(name, rng)
                factor = rng.lognormal(0, 1.0, len(total))
                if thinned:
                    places = places[rng.permutation(len(places))]
                    counts = sp.csr_matrix(rng.binomial(counts.toarray().astype(int), factor[:, None] / factor.max()))
                    kept = np.asarray(counts.sum(1)).ravel() > 0
                    counts, places, total = counts[kept], places[kept], (factor * total)[kept]
                else:
                    total = factor * total
                    rate = np.outer(total / total.sum(), np.asarray(counts.sum(0)).ravel())
                    counts = sp.csr_matrix(rng.poisson(rate * rng.gamma(5, 1 / 5, rate.shape)))
                variation.append(total.std() / total.mean())
                p = run(counts, places)["spatial_pvalue"].dropna().to_numpy()
                rows.append([(p < level).mean() for level in (0.05, 0.01, 0.001)])
                smallest, tests = min(smallest, p.min()), tests + len(p)
            label = "thinned, coordinates permuted" if thinned else "constant proportion"
            _print_rates(f"{name}, {label} | {np.mean(variation):.2f}", rows, smallest, tests)
    for name in SETS:
        rows, smallest, tests = [], 1.0, 0
        for seed in range(12):
            rng = np.random.default_rng([650, seed])
            counts, places, total = load(name, rng, reads=(3, 9))
            var = run(counts, places[rng.permutation(len(places))], depth=total)
            p = var["spatial_pvalue"].dropna().to_numpy()
            rows.append([(p < level).mean() for level in (0.05, 0.01, 0.001)])
            smallest, tests = min(smallest, p.min()), tests + len(p)
        _print_rates(f"{name}, genes of 3 to 9 reads, coordinates permuted | as it is", rows, smallest, tests)


def far_spot() -> None:
    print("\n## far_spot: 1,024 spots of the bulb on a lattice, fold 3 planted, and one spot at 1e5\n")
    print("| spots | tested | AUPR | smallest p without pattern | false discoveries at 5 % |\n|---|---|---|---|---|")
    rng = np.random.default_rng(700)
    counts, _, total = load("bulb", rng, genes=400)
    chosen = rng.integers(counts.shape[0], size=1025)
    lattice = np.stack([np.arange(1024) % 32, np.arange(1024) // 32], 1).astype(float)
    places = np.concatenate([lattice, lattice[-1:] + [0, 1]])
    dense, truth = plant(counts[chosen], [lambda r: profile(places, "hotspot", r)], 3, rng)
    for label, last in (("without", None), ("with", [1e5, 1e5])):
        kept = 1024 if last is None else 1025
        at = places[:kept].copy()
        if last is not None:
            at[-1] = last
        var = run(dense[:kept], at, depth=total[chosen][:kept])
        score, called = var["spatial_score"].to_numpy(), var["is_spatial"].to_numpy()
        smallest = var["spatial_pvalue"].to_numpy()[~truth]
        print(
            f"| {label} | {var['spatial_pvalue'].notna().sum()} | {average_precision(score, truth):.3f} "
            f"| {np.nanmin(smallest):.1e} | {(called & ~truth).sum()} of {called.sum()} |",
            flush=True,
        )


def panel() -> None:
    print("\n## panel: 200 genes of which a share has one hot spot in common, 900 spots, depth +-30 %; genes found\n")
    print("| share | fold | warned | found | false | found, depth of other genes | false |\n" + "|---" * 7 + "|")
    side = np.arange(900)
    places = np.stack([side % 30, side // 30], 1).astype(float)
    hot = ((places - 12) ** 2).sum(1) < 90
    for share in (0.0, 0.1, 0.25):
        for fold in (2, 4):
            rng = np.random.default_rng([800, fold])
            truth = np.arange(200) < 200 * share
            effect = 1 + (fold - 1) * np.outer(hot, truth)
            mean = rng.lognormal(0, 0.3, (900, 1)) * (rng.gamma(2, 1, 200) + 0.2) * effect
            counts = rng.poisson(mean * rng.gamma(5, 0.2, mean.shape))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                called = run(counts, places)["is_spatial"].to_numpy()
            warned = any("total_counts_key" in str(one.message) for one in caught)
            given = run(counts, places, depth=counts[:, ~truth].sum(1))["is_spatial"].to_numpy()
            found = [f"{(one & truth).sum()} of {truth.sum()} | {(one & ~truth).sum()}" for one in (called, given)]
            print(f"| {share} | {fold} | {warned} | {found[0]} | {found[1]} |", flush=True)

    print("\n| tissue | genes | median slope on totals that neighbours share |\n|---|---|---|")
    for path in sorted((Path(os.environ["DIFFBIO_SC_DATA"]) / "spatial_genes").glob("*.h5ad")):
        adata = ad.read_h5ad(path)
        depth = np.asarray(adata.X.sum(1), float).ravel()
        kept = depth > 0
        slides = adata.obs["slide"].astype("category").cat.codes if "slide" in adata.obs else np.zeros(adata.n_obs, int)
        pattern = DepthPattern(np.asarray(adata.obsm["spatial"])[kept], np.asarray(slides)[kept], depth[kept])
        counts = sp.csc_array(adata.X)[np.flatnonzero(kept)]
        slopes = pattern.slopes(counts)[(counts > 0).sum(0) >= 3]
        print(f"| {path.stem} | {len(slopes)} | {np.median(slopes):.2f} |", flush=True)


def alternating() -> None:
    print("\n## alternating: fold 2 from spot to spot on a lattice of resampled bulb spots, 20 % of 400 genes; AUPR\n")
    print("| spots | pattern | AUPR | false discoveries at 5 % |\n|---|---|---|---|")
    for side in (20, 40):
        across, down = np.arange(side**2) % side, np.arange(side**2) // side
        for label, values in (("checkerboard", (across + down) % 2), ("rows", down % 2), ("pairs", (across // 2) % 2)):
            rng = np.random.default_rng([900, side])
            counts, _, _ = load("bulb", rng, genes=400)
            counts = counts[rng.integers(counts.shape[0], size=side**2)]
            dense, truth = plant(counts, [lambda r, values=values: values.astype(float)], 2, rng)
            var = run(dense, np.stack([across, down], 1).astype(float))
            called = var["is_spatial"].to_numpy()
            print(
                f"| {side**2} | {label} | {average_precision(var['spatial_score'].to_numpy(), truth):.3f} "
                f"| {(called & ~truth).sum()} of {called.sum()} |",
                flush=True,
            )


def joint() -> None:
    """Four slides whose types have regions of their own, twenty genes raised by half in the middle of each."""
    print("\n## joint: four slides of blood cells, tested beyond composition; six draws (standard error)\n")
    print("| composition | test | 0.05 | 0.01 | 0.001 | found of 20 | false |\n" + "|---" * 7 + "|")
    rows: dict[tuple[str, str], list] = {}
    for seed in range(6):
        slides, planted = _slides_of_blood(seed)
        for label, options in (
            ("known", {"covariates": "truth"}),
            ("estimated", {"covariates": "deconvolution"}),
            ("estimated, not smoothed", {"covariates": "deconvolution", "smooth_covariates": False}),
        ):
            options["variance"] = False
            dbio.tl.spatial_genes(slides, library_key="slide", **options)
            found = {"all slides": [slides.var["spatial_pvalue"]]}
            if "not" not in label:
                parts = [slides[slides.obs["slide"] == name].copy() for name in slides.obs["slide"].unique()]
                for part in parts:
                    dbio.tl.spatial_genes(part, **options)
                found["one slide"] = [part.var["spatial_pvalue"] for part in parts]
            for test, pvalues in found.items():
                rows.setdefault((label, test), []).append(np.mean([_rates_of(p, planted) for p in pvalues], 0))
    for (label, test), values in rows.items():
        values = np.array(values)
        cells = [f"{values[:, i].mean():.3f} ({error(values[:, i]):.3f})" for i in range(3)]
        cells += [f"{values[:, i].mean():.1f}" for i in (3, 4)]
        print(f"| {label} | {test} | " + " | ".join(cells) + " |", flush=True)


def _slides_of_blood(seed: int):
    sections = []
    for number in range(4):
        section, reference = dbio.datasets.pbmc_tissue(n_spots=200, rng=100 + 10 * seed + number)
        section.obs["slide"] = f"slide {number}"
        place = section.obsm["spatial"] - section.obsm["spatial"].mean(0)
        section.obs["middle"] = (place**2).sum(1) < (0.25 * np.ptp(place, axis=0).max()) ** 2
        sections.append((section, reference))
    rng = np.random.default_rng([950, seed])
    mean = np.mean([np.asarray(section.X.mean(0)).ravel() for section, _ in sections], 0)
    planted = np.isin(np.arange(len(mean)), rng.choice(np.flatnonzero(mean > 0.5), 20, replace=False))
    for section, reference in sections:
        counts = section.X.toarray()
        where = np.ix_(section.obs["middle"], planted)
        counts[where] += rng.poisson(0.5 * counts[where])
        section.X = sp.csr_matrix(counts)
        dbio.tl.deconvolve(section, reference, cell_type_key="cell_type")
    return ad.concat([section for section, _ in sections], index_unique="-"), planted


def _rates_of(pvalues: pd.Series, planted: np.ndarray) -> list[float]:
    tested = pvalues.notna().to_numpy()
    called = np.zeros(len(pvalues), bool)
    called[tested] = stats.false_discovery_control(pvalues[tested]) < 0.05
    null = pvalues[tested & ~planted]
    rates = [(null < level).mean() for level in (0.05, 0.01, 0.001)]
    return [*rates, (called & planted).sum(), (called & ~planted).sum()]


def _print_rates(name, rows, smallest, tests) -> None:
    rows = np.array(rows)
    cells = " | ".join(f"{rows[:, i].mean():.4f} ({error(rows[:, i]):.4f})" for i in range(3))
    print(f"| {name} | {len(rows)} | {cells} | {smallest:.1e} of {tests} |", flush=True)


def peers(counts, places) -> dict[str, np.ndarray]:
    """Minus log p of other tools, those that are installed."""
    found = {}
    try:
        from flashs import FlashS
    except ImportError:
        return found
    result = FlashS(random_state=0).fit_test(places, sp.csc_matrix(counts).astype(float))
    found["FlashS"] = -np.log(np.maximum(np.asarray(result.pvalues), 1e-300))
    return found


def planted() -> None:
    print(
        "\n## planted: patterns planted in real counts under permuted coordinates, eight seeds; AUPR (standard error)\n"
    )
    print(
        "| set | fold change | AUPR by lfdr | AUPR by p | false discoveries at 5 % | FlashS "
        "| ours by p, genes that FlashS tests | FlashS, the same |"
    )
    print("|---|---|---|---|---|---|---|---|")
    kinds = ("hotspot", "streak", "gradient", "periodic", "foci")
    pooled = np.zeros(2, int)
    for name, fold in (("bulb", 2), ("bulb", 3), ("breast", 3), ("beads", 6)):
        rows, calls = [], np.zeros(2, int)
        for seed in range(81, 89):
            rng = np.random.default_rng([seed, fold])
            counts, places, _ = load(name, rng)
            places = places[rng.permutation(len(places))]
            profiles = [lambda r, kind=kind, at=places: profile(at, kind, r) for kind in kinds]
            dense, truth = plant(counts, profiles, fold, rng)
            var = run(dense, places)
            called = var["is_spatial"].to_numpy()
            calls += [(called & ~truth).sum(), called.sum()]
            row = [average_precision(-var["spatial_lfdr"].fillna(2.0).to_numpy(), truth)]
            row.append(average_precision(var["spatial_score"].to_numpy(), truth))
            for peer in peers(dense, places).values():
                tested = (dense > 0).sum(0) >= 30
                row += [
                    average_precision(peer, truth),
                    average_precision(var["spatial_score"].to_numpy()[tested], truth[tested]),
                    average_precision(peer[tested], truth[tested]),
                ]
            rows.append(row)
        pooled += calls
        rows = np.array(rows)
        cells = [f"{rows[:, i].mean():.3f} ({error(rows[:, i]):.3f})" for i in range(rows.shape[1])]
        cells.insert(2, f"{calls[0]} of {calls[1]}")
        print(f"| {name} | {fold} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nFalse discoveries in all: {pooled[0]} of {pooled[1]} = {pooled[0] / max(pooled[1], 1):.3f}")


def fine() -> None:
    print("\n## fine: foci of a few spacings, fold change 3, AUPR\n")
    print("| spots | radius in spacings | AUPR |\n|---|---|---|")
    for spots in (262, 3000, 10_000):
        for radius in (1.2, 2.5, 5.0):
            rng = np.random.default_rng([50, spots])
            counts, _, _ = load("bulb", rng, genes=400)
            counts = counts[rng.integers(counts.shape[0], size=spots)]
            side = int(np.ceil(np.sqrt(spots)))
            places = np.stack([np.arange(spots) % side, np.arange(spots) // side], 1).astype(float)
            number = max(1, int(0.12 * spots / (np.pi * radius**2)))

            def foci(r, places=places, number=number, radius=radius):
                centres = places[r.choice(len(places), number, replace=False)]
                distance = ((places[:, None] - centres[None]) ** 2).sum(-1).min(1)
                return (distance <= radius**2).astype(float)

            dense, truth = plant(counts, [foci], 3, rng)
            var = run(dense, places)
            print(
                f"| {spots} | {radius} | {average_precision(var['spatial_score'].to_numpy(), truth):.3f} |", flush=True
            )


def markers() -> None:
    print("\n## markers: ten markers of the olfactory bulb of the first SpatialDE study\n")
    print("| genes with counts in | tested | significant | found | median rank |\n|---|---|---|---|---|")
    adata = ad.read_h5ad(Path(os.environ["DIFFBIO_SC_DATA"]) / "spatial_genes" / "mob_rep11.h5ad")
    dbio.tl.spatial_genes(adata, variance=False)
    spots = np.asarray((adata.X > 0).sum(0)).ravel()
    for label, fewest in (("3 spots", 3), ("10 spots", 10), ("10 % of spots", 0.1 * adata.n_obs)):
        var = adata.var[spots >= fewest].dropna(subset="spatial_pvalue")
        found = stats.false_discovery_control(var["spatial_pvalue"]) < 0.05
        rank = var["spatial_score"].rank(ascending=False)[MARKERS]
        hits = pd.Series(found, index=var.index)[MARKERS].sum()
        print(f"| {label} | {len(var)} | {found.sum()} | {hits} of 10 | {rank.median():.0f} |", flush=True)


def sparkx(counts, places) -> np.ndarray:
    """The projection test of SPARK-X (Zhu et al. 2021): eleven kernels, exact tails, Cauchy combination."""
    matrix = sp.csc_matrix(counts)
    spots = matrix.shape[0]
    squares = np.asarray(matrix.multiply(matrix).sum(0)).ravel()
    mean = np.asarray(matrix.mean(0)).ravel()
    scale = 1 - spots * mean**2 / squares
    centred = places - places.mean(0)
    features = [places]
    for k in range(5):
        width = [np.quantile(abs(column), 0.2 * (k + 1)) for column in centred.T]
        features.append(np.exp(-(centred**2) / (2 * np.array(width) ** 2)))
        features.append(np.cos(2 * np.pi * centred / np.array(width)))
    tails = []
    for feature in features:
        feature = feature - feature.mean(0)
        product = matrix.T @ feature
        statistic = np.einsum("gi,ij,gj->g", product, np.linalg.inv(feature.T @ feature), product) * spots / squares
        tails.append(stats.chi2.sf(statistic / scale, feature.shape[1]))
    p = np.clip(tails, 1e-300, 1 - 1e-12)
    return stats.cauchy.sf(stats.cauchy.isf(p).mean(0))


def speed() -> None:
    print("\n## speed: CPU seconds of 1000 genes, one thread, second call\n")
    print(
        "| spots | counts above 0 | ours | FlashS | SPARK-X's projection test | ours over SPARK-X "
        "| ours with variance |"
    )
    print("|---|---|---|---|---|---|---|")
    times, sizes = [], (262, 1000, 3000, 10_000, 50_000)
    for spots in sizes:
        rng = np.random.default_rng([60, spots])
        counts, places, _ = load("bulb" if spots == 262 else "beads", rng, genes=1000)
        if spots == 262:
            places = places[:spots]
        else:
            counts = counts[rng.integers(counts.shape[0], size=spots)]
            places = rng.uniform(0, np.sqrt(spots), (spots, 2))
        row = []
        for function in (
            lambda c=counts, p=places: run(c, p),
            lambda c=counts, p=places: peers(c, p),
            lambda c=counts, p=places: sparkx(c, p),
            lambda c=counts, p=places: run(c, p, variance=True),
        ):
            function()
            best = []
            for _ in range(3):
                started = time.process_time()
                function()
                best.append(time.process_time() - started)
            row.append(min(best))
        times.append(row[0])
        flashs = f"{row[1]:.2f}" if row[1] > 0.02 else "not installed"
        print(
            f"| {spots} | {counts.nnz} | {row[0]:.2f} | {flashs} | {row[2]:.3f} | {row[0] / row[2]:.0f} "
            f"| {row[3]:.2f} |",
            flush=True,
        )
    slope = np.polyfit(np.log(sizes[1:]), np.log(times[1:]), 1)[0]
    print(f"\nSlope of log time against log spots, from 1000 spots: {slope:.2f}")


def memory() -> None:
    print("\n## memory: 50,000 spots x 15,000 genes, sparse\n")
    print("| counts above 0 | GiB of the input | GiB peak beyond it | wall s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "m.npz")
        here = str(Path(__file__).parent)
        for call in (f"d.make_large({path!r})", f"d.measure_large({path!r})"):
            script = f"import sys; sys.path.insert(0, {here!r}); import spatial_genes as d; {call}"
            subprocess.run([sys.executable, "-c", script], check=True)


def make_large(path: str) -> None:
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.3, 0.5, 15_000)
    blocks = []
    for _ in range(25):
        depth = rng.lognormal(0, 0.4, (2000, 1))
        blocks.append(sp.csr_matrix(rng.poisson(depth * rate).astype(np.float32)))
    sp.save_npz(path, sp.vstack(blocks).tocsr(), compressed=False)


def measure_large(path: str) -> None:
    counts = sp.load_npz(path)
    adata = ad.AnnData(counts)
    adata.obsm["spatial"] = np.random.default_rng(1).uniform(0, 224, (50_000, 2))
    size = (counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes) / 2**30
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    dbio.tl.spatial_genes(adata)
    wall = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before
    print(f"| {counts.nnz} | {size:.2f} | {peak:.2f} | {wall:.0f} |", flush=True)


def variance() -> None:
    print("\n## variance: genes drawn from Gaussian processes of known fraction of spatial variance (FSV)\n")
    print("| spots | FSV | bias | mean absolute error | lengthscale, median ratio | within 25 % |\n" + "|---" * 6 + "|")
    from diffbio_sc.numerics.spatial.representatives import representative_spots
    from diffbio_sc.numerics.spatial.variance import VarianceComponents

    for spots in (260, 1000, 5000):
        rng = np.random.default_rng([70, spots])
        places = rng.uniform(0, np.sqrt(spots), (spots, 2))
        for fsv in (0.1, 0.3, 0.5, 0.8):
            drawn, truth, fields = [], [], []
            for scale in (2.0, 3.0, 5.0):
                field = _field(places, scale, 30, rng)
                drawn.append(np.sqrt(fsv) * field + np.sqrt(1 - fsv) * rng.normal(size=field.shape))
                shown = fsv * field.var(0) / (fsv * field.var(0) + 1 - fsv)
                fields.append(shown)
                truth += [scale] * field.shape[1]
            values, truth, shown = np.hstack(drawn), np.array(truth), np.concatenate(fields)
            sample = representative_spots(places, None, size=1000, generator=rng)
            scales = np.geomspace(1.0, np.sqrt(spots) / 2, 10)
            fit = VarianceComponents(places[sample], scales, np.ones((len(sample), 1)), None).fit(values[sample])
            ratio = fit.lengthscale / truth
            off = fit.fsv - shown
            inside = (np.abs(ratio - 1) < 0.25).mean()
            print(
                f"| {spots} | {fsv} | {off.mean():+.3f} | {np.abs(off).mean():.3f} | {np.median(ratio):.2f} "
                f"| {inside:.2f} |",
                flush=True,
            )


def _field(places, scale, number, rng):
    """Gaussian fields of unit variance by 4000 random waves."""
    waves = rng.normal(size=(2, 4000)) / scale
    phase = rng.uniform(0, 2 * np.pi, 4000)
    features = np.sqrt(2 / 4000) * np.cos(places @ waves + phase)
    return features @ rng.normal(size=(4000, number))


def constants() -> None:
    """Power and level when a constant of the test is halved or doubled."""
    from diffbio_sc.numerics.spatial import score_test

    print("\n## constants: planted AUPR, and share of null p-values below 0.05 and 0.001, with a constant changed\n")
    print("| constant | value | AUPR | 0.05 | 0.001 |\n|---|---|---|---|---|")
    kinds = ("hotspot", "streak", "gradient", "periodic", "foci")

    def row(label: str, value: float) -> None:
        power, p = [], []
        for name, fold in (("bulb", 3), ("breast", 3), ("beads", 6)):
            for seed in (41, 42):
                rng = np.random.default_rng([seed, fold])
                counts, places, _ = load(name, rng)
                places = places[rng.permutation(len(places))]
                p.append(run(counts, places)["spatial_pvalue"].dropna().to_numpy())
                profiles = [lambda r, kind=kind, at=places: profile(at, kind, r) for kind in kinds]
                dense, truth = plant(counts, profiles, fold, rng)
                power.append(average_precision(run(dense, places)["spatial_score"].to_numpy(), truth))
        rate = [(np.concatenate(p) < level).mean() for level in (0.05, 0.001)]
        print(f"| {label} | {value:.4g} | {np.mean(power):.3f} | {rate[0]:.4f} | {rate[1]:.4f} |", flush=True)

    row("as they stand", np.nan)
    for name in (
        "_CLIP", "_ROOT_FROM_MEAN", "_LARGEST_SKEWNESS", "_LARGEST_TWO_SIDED", "_SCALE_WEIGHT", "_ALTERNATION_SHARE",
        "_EFFECT", "_CAUCHY_EXCESS",
    ):  # fmt: skip
        value = getattr(score_test, name)
        for factor in (0.5, 2.0):
            setattr(score_test, name, value * factor)
            row(name, value * factor)
        setattr(score_test, name, value)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    functions = (
        null, depth, far_spot, panel, alternating, joint, planted, fine, markers, speed, memory, variance, constants,
    )  # fmt: skip
    parts = {f.__name__: f for f in functions}
    for part in sys.argv[1:] or parts:
        parts[part]()
