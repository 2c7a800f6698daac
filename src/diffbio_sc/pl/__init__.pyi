from ._chromatin_states import chromatin_states
from ._deconvolution import deconvolution
from ._multiomics_vae import multiomics_vae
from ._peaks import peaks
from ._spatial_genes import spatial_genes
from ._state_enrichment import state_enrichment
from ._state_reproducibility import state_reproducibility

__all__ = [
    "chromatin_states",
    "deconvolution",
    "multiomics_vae",
    "peaks",
    "spatial_genes",
    "state_enrichment",
    "state_reproducibility",
]
