from ._pbmc_tissue import pbmc_tissue
from ._simulate_chromatin_states import simulate_chromatin_states
from ._simulate_contacts import simulate_contacts
from ._simulate_regulatory_regions import simulate_regulatory_regions

__all__ = [
    "pbmc_tissue",
    "simulate_chromatin_states",
    "simulate_contacts",
    "simulate_regulatory_regions",
]
