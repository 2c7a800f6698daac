"""Spatial statistics: kernels, score tests, Gaussian processes."""
