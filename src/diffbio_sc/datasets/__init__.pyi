from ._pbmc_tissue import pbmc_tissue
from ._simulate_chromatin_states import simulate_chromatin_states
from ._simulate_contacts import simulate_contacts

__all__ = [
    "pbmc_tissue",
    "simulate_chromatin_states",
    "simulate_contacts",
]
