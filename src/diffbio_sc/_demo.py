"""The demonstration behind ``diffbio-sc demo``."""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path

import numpy as np

import diffbio_sc as dbio

_SHOWN = 4


def run(folder: str | os.PathLike[str], seed: int) -> None:
    """Mix cells, deconvolve, print the accuracy, save a figure and an h5ad file."""
    import matplotlib

    matplotlib.use("Agg")

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    print("Mixing real blood cells (10x Genomics, bundled with scanpy) into a tissue of known composition ...")
    spots, reference = dbio.datasets.pbmc_tissue(rng=seed)
    print(
        f"  {spots.n_obs} spots x {spots.n_vars} genes, {int(spots.obs['n_cells'].median())} cells a spot; "
        f"reference: {reference.n_obs} other cells of {reference.obs['cell_type'].nunique()} types"
    )
    started = time.perf_counter()
    dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type", reconstruct=True)
    print(f"Deconvolved in {time.perf_counter() - started:.1f} s (first call: compilation included).")
    scores = dbio.metrics.composition(spots.obsm["deconvolution"], spots.obsm["truth"])
    uniform = np.full(spots.obsm["truth"].shape, 1 / spots.obsm["truth"].shape[1])
    chance = dbio.metrics.composition(uniform, spots.obsm["truth"].to_numpy())
    print("Accuracy against the truth (in brackets: equal proportions everywhere):")
    for name, text in (
        ("rmse", "root mean square error"),
        ("jsd", "Jensen-Shannon divergence"),
        ("aupr", "precision-recall area of presence"),
        ("pearson", "correlation over spots, mean of types"),
    ):
        print(f"  {text:<40s}{scores[name]:6.3f}  ({chance[name]:.3f})")
    figure, h5ad = out / "diffbio_sc_demo.png", out / "diffbio_sc_demo.h5ad"
    _draw(spots, figure)
    spots.write_h5ad(h5ad)
    print(f"Figure: {figure}\nResult: {h5ad}")


def _draw(spots, path: Path) -> None:
    import matplotlib.pyplot as plt

    truth, estimate = spots.obsm["truth"], spots.obsm["deconvolution"]
    types = list(truth.mean().sort_values(ascending=False).index[:_SHOWN])
    figure, grid = plt.subplots(2, _SHOWN + 1, figsize=(3.2 * (_SHOWN + 1), 6.0), layout="constrained")
    coordinates = spots.obsm["spatial"]
    for column, name in enumerate(types):
        for row, (label, table) in enumerate((("true", truth), ("estimated", estimate))):
            axis = grid[row, column]
            points = axis.scatter(*coordinates.T, c=table[name], s=26, marker="s", vmin=0, vmax=1, cmap="viridis")
            axis.set(title=f"{textwrap.fill(name, 20)}\n{label}", xticks=[], yticks=[], aspect="equal")
    figure.colorbar(points, ax=grid[:, _SHOWN - 1], label="proportion", shrink=0.6)
    axis = grid[0, _SHOWN]
    axis.plot([0, 1], [0, 1], color="tab:red", linewidth=1)
    axis.scatter(truth.to_numpy().ravel(), estimate.to_numpy().ravel(), s=3, alpha=0.3, color="0.2", linewidth=0)
    axis.set(xlabel="true proportion", ylabel="estimated", title="all types and spots")
    axis = grid[1, _SHOWN]
    used = spots.var_names.isin(spots.uns["deconvolution"]["genes"])
    observed = np.asarray(spots.X[:, used].sum(0)).ravel()
    expected = spots.layers["deconvolution_reconstructed"][:, used].sum(0)
    axis.loglog(observed, expected, ".", markersize=3, color="0.2")
    limits = [observed.min(), observed.max()]
    axis.plot(limits, limits, color="tab:red", linewidth=1)
    axis.set(xlabel="observed counts of a gene", ylabel="reconstructed", title="reconstruction")
    figure.savefig(path, dpi=110)
    plt.close(figure)
