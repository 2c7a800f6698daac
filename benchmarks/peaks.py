"""Accuracy, reproducibility, speed and memory of ``dbio.tl.peaks``.

python benchmarks/peaks.py [labels] [trained] [ctcf] [yeast] [macs] [nulls] [breadths] [thin] [speed] [contigs]

MACS3 is run beside it where it is found: on the path, or where the variable MACS3 points to.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import numpy as np
import pandas as pd

import diffbio_sc as dbio

SETS = ("H3K36me3_TDH_other_chunk1", "H3K4me3_chr11")
THINNED = "H3K4me3_PGP_immune_chunk24"
READ_LENGTH = 100  # of the labelled sets
# As mean depth a read counts 100 / 25 = 4 in all; fragment_length is for reads that count 1 in each bin they touch.
MEAN_DEPTH_LENGTH = READ_LENGTH - 24
SEEDS = range(*map(int, os.environ.get("SPLITS", "0:5").split(":")))  # of random halves
MACS3 = os.environ.get("MACS3") or shutil.which("macs3")
COLUMNS = ["chrom", "start", "end", "name", "score", "strand", "signalValue", "pValue", "qValue", "peak"]


def folder() -> Path:
    return Path(os.environ["DIFFBIO_SC_DATA"]) / "peaks"


# Measures ------------------------------------------------------------------------------------------------------------


def label_errors(table: pd.DataFrame, labels: pd.DataFrame) -> int:
    """Labels that a set of peaks contradicts, after Hocking et al. 2017."""
    number = 0
    for row in labels.itertuples():
        begins = ((table["start"] >= row.start) & (table["start"] < row.end)).sum()
        ends = ((table["end"] > row.start) & (table["end"] <= row.end)).sum()
        overlaps = ((table["start"] < row.end) & (table["end"] > row.start)).any()
        good = {"noPeaks": not overlaps, "peaks": overlaps, "peakStart": begins == 1, "peakEnd": ends == 1}
        number += not good[row.annotation]
    return number


def overlap_share(left: pd.DataFrame, right: pd.DataFrame) -> float:
    """Share of the peaks on the left that overlap one on the right."""
    hits = 0
    for chromosome, mine in left.groupby("chrom"):
        theirs = right[right["chrom"] == chromosome].sort_values("start")
        if not len(theirs):
            continue
        reach = np.maximum.accumulate(theirs["end"].to_numpy())
        before = np.searchsorted(theirs["start"].to_numpy(), mine["end"].to_numpy(), side="left") - 1
        hits += int(((before >= 0) & (reach[np.maximum(before, 0)] > mine["start"].to_numpy())).sum())
    return hits / max(len(left), 1)


def agreement(left: pd.DataFrame, right: pd.DataFrame) -> float:
    return (overlap_share(left, right) + overlap_share(right, left)) / 2


def motif_measures(table: pd.DataFrame, rank_by: str) -> list[str]:
    """Peaks among the best 500 and 700 with a motif within 100 bp of the summit; median distance of those in 150 bp."""
    motifs = pd.read_csv(folder() / "macs" / "CTCF_motifs_hg19_chr22.bed", sep="\t", header=None)
    centre = np.sort(((motifs[1] + motifs[2]) // 2).to_numpy())
    table = table.sort_values(rank_by, ascending=False, kind="stable")
    summit = (table["start"] + table["peak"]).to_numpy()
    place = np.searchsorted(centre, summit)
    distance = np.minimum(
        abs(centre[np.clip(place, 0, len(centre) - 1)] - summit), abs(centre[np.maximum(place - 1, 0)] - summit)
    )
    tops = [str((distance[:top] <= 100).sum()) if len(table) >= top else "-" for top in (500, 700)]
    return [*tops, f"{np.median(distance[distance <= 150]):.1f}"]


# Inputs --------------------------------------------------------------------------------------------------------------


def labelled_set(name: str):
    """Mean depth of 25 bp bins of each sample, and the expert labels."""
    import anndata as ad

    stored = np.load(folder() / f"{name}.npz")
    labels = pd.read_csv(folder() / f"{name}.labels.tsv", sep="\t", dtype={"sample": str})
    low, high = (int(value) for value in stored["region"])
    number = (high - low) // 25
    rows = []
    for index in range(len(stored["samples"])):
        length = stored[f"sample_{index}_end"] - stored[f"sample_{index}_start"]
        rows.append(np.repeat(stored[f"sample_{index}_count"], length)[: number * 25].reshape(-1, 25).mean(1).round())
    start = low + 25 * np.arange(number)
    var = pd.DataFrame({"chrom": labels["chrom"].iloc[0], "start": start, "end": start + 25}, index=start.astype(str))
    obs = pd.DataFrame(index=[str(sample) for sample in stored["samples"]])
    return ad.AnnData(np.array(rows, np.float32), obs=obs, var=var), labels


def midpoints(name: str) -> np.ndarray:
    """Midpoints of the reads in bins of 25 bp, rebuilt from their coverage: samples by bins.

    Starts and ends are paired in order, which gives intervals with exactly this coverage.
    """
    stored = np.load(folder() / f"{name}.npz")
    rows = []
    for index in range(len(stored["samples"])):
        length = stored[f"sample_{index}_end"] - stored[f"sample_{index}_start"]
        depth = np.repeat(stored[f"sample_{index}_count"], length).astype(np.int64)
        change = np.diff(depth, prepend=0, append=0)
        place = np.arange(len(change))
        starts, ends = np.repeat(place, np.maximum(change, 0)), np.repeat(place, np.maximum(-change, 0))
        rows.append(np.bincount((starts + ends) // 2 // 25, minlength=len(depth) // 25)[: len(depth) // 25])
    number = min(map(len, rows))
    return np.array([row[:number] for row in rows])


def count_errors(adata, labels) -> tuple[int, int]:
    tables = adata.uns["peaks"]["tables"]
    return sum(label_errors(tables[sample], mine) for sample, mine in labels.groupby("sample")), len(labels)


def split(path: Path, target: Path, seed: int, *, counted: bool = False) -> list[Path]:
    """Files of all fragments and of two random halves, as plain BEDPE of three columns."""
    lines = gzip.open(path, "rt").read().splitlines()
    if counted:
        lines = [line for line in lines for _ in range(int(line.split("\t")[4]))]
    lines = ["\t".join(line.split("\t")[:3]) for line in lines]
    first = np.random.default_rng(seed).random(len(lines)) < 0.5
    result = []
    for name, kept in (("all", np.ones(len(lines), bool)), ("half1", first), ("half2", ~first)):
        result.append(target / f"{path.name.split('.')[0]}_{seed}_{name}.bedpe")
        result[-1].write_text("".join(line + "\n" for line, good in zip(lines, kept, strict=True) if good))
    return result


def macs3(path: Path, target: Path, *options: str, form: str = "BEDPE") -> pd.DataFrame | None:
    if MACS3 is None:
        return None
    command = [MACS3, "callpeak", "-t", str(path), "-f", form, "-n", "macs", "--outdir", str(target), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return pd.read_csv(target / "macs_peaks.narrowPeak", sep="\t", header=None, names=COLUMNS)


def missing_peer() -> None:
    if MACS3 is None:
        print("\nMACS3 is not installed: its rows are left out.")


# Benchmarks ----------------------------------------------------------------------------------------------------------


def labels() -> None:
    print("\n## labels: errors on expert labels, no control\n")
    print("| setting | H3K36me3 | H3K4me3 | both |\n|---|---|---|---|")
    sets = [labelled_set(name) for name in SETS]
    for options in (
        {},
        *({"fragment_length": length} for length in (MEAN_DEPTH_LENGTH, 100, 150, 250, 300)),
        {"mode": "narrow"},
        {"mode": "broad"},
        {"qvalue": 1e-3},
    ):
        counts = []
        for adata, truth in sets:
            quietly(dbio.tl.peaks, adata, **options)
            counts.append(count_errors(adata, truth))
        name = ", ".join(f"{key}={value}" for key, value in options.items()) or "default"
        cells = " | ".join(f"{wrong} of {number}" for wrong, number in counts)
        print(f"| {name} | {cells} | {sum(wrong for wrong, _ in counts)} |", flush=True)


def trained() -> None:
    print("\n## trained: errors after training on the labels themselves, and on the other set\n")
    print("| trained on | H3K36me3 | H3K4me3 |\n|---|---|---|")
    sets = [labelled_set(name) for name in SETS]
    for name, chosen in (("both", [0, 1]), ("H3K36me3", [0]), ("H3K4me3", [1])):
        caller = dbio.tl.train_peaks(
            [sets[index][0] for index in chosen],
            [sets[index][1] for index in chosen],
            fragment_length=MEAN_DEPTH_LENGTH,
        )
        cells = []
        for adata, truth in sets:
            dbio.tl.peaks(adata, operator=caller)
            wrong, number = count_errors(adata, truth)
            cells.append(f"{wrong} of {number}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def ctcf() -> None:
    print("\n## ctcf: CTCF ChIP-seq of chr22 with control; motifs near the summit of the best peaks; random halves\n")
    print("| caller, ranked by | split | peaks | halves | top 500 | top 700 | summit, bp | agreement of halves |")
    print("|---|---|---|---|---|---|---|---|")
    treatment, control = (folder() / "macs" / f"CTCF_PE_{kind}_chr22_50k.bedpe.gz" for kind in ("ChIP", "CTRL"))
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        for seed in SEEDS:
            files = split(treatment, target, seed)
            ours = [dbio.tl.call_peaks(path, control=control, genome_size=52e6) for path in files]
            for rank_by in ("signalValue", "pValue") if seed == 0 else ("signalValue",):
                _print_ctcf(f"`tl.peaks`, {rank_by}", seed, ours, rank_by)
            if MACS3 is not None:
                peers = [macs3(path, target, "-c", str(control), "-g", "52e6") for path in files]
                _print_ctcf("MACS3, pValue", seed, peers, "pValue")
    missing_peer()


def _print_ctcf(name, seed, tables, rank_by) -> None:
    cells = [len(tables[0]), f"{len(tables[1])}, {len(tables[2])}", *motif_measures(tables[0], rank_by)]
    print(f"| {name} | {seed} | {' | '.join(map(str, cells))} | {agreement(*tables[1:]):.3f} |", flush=True)


def yeast() -> None:
    print("\n## yeast: ATAC-seq of yeast without control, random halves\n")
    print("| caller | split | peaks | halves | agreement of halves |\n|---|---|---|---|---|")
    path = folder() / "macs" / "yeast_500k_SRR1822137.frag.gz"
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        for seed in SEEDS:
            files = split(path, target, seed, counted=True)
            callers = {"`tl.peaks`": [dbio.tl.call_peaks(one, genome_size=12e6) for one in files]}
            if MACS3 is not None:
                callers["MACS3"] = [macs3(one, target, "-g", "12e6") for one in files]
            for caller, tables in callers.items():
                print(
                    f"| {caller} | {seed} | {len(tables[0])} | {len(tables[1])}, {len(tables[2])} "
                    f"| {agreement(*tables[1:]):.3f} |",
                    flush=True,
                )
    missing_peer()


def macs() -> None:
    print("\n## macs: mode='macs' beside MACS3 itself\n")
    print("| control | peaks of MACS3 | ours | same region and summit | largest relative error of fold | of p | of q |")
    print("|---|---|---|---|---|---|---|")
    if MACS3 is None:
        missing_peer()
        return
    treatment, control = (folder() / "macs" / f"CTCF_PE_{kind}_chr22_50k.bedpe.gz" for kind in ("ChIP", "CTRL"))
    with tempfile.TemporaryDirectory() as name:
        shallow = Path(name) / "shallow.bedpe"
        lines = gzip.open(control, "rt").read().splitlines()
        chosen = np.random.default_rng(0).random(len(lines)) < 0.1
        shallow.write_text("".join(line + "\n" for line, good in zip(lines, chosen, strict=True) if good))
        for label, against in (("as deep", control), ("a tenth as deep", shallow), ("none", None)):
            options = [] if against is None else ["-c", str(against)]
            theirs = macs3(treatment, Path(name), "-g", "52e6", *options)
            ours = dbio.tl.call_peaks(treatment, control=against, mode="macs", genome_size=52e6)
            both = ours.merge(theirs, on=["start", "end", "peak"])
            wrong = [abs(both[f"{key}_x"] / both[f"{key}_y"] - 1).max() for key in ("signalValue", "pValue", "qValue")]
            cells = " | ".join(f"{value:.1e}" for value in wrong)
            print(f"| {label} | {len(theirs)} | {len(ours)} | {len(both)} | {cells} |", flush=True)


NULL_SIZE, NULL_FRAGMENTS, NULL_SEEDS = 40_000_000, 400_000, range(3)


def null_rate(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Relative rate of fragments in each kilobase, without any peak."""
    from scipy.ndimage import gaussian_filter1d

    number = NULL_SIZE // 1000
    if kind == "flat":
        return np.ones(number)
    if kind == "uneven":  # log-normal, smooth over 50 kb and over 6 kb
        slow, quick = (gaussian_filter1d(rng.normal(size=number), width) for width in (25, 3))
        return np.exp(0.4 * slow / slow.std() + 0.25 * quick / quick.std())
    rate = np.ones(number)  # 30 repeats of 1 to 19 kb, 3 to 30 times as many fragments as elsewhere
    for place in rng.choice(number - 20, 30, replace=False):
        rate[place : place + rng.integers(1, 20)] = rng.uniform(3, 30)
    return rate


def draw(rate: np.ndarray, number: int, rng: np.random.Generator, middle=()) -> dbio.io.Intervals:
    """Fragments of about 220 bp at a rate, and further ones about the given middles."""
    block = rng.choice(len(rate), number, p=rate / rate.sum())
    middle = np.concatenate([block * 1000 + rng.integers(0, 1000, number), np.asarray(middle, np.int64)])
    length = np.clip(rng.normal(220, 60, len(middle)), 60, 600).astype(np.int64)
    start = np.clip(middle - length // 2, 0, NULL_SIZE - 700)
    chrom = np.full(len(start), "chr1")
    return dbio.io.Intervals.from_arrays(chrom, start, start + length, sizes={"chr1": NULL_SIZE})


def nulls() -> None:
    print("\n## nulls: peaks of 400,000 fragments on 40 Mb without any; seeds 0, 1, 2\n")
    print("| background | mode | no control | depth 1 | 1/10 | 1/20 | 1/100 |\n|---|---|---|---|---|---|---|")
    depths = (None, 1, 1 / 10, 1 / 20, 1 / 100)
    for kind in ("flat", "uneven", "repeats"):
        for mode in ("auto", "narrow", "broad"):
            cells = []
            for depth in depths:
                found = []
                for seed in NULL_SEEDS:
                    rng = np.random.default_rng(seed)
                    rate = null_rate(kind, rng)
                    treatment = draw(rate, NULL_FRAGMENTS, rng)
                    control = None if depth is None else draw(rate, int(depth * NULL_FRAGMENTS), rng)
                    found.append(len(quietly(dbio.tl.call_peaks, treatment, control=control, mode=mode)))
                cells.append(", ".join(map(str, found)))
            print(f"| {kind} | {mode} | {' | '.join(cells)} |", flush=True)
    print(
        "\nLargest false share of narrow peaks called, with 1,500 planted ones of 8 to 59 fragments (and number found)"
    )
    print("\n| background | no control | depth 1 | 1/10 | 1/20 | 1/100 |\n|---|---|---|---|---|---|")
    for kind in ("flat", "uneven", "repeats"):
        cells = []
        for depth in depths:
            shares, hits = [], []
            for seed in NULL_SEEDS:
                rng = np.random.default_rng(seed)
                rate = null_rate(kind, rng)
                places = np.sort(rng.integers(20_000, NULL_SIZE - 20_000, 1500))
                each = rng.integers(8, 60, len(places))
                middle = np.repeat(places, each) + rng.normal(0, 80, each.sum()).astype(np.int64)
                treatment = draw(rate, NULL_FRAGMENTS, rng, middle)
                control = None if depth is None else draw(rate, int(depth * NULL_FRAGMENTS), rng)
                table = quietly(dbio.tl.call_peaks, treatment, control=control, mode="narrow")
                after = np.searchsorted(places, table["end"].to_numpy() + 300) - 1
                true = (after >= 0) & (places[np.maximum(after, 0)] > table["start"].to_numpy() - 300)
                shares.append(1 - true.mean())
                hits.append(len(np.unique(after[true])))
            cells.append(f"{max(shares):.3f} ({np.mean(hits):.0f})")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def quietly(function, *values, **options):
    import warnings

    with warnings.catch_warnings(), dbio.settings.override(verbosity=0):
        warnings.simplefilter("ignore")
        return function(*values, **options)


def breadths() -> None:
    print("\n## breadths: what mode='auto' goes by; least and largest of each set\n")
    print("| data | samples | breadth | contrast | called |\n|---|---|---|---|---|")
    from diffbio_sc.engines.interval_peaks import measure_intervals
    from diffbio_sc.engines.mark_choice import BREADTH_WIDTH, measure_breadth
    from diffbio_sc.engines.peak_settings import PeakSettings

    def row(name: str, measured: list) -> None:
        cells = [f"{min(values):.2f} to {max(values):.2f}" for values in zip(*measured, strict=True)]
        kinds = pd.Series([one.mark or "no mark" for one in measured]).value_counts()
        called = ", ".join(f"{kind} {number}" for kind, number in kinds.items())
        print(f"| {name} | {len(measured)} | {' | '.join(cells)} | {called} |", flush=True)

    def of_depth(depth: np.ndarray) -> np.ndarray:
        return depth[: len(depth) // BREADTH_WIDTH * BREADTH_WIDTH].reshape(-1, BREADTH_WIDTH).sum(1) / READ_LENGTH

    for name in (*SETS, THINNED):
        stored = np.load(folder() / f"{name}.npz")
        measured = []
        for index in range(len(stored["samples"])):
            length = stored[f"sample_{index}_end"] - stored[f"sample_{index}_start"]
            depth = np.repeat(stored[f"sample_{index}_count"].astype(float), length)
            measured.append(measure_breadth([of_depth(depth)], BREADTH_WIDTH))
        row(name, measured)
    for path in sorted((folder() / "contigs").glob("*.bedGraph.gz")):
        table = pd.read_csv(path, sep="\t", header=None, comment="t")
        depth = np.repeat(table[3].to_numpy(float), (table[2] - table[1]).to_numpy())
        row(path.name.split("__chr")[0], [measure_breadth([of_depth(depth)], BREADTH_WIDTH)])
    for name in ("CTCF_PE_ChIP_chr22_50k.bedpe.gz", "CTCF_PE_CTRL_chr22_50k.bedpe.gz", "yeast_500k_SRR1822137.frag.gz"):
        row(name, [measure_intervals(dbio.io.read_intervals(folder() / "macs" / name), PeakSettings())])
    for kind in ("flat", "uneven", "repeats"):
        measured = []
        for seed in NULL_SEEDS:
            rng = np.random.default_rng(seed)
            measured.append(measure_intervals(draw(null_rate(kind, rng), NULL_FRAGMENTS, rng), PeakSettings()))
        row(f"simulated, {kind}", measured)
    for fold in (3, 5):
        for size in (30, 60, 100, 200):
            measured = []
            for seed in NULL_SEEDS:
                rng = np.random.default_rng(seed)
                rate = np.ones(NULL_SIZE // 1000)
                for place in rng.integers(0, len(rate) - size, 6000 // size):
                    rate[place : place + size] = fold
                measured.append(measure_intervals(draw(rate, NULL_FRAGMENTS, rng), PeakSettings()))
            row(f"simulated, domains of {size} kb, {fold}-fold", measured)


def thin() -> None:
    print("\n## thin: Poisson deviance a bin of one half of the reads, predicted from the other half\n")
    print("| smoother | training samples | other samples |\n|---|---|---|")
    from flax import nnx
    from scipy.ndimage import gaussian_filter1d, uniform_filter1d

    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig

    counts = midpoints(THINNED)
    first = np.random.default_rng(0).binomial(counts, 0.5)
    second, known = counts - first, np.arange(len(counts)) < len(counts) // 2

    def deviances(rate) -> tuple[float, float]:
        rate = np.maximum(np.asarray(rate, float), 1e-6)
        log_ratio = np.log(np.maximum(second, 1) / rate)
        deviance = 2 * (np.where(second > 0, second * log_ratio, 0.0) - second + rate).mean(1)
        return float(deviance[known].mean()), float(deviance[~known].mean())

    around = uniform_filter1d(first.astype(float), 200, axis=1)
    found = {}
    for width in (1, 2, 3, 4, 6, 8, 12):
        smooth = gaussian_filter1d(first.astype(float), width, axis=1)
        for share in (0.02, 0.05, 0.1, 0.2, 0.4):
            found[f"width {25 * width} bp, share {share}"] = deviances((1 - share) * smooth + share * around)
    best = min(found, key=lambda name: found[name][0])
    rows = [(f"Gaussian, {best}, chosen on the training samples", found[best])]
    config = PeakCallerConfig(num_filters=0, mode="narrow", use_vae_denoising=True)
    caller = DifferentiablePeakCaller(config, rngs=nnx.Rngs(0))
    halved = first.astype(np.float32)
    rows.append(("denoiser, untrained", deviances(caller.denoiser(halved).rate)))
    for more, total in ((40, 40), (80, 120)):
        caller.fit({"signal": counts[known].astype(np.float32)}, steps=more, learning_rate=0.003, network=True)
        rows.append((f"denoiser, {total} steps", deviances(caller.denoiser(halved).rate)))
    for name, values in rows:
        print(f"| {name} | {values[0]:.3f} | {values[1]:.3f} |")


OURS = (
    "import sys, diffbio_sc as dbio; t = dbio.tl.call_peaks(sys.argv[1]); "
    "dbio.io.write_narrowpeak(t, sys.argv[2]); print(len(t))"
)


LIMIT = 8 * 2**30  # bytes of address space of a measured command: some peers take all there is


def measured(command: list[str]) -> tuple[float, float, str]:
    """CPU seconds and peak memory in MB of a command, and what it prints."""
    script = (
        "import resource, subprocess, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))\n"
        "out = subprocess.run(sys.argv[1:], capture_output=True, text=True, check=True).stdout\n"
        "use = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(use.ru_utime + use.ru_stime, use.ru_maxrss / 1024, out.strip().split()[-1] if out.strip() else '')"
    )
    out = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True).stdout
    fields = out.split()
    return float(fields[0]), float(fields[1]), fields[2] if len(fields) > 2 else ""


def write_fragments(path: Path, number: int) -> None:
    """Paired fragments over a genome of human size: 20 % in 40,000 peaks, the rest uniform; sorted BEDPE."""
    rng = np.random.default_rng(0)
    sizes = np.array(
        [248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636, 138394717, 133797422,
         135086622, 133275309, 114364328, 107043718, 101991189, 90338345, 83257441, 80373285, 58617616, 64444167,
         46709983, 50818468, 156040895, 57227415]
    )  # fmt: skip
    offset = np.concatenate([[0], np.cumsum(sizes)])
    place, weight = rng.integers(0, offset[-1], 40_000), rng.lognormal(0, 1, 40_000)
    inside = number // 5
    middle = np.concatenate(
        [
            rng.integers(0, offset[-1], number - inside),
            place[rng.choice(40_000, inside, p=weight / weight.sum())] + rng.normal(0, 80, inside).astype(np.int64),
        ]
    )
    middle = np.sort(np.clip(middle, 0, offset[-1] - 1))
    length = np.clip(rng.normal(220, 60, number), 60, 600).astype(np.int64)
    code = np.searchsorted(offset, middle, side="right") - 1
    start = np.maximum(middle - offset[code] - length // 2, 0)
    end = np.minimum(start + length, sizes[code])
    names = [f"chr{name}" for name in [*range(1, 23), "X", "Y"]]
    with open(path, "w") as file:
        for chromosome, name in enumerate(names):
            rows = np.flatnonzero((code == chromosome) & (end > start))
            rows = rows[np.argsort(start[rows], kind="stable")]
            for first in range(0, len(rows), 500_000):
                part = rows[first : first + 500_000]
                file.write(
                    "".join(
                        f"{name}\t{s}\t{e}\n" for s, e in zip(start[part].tolist(), end[part].tolist(), strict=True)
                    )
                )


def speed() -> None:
    print("\n## speed: paired fragments of a human genome, read, called, written; second run, one thread\n")
    _timed({"20 million": 20_000_000})


def contigs() -> None:
    print("\n## contigs: 200,000 reads on 50,000 contigs\n")
    _timed({})


def _timed(sizes: dict[str, int]) -> None:
    print("| fragments | caller | CPU s | peak MB | peaks |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        inputs = []
        for label, number in sizes.items():
            inputs.append((label, target / f"{number}.bedpe", "BEDPE", number))
        if not sizes:
            inputs.append(("50,000 contigs", target / "contigs.bed", "BED", 0))
            inputs[-1][1].write_bytes(gzip.open(folder() / "macs" / "contigs50k.bed.gz").read())
        for label, path, form, number in inputs:
            if number:
                write_fragments(path, number)
            command = [sys.executable, "-c", OURS, str(path), str(target / "ours.narrowPeak")]
            measured(command)  # compiles once
            cpu, memory, peaks = measured(command)
            print(f"| {label} | `tl.peaks` | {cpu:.1f} | {memory:.0f} | {peaks} |", flush=True)
            if MACS3 is not None:
                options = [] if number else ["--nomodel", "--extsize", "200"]
                options += ["-f", form, "-g", "hs", "-n", "x", "--outdir", name]
                run = [MACS3, "callpeak", "-t", str(path), *options]
                # It may give up with an exit status of 0: without a table it has not finished.
                table = target / "x_peaks.narrowPeak"
                try:
                    peer_cpu, peer_memory, _ = measured(run)
                    found = len(table.read_text().splitlines())
                except (subprocess.CalledProcessError, FileNotFoundError):
                    print(f"| {label} | MACS3 | no result within {LIMIT / 2**30:.0f} GiB | - | - |", flush=True)
                else:
                    print(f"| {label} | MACS3 | {peer_cpu:.1f} | {peer_memory:.0f} | {found} |", flush=True)
                    print(f"| {label} | MACS3 over ours | {peer_cpu / cpu:.1f} | {peer_memory / memory:.2f} | |")
            path.unlink()
    missing_peer()


if __name__ == "__main__":
    functions = (labels, trained, ctcf, yeast, macs, nulls, breadths, thin, speed, contigs)
    known = {function.__name__: function for function in functions}
    unknown = sorted(set(sys.argv[1:]) - set(known))
    if unknown:
        raise SystemExit(f"unknown benchmarks {unknown}; there are {list(known)}")
    for chosen in sys.argv[1:] or known:
        known[chosen]()
