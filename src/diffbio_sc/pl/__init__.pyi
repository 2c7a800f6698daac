from ._deconvolution import deconvolution
