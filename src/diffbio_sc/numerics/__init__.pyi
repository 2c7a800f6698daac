from . import count_likelihoods, count_regression, quadratic, signatures, spike_and_slab

__all__ = ["count_likelihoods", "count_regression", "quadratic", "signatures", "spike_and_slab"]
