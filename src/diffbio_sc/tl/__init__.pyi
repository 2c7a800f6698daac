from ._deconvolve import deconvolve
