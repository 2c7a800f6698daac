"""Level of ``dbio.tl.spatial_genes`` beyond composition on tissues of real cells, and its constants set by set.

python benchmarks/spatial_covariates.py [level] [left_out]
"""

from __future__ import annotations

import functools
import os
import sys
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

import anndata as ad
import numpy as np
import scipy.sparse as sp
from deconvolution import load

import diffbio_sc as dbio
from diffbio_sc.numerics.spatial import gene_moments, score_test, variance_model

SETS = ("merfish_poa", "starmap_cortex", "pbmc_pseudospots", "cellmix_celseq2", "osmfish_ssctx", "starmap_mpfc")
DRAWS = 3
CONSTANTS = (
    (score_test, "_LEAST_LEFT"),
    (variance_model, "_LARGEST_CHANGE"),
    (score_test, "_LARGEST_BALANCE"),
    (gene_moments, "_SPOTS_A_COLUMN"),
    (gene_moments, "_LEAST_EXPECTED"),
)
FACTORS = (0.5, 1.0, 1.5)


@functools.cache
def tissue(case: str, seed: int) -> ad.AnnData:
    """Two slides of 225 spots, each the sum of some eight real cells, whose types have regions; no gene beyond them.

    Half of the cells of each type are the reference that the composition is estimated with.
    """
    cells = load(case)[1]
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    names, sizes = np.unique(labels, return_counts=True)
    names = names[sizes >= 20]
    rng = np.random.default_rng([970, seed])
    halves = [np.array_split(rng.permutation(np.flatnonzero(labels == name)), 2) for name in names]
    pools = [half[0] for half in halves]
    reference = cells[np.sort(np.concatenate([half[1] for half in halves]))].copy()
    places = np.stack(np.meshgrid(np.arange(15), np.arange(15)), -1).reshape(-1, 2).astype(float)
    slides = []
    for number in range(2):
        centres = rng.uniform(0, 15, (len(names), 2))
        chance = np.exp(-((places[:, None] - centres[None]) ** 2).sum(-1) / (2 * 3.0**2)) + 1e-6
        kinds = [rng.choice(len(names), max(rng.poisson(8), 2), p=one) for one in chance / chance.sum(1, keepdims=True)]
        chosen = [[rng.choice(pools[kind]) for kind in spot] for spot in kinds]
        rows = np.repeat(np.arange(225), [len(spot) for spot in chosen])
        mixing = sp.csr_matrix((np.ones(len(rows)), (rows, np.concatenate(chosen))), shape=(225, cells.n_obs))
        slide = ad.AnnData(sp.csr_matrix(mixing @ cells.X, dtype=np.float32), var=cells.var[[]].copy())
        slide.obsm["spatial"] = places
        slide.obsm["truth"] = np.stack([np.bincount(spot, minlength=len(names)) / len(spot) for spot in kinds])
        slide.obs["slide"] = str(number)
        dbio.tl.deconvolve(slide, reference, cell_type_key="cell_type")
        slides.append(slide)
    whole = ad.concat(slides, index_unique="-")
    return whole[:, np.asarray((whole.X > 0).sum(0)).ravel() >= 20][:, :1500].copy()


def shares(case: str, draws: int = DRAWS, **options) -> np.ndarray:
    """Shares of p-values below .05, .01 and .001, by draw."""
    rows = []
    for seed in range(draws):
        adata = tissue(case, seed)
        dbio.tl.spatial_genes(adata, library_key="slide", variance=False, **options)
        p = adata.var["spatial_pvalue"].dropna().to_numpy()
        rows.append([(p < level).mean() for level in (0.05, 0.01, 0.001)])
    return np.array(rows)


def level() -> None:
    print(
        "\n## level: genes of real cells whose types have regions; share of p-values below a level (standard error)\n"
    )
    print("| cells of | genes | composition | 0.05 | 0.01 | 0.001 |\n" + "|---" * 6 + "|")
    for case in SETS:
        for label, options in (
            ("not taken out", {}),
            ("known", {"covariates": "truth"}),
            ("estimated", {"covariates": "deconvolution"}),
            ("estimated, not smoothed", {"covariates": "deconvolution", "smooth_covariates": False}),
        ):
            rates = shares(case, **options)
            cells = [f"{rates[:, i].mean():.4f} ({rates[:, i].std(ddof=1) / np.sqrt(DRAWS):.4f})" for i in range(3)]
            print(f"| {case} | {tissue(case, 0).n_vars} | {label} | " + " | ".join(cells) + " |", flush=True)


def beyond(case: str) -> np.ndarray:
    """Shares beyond the composition, known and estimated, over both and two draws."""
    return np.mean([shares(case, 2, covariates=name).mean(0) for name in ("truth", "deconvolution")], 0)


def left_out() -> None:
    """Each constant as the other sets would choose it: by the mean distance of their shares from .05."""
    print("\n## left_out: share below 0.05 (0.001) with a constant halved, as it stands, and one and a half times\n")
    print("| constant | value | " + " | ".join(SETS) + " |\n" + "|---" * (len(SETS) + 2) + "|")
    as_they_stand = [beyond(case) for case in SETS]
    for module, name in CONSTANTS:
        value, found = getattr(module, name), []
        for factor in FACTORS:
            setattr(module, name, value * factor)
            changed = factor != 1.0
            found.append([beyond(case) for case in SETS] if changed else as_they_stand)
            cells = " | ".join(f"{at_5:.4f} ({at_01:.4f})" for at_5, _, at_01 in found[-1])
            print(f"| {name} | {value * factor:.4g} | {cells} |", flush=True)
        setattr(module, name, value)
        away = np.abs(np.array(found)[:, :, 0] - 0.05)  # by value and set
        chosen = [int(np.delete(away, left, 1).mean(1).argmin()) for left in range(len(SETS))]
        cells = " | ".join(
            f"{value * FACTORS[best]:.4g}: {found[best][left][0]:.4f}" for left, best in enumerate(chosen)
        )
        print(f"| {name} | chosen on the other sets: share there | {cells} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parts = {f.__name__: f for f in (level, left_out)}
    for part in sys.argv[1:] or parts:
        parts[part]()
