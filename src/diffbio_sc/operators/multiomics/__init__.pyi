from .hic_contacts import HiCContactAnalysis, HiCContactAnalysisConfig
from .multiomics_vae import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig, product_of_experts
from .spatial_deconvolution import SpatialDeconvolution, SpatialDeconvolutionConfig
from .spatial_genes import DifferentiableSpatialGeneDetector, SpatialGeneDetectorConfig

__all__ = [
    "DifferentiableMultiOmicsVAE",
    "DifferentiableSpatialGeneDetector",
    "HiCContactAnalysis",
    "HiCContactAnalysisConfig",
    "MultiOmicsVAEConfig",
    "SpatialDeconvolution",
    "SpatialDeconvolutionConfig",
    "SpatialGeneDetectorConfig",
    "product_of_experts",
]
