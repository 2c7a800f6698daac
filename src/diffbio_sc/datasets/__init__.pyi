from ._pbmc_tissue import pbmc_tissue
from ._simulate_contacts import simulate_contacts

__all__ = ["pbmc_tissue", "simulate_contacts"]
