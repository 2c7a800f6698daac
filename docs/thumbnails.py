"""Draw the pictures of the home page: ``python docs/thumbnails.py [NAME ...]`` writes ``docs/_static/thumbnails``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import diffbio_sc as dbio

FOLDER = Path(__file__).parent / "_static" / "thumbnails"


SIZE, WIDTH = (4.4, 3.0), 480  # inches, pixels


def one_panel():
    return plt.subplots(figsize=SIZE, layout="constrained")[1]


def deconvolution() -> None:
    spots, reference = dbio.datasets.pbmc_tissue()
    dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    dbio.pl.deconvolution(spots, cell_types=["CD19+ B"], ax=one_panel(), show=False)


def spatial_genes() -> None:
    spots, _ = dbio.datasets.pbmc_tissue()
    dbio.tl.spatial_genes(spots, smooth=True)
    dbio.pl.spatial_genes(spots, kind="maps", n_top=1, show=False)
    plt.gcf().set_size_inches(5.4, 2.8)


def multiomics_vae() -> None:
    mdata = dbio.datasets.simulate_multiomics(n_cells=800)
    dbio.tl.multiomics_vae(mdata)
    dbio.pl.multiomics_vae(mdata, kind="umap", color="cell_type", ax=one_panel(), show=False)


def peaks() -> None:
    fragments, _, cell_types = dbio.datasets.simulate_fragments()
    bins = dbio.pp.coverage(fragments, bin_size=50, groupby=cell_types)
    dbio.tl.peaks(bins)
    dbio.pl.peaks(bins, "chr1:100000-160000", show=False)
    plt.gcf().set_size_inches(6.2, 4.0)


def chromatin_states() -> None:
    adata = dbio.datasets.simulate_chromatin_states()
    dbio.tl.chromatin_states(adata, n_states=7)
    dbio.pl.chromatin_states(adata, ax=one_panel(), show=False)


def contacts() -> None:
    adata = dbio.datasets.simulate_contacts(400)
    dbio.tl.contacts(adata, phasing_track="gc")
    dbio.pl.contacts(adata, "chr1:500,000-2,500,000", show=False)


def contextual() -> None:
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=2000, width=80, rng=1)
    dbio.pp.sequences(adata)
    dbio.tl.contextual(adata, refine=False)
    test = np.flatnonzero(adata.var["contextual_split"] == "test")
    strongest = test[np.argmax(np.ptp(adata.layers["contextual_logit"][:, test], axis=0))]
    dbio.tl.attributions(adata, regions=[strongest])
    cell = adata.obs_names[int(np.argmax(adata.layers["contextual_logit"][:, strongest]))]
    _, axes = plt.subplots(figsize=(5.6, 2.0), layout="constrained")
    dbio.pl.logo(adata, 0, cell_type=cell, start=10, end=60, ax=axes, show=False)


def gradients() -> None:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from diffbio_sc.operators.multiomics import HiCContactAnalysis, HiCContactAnalysisConfig

    bins = np.arange(100)
    domain = (bins[:, None] < 50) == (bins < 50)
    counts = jnp.asarray(np.round(200.0 / (1 + abs(bins[:, None] - bins)) * np.where(domain, 2, 1)))
    operator = HiCContactAnalysis(HiCContactAnalysisConfig(), rngs=nnx.Rngs(0))
    slope = jax.grad(lambda counts: operator.apply({"contact_matrix": counts}, {}, None)[0]["boundary_logits"][50])(
        counts
    )
    near = np.asarray(slope + slope.T)[36:64, 36:64]
    axis, reach = one_panel(), float(np.abs(near).max())
    image = axis.imshow(near, cmap="RdBu_r", vmin=-reach, vmax=reach, extent=(36, 64, 64, 36))
    axis.set(xlabel="bin", ylabel="bin")
    axis.figure.colorbar(image, ax=axis, label="d boundary / d contacts")


def command_line() -> None:
    fragments, _, cell_types = dbio.datasets.simulate_fragments()
    name, table = next(iter(dbio.tl.call_peaks(fragments, groupby=cell_types).items()))
    lines = [
        "$ diffbio-sc peaks fragments.tsv.gz \\",
        "    --groupby labels.tsv -o peaks",
        f"$ cut -f1-4 peaks/{name}.narrowPeak",
    ]
    lines += [
        f"{row.chrom}  {row.start:>7}  {row.end:>7}  {name}_{i}" for i, row in enumerate(table.head(5).itertuples(), 1)
    ]
    figure = plt.figure(figsize=SIZE, facecolor="#1f2430")
    figure.text(0.03, 0.94, "\n".join(lines), family="monospace", color="#e6e6e6", size=10.5, va="top", linespacing=1.5)


PICTURES: tuple[Callable[[], None], ...] = (
    deconvolution,
    spatial_genes,
    multiomics_vae,
    peaks,
    chromatin_states,
    contacts,
    contextual,
    gradients,
    command_line,
)


def main(names: Sequence[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        if names and picture.__name__ not in names:
            continue
        with plt.rc_context({"font.size": 11}), warnings.catch_warnings(), dbio.settings.override(progress_bar=False):
            warnings.simplefilter("ignore")
            picture()
        figure = plt.gcf()
        figure.savefig(FOLDER / f"{picture.__name__}.png", dpi=WIDTH / figure.get_figwidth())
        plt.close("all")


if __name__ == "__main__":
    main(sys.argv[1:])
