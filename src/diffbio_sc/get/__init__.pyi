from ._multiomics_vae import multiomics_vae
from ._peaks import peaks
from ._proportions import proportions
from ._spatial_genes import spatial_genes

__all__ = ["multiomics_vae", "peaks", "proportions", "spatial_genes"]
