"""Speed, memory and accuracy of the analysis of chromatin contacts, beside cooler, cooltools and chromosight.

python benchmarks/contacts.py COMMAND ...        (of: speed file scale genome compartments boundaries loops null
                                                  training windows shapes)

Costs are CPU seconds (user and system) of one process with one thread. Peers run in the same process on the same map.
DIFFBIO_SC_DATA names the folder that holds hic/.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import contextlib
import itertools
import logging
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.ndimage import gaussian_filter1d
from scipy.stats import spearmanr

import diffbio_sc as dbio

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

DATA = Path(os.environ.get("DIFFBIO_SC_DATA", ".")) / "hic"
CHR21 = "gm12878_chr21_10kb_hg19.cool"
MAXIMUM = 2_000_000


def cpu() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in usage)


def cost(function, repeats: int = 3):
    """CPU seconds of the fastest of a few runs, and the last result."""
    best = np.inf
    for _ in range(repeats):
        before = cpu()
        result = function()
        best = min(best, cpu() - before)
    return best, result


def peak_mb(function) -> float:
    """Peak of the memory that Python and numpy take while a function runs, in MB."""
    import tracemalloc

    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return peak


def simulated(depth: float, seed: int = 1, n: int = 5000, **options) -> ad.AnnData:
    return dbio.datasets.simulate_contacts(n, contacts_per_bin=depth, rng=seed, **options)


def real(name: str = CHR21) -> ad.AnnData:
    adata = dbio.io.read_cool(DATA / name)
    return adata


def to_file(adata: ad.AnnData, folder: str) -> str:
    """Write a map as .cool, without weights."""
    import cooler

    path = str(Path(folder) / "map.cool")
    upper = sp.triu(adata.obsp["contacts"], format="coo")
    order = np.lexsort((upper.col, upper.row))
    pixels = pd.DataFrame({"bin1_id": upper.row[order], "bin2_id": upper.col[order], "count": upper.data[order]})
    bins = adata.obs[["chrom", "start", "end"]].reset_index(drop=True)
    bins["chrom"] = bins["chrom"].astype(str)
    cooler.create_cooler(path, bins, pixels, ordered=True, dtypes={"count": np.int32})
    return path


class Peers:
    """The calls of cooler and cooltools on a file."""

    def __init__(self, path: str):
        import cooler
        import cooltools

        self.cooler, self.cooltools, self.path = cooler, cooltools, path
        self.file = cooler.Cooler(path)
        sizes = self.file.chromsizes
        self.view = pd.DataFrame([(name, 0, int(sizes[name]), name) for name in self.file.chromnames])
        self.view.columns = ["chrom", "start", "end", "name"]

    def balance(self):
        weights, _ = self.cooler.balance_cooler(self.file, cis_only=True, store=True, tol=1e-5, max_iters=500)
        self.file = self.cooler.Cooler(self.path)
        return weights

    def expected(self):
        self.table = self.cooltools.expected_cis(self.file, view_df=self.view, nproc=1)
        return self.table

    def compartments(self):
        return self.cooltools.eigs_cis(self.file, view_df=self.view, n_eigs=3)[1]

    def insulation(self):
        return self.cooltools.insulation(self.file, WINDOWS, view_df=self.view, ignore_diags=2, nproc=1)

    def loops(self):
        return self.cooltools.dots(
            self.file,
            expected=self.table,
            view_df=self.view,
            max_loci_separation=MAXIMUM,
            nproc=1,
            max_nans_tolerated=4,
        )

    def chromosight(self):
        folder = tempfile.mkdtemp()
        program = Path(sys.executable).parent / "chromosight"
        command = [str(program), "detect", "--pattern", "loops", "--min-dist", "20000", "--max-dist", str(MAXIMUM)]
        subprocess.run(
            [*command, "--no-plotting", "--threads", "1", self.path, f"{folder}/loops"], capture_output=True, check=True
        )
        return pd.read_csv(f"{folder}/loops.tsv", sep="\t")


WINDOWS = [100_000, 200_000, 500_000]
STEPS = {
    "balance": dbio.tl.balance,
    "expected": dbio.tl.expected,
    "compartments": dbio.tl.compartments,
    "insulation": partial(dbio.tl.insulation, windows=WINDOWS),
    "loops": dbio.tl.loops,
}


def speed() -> None:
    """Each step on a map in memory against the peer's call on the file."""
    for name, adata in (("chr21", real()), ("simulated, 1000 contacts a bin", simulated(1000))):
        with tempfile.TemporaryDirectory() as folder:
            path = to_file(adata, folder)
            peers = Peers(path)
            print(f"{name}: {adata.n_obs} bins, {sp.triu(adata.obsp['contacts']).nnz} pixels")
            total = [0.0, 0.0]
            for step, function in STEPS.items():
                ours, _ = cost(partial(function, adata), 3)
                theirs, _ = cost(getattr(peers, step), 1)
                total[0], total[1] = total[0] + ours, total[1] + theirs
                print(f"  {step:14s} {ours:8.3f} s   peer {theirs:8.3f} s   ratio {theirs / ours:6.1f}")
            loops, _ = cost(partial(dbio.tl.loops, adata), 3)
            with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
                theirs, _ = cost(peers.chromosight, 1)
                print(f"  {'chromosight':14s} {loops:8.3f} s   peer {theirs:8.3f} s   ratio {theirs / loops:6.1f}")
            error = adata.uns["balance"]["error"].max()
            weights = peers.file.bins()[:]["weight"].to_numpy()
            ours_w = adata.obs["contact_weight"].to_numpy()
            both = np.isfinite(weights) & np.isfinite(ours_w)
            r = np.corrcoef(np.log(weights[both]), np.log(ours_w[both]))[0, 1]
            same = (np.isfinite(weights) == np.isfinite(ours_w)).mean()
            print(f"  row-sum error {error:.1e}, r of log weights {r:.6f}, same bins {same:.4f}")
            own_mb = peak_mb(partial(dbio.tl.compartments, adata))
            their_mb = peak_mb(peers.compartments)
            print(f"  memory of compartments {own_mb:.0f} MB, peer {their_mb:.0f} MB")


def file() -> None:
    """From a file to all results, against the peers' five calls."""
    for name, adata in (("chr21", real()), ("simulated, 1000 contacts a bin", simulated(1000))):
        with tempfile.TemporaryDirectory() as folder:
            path = to_file(adata, folder)

            def ours(path=path):
                found = dbio.io.read_cool(path)
                dbio.tl.contacts(found, windows=WINDOWS)
                return found

            own, _ = cost(ours, 3)
            reading, _ = cost(lambda path=path: dbio.io.read_cool(path), 3)
            peers = Peers(path)
            theirs = sum(cost(getattr(peers, step), 1)[0] for step in STEPS)
            print(f"{name}: {own:.2f} s (reading {reading:.2f}), peers {theirs:.1f} s, ratio {theirs / own:.1f}")


def synthetic(n: int, pixels: int, chromosomes: int = 1, seed: int = 0) -> ad.AnnData:
    """A map with a decay and nothing else, pixels drawn one by one: no dense part, for scale."""
    rng = np.random.default_rng(seed)
    rows = []
    sizes = np.full(chromosomes, n // chromosomes)
    offset = 0
    for size in sizes:
        number = pixels // chromosomes
        first = rng.integers(0, size, number)
        apart = np.floor(np.exp(rng.uniform(np.log(1.0), np.log(size), number))).astype(np.int64)
        second = first + apart
        good = second < size
        rows.append((first[good] + offset, second[good] + offset))
        offset += size
    i, j = (np.concatenate(part) for part in zip(*rows, strict=True))
    total = int(sizes.sum())
    matrix = sp.csr_array((np.ones(len(i), np.int32), (i.astype(np.int32), j.astype(np.int32))), shape=(total, total))
    matrix.sum_duplicates()
    obs = pd.DataFrame(
        {
            "chrom": pd.Categorical(np.repeat([f"chr{k + 1}" for k in range(chromosomes)], sizes)),
            "start": np.concatenate([np.arange(size) * 10_000 for size in sizes]),
        }
    )
    obs["end"] = obs["start"] + 10_000
    obs.index = obs.index.astype(str)
    return ad.AnnData(obs=obs, obsp={"contacts": matrix})


def scale() -> None:
    """50,000 bins of one chromosome: memory of the whole process."""
    adata = synthetic(50_000, 9_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, _ = cost(lambda: dbio.tl.contacts(adata, max_distance=4_000_000), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"50,000 bins, {adata.obsp['contacts'].nnz} pixels: {seconds:.1f} s, peak {peak:.0f} MB ({before:.0f} before)"
    )


def genome() -> None:
    """A whole genome at 10 kb with 50 million pixels."""
    adata = synthetic(300_000, 84_000_000, chromosomes=23)
    seconds, _ = cost(lambda: dbio.tl.contacts(adata), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{adata.n_obs} bins, {adata.obsp['contacts'].nnz} pixels: {seconds:.0f} s, peak {peak:.0f} MB")
    print({key: round(float(adata.uns[key]["report"]["seconds"]), 1) for key in STEPS})


def chip(chrom: str, n: int, resolution: int) -> np.ndarray:
    """log(1 + smoothed peaks of CTCF and SMC3)."""
    track = np.zeros(n)
    for name in ("ctcf", "smc3"):
        table = pd.read_csv(DATA / f"gm12878_{name}_{chrom}.bed", sep="\t", header=None)
        at = ((table[1] + table[2]) // 2 // resolution).to_numpy()
        track += np.bincount(at[at < n], minlength=n)[:n]
    return np.log1p(gaussian_filter1d(track, 100_000 / resolution))


def compartments() -> None:
    """Planted compartments; real ones against ChIP-seq and between replicates."""
    for depth in (200, 1000):
        for seed in (1, 2, 3):
            adata = simulated(depth, seed)
            dbio.tl.balance(adata)
            dbio.tl.compartments(adata, phasing_track="gc")
            truth, found = adata.obs["true_compartment"].to_numpy(), adata.obs["compartment"].to_numpy()
            good = np.isfinite(found)
            print(f"{depth} contacts a bin, seed {seed}: r {np.corrcoef(truth[good], found[good])[0, 1]:.4f}")
    adata = real()
    track = chip("chr21", adata.n_obs, 10_000)
    dbio.tl.balance(adata)
    dbio.tl.compartments(adata, phasing_track=track)
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(to_file(adata, folder))
        peers.balance()
        theirs = peers.compartments()["E1"].to_numpy(float)
    ours = adata.obs["compartment"].to_numpy()
    good = np.isfinite(ours) & np.isfinite(theirs)
    for name, values in (("ours", ours), ("cooltools", theirs)):
        r, rho = np.corrcoef(values[good], track[good])[0, 1], spearmanr(values[good], track[good])[0]
        print(f"chr21 {name}: Pearson {abs(r):.4f}, Spearman {abs(rho):.4f}")
    for pair in (
        ("gm12878_chr22_prim_50kb.cool", "gm12878_chr22_rep_50kb.cool"),
        ("HIC001_chr21_50kb.cool", "HIC002_chr21_50kb.cool"),
    ):
        values = []
        for name in pair:
            adata = real(name)
            chrom = "chr22" if "22" in pair[0] else "chr21"
            dbio.tl.balance(adata)
            dbio.tl.compartments(adata, phasing_track=chip(chrom, adata.n_obs, 50_000))
            values.append(adata.obs["compartment"].to_numpy())
        good = np.isfinite(values[0]) & np.isfinite(values[1])
        print(f"{pair[0]} and replicate: r {np.corrcoef(values[0][good], values[1][good])[0, 1]:.4f}")


def match(found: np.ndarray, truth: np.ndarray, tolerance: int = 2) -> np.ndarray:
    """Which of the found, best first, hit a true one that no better one hit; one or two coordinates."""
    found, truth = (np.asarray(part).reshape(len(part), -1) for part in (found, truth))
    free = np.ones(len(truth), bool)
    hit = np.zeros(len(found), bool)
    for k, place in enumerate(found):
        if not len(truth):
            break
        distance = np.where(free, np.abs(truth - place).max(1), np.iinfo(np.int64).max)
        if distance.min() <= tolerance:
            free[distance.argmin()] = False
            hit[k] = True
    return hit


def f1(hit: np.ndarray, truth: int) -> float:
    return 2.0 * hit.sum() / max(len(hit) + truth, 1)


def average_precision(hit: np.ndarray, truth: int) -> float:
    return float((hit * np.cumsum(hit) / np.arange(1, len(hit) + 1)).sum() / max(truth, 1))


def best_f1(hit: np.ndarray, truth: int) -> float:
    return float((2.0 * np.cumsum(hit) / (np.arange(1, len(hit) + 1) + truth)).max()) if len(hit) else 0.0


def summary(hit: np.ndarray, truth: int) -> str:
    return f"{len(hit)} calls, AP {average_precision(hit, truth):.3f}, F1 {f1(hit, truth):.3f}"


def boundary_scores(adata: ad.AnnData, **options) -> tuple[float, float]:
    dbio.tl.insulation(adata, **options)
    score = adata.obs["boundary_score"].to_numpy()
    truth = adata.uns["truth"]["boundaries"]["bin"].to_numpy()
    from diffbio_sc.numerics.genome.insulation import local_maxima

    called = np.flatnonzero(adata.obs["is_boundary"])
    peaks = local_maxima(score, 5)
    peaks = peaks[np.argsort(-score[peaks])]
    called = called[np.argsort(-score[called])]
    return f1(match(called, truth), len(truth)), best_f1(match(peaks, truth), len(truth))


def boundaries() -> None:
    """Planted boundaries at default settings and along the ranking, beside cooltools."""
    for depth in (200, 1000, 5000):
        for seed in (1, 2):
            adata = simulated(depth, seed)
            dbio.tl.balance(adata)
            default, best = boundary_scores(adata)
            line = f"{depth} contacts a bin, seed {seed}: F1 {default:.3f}, best F1 {best:.3f}"
            if seed == 1:
                with tempfile.TemporaryDirectory() as folder:
                    peers = Peers(to_file(adata, folder))
                    peers.balance()
                    table = peers.insulation()
                truth = adata.uns["truth"]["boundaries"]["bin"].to_numpy()
                for window in (100_000, 200_000):
                    strength = table[f"boundary_strength_{window}"].to_numpy()
                    called = np.flatnonzero(table[f"is_boundary_{window}"])
                    order = np.flatnonzero(np.isfinite(strength))
                    order = order[np.argsort(-strength[order])]
                    line += f"; cooltools {window // 1000} kb {f1(match(called, truth), len(truth)):.3f}"
                    line += f", best {best_f1(match(order, truth), len(truth)):.3f}"
            print(line)


def windows() -> None:
    """How the default windows were chosen: F1 of other widths."""
    for depth in (200, 1000, 5000):
        adata = simulated(depth, 4)
        dbio.tl.balance(adata)
        for widths in ((8, 16), (10, 20), (10, 20, 30), (12, 24)):
            default, best = boundary_scores(adata, windows=[width * 10_000 for width in widths])
            print(f"{depth} contacts a bin, windows {widths}: F1 {default:.3f}, best F1 {best:.3f}")


def read_loops(name: str, chrom: str, resolution: int) -> np.ndarray:
    table = pd.read_csv(DATA / name, sep="\t", header=None)
    table = table[table[0].astype(str).str.removeprefix("chr") == chrom]
    pairs = np.sort(
        np.column_stack([(table[1] + table[2]) // 2 // resolution, (table[4] + table[5]) // 2 // resolution]), axis=1
    )
    pairs = np.unique(pairs, axis=0)
    return pairs[(pairs[:, 1] - pairs[:, 0]) * resolution <= MAXIMUM]


def loop_scores(adata: ad.AnnData, truth: np.ndarray) -> str:
    """Average precision of all local maxima; calls at the default."""
    resolution = int((adata.obs["end"] - adata.obs["start"]).iloc[0])
    dbio.tl.loops(adata, fdr=1.0)
    table = adata.uns["loops"]["table"]
    hit = match(table[["start1", "start2"]].to_numpy() // resolution, truth)
    called = table["qval"].to_numpy() <= 0.05
    default = hit[called]
    precision = default.mean() if len(default) else np.nan
    return (
        f"AP {average_precision(hit, len(truth)):.3f}, best F1 {best_f1(hit, len(truth)):.3f}, default: "
        f"{len(default)} calls, precision {precision:.3f}, F1 {f1(default, len(truth)):.3f}"
    )


def loops() -> None:
    """Loops of chromosome 21 against four lists, and planted ones of widths 0.7 to 1.4 bins."""
    adata = real()
    dbio.tl.balance(adata)
    for name in ("hiccups", "rad21_chiapet", "smc1_hichip", "peakachu"):
        truth = read_loops(f"gm12878_{name}_chr21.bedpe", "21", 10_000)
        print(f"chr21, {name} ({len(truth)}): {loop_scores(adata, truth)}")
    truth = read_loops("gm12878_hiccups_chr21.bedpe", "21", 10_000)
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(to_file(adata, folder))
        peers.balance()
        peers.expected()
        table = peers.loops()
        order = np.argsort(-((table["count"] - table["la_exp.donut.value"]) / np.sqrt(table["la_exp.donut.value"])))
        hit = match(table[["start1", "start2"]].to_numpy()[order] // 10_000, truth)
        print(f"chr21, hiccups: cooltools {summary(hit, len(truth))}")
        table = peers.chromosight().sort_values("score", ascending=False)
        hit = match(table[["start1", "start2"]].to_numpy() // 10_000, truth)
        print(f"chr21, hiccups: chromosight {summary(hit, len(truth))}")
    for depth, seed in itertools.product((1000, 5000), (1, 2)):
        adata = simulated(depth, seed)
        dbio.tl.balance(adata)
        table = adata.uns["truth"]["loops"]
        truth = table[["bin1", "bin2"]].to_numpy()
        truth = truth[truth[:, 1] - truth[:, 0] <= MAXIMUM // 10_000]
        print(f"{depth} contacts a bin, seed {seed} ({len(truth)} loops): {loop_scores(adata, truth)}")


def null() -> None:
    """Maps with stripes and domains and without loops: calls there are false."""
    for depth, seed in itertools.product((200, 1000, 5000), (1, 2, 3)):
        adata = simulated(depth, seed, n_loops=0)
        with_loops = simulated(depth, seed)
        numbers = []
        for one in (adata, with_loops):
            dbio.tl.balance(one)
            dbio.tl.loops(one, fdr=0.05)
            numbers.append(len(one.uns["loops"]["table"]))
        print(f"{depth} contacts a bin, seed {seed}: {numbers[0]} calls without loops, {numbers[1]} with loops")


def shapes() -> None:
    """How filter, backgrounds and shrinkage were chosen; each set is judged on its own."""
    import diffbio_sc.numerics.genome.loops as numerics
    from diffbio_sc.tl import _loops

    sets = {"chr21": (real(), read_loops("gm12878_hiccups_chr21.bedpe", "21", 10_000))}
    for depth, seed in ((200, 4), (1000, 4), (5000, 4)):
        adata = simulated(depth, seed)
        truth = adata.uns["truth"]["loops"][["bin1", "bin2"]].to_numpy()
        sets[str(depth)] = (adata, truth[truth[:, 1] - truth[:, 0] <= 200])
    for adata, _ in sets.values():
        dbio.tl.balance(adata)
    before = numerics.SHRINKAGE, _loops.default_shape
    for inner, outer, width, shrinkage in itertools.product((2,), (4, 5, 6), (0.8, 1.0), (16.0, 64.0, 128.0)):
        numerics.SHRINKAGE = shrinkage
        shape = numerics.LoopShape(inner, outer, width)
        _loops.default_shape = lambda _, shape=shape: shape
        scores = {}
        for name, (adata, truth) in sets.items():
            dbio.tl.loops(adata, fdr=1.0)
            table = adata.uns["loops"]["table"]
            hit = match(table[["start1", "start2"]].to_numpy()[:2000] // 10_000, truth)
            scores[name] = round(average_precision(hit, len(truth)), 3)
        print(f"inner {inner}, outer {outer}, width {width}, shrinkage {shrinkage:.0f}: {scores}")
    numerics.SHRINKAGE, _loops.default_shape = before


def training() -> None:
    """Train on the loops, up to 1 Mb, of one half of chromosome 21, score the other half."""
    from flax import nnx

    from diffbio_sc.numerics.genome.bands_jax import band_of_pixels
    from diffbio_sc.operators.multiomics import HiCContactAnalysis, HiCContactAnalysisConfig

    adata = real()
    truth = read_loops("gm12878_hiccups_chr21.bedpe", "21", 10_000)
    truth = truth[truth[:, 1] - truth[:, 0] <= 100]
    band = band_of_pixels(sp.csr_array(sp.triu(adata.obsp["contacts"])), 111)
    middle = int(np.median(truth[:, 0]))
    known = np.zeros_like(band)
    known[truth[:, 1] - truth[:, 0], truth[:, 0]] = 1.0

    def score(operator, left: bool) -> float:
        logits = np.asarray(operator({"contact_band": band})["loop_logits"])
        own = truth[(truth[:, 0] < middle) == left]
        padded = np.pad(logits, 4, constant_values=-99.0)
        best = np.full(logits.shape, -99.0)
        for di, dj in itertools.product(range(-2, 3), repeat=2):
            k = 4 + dj - di
            best = np.maximum(best, padded[k : k + logits.shape[0], 4 + di : 4 + di + logits.shape[1]])
        k, i = np.nonzero((logits >= best) & (logits > logits.min()))
        inside = (i < middle) == left
        k, i = k[inside], i[inside]
        order = np.argsort(-logits[k, i])[:1500]
        return average_precision(match(np.column_stack([i, i + k])[order], own), len(own))

    for left in (True, False):
        operator = HiCContactAnalysis(
            HiCContactAnalysisConfig(hidden_dim=4, n_layers=1, max_distance=1_000_000), rngs=nnx.Rngs(0)
        )
        before = score(operator, left), score(operator, not left)
        mask = np.broadcast_to((np.arange(band.shape[1]) < middle) == left, band.shape).astype(np.float32)
        report = operator.fit(
            {"contact_band": band, "known_loops": known, "loop_mask": mask}, steps=25, learning_rate=0.05
        )
        after = score(operator, left), score(operator, not left)
        curve = report.history["loss"]
        width, shrinkage = (float(np.exp(value[...])) for value in (operator.log_filter_width, operator.log_shrinkage))
        bias = np.round(operator.background_bias[...], 2)
        print(f"  filter {width:.2f} bins, shrinkage {shrinkage:.0f}, backgrounds {bias}")
        print(
            f"trained on the {'left' if left else 'right'} half: loss {curve[0]:.3f} -> {curve.min():.3f}; AP there "
            f"{before[0]:.3f} -> {after[0]:.3f}, on the other half {before[1]:.3f} -> {after[1]:.3f} ({cpu():.0f} s)"
        )


COMMANDS = (speed, file, scale, genome, compartments, boundaries, loops, null, training, windows, shapes)

if __name__ == "__main__":
    known = {command.__name__: command for command in COMMANDS}
    chosen = sys.argv[1:] or list(known)
    if wrong := set(chosen) - set(known):
        raise SystemExit(f"unknown: {sorted(wrong)}; commands: {list(known)}")
    for name in chosen:
        started = time.perf_counter()
        print(f"== {name}", flush=True)
        known[name]()
        print(f"   ({time.perf_counter() - started:.0f} s of wall time)", flush=True)
