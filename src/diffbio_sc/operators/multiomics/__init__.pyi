from .spatial_deconvolution import SpatialDeconvolution, SpatialDeconvolutionConfig

__all__ = ["SpatialDeconvolution", "SpatialDeconvolutionConfig"]
