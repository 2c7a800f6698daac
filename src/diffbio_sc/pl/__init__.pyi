from ._deconvolution import deconvolution
from ._spatial_genes import spatial_genes

__all__ = ["deconvolution", "spatial_genes"]
