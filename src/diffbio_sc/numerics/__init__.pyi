from . import chains, counts, genome, latent, linear, sequence, spatial

__all__ = [
    "chains",
    "counts",
    "genome",
    "latent",
    "linear",
    "sequence",
    "spatial",
]
