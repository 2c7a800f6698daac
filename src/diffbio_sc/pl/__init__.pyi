from ._deconvolution import deconvolution

__all__ = ["deconvolution"]
