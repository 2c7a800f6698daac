from ._pbmc_tissue import pbmc_tissue
from ._simulate_chromatin_states import simulate_chromatin_states

__all__ = ["pbmc_tissue", "simulate_chromatin_states"]
