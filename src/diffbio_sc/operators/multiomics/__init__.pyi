from .spatial_deconvolution import SpatialDeconvolution, SpatialDeconvolutionConfig
from .spatial_genes import DifferentiableSpatialGeneDetector, SpatialGeneDetectorConfig

__all__ = [
    "DifferentiableSpatialGeneDetector",
    "SpatialDeconvolution",
    "SpatialDeconvolutionConfig",
    "SpatialGeneDetectorConfig",
]
