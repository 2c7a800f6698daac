from ._deconvolve import deconvolve
from ._spatial_genes import spatial_genes
from ._spatial_patterns import spatial_patterns

__all__ = ["deconvolve", "spatial_genes", "spatial_patterns"]
