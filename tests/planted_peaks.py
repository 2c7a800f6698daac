"""Simulated fragments with peaks at known places."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from diffbio_sc.io import Intervals

NARROWPEAK = ["chrom", "start", "end", "name", "score", "strand", "signalValue", "pValue", "qValue", "peak"]
TRUTH = {"chr1": [50_000, 120_000, 160_000], "chr2": [30_000, 80_000]}
SIZES = {"chr1": 200_000, "chr2": 100_000}


def simulate(seed=0, *, depth=1.0, peaks=TRUTH, per_peak=60):
    """Fragments on two chromosomes, with peaks at known places."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, size in SIZES.items():
        middle = [rng.integers(300, size - 300, int(depth * size / 100))]
        middle += [rng.normal(place, 60, int(depth * per_peak)) for place in peaks.get(name, [])]
        middle = np.concatenate(middle).astype(int)
        half = rng.integers(60, 130, len(middle))
        rows.append(pd.DataFrame({"chrom": name, "start": middle - half, "end": middle + half}))
    return pd.concat(rows, ignore_index=True)


def as_intervals(rows, **options):
    return Intervals.from_arrays(rows["chrom"], rows["start"], rows["end"], sizes=SIZES, **options)


def as_bins(samples, width=50):
    """Samples by bins, each fragment counted in each bin it touches."""
    tables, rows = [], []
    for name, size in SIZES.items():
        start = np.arange(0, size, width)
        tables.append(pd.DataFrame({"chrom": name, "start": start, "end": np.minimum(start + width, size)}))
    var = pd.concat(tables, ignore_index=True)
    var.index = [f"{c}:{s}-{e}" for c, s, e in zip(var["chrom"], var["start"], var["end"], strict=True)]
    offset = {"chr1": 0, "chr2": SIZES["chr1"] // width}
    for sample in samples.values():
        counts = np.zeros(len(var))
        for chrom, start, end in sample[["chrom", "start", "end"]].itertuples(index=False):
            counts[offset[chrom] + start // width : offset[chrom] + (end - 1) // width + 1] += 1
        rows.append(counts)
    return ad.AnnData(np.array(rows, np.float32), obs=pd.DataFrame(index=list(samples)), var=var)


def found(table, truth=TRUTH, within=60):
    """Number of true places with a summit near them, and of peaks near none."""
    summit = table["start"] + table["peak"]
    near = [
        any(abs(s - place) <= within for place in truth.get(chrom, []))
        for chrom, s in zip(table["chrom"], summit, strict=True)
    ]
    hit = sum(
        ((table["chrom"] == chrom) & (abs(summit - place) <= within)).any() for chrom in truth for place in truth[chrom]
    )
    return hit, len(table) - sum(near)
