"""Compiled programs of the functions multiply in full float32 on accelerators, whose default is 10 bits or less."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# A CPU that is taken for an accelerator; what is compiled is written out.
SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import diffbio_sc as dbio
from diffbio_sc import _compiled
_compiled._products_are_rounded = lambda: True
{calls}
"""

CALLS = {
    "deconvolve": """
spots, reference = dbio.datasets.pbmc_tissue()
dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type", unexplained=True, smoothing=1.0)
""",
    "spatial_genes": """
adata = dbio.datasets.simulate_spatial_genes()
dbio.tl.spatial_genes(adata, smooth=True)
dbio.tl.spatial_patterns(adata)
""",
    "multiomics_vae": """
mdata = dbio.datasets.simulate_multiomics(n_cells=200)
dbio.tl.multiomics_vae(mdata, max_epochs=1)
dbio.tl.multiomics_score(mdata)
dbio.tl.multiomics_impute(mdata, modality="rna")
dbio.tl.multiomics_encode(dbio.datasets.simulate_multiomics(n_cells=200), mdata)
""",
    "contextual": """
adata = dbio.datasets.simulate_regulatory_regions(n_regions=600, width=60)
dbio.pp.sequences(adata)
dbio.tl.contextual(adata, max_epochs=1)
dbio.tl.contextual_predict(adata, model=adata)
dbio.tl.attributions(adata, regions=[0, 1])
""",
    "chromatin_states": """
adata = dbio.datasets.simulate_chromatin_states(n_bins=2000)
dbio.tl.chromatin_states(adata, n_states=5)
""",
    "contacts": """
adata = dbio.datasets.simulate_contacts(200)
dbio.tl.contacts(adata)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_functions_multiply_in_full_precision(name, tmp_path):
    environment = {**os.environ, "JAX_DUMP_IR_TO": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "0"}
    script = SCRIPT.format(calls=CALLS[name])
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    products = [
        f"{path.name}: {line.strip()[:160]}"
        for path in tmp_path.rglob("*.mlir")
        for line in path.read_text().splitlines()
        if ("stablehlo.dot_general" in line or "stablehlo.convolution" in line) and "xi32>" not in line
    ]
    if name in ("deconvolve", "multiomics_vae", "contextual"):
        assert len(products) > 10
    rounded = [line for line in products if "HIGHEST" not in line]
    assert not rounded, "\n".join(rounded)
