from ._pbmc_tissue import pbmc_tissue
from ._simulate_chromatin_states import simulate_chromatin_states
from ._simulate_contacts import simulate_contacts
from ._simulate_fragments import simulate_fragments
from ._simulate_multiomics import simulate_multiomics
from ._simulate_regulatory_regions import simulate_regulatory_regions
from ._simulate_spatial_genes import simulate_spatial_genes

__all__ = [
    "pbmc_tissue",
    "simulate_chromatin_states",
    "simulate_contacts",
    "simulate_fragments",
    "simulate_multiomics",
    "simulate_regulatory_regions",
    "simulate_spatial_genes",
]
