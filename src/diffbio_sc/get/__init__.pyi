from ._proportions import proportions
from ._spatial_genes import spatial_genes

__all__ = ["proportions", "spatial_genes"]
