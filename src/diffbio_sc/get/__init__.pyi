from ._deconvolution import deconvolution
from ._multiomics_vae import multiomics_vae
from ._peaks import peaks
from ._spatial_genes import spatial_genes

__all__ = ["deconvolution", "multiomics_vae", "peaks", "spatial_genes"]
