"""Calibration and power of ``dbio.tl.differential_contacts``: simulated and real replicates, planted differences.

python benchmarks/differential_contacts.py [null] [power] [real] [alone] [seeds=N] [bins=N] [depth=N]

null: four replicates without a difference, two against two. power: 2 + 2 replicates of 1,000 contacts a bin with
2-fold loops, moved boundaries and flipped compartments. real: chromosome 22 (and 21) of GM12878, library against
library, and halves of both libraries against the other halves, and the loops of four published lists. alone: one
replicate a side, with and without a known dispersion.
DIFFBIO_SC_DATA names the folder that holds hic/.
"""

from __future__ import annotations

import os

os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import resource
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

import diffbio_sc as dbio

warnings.filterwarnings("ignore")
KINDS = ("loops", "boundaries", "compartments", "interactions")
DATA = Path(os.environ.get("DIFFBIO_SC_DATA", ".")) / "hic"


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def show(title: str, record: dict, seconds: float | None = None) -> None:
    took = "" if seconds is None else f", {seconds:.1f} CPU s"
    print(f"{title}{took}")
    for kind in KINDS:
        if kind not in record:
            continue
        table = record[kind]
        tested = max(int(table["pval"].notna().sum()), 1)
        shares = [(table["pval"] < level).sum() / tested for level in (0.05, 0.01)]
        print(
            f"  {kind:13s} {tested:6d} tested   p < .05: {shares[0]:.4f}   p < .01: {shares[1]:.4f}   "
            f"q < .05: {int((table['qval'] < 0.05).sum()):5d} ({(table['qval'] < 0.05).sum() / tested:.4f})"
        )


def with_truth(adata):
    adata.obs["compartment"] = np.where(adata.obs["true_masked"], np.nan, adata.obs["true_compartment"])
    return adata


def null(seeds: int, bins: int, depth: float) -> None:
    for seed in range(seeds):
        adata = with_truth(
            dbio.datasets.simulate_contacts(bins, contacts_per_bin=depth, n_replicates=4, rng=1000 + seed)
        )
        keys = list(adata.uns["truth"]["maps"]["key"])
        before = cpu()
        dbio.tl.differential_contacts(
            adata, groups={"x": keys[:2], "y": keys[2:]}, loops=adata.uns["truth"]["loops"], rng=seed
        )
        show(f"null, 2 against 2, seed {seed}", adata.uns["differential_contacts"], cpu() - before)


def power(seeds: int, bins: int, depth: float) -> None:
    for seed in range(seeds):
        adata = with_truth(
            dbio.datasets.simulate_contacts(
                bins, contacts_per_bin=depth, n_replicates=2, n_conditions=2, rng=2000 + seed
            )
        )
        truth = adata.uns["truth"]
        keys = list(truth["maps"]["key"])
        before = cpu()
        dbio.tl.differential_contacts(adata, groups={"a": keys[:2], "b": keys[2:]}, loops=truth["loops"], rng=seed)
        record = adata.uns["differential_contacts"]
        show(f"planted, 2 against 2, seed {seed}", record, cpu() - before)
        score(adata, record, bins)


def score(adata, record: dict, bins: int) -> None:
    """Power at FDR 5 %, and how many of the calls lie where nothing was planted."""
    truth = adata.uns["truth"]
    loops = truth["loops"].merge(record["loops"], on=["chrom1", "start1", "start2"], suffixes=("_true", ""))
    called, planted = (loops["qval"] < 0.05).to_numpy(), loops["changed"].to_numpy()
    wrong = called & (loops["log2_fold_change_true"].abs() < 0.1).to_numpy()
    print(f"  loops: power {called[planted].mean():.3f} of {planted.sum()}; false {wrong.sum()} of {called.sum()}")
    bounds = truth["boundaries"]
    moved = bounds.loc[bounds["change"] != "same"]
    found = dbio.get.differential_contacts(adata, "boundaries", max_qvalue=0.05, summits=True)
    for change, sign in (("lost", -1), ("gained", 1)):
        mine = found.loc[np.sign(found["log2_fold_change"]) == sign, "start"].to_numpy()
        at = moved.loc[moved["change"] == change, "start"].to_numpy()
        hit = [len(mine) and np.abs(mine - start).min() <= 20_000 for start in at]
        print(f"  boundaries {change}: power {np.mean(hit):.3f} of {len(at)} (within 2 bins, right direction)")
    # A loop that changes under a bin, or a compartment that flips beside it, changes its windows as well.
    place = (record["boundaries"]["start"] // 10_000).to_numpy()
    touched = np.zeros(bins, bool)
    for row in truth["loops"][truth["loops"]["changed"]].itertuples():
        touched[max(row.bin1 - 12, 0) : row.bin2 + 13] |= row.bin2 - row.bin1 <= 25
        for anchor in (row.bin1, row.bin2):
            touched[max(anchor - 12, 0) : anchor + 13] |= row.bin2 - row.bin1 <= 25
    for start in moved["bin"]:
        touched[max(start - 22, 0) : start + 23] = True
    flips = np.abs(adata.obs["true_compartment_b"] - adata.obs["true_compartment"]).to_numpy()
    edge = np.flatnonzero(np.abs(np.diff(flips)) > 0.02)
    for at in edge:
        touched[max(at - 20, 0) : at + 21] = True
    table = record["boundaries"]
    free = ~touched[place]
    significant = (table["qval"] < 0.05).to_numpy()
    print(
        f"  bins far from any change: p < .05 {(table['pval'][free] < 0.05).mean():.4f} of {free.sum()}; "
        f"called {significant[free].sum()} of {significant.sum()} calls"
    )
    table = record["compartments"]
    at = (table["start"] // 10_000).to_numpy()
    called = (table["qval"] < 0.05).to_numpy()
    flipped, steady = flips[at] > 0.5, flips[at] < 0.01
    print(
        f"  compartments: power {called[flipped].mean():.3f} of {flipped.sum()} bins; steady bins p < .05 "
        f"{(table['pval'][steady] < 0.05).mean():.4f}, called {called[steady].sum()} of {called.sum()} calls"
    )


def halves(adata, key: str, rng: np.random.Generator) -> list[sp.csr_array]:
    upper = sp.triu(adata.obsp[key]).tocoo()
    first = rng.binomial(upper.data, 0.5)
    parts = []
    for data in (first, upper.data - first):
        part = sp.csr_array(sp.coo_array((data, (upper.row, upper.col)), shape=upper.shape))
        part.eliminate_zeros()
        parts.append(sp.csr_array(part + sp.triu(part, 1).T).astype(np.int32))
    return parts


def loop_lists(adata, chrom: str) -> dict[str, pd.DataFrame]:
    """Loops of four lists, at least 200 kb apart, and of all together, each pair of bins once."""
    lists = {}
    for name in ("hiccups", "rad21_chiapet", "smc1_hichip", "peakachu"):
        table = pd.read_csv(DATA / f"gm12878_{name}_chr{chrom}.bedpe", sep="\t", header=None).iloc[:, :6]
        table.columns = ["chrom1", "start1", "end1", "chrom2", "start2", "end2"]
        table["chrom1"] = table["chrom2"] = str(adata.obs["chrom"].iloc[0])
        apart = table["start2"] - table["start1"] >= 200_000
        lists[name] = table[apart & (table["end2"] < adata.obs["end"].max())]
    together = pd.concat(lists.values())
    bins = [(together[f"start{side}"] + together[f"end{side}"]) // 2 // 50_000 for side in "12"]
    lists["all lists"] = together[~pd.concat(bins, axis=1).duplicated().to_numpy()]
    return lists


def real() -> None:
    options = {"interaction_size": 500_000, "max_distance": 10_000_000, "compartment_distance": 1_000_000}
    for chrom, files in (
        ("22", ("gm12878_chr22_prim_50kb.cool", "gm12878_chr22_rep_50kb.cool")),
        ("21", ("HIC001_chr21_50kb.cool", "HIC002_chr21_50kb.cool")),
    ):
        adata = dbio.pp.combine_contacts(
            {name: dbio.io.read_cool(DATA / file) for name, file in zip(("one", "two"), files, strict=True)}
        )
        dbio.tl.balance(adata)
        dbio.tl.compartments(adata)
        loops = pd.read_csv(DATA / f"gm12878_hiccups_chr{chrom}.bedpe", sep="\t", header=None).iloc[:, :6]
        loops.columns = ["chrom1", "start1", "end1", "chrom2", "start2", "end2"]
        name = str(adata.obs["chrom"].iloc[0])
        loops["chrom1"] = loops["chrom2"] = name
        loops = loops[(loops["start2"] - loops["start1"] >= 200_000) & (loops["end2"] < adata.obs["end"].max())]
        before = cpu()
        dbio.tl.differential_contacts(
            adata, groups={"one": ["contacts_one"], "two": ["contacts_two"]}, loops=loops, **options
        )
        show(f"chromosome {chrom}, library against library", adata.uns["differential_contacts"], cpu() - before)
        for listed, table in loop_lists(adata, chrom).items():
            dbio.tl.differential_contacts(
                adata,
                groups={"one": ["contacts_one"], "two": ["contacts_two"]},
                features=["loops"],
                loops=table,
                key_added="listed",
                **options,
            )
            p = adata.uns["listed"]["loops"]["pval"].dropna()
            print(f"  loops of {listed}: {(p < 0.05).sum()} of {len(p)} below .05 ({(p < 0.05).mean():.4f})")
        rng = np.random.default_rng(0)
        for key in ("one", "two"):
            for number, part in enumerate(halves(adata, f"contacts_{key}", rng)):
                adata.obsp[f"half_{key}_{number}"] = part
        dbio.tl.differential_contacts(
            adata,
            groups={side: [f"half_one_{side}", f"half_two_{side}"] for side in ("0", "1")},
            loops=loops,
            **options,
        )
        show(f"chromosome {chrom}, halves of both against the other halves", adata.uns["differential_contacts"])


def alone(seeds: int, bins: int, depth: float) -> None:
    for seed in range(seeds):
        adata = with_truth(
            dbio.datasets.simulate_contacts(
                bins, contacts_per_bin=depth, n_replicates=1, n_conditions=2, rng=3000 + seed
            )
        )
        truth = adata.uns["truth"]
        groups = {"a": ["contacts_a_1"], "b": ["contacts_b_1"]}
        for dispersion in (None, 0.005):
            dbio.tl.differential_contacts(adata, groups=groups, loops=truth["loops"], dispersion=dispersion)
            record = adata.uns["differential_contacts"]
            show(f"planted, 1 against 1, dispersion {dispersion}, seed {seed}", record)
            score(adata, record, bins)


def main() -> None:
    numbers = {"seeds": 2, "bins": 5000, "depth": 1000}
    for argument in sys.argv[1:]:
        if "=" in argument:
            name, value = argument.split("=")
            numbers[name] = int(value)
    wanted = [argument for argument in sys.argv[1:] if "=" not in argument] or ["null", "power", "real", "alone"]
    for name in wanted:
        if name == "real":
            real()
        else:
            {"null": null, "power": power, "alone": alone}[name](
                numbers["seeds"], numbers["bins"], float(numbers["depth"])
            )


if __name__ == "__main__":
    main()
