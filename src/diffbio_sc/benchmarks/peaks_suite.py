"""Peaks: planted ones over an uneven background, from fragments and from counts in bins, beside a plain cut-off."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc.benchmarks.records import MetricDef
from diffbio_sc.benchmarks.suite import F1, Case, Suite, data_folder, lacking_data

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from diffbio_sc.io import Intervals

METRICS = (
    F1,
    MetricDef(name="precision", group="peaks", description="Share of the peaks called that are true."),
    MetricDef(name="recall", group="peaks", description="Share of the true peaks that are called."),
    MetricDef(
        name="summit_error", unit="bp", direction="lower", group="peaks", description="Median distance of summits."
    ),
    MetricDef(name="false_peaks", direction="lower", group="null", description="Peaks called for each Mb without any."),
    MetricDef(
        name="label_errors",
        direction="lower",
        group="labels",
        priority="primary",
        description="Labels of experts that the peaks contradict.",
    ),
)
LABELLED = ("H3K36me3_TDH_other_chunk1", "H3K4me3_chr11")
_BIN = 50
_STRENGTH = 0.35  # about 17 fragments a peak, fewer than anyone would wish: there is something to lose


def _cases(quick: bool) -> list[Case]:
    cases = [
        Case(dataset="simulated", task="fragments", variant="diffbio_sc", run=_fragments, seeds=tuple(range(8))),
        Case(dataset="simulated", task="bins", variant="diffbio_sc", run=_bins, seeds=tuple(range(8))),
        Case(dataset="simulated", task="bins", variant="cut_off", run=_cut_off, role="control", seeds=tuple(range(8))),
        Case(dataset="simulated", task="no_peaks", variant="diffbio_sc", run=_none, seeds=tuple(range(8))),
    ]
    if not quick:
        cases += [
            Case(
                dataset=name,
                task="labels",
                variant="diffbio_sc",
                run=partial(_labels, name),
                seeds=(0,),
                lacking=lacking_data("peaks", f"{name}.npz"),
            )
            for name in LABELLED
        ]
    return cases


def _fragments(seed: int) -> dict[str, float]:
    from diffbio_sc import tl

    fragments, truth = _simulated(seed)
    return score(tl.call_peaks(fragments), truth)


def _bins(seed: int) -> dict[str, float]:
    from diffbio_sc import tl

    adata, truth = _counted(seed)
    adata = adata.copy()
    tl.peaks(adata, mode="narrow")
    return score(next(iter(adata.uns["peaks"]["tables"].values())), truth)


def _cut_off(seed: int) -> dict[str, float]:
    """Runs of bins above the 98th percentile."""
    import pandas as pd

    adata, truth = _counted(seed)
    values, var = np.asarray(adata.X, float)[0], adata.var
    high = values > np.quantile(values, 0.98)
    change = np.r_[True, (high[1:] != high[:-1]) | (var["chrom"].to_numpy()[1:] != var["chrom"].to_numpy()[:-1])]
    runs = np.cumsum(change)
    rows = [np.flatnonzero(runs == run) for run in np.unique(runs[high])]
    table = pd.DataFrame(
        {
            "chrom": [var["chrom"].iloc[row[0]] for row in rows],
            "start": [var["start"].iloc[row[0]] for row in rows],
            "end": [var["end"].iloc[row[-1]] for row in rows],
            "peak": [int(_BIN * (np.argmax(values[row]) + 0.5)) for row in rows],
        }
    )
    return score(table, truth)


def _none(seed: int) -> dict[str, float]:
    from diffbio_sc import datasets, tl

    fragments, _, _ = datasets.simulate_fragments(strength=1e-9, rng=seed)
    return {"false_peaks": len(tl.call_peaks(fragments)) / (sum(_sizes(fragments).values()) / 1e6)}


@lru_cache(maxsize=8)
def _simulated(seed: int) -> tuple[Intervals, pd.DataFrame]:
    from diffbio_sc import datasets

    fragments, truth, _ = datasets.simulate_fragments(strength=_STRENGTH, rng=seed)
    return fragments, truth


def _sizes(fragments: Intervals) -> dict[str, int]:
    return {chrom: int(-(-end // _BIN) * _BIN) for chrom, end in fragments.extent().items()}


@lru_cache(maxsize=8)
def _counted(seed: int) -> tuple[AnnData, pd.DataFrame]:
    """Fragments counted in each bin they touch."""
    import anndata
    import pandas as pd

    fragments, truth = _simulated(seed)
    tables, rows = [], []
    for chrom, size in _sizes(fragments).items():
        arrays = fragments[chrom]
        number = size // _BIN
        change = np.bincount(arrays.start // _BIN, minlength=number + 1)[: number + 1].astype(float)
        change -= np.bincount((arrays.end - 1) // _BIN + 1, minlength=number + 1)[: number + 1]
        rows.append(np.cumsum(change)[:number])
        start = _BIN * np.arange(number)
        tables.append(pd.DataFrame({"chrom": chrom, "start": start, "end": start + _BIN}))
    var = pd.concat(tables, ignore_index=True)
    var.index = [f"{c}:{s}" for c, s in zip(var["chrom"], var["start"], strict=True)]
    return anndata.AnnData(np.concatenate(rows)[None].astype(np.float32), pd.DataFrame(index=["sample"]), var), truth


def score(table: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """Peaks against planted ones: each called peak takes the first free true summit that lies in it."""
    hits, errors = 0, []
    for chrom, true_peaks in truth.groupby("chrom", observed=True):
        summits = np.sort((true_peaks["start"] + true_peaks["peak"]).to_numpy())
        called = table[table["chrom"] == chrom].sort_values("start")
        first = np.searchsorted(summits, called["start"].to_numpy() - 50)
        taken = -1
        for row, place in zip(called.itertuples(), first, strict=True):
            place = max(place, taken + 1)
            if place < len(summits) and summits[place] < row.end + 50:
                taken, hits = place, hits + 1
                errors.append(abs(row.start + row.peak - summits[place]))
    precision, recall = hits / max(len(table), 1), hits / max(len(truth), 1)
    return {
        "f1": 2 * precision * recall / max(precision + recall, 1e-12),
        "precision": precision,
        "recall": recall,
        "summit_error": float(np.median(errors)) if errors else float("nan"),
    }


def _labels(name: str, seed: int) -> dict[str, float]:
    """Errors on labels of experts, after Hocking et al. 2017, of mean depth in bins of 25 bp; nothing is random."""
    import anndata
    import pandas as pd

    from diffbio_sc import tl

    path = data_folder("peaks", f"{name}.npz")
    assert path is not None  # a case without its data is skipped
    stored = np.load(path)
    labels = pd.read_csv(path.with_suffix(".labels.tsv"), sep="\t", dtype={"sample": str})
    low, high = (int(value) for value in stored["region"])
    number = (high - low) // 25
    rows = []
    for index in range(len(stored["samples"])):
        length = stored[f"sample_{index}_end"] - stored[f"sample_{index}_start"]
        rows.append(np.repeat(stored[f"sample_{index}_count"], length)[: number * 25].reshape(-1, 25).mean(1).round())
    start = low + 25 * np.arange(number)
    var = pd.DataFrame({"chrom": labels["chrom"].iloc[0], "start": start, "end": start + 25}, index=start.astype(str))
    obs = pd.DataFrame(index=[str(sample) for sample in stored["samples"]])
    adata = anndata.AnnData(np.array(rows, np.float32), obs=obs, var=var)
    tl.peaks(adata)
    wrong = 0
    for sample, mine in labels.groupby("sample"):
        table = adata.uns["peaks"]["tables"][sample]
        for row in mine.itertuples():
            begins = ((table["start"] >= row.start) & (table["start"] < row.end)).sum()
            ends = ((table["end"] > row.start) & (table["end"] <= row.end)).sum()
            overlaps = bool(((table["start"] < row.end) & (table["end"] > row.start)).any())
            good = {"noPeaks": not overlaps, "peaks": overlaps, "peakStart": begins == 1, "peakEnd": ends == 1}
            wrong += not good[row.annotation]
    return {"label_errors": float(wrong)}


SUITE = Suite(name="peaks", metrics=METRICS, cases=_cases)
