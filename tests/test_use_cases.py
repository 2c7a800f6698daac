"""M24: each use of the specification's table has one path, as its page tells it, and the path finds what was planted.

The uses of contact maps (chromatin structure, enhancers and promoters, domains) are in ``tests/tl/test_contacts.py``.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, average_precision_score
from sklearn.model_selection import cross_val_score

import diffbio_sc as dbio

OPERATORS = Path(__file__).parents[1] / "docs" / "operators.md"


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def tissue():
    spots, reference = dbio.datasets.pbmc_tissue(n_spots=225)
    dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    return spots


def test_M24_cell_type_mapping(tissue):
    truth = tissue.obsm["truth"]
    found = tissue.obsm["deconvolution"][truth.columns]
    error = np.sqrt(((found - truth) ** 2).to_numpy().mean(1)).mean()
    assert error < 0.1
    assert np.corrcoef(found.to_numpy().ravel(), truth.to_numpy().ravel())[0, 1] > 0.9
    table = dbio.get.deconvolution(tissue)
    assert len(table) == truth.size
    assert len(dbio.pl.deconvolution(tissue, show=False)) >= truth.shape[1]


def test_M24_tissue_architecture(tissue):
    """Regions of a tissue: spots of like composition among their neighbours."""
    place = tissue.obsm["spatial"]
    near = np.argsort(((place[:, None] - place) ** 2).sum(-1), axis=1)[:, :9]
    around = tissue.obsm["deconvolution"].to_numpy()[near].mean(1)
    dbio.tl.combine_features(tissue, {"here": "deconvolution", "around": around}, scale="block")
    regions = KMeans(7, n_init=10, random_state=0).fit_predict(tissue.obsm["X_combined"])
    planted = tissue.obsm["truth"].to_numpy()[near].mean(1).argmax(1)
    assert adjusted_rand_score(planted, regions) > 0.5
    tissue.obs["region"] = pd.Categorical(regions)
    axes = dbio.pl.combine_features(tissue, groupby="region", blocks=["here"], show=False)
    assert len(axes.get_yticklabels()) == 7


@pytest.fixture(scope="module")
def genes():
    adata = dbio.datasets.simulate_spatial_genes(n_genes=120, fold=4.0)
    dbio.tl.spatial_genes(adata)
    return adata


def test_M24_spatial_gene_detection(genes):
    truth = genes.var["truth"].to_numpy()
    assert average_precision_score(truth, -np.log10(genes.var["spatial_pvalue"].clip(1e-300))) > 0.9
    called = genes.var["is_spatial"].to_numpy()
    assert called[truth].mean() > 0.8
    assert truth[called].mean() > 0.85
    assert dbio.get.spatial_genes(genes)["fsv"].iloc[0] > 0.2


def test_M24_spatial_patterns():
    """Ten genes of a gradient, ten of a disc, eighty of none."""
    rng = np.random.default_rng(0)
    place = rng.uniform(0, 16, (256, 2))
    gradient, disc = place[:, 0] / 16, (((place - 8) ** 2).sum(1) < 16).astype(float)
    level = np.stack([0.4 + 1.6 * gradient, 0.6 + 1.8 * disc, np.ones(256)], 1)
    planted = np.repeat([0, 1, 2], [10, 10, 80])
    adata = anndata.AnnData(rng.poisson(4.0 * level[:, planted]).astype(np.float32))
    adata.obsm["spatial"] = place
    dbio.tl.spatial_genes(adata)
    dbio.tl.spatial_patterns(adata, n_patterns=2)
    told = adata.var["spatial_pattern"].notna().to_numpy()
    assert told[:20].all()
    assert told[20:].sum() <= 2
    assert adjusted_rand_score(planted[:20], adata.var["spatial_pattern"].iloc[:20].astype(str)) == 1.0
    maps = np.asarray(adata.obsm["spatial_patterns"])
    course = np.corrcoef(np.column_stack([maps, gradient, disc]).T)[:2, 2:]
    assert sorted(course.argmax(0)) == [0, 1]
    assert sorted(course.argmax(1)) == [0, 1]


def nearest_share(embedding, labels, number=15):
    """Share of each cell's nearest cells that are of its type."""
    squares = (embedding**2).sum(1)
    distance = squares[:, None] + squares - 2 * embedding @ embedding.T
    np.fill_diagonal(distance, np.inf)
    return (labels[np.argsort(distance, axis=1)[:, :number]] == labels[:, None]).mean()


def modalities(kind, counts):
    """MuData of counts by modality, cells by features."""
    names = [f"cell{i}" for i in range(len(kind))]
    parts = {}
    for name, values in counts.items():
        parts[name] = anndata.AnnData(np.asarray(values, np.float32), obs=pd.DataFrame(index=names))
        parts[name].var_names = [f"{name}{i}" for i in range(values.shape[1])]
    mdata = mudata.MuData(parts)
    mdata.obs["kind"] = pd.Categorical(kind.astype(str))
    return mdata


@pytest.fixture(scope="module")
def cells():
    """Six types: three programmes of RNA and three of chromatin, each shared by two types, never by the same two."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 6, 300)
    rates = []
    for programme, size, base in ((kind // 2, 300, -0.5), ((kind + 1) // 2 % 3, 500, -1.5)):
        level = rng.normal(0, 1.4, (3, size)) * (rng.random((3, size)) < 0.2)
        rates.append(rng.lognormal(0, 0.3, (300, 1)) * np.exp(rng.normal(base, 1.0, size) + level[programme]))
    rna = rng.poisson(rates[0] * rng.gamma(4.0, 0.25, rates[0].shape))
    mdata = modalities(kind, {"rna": rna, "atac": rng.random(rates[1].shape) < 1 - np.exp(-rates[1])})
    dbio.tl.multiomics_vae(mdata, n_latent=6, max_epochs=20)
    return mdata


def alone(mdata, name):
    part = mudata.MuData({name: mdata[name].copy()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dbio.tl.multiomics_encode(part, mdata)
    return part.obsm["X_multiomics_vae"]


def test_M24_integration_of_RNA_and_ATAC(cells):
    """No modality tells all types; both together do."""
    kind = cells.obs["kind"].astype(str).to_numpy()
    joint = nearest_share(cells.obsm["X_multiomics_vae"], kind)
    assert joint > 0.9
    assert joint > 0.2 + max(nearest_share(alone(cells, name), kind) for name in ("rna", "atac"))


def test_M24_integration_of_RNA_and_protein():
    """RNA tells two families, proteins two kinds in each."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 300)
    rna = rng.gamma(1.0, 2.0, (2, 200))[kind // 2]
    marked = (rng.random((2, 16)) < 0.4)[kind % 2]
    protein = rng.gamma(3.0, 3.0, 16) * np.where(marked, 5.0, 1.0)
    rna, protein = (rng.poisson(mean * rng.gamma(4.0, 0.25, mean.shape)) for mean in (rna, protein))
    mdata = modalities(kind, {"rna": rna, "prot": protein})
    dbio.tl.multiomics_vae(mdata, max_epochs=5, likelihoods={"prot": "protein_mixture"})

    def told(embedding):
        return cross_val_score(LogisticRegression(max_iter=1000), embedding, kind, cv=5).mean()

    assert told(mdata.obsm["X_multiomics_vae"]) > 0.95
    assert told(alone(mdata, "rna")) < 0.65


def test_M24_shared_latent_space(cells):
    """Cells by their RNA and by their chromatin lie in one space, nearer to themselves than to most others."""
    assert dbio.metrics.foscttm(alone(cells, "rna"), alone(cells, "atac")) < 0.35


def test_M24_each_use_is_in_the_table_of_the_page_of_operators():
    text = OPERATORS.read_text().split("## What for")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    uses = {row[0].strip(): row for row in rows}
    assert list(uses) == [
        "cell types in spots", "architecture of a tissue", "structure of chromatin", "enhancers and promoters",
        "domains", "spatially variable genes", "spatial patterns", "integration of RNA and ATAC or proteins",
        "one latent space",
    ]  # fmt: skip
    for use, row in uses.items():
        for name in [part for part in row[2].replace(",", " ").split() if part.startswith("`")]:
            assert callable(getattr(dbio.tl, name.strip("`").removeprefix("tl."))), (use, name)
        page = row[3].split("(")[1].split(")")[0]
        assert (OPERATORS.parent / page).is_file(), (use, page)
