"""Draw the pictures of the home page: ``python docs/thumbnails.py`` writes them to ``docs/_static/thumbnails``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import diffbio_sc as dbio

FOLDER = Path(__file__).parent / "_static" / "thumbnails"


def deconvolution() -> None:
    spots, reference = dbio.datasets.pbmc_tissue()
    dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    _, axes = plt.subplots(figsize=(4, 3.2), layout="constrained")
    dbio.pl.deconvolution(spots, cell_types=["CD19+ B"], ax=axes, show=False)


def spatial_genes() -> None:
    spots = dbio.datasets.simulate_spatial_genes(n_spots=900, n_genes=60)
    dbio.tl.spatial_genes(spots)
    _, axes = plt.subplots(figsize=(4, 3.2), layout="constrained")
    dbio.pl.spatial_genes(spots, ax=axes, show=False)


def multiomics_vae() -> None:
    mdata = dbio.datasets.simulate_multiomics(n_cells=800)
    dbio.tl.multiomics_vae(mdata)
    _, axes = plt.subplots(figsize=(4, 3.2), layout="constrained")
    dbio.pl.multiomics_vae(mdata, kind="umap", color="cell_type", ax=axes, show=False)


def peaks() -> None:
    fragments, _, cell_types = dbio.datasets.simulate_fragments()
    bins = dbio.pp.coverage(fragments, bin_size=50, groupby=cell_types)
    dbio.tl.peaks(bins)
    dbio.pl.peaks(bins, "chr1:100000-160000", show=False)
    plt.gcf().set_size_inches(5, 3.6)


def chromatin_states() -> None:
    adata = dbio.datasets.simulate_chromatin_states()
    dbio.tl.chromatin_states(adata, n_states=7)
    _, axes = plt.subplots(figsize=(4, 3.2), layout="constrained")
    dbio.pl.chromatin_states(adata, ax=axes, show=False)


def contacts() -> None:
    adata = dbio.datasets.simulate_contacts(400)
    dbio.tl.contacts(adata, phasing_track="gc")
    dbio.pl.contacts(adata, "chr1:500,000-2,500,000", show=False)


PICTURES: tuple[Callable[[], None], ...] = (
    deconvolution,
    spatial_genes,
    multiomics_vae,
    peaks,
    chromatin_states,
    contacts,
)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        with warnings.catch_warnings(), dbio.settings.override(progress_bar=False):
            warnings.simplefilter("ignore")
            picture()
        plt.gcf().savefig(FOLDER / f"{picture.__name__}.png", dpi=110)
        plt.close("all")


if __name__ == "__main__":
    main()
