from ._deconvolve import deconvolve
from ._spatial_genes import spatial_genes

__all__ = ["deconvolve", "spatial_genes"]
