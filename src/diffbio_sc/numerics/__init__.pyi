from . import (
    count_likelihoods,
    count_regression,
    gaussian_process_mixture,
    gaussian_processes,
    quadratic,
    quadratic_forms,
    signatures,
    spatial_kernels,
    spatial_score_test,
    spike_and_slab,
)

__all__ = [
    "count_likelihoods",
    "count_regression",
    "gaussian_process_mixture",
    "gaussian_processes",
    "quadratic",
    "quadratic_forms",
    "signatures",
    "spatial_kernels",
    "spatial_score_test",
    "spike_and_slab",
]
