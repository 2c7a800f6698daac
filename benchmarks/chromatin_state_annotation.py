"""What surrounds chromatin states: how sure they are, what they are enriched in, what files cost.

python benchmarks/chromatin_state_annotation.py [planted] [sagaconf] [halves] [calibration] [enrichment] [files]

SAGAconf 1.1.0 runs beside ours where the variable SAGACONF points to its command (it needs numpy 1, so an environment
of its own). Real data in the folder that DIFFBIO_SC_DATA names. SEEDS=0:3 sets the seeds.
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

import numpy as np
import pandas as pd
from scipy.stats import kstest, spearmanr

import diffbio_sc as dbio

SEEDS = range(*map(int, os.environ.get("SEEDS", "0:3").split(":")))
SAGACONF = os.environ.get("SAGACONF")
LEAST = 0.01  # part of the bins in a level; fewer, and correlated, they do not tell its rate to a few per cent
# Marks of GM12878 in two halves, each with one of every kind: promoter, enhancer, body of genes or repression, control.
HALVES = (
    ["CTCF", "H3K27ac", "H3K36me3", "H3K4me2", "H4K20me1"],
    ["H3K27me3", "H3K4me1", "H3K4me3", "H3K9ac", "WCE"],
)


def folder() -> Path:
    return Path(os.environ["DIFFBIO_SC_DATA"]) / "chromatin_states"


def levels(probability: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Largest error over ten levels of equal width with enough bins, and over deciles."""
    errors = []
    for borders in (np.arange(1, 10) / 10, np.quantile(probability, np.arange(1, 10) / 10)):
        level = np.searchsorted(borders, probability, side="right")
        mine = [level == index for index in range(10)]
        errors.append(max(abs(probability[m].mean() - found[m].mean()) for m in mine if m.mean() >= LEAST))
    return errors[0], errors[1]


def near(one: np.ndarray, two: np.ndarray, chromosome: np.ndarray, tolerance: int) -> np.ndarray:
    """Whether the state is found at most ``tolerance`` bins away, bin by bin."""
    found = one == two
    for offset in range(1, tolerance + 1):
        same = chromosome[offset:] == chromosome[:-offset]
        found[offset:] |= same & (one[offset:] == two[:-offset])
        found[:-offset] |= same & (one[:-offset] == two[offset:])
    return found


# Planted replicates --------------------------------------------------------------------------------------------------


def planted_replicates(n_bins: int, seed: int, noise: float, known: bool, chromosomes: int = 12):
    """Three replicates, each annotated: by the true model, or by one trained on the first two together.

    ``noise`` of the marks of each replicate are drawn anew, which no model of one replicate knows about.
    """
    import anndata as ad

    adata = dbio.datasets.simulate_chromatin_states(n_bins=n_bins, n_replicates=3, n_chromosomes=chromosomes, rng=seed)
    if noise:
        rng = np.random.default_rng(seed + 100)
        lost = rng.random(adata.shape) < noise
        adata.X[lost] = rng.random(int(lost.sum())) < 0.15
    if known:
        model = dbio.get.chromatin_state_model(adata, key="truth")
    else:
        pair = adata[adata.obs["replicate"] != "rep3"].copy()
        dbio.tl.chromatin_states(pair, n_states=7, cell_type_key="sample", effort="fast")
        model = dbio.get.chromatin_state_model(pair)
    dbio.tl.chromatin_states(adata, model=model, cell_type_key="sample")
    parts = []
    for name in ("rep1", "rep2", "rep3"):
        part = adata[adata.obs["replicate"] == name]
        names = [label.split(":", 1)[1] for label in part.obs_names]
        parts.append(
            ad.AnnData(
                obs=part.obs.set_axis(names),
                obsm=dict(part.obsm),
                uns={"chromatin_states": part.uns["chromatin_states"]},
            )
        )
    return parts


def planted() -> None:
    print("\nStated probability against a third replicate that nothing was fitted to (400,000 bins); largest errors")
    print("| seed | model | noise | comes back | levels | deciles | raw posterior | Brier, of a constant | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in SEEDS:
        for known, noise in ((True, 0.0), (True, 0.25), (False, 0.25)):
            one, two, three = planted_replicates(400_000, seed, noise, known)
            began = time.process_time()
            dbio.tl.state_reproducibility(one, two)
            cost = time.process_time() - began
            probability = one.obs["state_reproducibility"].to_numpy().astype(float)
            found = one.obs["chromatin_state"].to_numpy() == three.obs["chromatin_state"].to_numpy()
            width, decile = levels(probability, found)
            raw = max(levels(one.obsm["chromatin_state_posterior"].max(1).astype(float), found))
            brier = ((probability - found) ** 2).mean()
            print(
                f"| {seed} | {'true' if known else 'trained'} | {noise} | {found.mean():.3f} | {width:.4f} "
                f"| {decile:.4f} | {raw:.3f} | {brier:.4f}, {found.var():.4f} | {cost:.2f} |"
            )


# Beside SAGAconf -----------------------------------------------------------------------------------------------------


def sagaconf_values(base, other) -> tuple[np.ndarray, float]:
    """r-values of SAGAconf with its defaults, and its CPU seconds."""
    assert SAGACONF is not None
    with tempfile.TemporaryDirectory() as place:
        for name, part in (("base", base), ("verif", other)):
            table = part.obs[["chrom", "start", "end"]].reset_index(drop=True).rename(columns={"chrom": "chr"})
            posterior = part.obsm["chromatin_state_posterior"].astype(np.float64)
            for state in range(posterior.shape[1]):
                table[f"posterior{state}"] = posterior[:, state]
            table.to_csv(f"{place}/{name}.bed", sep="\t", index=False)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [SAGACONF, "run", f"{place}/base.bed", f"{place}/verif.bed", f"{place}/out", "--mode", "rvalues"],
            check=True,
            capture_output=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        table = pd.read_csv(f"{place}/out/r_values.bed", sep="\t")
    merged = (
        base.obs[["chrom", "start"]]
        .astype({"chrom": str})
        .merge(table, left_on=["chrom", "start"], right_on=["chr", "start"], how="left")
    )
    cost = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return merged["r_value"].to_numpy(), cost


def sagaconf() -> None:
    if SAGACONF is None:
        print("\nSAGAconf: not installed (set SAGACONF)")
        return
    print("\nBeside SAGAconf, within 5 bins as it has it (24,000 bins); errors against the third replicate")
    print("| seed | noise | | largest error: levels | deciles | Brier | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for seed in SEEDS:
        for noise in (0.0, 0.25):
            one, two, three = planted_replicates(24_000, seed, noise, known=True, chromosomes=4)
            began = time.process_time()
            dbio.tl.state_reproducibility(one, two, tolerance=5)
            ours, cost = one.obs["state_reproducibility"].to_numpy().astype(float), time.process_time() - began
            theirs, their_cost = sagaconf_values(one, two)
            chromosome = one.obs["chrom"].cat.codes.to_numpy()
            found = near(
                one.obs["chromatin_state"].cat.codes.to_numpy(), three.obs["chromatin_state"].cat.codes.to_numpy(),
                chromosome, 5,
            )  # fmt: skip
            for name, values, seconds in (("ours", ours, cost), ("SAGAconf", theirs, their_cost)):
                width, decile = levels(values, found)
                print(
                    f"| {seed} | {noise} | {name} | {width:.3f} | {decile:.3f} | {((values - found) ** 2).mean():.4f} "
                    f"| {seconds:.2f} |"
                )
            print(
                f"| {seed} | {noise} | rank correlation {spearmanr(ours, theirs)[0]:.3f}, mean distance "
                f"{abs(ours - theirs).mean():.4f} | | | | {their_cost / cost:.0f} times |"
            )


# Real data -----------------------------------------------------------------------------------------------------------


def sample(*cells: str):
    files = [folder() / f"{cell}_chr11_binary.txt.gz" for cell in cells]
    return dbio.io.read_chromhmm_binary(files, chrom_sizes=folder() / "annot" / "chromsizes.hg18.txt")


def half_annotations(adata, halves, n_states: int = 8) -> None:
    """Annotate each half of the marks with a model of its own."""
    for name, marks in zip(("one", "two"), halves, strict=True):
        part = adata[:, marks].copy()
        dbio.tl.chromatin_states(part, n_states=n_states, effort="fast")
        dbio.tl.match_states(part)
        adata.obs[f"{name}_chromatin_state"] = part.obs["chromatin_state"]
        adata.obsm[f"{name}_chromatin_state_posterior"] = part.obsm["chromatin_state_posterior"]
        adata.uns[name] = part.uns["chromatin_states"]


def whole_chromosomes(names: tuple[str, ...]):
    """GM12878 in hg19, 9 marks, of these chromosomes."""
    import anndata as ad

    with np.load(folder() / "GM12878_hg19_codes.npz") as stored:
        marks = [str(mark) for mark in stored["marks"]]
        codes = {name: stored[name] for name in names}
    values = np.concatenate([(code[:, None] >> np.arange(len(marks))) & 1 for code in codes.values()]).astype(np.uint8)
    start = np.concatenate([200 * np.arange(len(code)) for code in codes.values()])
    chrom = pd.Categorical(np.repeat(list(codes), [len(code) for code in codes.values()]))
    obs = pd.DataFrame({"chrom": chrom, "start": start, "end": start + 200})
    obs.index = obs.index.astype(str)
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=marks))


def halves() -> None:
    """Two halves of the marks of GM12878, each with a model of its own: what one sees, does the other see?"""
    sets = {
        "hg18, chromosome 11": sample("GM12878"),
        "hg19, chromosomes 17 to 22": whole_chromosomes(tuple(f"chr{number}" for number in range(17, 23))),
    }
    print("\nTwo halves of the marks of GM12878, 8 states each, matched by overlap; error of levels")
    print("| data | bins | within | found | by chance | kappa | mean posterior | error | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for title, adata in sets.items():
        half_annotations(adata, [[mark for mark in half if mark in adata.var_names] for half in HALVES])
        for tolerance in (0, 5):
            began = time.process_time()
            dbio.tl.state_reproducibility(adata, key="one", other_key="two", match="overlap", tolerance=tolerance)
            cost = time.process_time() - began
            row = dbio.get.state_reproducibility(adata, kind="summary").iloc[0]
            table = dbio.get.state_reproducibility(adata, kind="reliability")
            table = table[table["bins"] >= LEAST * row["bins"]]
            error = abs(table["predicted"] - table["found"]).max()
            posterior = adata.obsm["one_chromatin_state_posterior"].max(1).mean()
            print(
                f"| {title} | {adata.n_obs:,} | {tolerance} | {row['found']:.3f} | {row['by_chance']:.3f} "
                f"| {row['kappa']:.3f} | {posterior:.3f} | {error:.4f} | {cost:.2f} |"
            )
    columns = ["state", "match", "bins", "found", "found_se", "posterior"]
    adata = sets["hg18, chromosome 11"]
    print(dbio.get.state_reproducibility(adata)[columns].round(3).to_string())
    if SAGACONF is None:
        return
    number = 60_000  # of 672,261 bins: its loops take minutes
    bins = [adata[200_000 : 200_000 + number].copy() for _ in range(2)]
    for part, name in zip(bins, ("one", "two"), strict=True):
        part.obsm["chromatin_state_posterior"] = part.obsm[f"{name}_chromatin_state_posterior"]
    theirs, their_cost = sagaconf_values(*bins)
    began = time.process_time()
    dbio.tl.state_reproducibility(bins[0], key="one", other_key="two", match="overlap", tolerance=5)
    cost = time.process_time() - began
    ours = bins[0].obs["state_reproducibility"].to_numpy()
    known = np.isfinite(theirs) & np.isfinite(ours)
    print(
        f"SAGAconf on {number:,} of these bins: rank correlation {spearmanr(ours[known], theirs[known])[0]:.3f}, mean "
        f"r-value {theirs[known].mean():.3f} (ours {ours[known].mean():.3f}), CPU {their_cost:.1f} s ({cost:.2f} s)"
    )


def runs(rng: np.random.Generator, length: int, on: float, off: float) -> np.ndarray:
    number = length // 4 + 4
    lengths = rng.geometric(1 / np.tile([off, on], number))
    return np.roll(np.repeat(np.tile([0, 1], number), lengths)[:length], rng.integers(length))


def calibration() -> None:
    """Are p-values uniform where states and annotation have nothing to do with each other?"""
    import anndata as ad

    rng = np.random.default_rng(0)
    start = np.tile(200 * np.arange(3000), 4)
    table = pd.DataFrame(
        {"chrom": np.repeat(["chr1", "chr2", "chr3", "chr4"], 3000), "start": start, "end": start + 200}
    )
    table.index = table.index.astype(str)
    pvalues: dict[str, list[float]] = {"shift": [], "bins": []}
    for _ in range(600):
        adata = ad.AnnData(obs=table.copy())
        adata.obs["chromatin_state"] = np.where(np.concatenate([runs(rng, 3000, 30, 100) for _ in range(4)]), "a", "b")
        regions = table[np.concatenate([runs(rng, 3000, 20, 60) for _ in range(4)]) == 1]
        for null, values in pvalues.items():
            dbio.tl.state_enrichment(adata, regions, null=null)  # type: ignore[arg-type]
            values.append(dbio.get.state_enrichment(adata)["pvalue"][0])
    print("\nP-values of 600 unrelated annotations in runs, 12,000 bins")
    print("| null | part below .05 | below .01 | uniform (Kolmogorov-Smirnov) |")
    print("|---|---|---|---|")
    for null, values in pvalues.items():
        array = np.array(values)
        print(
            f"| {null} | {(array < 0.05).mean():.3f} | {(array < 0.01).mean():.3f} "
            f"| p = {kstest(array, 'uniform').pvalue:.2g} |"
        )


def enrichment() -> None:
    adata = sample("GM12878")
    dbio.tl.chromatin_states(adata, model=folder() / "models" / "chromhmm_sample_hg18_15.txt")
    dbio.tl.match_states(adata)
    names = {"CpG islands": "CpGIsland", "lamina": "laminB1lads", "exons": "RefSeqExon", "genes": "RefSeqGene"}
    annotations = {name: folder() / "annot" / f"{file}.hg18.bed.gz" for name, file in names.items()}
    began = time.process_time()
    dbio.tl.state_enrichment(adata, annotations, anchors={"TSS": folder() / "annot" / "RefSeqTSS.hg18.txt.gz"})
    cost = time.process_time() - began
    table = dbio.get.state_enrichment(adata)
    print(f"\nFolds of ChromHMM's 15 states in GM12878, chromosome 11; CPU {cost:.1f} s with files and anchors")
    print(table.pivot(index="state", columns="annotation", values="fold").round(2).to_string())
    print("below a false discovery rate of .01:", int((table["padj"] < 0.01).sum()), "of", len(table))


def files() -> None:
    began = time.process_time()
    adata = sample("GM12878", "K562")
    cost = time.process_time() - began
    print(f"\nReading {adata.n_obs:,} bins of {adata.n_vars} marks: CPU {cost:.2f} s")
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        dbio.io.write_chromhmm_binary(adata, place, cell_type_key="cell_type")
        print(f"Writing them, compressed: CPU {time.process_time() - began:.2f} s")


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore", UserWarning)
    rows = {
        "planted": planted,
        "sagaconf": sagaconf,
        "halves": halves,
        "calibration": calibration,
        "enrichment": enrichment,
        "files": files,
    }
    for name in names or rows:
        rows[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
