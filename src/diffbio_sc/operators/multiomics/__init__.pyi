from .multiomics_vae import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig, product_of_experts
from .spatial_deconvolution import SpatialDeconvolution, SpatialDeconvolutionConfig
from .spatial_genes import DifferentiableSpatialGeneDetector, SpatialGeneDetectorConfig

__all__ = [
    "DifferentiableMultiOmicsVAE",
    "DifferentiableSpatialGeneDetector",
    "MultiOmicsVAEConfig",
    "SpatialDeconvolution",
    "SpatialDeconvolutionConfig",
    "SpatialGeneDetectorConfig",
    "product_of_experts",
]
